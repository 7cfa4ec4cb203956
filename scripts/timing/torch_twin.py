"""The same networks in PyTorch: what a user would pick instead, for the benchmark's `--against torch` to time.

Weights have the names of the released state dicts, so that those of the golden networks are taken as they are; the twin
is checked against their maps before it is timed, on the CPU or on a GPU. Free of JAX, whose memory would count. Needs
the extra `torch`.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from tests import golden_state

BOUND = 2e-5  # largest error of a map over the largest value of the golden one
HEIGHT, WIDTH = 2, 3
SLOTS = 128  # objects per image
WEIGHT = 0.1  # of pull and push, which are sums over the images
CLIP = 1e-4  # probabilities stay this far from 0 and 1
SMALL = 1e-4  # added to counts
Maps = dict[str, torch.Tensor]  # released name (tl_heats, ...) -> [B, channels, H, W]
Targets = Mapping[str, torch.Tensor]
# <kind>_heat [B, C, H, W], <kind>_cell [B, N] flat cells, <kind>_offset [B, N, 2], valid [B, N]


class RunningMax(torch.autograd.Function):
  """Running maximum along an axis of [B, C, H, W], one line of cells after the other.

  In channels_last less work than torch.cummax, which keeps the places of the maxima too. The gradient goes to the cell
  that set the maximum.
  """

  @staticmethod
  def forward(ctx, x: torch.Tensor, dim: int, from_last: bool) -> torch.Tensor:
    y = torch.empty_like(x)
    lines, maxima = _lines(x, dim, from_last), _lines(y, dim, from_last)
    maxima[0].copy_(lines[0])
    for line, before, here in zip(lines[1:], maxima, maxima[1:]):
      torch.maximum(line, before, out=here)
    ctx.save_for_backward(y)
    ctx.scan = dim, from_last
    return y

  @staticmethod
  def backward(ctx, g: torch.Tensor):
    (y,) = ctx.saved_tensors
    dx = torch.empty_like(y)
    maxima, gradients, results = (_lines(a, *ctx.scan) for a in (y, g, dx))
    gathered = torch.zeros_like(gradients[0])
    for i in range(len(maxima) - 1, 0, -1):
      gathered = gathered + gradients[i]
      kept = gathered * (maxima[i] > maxima[i - 1])
      results[i].copy_(kept)
      gathered = gathered - kept
    results[0].copy_(gathered + gradients[0])
    return dx, None, None


def _lines(x: torch.Tensor, dim: int, from_last: bool) -> tuple[torch.Tensor, ...]:
  return x.unbind(dim)[::-1] if from_last else x.unbind(dim)


class Twin:
  """images [B, 3, H, W] normalised -> Maps, one per stack in training, of the last stack alone in testing.

  Args:
    weights: by their released names; they say which network it is.
    training: whether norms take the statistics of the batch.
  """

  def __init__(self, weights: Mapping[str, torch.Tensor], *, training: bool):
    self.weights, self.training = weights, training
    self._modules = {name[:end] for name in weights for end in range(len(name)) if name[end] == '.'}
    self.kinds = [kind for kind in ('tl', 'br', 'ct') if f'{kind}_heats' in self._modules]

  def __call__(self, images: torch.Tensor) -> list[Maps]:
    x, maps = self._residual('pre.1', self._block('pre.0', images, 2), 2), []
    for i in self._numbered('kps'):
      feature = self._block(f'cnvs.{i}', self._hourglass(f'kps.{i}', x))
      last = f'kps.{i + 1}' not in self._modules
      if self.training or last:
        maps.append({})
        for kind in self.kinds:
          pooled = self._pooling(kind, f'{kind}_cnvs.{i}', feature)
          for name in (f'{kind}_heats', f'{kind}_tags', f'{kind}_regrs'):
            if name in self._modules:
              maps[-1][name] = self._conv(f'{name}.{i}.1', torch.relu_(self._conv(f'{name}.{i}.0.conv', pooled)))
      if not last:
        x = torch.relu_(self._conv_norm(f'inters_.{i}', x) + self._conv_norm(f'cnvs_.{i}', feature))
        x = self._residual(f'inters.{i}', x)
    return maps

  def _hourglass(self, name: str, x: torch.Tensor) -> torch.Tensor:
    low = self._residuals(f'{name}.low1', x, 2)
    deeper = self._hourglass if f'{name}.low2.low1' in self._modules else self._residuals
    low = self._residuals(f'{name}.low3', deeper(f'{name}.low2', low))
    return self._residuals(f'{name}.up1', x) + F.interpolate(low, scale_factor=2, mode='nearest')

  def _pooling(self, kind: str, name: str, x: torch.Tensor) -> torch.Tensor:
    """Corner, cascade corner or center pooling, with what follows them."""

    def pool(x, dim):
      if x.is_cuda:  # a hundred small kernels there, where one will do
        return x.flip(dim).cummax(dim).values.flip(dim) if kind == 'tl' else x.cummax(dim).values
      return RunningMax.apply(x, dim, kind == 'tl')

    vertical, horizontal = self._block(f'{name}.p1_conv1', x), self._block(f'{name}.p2_conv1', x)
    if kind == 'ct':
      pooled = vertical.amax(HEIGHT, keepdim=True) + horizontal.amax(WIDTH, keepdim=True)
    else:
      if f'{name}.look_conv1' in self._modules:
        look = pool(self._block(f'{name}.look_conv1', x), WIDTH), pool(self._block(f'{name}.look_conv2', x), HEIGHT)
        vertical = self._conv(f'{name}.P1_look_conv', vertical + look[0])
        horizontal = self._conv(f'{name}.P2_look_conv', horizontal + look[1])
      pooled = pool(vertical, HEIGHT) + pool(horizontal, WIDTH)
    pooled = self._norm(f'{name}.p_bn1', self._conv(f'{name}.p_conv1', pooled))
    skip = self._norm(f'{name}.bn1', self._conv(f'{name}.conv1', x))
    return self._block(f'{name}.conv2', torch.relu_(pooled + skip))

  def _residuals(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    for i in self._numbered(name):
      x = self._residual(f'{name}.{i}', x, 1 if i else stride)
    return x

  def _residual(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    y = torch.relu_(self._norm(f'{name}.bn1', self._conv(f'{name}.conv1', x, stride)))
    y = self._norm(f'{name}.bn2', self._conv(f'{name}.conv2', y))
    skip = self._conv_norm(f'{name}.skip', x, stride) if f'{name}.skip' in self._modules else x
    return torch.relu_(y + skip)

  def _block(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return torch.relu_(self._norm(f'{name}.bn', self._conv(f'{name}.conv', x, stride)))

  def _conv_norm(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return self._norm(f'{name}.1', self._conv(f'{name}.0', x, stride))

  def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = self.weights[f'{name}.weight']
    return F.conv2d(x, kernel, self.weights.get(f'{name}.bias'), stride, kernel.shape[-1] // 2)

  def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, scale, bias = (self.weights[f'{name}.{of}'] for of in ('running_mean', 'running_var', 'weight', 'bias'))
    return F.batch_norm(x, mean, var, scale, bias, self.training)

  def _numbered(self, name: str) -> Iterator[int]:
    return itertools.takewhile(lambda i: f'{name}.{i}' in self._modules, itertools.count())


def golden_error(name: str, device: str = 'cpu') -> float:
  """Largest error of the twin's maps with the weights of a golden network, over the largest value of each map."""
  golden = golden_state.read(f'small_net_{name}')
  weights = {key: torch.from_numpy(a).to(device) for key, a in golden_state.state_dict(golden).items()}
  with torch.inference_mode():
    (maps,) = Twin(weights, training=False)(torch.from_numpy(golden['x'].astype(np.float32)).to(device))
  expected = golden_state.under(golden, 'eval/map/')
  return max(golden_state.relative_error(found.cpu(), expected[f'{output}/1']) for output, found in maps.items())


