"""Sec. 4.4: time per image of CornerNet and CenterNet, in one process, by turns, so that both meet the same load.

The parts: network (image and mirror image to maps), decoding (peaks, pairs, triplets), post-processing (soft-NMS), each
from inputs that are ready, and the whole image, from pixels in host memory to boxes. The parts take their inputs from
the network on the same image. Weights are random unless a checkpoint is given; random networks would find no triplets,
so that the same objects are added to the maps of both. Time hardly depends on what is found, apart from the published
soft-NMS, which works on the host and takes longer the more boxes there are: their number is told.
"""

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from scripts import paper
from scripts.runs import flat
from scripts.side_by_side import Row, Table, common_and_notes
from triplet_det import checkpoints, evaluate, inference
from triplet_det.data import augment
from triplet_det.models import detector
from triplet_det.structs import KeypointMaps

PARTS = ('network', 'decoding', 'post-processing', 'whole image')
NETWORKS = {'cornernet': 'CornerNet', 'centernet': 'CenterNet'}
SIZES = {'tiny': 127, '52': 511, '104': 511}  # pixels
SOUND = inference.Settings()
SETTINGS = {
  'published': {'cornernet': inference.PUBLISHED_CORNERNET, 'centernet': inference.PUBLISHED_CENTERNET},
  'sound': {'cornernet': dataclasses.replace(SOUND, top_k=100, outside_margin=None), 'centernet': SOUND},
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """One detector, compiled for one image, and what it found."""

  parts: Mapping[str, Callable[[], object]]  # each waits for its result
  pairs: int  # with a score; of CenterNet, with a center too
  boxes: int
  flops: float  # of the network, as XLA counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--hg', choices=list(SIZES), default='tiny', help='depth of the hourglass (default: %(default)s)')
  parser.add_argument('--size', type=int, help='side of the image, pixels (default: 511, tiny 127)')
  parser.add_argument('--image', type=Path, help='instead of noise of that size')
  parser.add_argument('--rounds', type=int, default=5, help='measured, after one to warm up (default: %(default)s)')
  parser.add_argument('--settings', choices=list(SETTINGS), default='published', help='of the test, for both')
  parser.add_argument('--checkpoint', nargs='+', default=[], metavar='NETWORK=FOLDER', help='cornernet=, centernet=')


def measure(
  *,
  hg: str = 'tiny',
  size: int | None = None,
  image: Path | None = None,
  rounds: int = 5,
  settings: str = 'published',
  checkpoint: Mapping[str, Path] | None = None,
) -> Table:
  """The comparison as a table of milliseconds, and CenterNet's time over CornerNet's.

  Args:
    hg: tiny, 52 or 104.
    size: side of the image in pixels.
    image: a picture instead of noise.
    rounds: measured, after one to warm up.
    settings: published or sound.
    checkpoint: network -> run folder, instead of random weights of `hg`.

  Raises:
    ValueError: an unknown network, no round, or a checkpoint of the other kind.
  """
  given = dict(checkpoint or {})
  if unknown := sorted(given.keys() - NETWORKS.keys()):
    raise ValueError(f'no network {", ".join(unknown)} to measure; possible: {", ".join(NETWORKS)}')
  if rounds < 1:
    raise ValueError(f'there must be at least one round, got {rounds}')
  side = size or SIZES[hg]
  picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  if image is not None:
    picture = augment.decode_image(image.read_bytes(), str(image))
  arms = {}
  for name, test in SETTINGS[settings].items():
    if name in given:
      module, variables, objects = *weights(name, given[name]), None
    else:
      module, variables = random_weights(name, hg)
      canvas = inference.place_batch([picture], 1.0, test, 1)[0].shape[1:3]
      cells = [(length + 1) // 4 for length in canvas]
      objects = objects_in_maps(*cells, module.config.num_classes, centers=name == 'centernet')
    arms[name] = compile_arm(module, variables, test, picture, objects)
  load_before = os.getloadavg()
  milliseconds = by_turns({name: arm.parts for name, arm in arms.items()}, rounds)
  about = dict(hg=hg, width=picture.shape[1], height=picture.shape[0], quirks=settings, cores=os.cpu_count())
  recipes = {
    title: dict(flat(evaluate.fingerprint(SETTINGS[settings][name], **about))) for name, title in NETWORKS.items()
  }
  recipe, notes = common_and_notes(recipes, ('test.top_k', 'test.outside_margin'))
  for name, arm in arms.items():
    origin = given.get(name, 'random weights, objects added to the maps')
    kind = 'triplets' if name == 'centernet' else 'pairs'
    notes.append(f'{NETWORKS[name]}: {origin}; {arm.pairs} {kind}, {arm.boxes} boxes; {arm.flops / 1e9:.1f} GFLOP')
  ratio = arms['centernet'].flops / arms['cornernet'].flops
  notes.append(
    f'GFLOP of CenterNet / CornerNet: {ratio:.3f} (network on image and mirror image; multiply-adds count 2)'
  )
  loads = ', '.join(f'{load:.2f}' for load in (load_before[0], os.getloadavg()[0]))
  notes.append(
    f'load average before and after: {loads} on {os.cpu_count()} cores; this process makes part of it, other '
    'processes falsify the times'
  )
  return Table(
    'speed',
    'Sec. 4.4: milliseconds per image, in the paper on a Tesla P100',
    PARTS,
    [_row(name, milliseconds[name]) for name in NETWORKS],
    [quotient(milliseconds)],
    recipe,
    notes,
  )


def by_turns(parts: Mapping[str, Mapping[str, Callable]], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
  """Network -> round -> part -> milliseconds. One round before them is not counted."""
  found = {name: {} for name in parts}
  for number in range(rounds + 1):
    for part in PARTS:
      for name in parts:
        start = time.perf_counter()
        parts[name][part]()
        found[name].setdefault(f'round {number}', {})[part] = 1e3 * (time.perf_counter() - start)
  for by_round in found.values():
    del by_round['round 0']
  return found


def quotient(milliseconds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Row:
  """CenterNet's time over CornerNet's, round by round: what disturbs one disturbs the other."""
  corner, center = milliseconds['cornernet'], milliseconds['centernet']
  ratios = {label: {part: center[label][part] / corner[label][part] for part in PARTS} for label in center}
  published = paper.MILLISECONDS['centernet-104'] / paper.MILLISECONDS['cornernet-104']
  return Row('CenterNet / CornerNet', ratios, {'Hourglass-104': {'whole image': published}}, median=True, spec='.3f')


def compile_arm(module: detector.Detector, variables, settings: inference.Settings, image: np.ndarray, objects) -> Arm:
  """The very programs of `inference` for one image, cut at the borders of the parts.

  `objects` are maps to be added to those of the network, or None.
  """
  canvases, placement = inference.place_batch([image], settings.scales[0], settings, 1)
  images = inference.network_input(canvases, settings)

  def apply(variables, images):
    weights, objects = variables
    maps = module.apply(weights, images)[-1]
    return maps if objects is None else jax.tree.map(lambda a, b: 1e-3 * a + b, maps, objects)

  variables = jax.device_put((variables, objects))
  network = jax.jit(apply).lower(variables, images).compile()
  maps = jax.block_until_ready(network(variables, images))

  @jax.jit
  def decode(maps, placement):
    located = inference.locate(maps, settings, canvases.shape[1:3], placement)
    # With this setting `finish` stops before soft-NMS.
    return inference.finish([located], dataclasses.replace(settings, stale_rows=True))[0]

  pairs = jax.block_until_ready(decode(maps, placement))
  on_device = jax.jit(functools.partial(inference.select, settings=settings))

  def select():
    return list(inference.per_image([0], pairs if settings.stale_rows else on_device(pairs), settings))

  whole = inference.Detector(apply, variables, settings, batch_size=1)
  (found,) = whole([image])
  parts = {
    'network': lambda: jax.block_until_ready(network(variables, images)),
    'decoding': lambda: jax.block_until_ready(decode(maps, placement)),
    'post-processing': select,
    'whole image': lambda: whole([image]),
  }
  return Arm(parts, int(pairs.valid.sum()), len(found.scores), network.cost_analysis()['flops'])


def objects_in_maps(height: int, width: int, num_classes: int, *, centers: bool, count: int = 20) -> KeypointMaps:
  """Maps [2, H, W, .] of an image of `height` x `width` cells and its mirror image in which `count` objects stand out.

  Scores: 0.95 at their keypoints, 0.0025 elsewhere. Embeddings: a number of its own for each object, else 0.
  """
  rng = np.random.default_rng(1)
  heats = {kind: np.full((2, height, width, num_classes), -6, np.float32) for kind in ('tl', 'br', 'center')}
  embeddings = {kind: np.zeros((2, height, width, 1), np.float32) for kind in ('tl', 'br')}
  for i in range(count):
    x1, y1 = rng.integers(0, width // 2), rng.integers(0, height // 2)
    x2, y2 = x1 + rng.integers(4, width // 2), y1 + rng.integers(4, height // 2)
    for row, (left, right) in enumerate(((x1, x2), (width - 1 - x2, width - 1 - x1))):
      for kind, y, x in (('tl', y1, left), ('br', y2, right), ('center', (y1 + y2) // 2, (left + right) // 2)):
        heats[kind][row, y, x, i % num_classes] = 3
        if kind in embeddings:
          embeddings[kind][row, y, x] = i + 1
  offset = np.full((2, height, width, 2), 0.5, np.float32)
  center = dict(center_heat=heats['center'], center_offset=offset) if centers else {}
  corners = {f'{kind}_heat': heats[kind] for kind in ('tl', 'br')} | {f'{k}_embed': e for k, e in embeddings.items()}
  return KeypointMaps(**corners, tl_offset=offset, br_offset=offset, **center)


def random_weights(name: str, hg: str) -> tuple[detector.Detector, object]:
  centers = name == 'centernet'
  switches = dict(center_branch=centers, center_pooling=centers, cascade_corner_pooling=centers)
  module = detector.build(detector.VARIANTS['tiny' if hg == 'tiny' else f'hourglass-{hg}'] | switches)
  side = module.config.size_multiple - 1
  # This generator's initial values compile in a fraction of the default one's time.
  made = jax.jit(module.init)(jax.random.key(0, impl='rbg'), np.zeros((1, side, side, 3), np.float32))
  return module, jax.block_until_ready(made)


def weights(name: str, folder: Path) -> tuple[detector.Detector, object]:
  """Those of a run or an imported checkpoint."""
  variables, record = checkpoints.load_weights(folder)
  if record.model['center_branch'] != (name == 'centernet'):
    raise ValueError(f'{folder} is not {NETWORKS[name]}: center_branch is {record.model["center_branch"]}')
  return detector.build(record.model), jax.device_put(variables)


def _row(name: str, by_round: Mapping[str, Mapping[str, float]]) -> Row:
  known = {f'Hourglass-{s}': f'{name}-{s}' for s in ('52', '104') if f'{name}-{s}' in paper.MILLISECONDS}
  return Row(
    NETWORKS[name],
    by_round,
    {whose: {'whole image': paper.MILLISECONDS[key]} for whose, key in known.items()},
    median=True,
  )
