"""The same networks in PyTorch: what a user would pick instead, for the benchmark's `--against torch` to time.

Module names are those of the released state dicts, so that the weights of the golden networks load as they are; the
twin is checked against their maps before it is timed. Free of JAX, whose memory would count. Needs the extra `torch`.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from tests import golden_state

KINDS = ('tl', 'br', 'ct')
BOUND = 2e-5  # largest error of a map over the largest value of the golden one
Maps = dict[str, torch.Tensor]  # released name (tl_heats, ...) -> [B, channels, H, W]


class LineByLine(torch.autograd.Function):
  """Running maximum along an axis of [B, C, H, W], one line of cells after the other.

  In channels_last less work than torch.cummax, which keeps the places of the maxima too. The gradient goes to the cell
  that set the maximum.
  """

  @staticmethod
  def forward(ctx, x: torch.Tensor, dim: int, from_last: bool) -> torch.Tensor:
    y = torch.empty_like(x)
    before = None
    for i in _scan(x.shape[dim], from_last):
      here = y.select(dim, i)
      if before is None:
        here.copy_(x.select(dim, i))
      else:
        torch.maximum(x.select(dim, i), before, out=here)
      before = here
    ctx.save_for_backward(y)
    ctx.dim, ctx.from_last = dim, from_last
    return y

  @staticmethod
  def backward(ctx, g: torch.Tensor):
    (y,) = ctx.saved_tensors
    dim = ctx.dim
    order = list(_scan(y.shape[dim], ctx.from_last))
    dx = torch.empty_like(y)
    gathered = torch.zeros_like(g.select(dim, 0))
    for i, before in zip(order[:0:-1], order[-2::-1]):
      gathered = gathered + g.select(dim, i)
      kept = gathered * (y.select(dim, i) > y.select(dim, before))
      dx.select(dim, i).copy_(kept)
      gathered = gathered - kept
    dx.select(dim, order[0]).copy_(gathered + g.select(dim, order[0]))
    return dx, None, None


def cummax(x: torch.Tensor, dim: int, from_last: bool) -> torch.Tensor:
  """The same in PyTorch's own words."""
  return x.flip(dim).cummax(dim).values.flip(dim) if from_last else x.cummax(dim).values


def _scan(length: int, from_last: bool) -> range:
  return range(length - 1, -1, -1) if from_last else range(length)


POOLS: Mapping[str, Callable] = {'lines': LineByLine.apply, 'cummax': cummax}
HEIGHT, WIDTH = 2, 3
DIRECTIONS = {'tl': True, 'br': False}  # whether the corner's pools scan from the last index down


class Block(nn.Module):
  """Convolution without bias, norm, ReLU."""

  def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
    super().__init__()
    self.conv = nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, bias=False)
    self.bn = nn.BatchNorm2d(outputs)

  def forward(self, x):
    return torch.relu_(self.bn(self.conv(x)))


class Residual(nn.Module):
  def __init__(self, inputs: int, outputs: int, stride: int = 1):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
    self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
    self.skip = _conv_norm(inputs, outputs, stride) if stride != 1 or inputs != outputs else nn.Identity()

  def forward(self, x):
    y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
    return torch.relu_(y + self.skip(x))


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
  return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Hourglass(nn.Module):
  def __init__(self, dims: Sequence[int], blocks: Sequence[int]):
    super().__init__()
    here, below, count = dims[0], dims[1], blocks[0]
    self.up1 = nn.Sequential(*(Residual(here, here) for _ in range(count)))
    self.low1 = nn.Sequential(Residual(here, below, 2), *(Residual(below, below) for _ in range(count - 1)))
    if len(dims) > 2:
      self.low2 = Hourglass(dims[1:], blocks[1:])
    else:
      self.low2 = nn.Sequential(*(Residual(below, below) for _ in range(blocks[1])))
    self.low3 = nn.Sequential(*(Residual(below, below) for _ in range(count - 1)), Residual(below, here))

  def forward(self, x):
    low = self.low3(self.low2(self.low1(x)))
    return self.up1(x) + nn.functional.interpolate(low, scale_factor=2, mode='nearest')


class Pooling(nn.Module):
  """Corner, cascade corner or center pooling, with what follows them."""

  def __init__(self, kind: str, width: int, pooled: int, cascade: bool, running_max: Callable):
    super().__init__()
    self.kind, self.running_max = kind, running_max
    self.p1_conv1, self.p2_conv1 = Block(width, pooled, 3), Block(width, pooled, 3)
    self.cascade = cascade and kind != 'ct'
    if self.cascade:
      self.look_conv1, self.look_conv2 = Block(width, pooled, 3), Block(width, pooled, 3)
      self.P1_look_conv, self.P2_look_conv = (nn.Conv2d(pooled, pooled, 3, 1, 1, bias=False) for _ in range(2))
    self.p_conv1, self.p_bn1 = nn.Conv2d(pooled, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
    self.conv1, self.bn1 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
    self.conv2 = Block(width, width, 3)

  def _pool(self, x, dim):
    return self.running_max(x, dim, DIRECTIONS[self.kind])

  def forward(self, x):
    vertical, horizontal = self.p1_conv1(x), self.p2_conv1(x)
    if self.kind == 'ct':
      pooled = vertical.amax(HEIGHT, keepdim=True) + horizontal.amax(WIDTH, keepdim=True)
    else:
      if self.cascade:
        vertical = self.P1_look_conv(vertical + self._pool(self.look_conv1(x), WIDTH))
        horizontal = self.P2_look_conv(horizontal + self._pool(self.look_conv2(x), HEIGHT))
      pooled = self._pool(vertical, HEIGHT) + self._pool(horizontal, WIDTH)
    return self.conv2(torch.relu_(self.p_bn1(self.p_conv1(pooled)) + self.bn1(self.conv1(x))))


class _Hidden(nn.Module):
  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1)

  def forward(self, x):
    return torch.relu_(self.conv(x))