def loss(maps: list[Maps], targets: Targets) -> dict[str, torch.Tensor]:
  """The terms of Eq. (2) as published for one GPU's images, means over the stacks; the loss is their sum."""
  terms = dict.fromkeys(('focal', 'pull', 'push', 'offset'), 0.0)
  for m in maps:
    for kind in (name.removesuffix('_heats') for name in m if name.endswith('_heats')):
      terms['focal'] += _focal(m[f'{kind}_heats'], targets[f'{kind}_heat'])
      offset = _at_cells(m[f'{kind}_regrs'], targets[f'{kind}_cell'])
      terms['offset'] += _offset(offset, targets[f'{kind}_offset'], targets['valid'])
    tl, br = (_at_cells(m[f'{kind}_tags'], targets[f'{kind}_cell'])[..., 0] for kind in ('tl', 'br'))
    pull, push = _pull_push(tl, br, targets['valid'])
    terms['pull'] += WEIGHT * pull
    terms['push'] += WEIGHT * push
  return {name: term / len(maps) for name, term in terms.items()}


def _focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
  p = logits.sigmoid().clamp(CLIP, 1 - CLIP)
  positive = target == 1
  cells = torch.where(positive, p.log() * (1 - p) ** 2, (1 - p).log() * p**2 * (1 - target) ** 4)
  return -cells.sum() / positive.sum().clamp(min=1)


