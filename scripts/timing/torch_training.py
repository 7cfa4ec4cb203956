"""A training step of the PyTorch twin: forward, Eq. (2) on targets that are ready, backward, Adam."""

from collections.abc import Callable, Mapping

import torch

from scripts.timing import torch_twin

WEIGHT = 0.1  # of pull and push, which are sums over the images
CLIP = 1e-4  # probabilities stay this far from 0 and 1
SMALL = 1e-4  # added to counts
SLOTS = 128  # objects per image
Targets = Mapping[str, torch.Tensor]
# <kind>_heat [B, C, H, W], <kind>_cell [B, N] flat cells, <kind>_offset [B, N, 2], valid [B, N]


def loss(maps: list[torch_twin.Maps], targets: Targets) -> dict[str, torch.Tensor]:
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
  distances = torch.nn.functional.smooth_l1_loss(offset[valid], target[valid], reduction='sum')
  return distances / (valid.sum() + SMALL)


def _pull_push(tl: torch.Tensor, br: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Embeddings [B, N] -> both sums over the images."""
  count = valid.sum(1)
  mean = (tl + br) / 2
  pull = (((tl - mean) ** 2 + (br - mean) ** 2) * valid).sum(1) / (count + SMALL)
  hinge = (1 - (mean[:, :, None] - mean[:, None, :]).abs()).clamp(min=0) - 1 / (count + SMALL)[:, None, None]
  both = valid[:, :, None] & valid[:, None, :]
  push = (hinge * both).sum((1, 2)) / ((count - 1) * count + SMALL)
  return pull.sum(), push.sum()


def random_targets(model: Mapping, batch: int, cells: int, objects: int = 8) -> Targets:
  """Targets with so many objects per image; their heatmaps fall off from them, as Gaussians do."""
  targets = {'valid': (torch.arange(SLOTS) < objects).expand(batch, -1)}
  for kind in torch_twin.KINDS:
    cell = torch.randint(cells * cells, (batch, SLOTS))
    heat = 0.9 * torch.rand(batch, model['num_classes'], cells * cells)
    heat[torch.arange(batch)[:, None], torch.arange(objects) % model['num_classes'], cell[:, :objects]] = 1
    targets[f'{kind}_heat'] = heat.reshape(batch, -1, cells, cells)
    targets[f'{kind}_cell'], targets[f'{kind}_offset'] = cell, torch.rand(batch, SLOTS, 2)
  return targets


def train_step(model: Mapping, batch: int, side: int, channels_last: bool, pools: str) -> Callable[[], None]:
  """A step on `batch` images of `side` x `side` pixels."""
  twin = torch_twin.prepared(model, channels_last, pools).train()
  images = torch_twin.random_images(batch, side, channels_last)
  targets = random_targets(model, batch, (side + 1) // 4)
  adam = torch.optim.Adam(twin.parameters(), lr=2.5e-4)

  def run():
    adam.zero_grad()
    sum(loss(twin(images), targets).values()).backward()
    adam.step()

  return run