class Twin(nn.Module):
  """images [B, 3, H, W] normalised -> one Maps per stack in training, of the last stack alone in testing.

  Args:
    model: keys of `detector.DetectorConfig`.
    pools: a key of POOLS.
  """

  def __init__(self, model: Mapping, pools: str = 'lines'):
    super().__init__()
    dims, stacks, width = model['dims'], model['stacks'], model['head_width']
    centers, cascade = model.get('center_branch', True), model.get('cascade_corner_pooling', True)
    self.pre = nn.Sequential(Block(3, model['stem_width'], 7, 2), Residual(model['stem_width'], dims[0], 2))
    self.kps = nn.ModuleList(Hourglass(dims, model['blocks']) for _ in range(stacks))
    self.cnvs = nn.ModuleList(Block(dims[0], width, 3) for _ in range(stacks))
    self.inters = nn.ModuleList(Residual(dims[0], dims[0]) for _ in range(stacks - 1))
    self.inters_ = nn.ModuleList(_conv_norm(dims[0], dims[0]) for _ in range(stacks - 1))
    self.cnvs_ = nn.ModuleList(_conv_norm(width, dims[0]) for _ in range(stacks - 1))
    self.kinds = KINDS if centers else KINDS[:2]
    self.outputs = []
    for kind in self.kinds:
      pooling = (Pooling(kind, width, model['pool_width'], cascade, POOLS[pools]) for _ in range(stacks))
      self.add_module(f'{kind}_cnvs', nn.ModuleList(pooling))
      for output, channels in dict(heats=model['num_classes'], tags=1, regrs=2).items():
        if (kind, output) != ('ct', 'tags'):
          heads = (nn.Sequential(_Hidden(width, dims[0]), nn.Conv2d(dims[0], channels, 1)) for _ in range(stacks))
          self.add_module(f'{kind}_{output}', nn.ModuleList(heads))
          self.outputs.append((kind, f'{kind}_{output}'))

  def forward(self, images: torch.Tensor) -> list[Maps]:
    x, maps = self.pre(images), []
    for stack, hourglass in enumerate(self.kps):
      feature = self.cnvs[stack](hourglass(x))
      last = stack == len(self.kps) - 1
      if self.training or last:
        pooled = {kind: self.get_submodule(f'{kind}_cnvs')[stack](feature) for kind in self.kinds}
        maps.append({name: self.get_submodule(name)[stack](pooled[kind]) for kind, name in self.outputs})
      if not last:
        x = self.inters[stack](torch.relu_(self.inters_[stack](x) + self.cnvs_[stack](feature)))
    return maps


def load(twin: Twin, weights: Mapping[str, np.ndarray]) -> None:
  """Takes over a released state dict. Raises ValueError if a name is missing or left over."""
  tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
  found = twin.load_state_dict(tensors, strict=False)
  missing = [name for name in found.missing_keys if not name.endswith('num_batches_tracked')]
  if missing or found.unexpected_keys:
    raise ValueError(f'the twin is another network: missing {missing}, left over {found.unexpected_keys}')


def golden_error(name: str, pools: str) -> float:
  """Largest error of the twin's maps with the weights of a golden network, over the largest value of each map.

  Args:
    name: a key of `golden_state.NETWORKS`.
    pools: a key of POOLS.
  """
  golden = golden_state.read(f'small_net_{name}')
  twin = Twin(golden_state.NETWORKS[name], pools).eval()
  load(twin, golden_state.state_dict(golden))
  with torch.inference_mode():
    (maps,) = twin(torch.from_numpy(golden['x'].astype(np.float32)))
  expected = golden_state.under(golden, 'eval/map/')
  return max(golden_state.relative_error(found, expected[f'{output}/1']) for output, found in maps.items())


def prepared(model: Mapping, channels_last: bool, pools: str) -> Twin:
  """A twin with random weights that is to be timed: all cores, memory format set, checked against the golden maps.

  Raises:
    ValueError: the check fails.
  """
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)  # as XLA does
  name = 'centernet' if model.get('center_branch', True) else 'cornernet'
  if (error := golden_error(name, pools)) > BOUND:
    raise ValueError(f'the twin is not the published {name}: its maps differ by {error:.1e}, the bound is {BOUND}')
  torch.manual_seed(0)
  return Twin(model, pools).to(memory_format=_format(channels_last))


def random_images(batch: int, side: int, channels_last: bool) -> torch.Tensor:
  return torch.randn(batch, 3, side, side).to(memory_format=_format(channels_last))


def _format(channels_last: bool) -> torch.memory_format:
  return torch.channels_last if channels_last else torch.contiguous_format


def network(model: Mapping, side: int, channels_last: bool, pools: str) -> Callable[[], None]:
  """Image and mirror image of `side` x `side` pixels to the maps of the last stack."""
  twin = prepared(model, channels_last, pools).eval()
  images = random_images(2, side, channels_last)

  def run():
    with torch.inference_mode():
      twin(images)

  return run