def _at_cells(field: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
  """[B, D, H, W] at the flat cells [B, N] -> [B, N, D]."""
  flat = field.flatten(2).transpose(1, 2)
  return flat.gather(1, cells[..., None].expand(-1, -1, flat.shape[2]))


def _offset(offset: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
  return F.smooth_l1_loss(offset[valid], target[valid], reduction='sum') / (valid.sum() + SMALL)


def _pull_push(tl: torch.Tensor, br: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Embeddings [B, N] -> both sums over the images."""
  count = valid.sum(1)
  mean = (tl + br) / 2
  pull = (((tl - mean) ** 2 + (br - mean) ** 2) * valid).sum(1) / (count + SMALL)
  hinge = (1 - (mean[:, :, None] - mean[:, None, :]).abs()).clamp(min=0) - 1 / (count + SMALL)[:, None, None]
  both = valid[:, :, None] & valid[:, None, :]
  push = (hinge * both).sum((1, 2)) / ((count - 1) * count + SMALL)
  return pull.sum(), push.sum()


@dataclasses.dataclass(frozen=True)
class How:
  """How a twin is run: on `device`, cpu or cuda, in a memory format, with torch.compile or not, in a `dtype`."""

  channels_last: bool
  compiled: bool = False
  dtype: str = 'float32'  # or bfloat16, by autocast
  device: str = 'cpu'

  def forward(self, twin: Twin) -> Callable[[torch.Tensor], list[Maps]]:
    run = torch.compile(lambda images: twin(images)) if self.compiled else twin

    def forward(images):
      with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == 'bfloat16'):
        maps = run(images)
      return [{name: a.float() for name, a in one.items()} for one in maps]

    return forward

  def wait(self) -> None:
    if self.device == 'cuda':
      torch.cuda.synchronize()


def network(shapes: Mapping[str, list[int]], side: int, **how: object) -> Callable[[], None]:
  """Image and mirror image of `side` x `side` pixels to the maps of the last stack; see `_checked` for the shapes."""
  how = How(**how)
  twin, images = _checked(shapes, how, training=False), _random((2, 3, side, side), how)
  forward = how.forward(twin)

  def run():
    with torch.inference_mode():
      forward(images)
    how.wait()

  return run


def train_step(shapes: Mapping[str, list[int]], batch: int, side: int, **how: object) -> Callable[[], None]:
  """A step on `batch` images: forward, Eq. (2) on targets that are ready, backward, Adam."""
  how = How(**how)
  twin, images = _checked(shapes, how, training=True), _random((batch, 3, side, side), how)
  targets = {name: a.to(how.device) for name, a in random_targets(twin, batch, (side + 1) // 4).items()}
  learnt = [array.requires_grad_() for name, array in twin.weights.items() if '.running_' not in name]
  adam, forward = torch.optim.Adam(learnt, lr=2.5e-4), how.forward(twin)

  def run():
    adam.zero_grad()
    sum(loss(forward(images), targets).values()).backward()
    adam.step()
    how.wait()

  return run


def random_targets(twin: Twin, batch: int, cells: int, objects: int = 8) -> Targets:
  """Targets with so many objects per image; their heatmaps fall off from them, as Gaussians do."""
  targets = {'valid': (torch.arange(SLOTS) < objects).expand(batch, -1)}
  num_classes = len(twin.weights['tl_heats.0.1.bias'])
  for kind in twin.kinds:
    cell = torch.randint(cells * cells, (batch, SLOTS))
    heat = 0.9 * torch.rand(batch, num_classes, cells * cells)
    heat[torch.arange(batch)[:, None], torch.arange(objects) % num_classes, cell[:, :objects]] = 1
    targets[f'{kind}_heat'] = heat.reshape(batch, -1, cells, cells)
    targets[f'{kind}_cell'], targets[f'{kind}_offset'] = cell, torch.rand(batch, SLOTS, 2)
  return targets


def _checked(shapes: Mapping[str, list[int]], how: How, *, training: bool) -> Twin:
  """A twin with random weights of these shapes that is to be timed with the whole device.

  Raises:
    ValueError: there is no such device, or with golden weights the twin does not give the golden maps.
  """
  if how.device == 'cuda' and not torch.cuda.is_available():
    raise ValueError(f'PyTorch {torch.__version__} sees no GPU')
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)  # as XLA does
  torch.manual_seed(0)
  weights = {}
  for name, shape in shapes.items():
    kernel = len(shape) == 4
    start = 0.0 if name.endswith(('.bias', '.running_mean')) else 1.0
    if kernel:
      weights[name] = _random(shape, how) / np.prod(shape[1:]) ** 0.5
    else:
      weights[name] = torch.full(shape, start, device=how.device)
  twin = Twin(weights, training=training)
  name = 'centernet' if 'ct' in twin.kinds else 'cornernet'
  _as_xla_by_default(False)
  if (error := golden_error(name, how.device)) > BOUND:
    raise ValueError(f'the twin is not the published {name}: its maps differ by {error:.1e}, the bound is {BOUND}')
  _as_xla_by_default(True)
  return twin


def _as_xla_by_default(on: bool) -> None:
  """On a GPU: float32 by TF32, and the fastest kernel of those that were tried."""
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = on


def _random(shape, how: How) -> torch.Tensor:
  memory_format = torch.channels_last if how.channels_last else torch.contiguous_format
  return torch.randn(*shape).to(how.device, memory_format=memory_format)
