"""Sec. 4.4: time per image of CornerNet and CenterNet, in one process, by turns, so that both meet the same load.

The parts: network (image and mirror image to maps), decoding (peaks, pairs, triplets), post-processing (soft-NMS), each
from inputs that are ready, and the whole image, from pixels in host memory to boxes. The parts take their inputs from
the network on the same image. Weights are random unless a checkpoint is given; random networks would find no triplets,
so that the same objects are added to the maps of both. Time hardly depends on what is found, apart from the published
soft-NMS, which works on the host and takes longer the more boxes there are: their number is told.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.paper import published
from scripts.paper.side_by_side import Row, Table, common_and_notes
from scripts.paper.table_runs import flat
from scripts.timing import quiet_pairs
from scripts.timing.detection_parts import (
  NETWORKS,
  PARTS,
  SETTINGS,
  SIZES,
  compile_parts,
  model_of,
  noise,
  random_weights,
  weights,
)
from triplet_det import evaluate
from triplet_det.data import image_files


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
  picture = noise(side, side)
  if image is not None:
    picture = image_files.decode_image(image.read_bytes(), str(image))
  arms = {}
  for name, test in SETTINGS[settings].items():
    module, variables = weights(name, given[name]) if name in given else random_weights(model_of(name, hg))
    arms[name] = compile_parts(module, variables, test, picture, objects=name not in given)
  measured = quiet_pairs.sample(
    quiet_pairs.Arm(lambda: by_turns({name: arm.parts for name, arm in arms.items()}, rounds))
  )
  milliseconds = measured.result
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
  notes.append(f'meanwhile other processes kept {measured.others:.2f} of {os.cpu_count()} cores busy')
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
        seconds = quiet_pairs.sample(quiet_pairs.Arm(parts[name][part])).seconds
        found[name].setdefault(f'round {number}', {})[part] = 1e3 * seconds
  for by_round in found.values():
    del by_round['round 0']
  return found


def quotient(milliseconds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Row:
  """CenterNet's time over CornerNet's, round by round: what disturbs one disturbs the other."""
  corner, center = milliseconds['cornernet'], milliseconds['centernet']
  ratios = {label: {part: center[label][part] / corner[label][part] for part in PARTS} for label in center}
  quotient = published.MILLISECONDS['centernet-104'] / published.MILLISECONDS['cornernet-104']
  return Row('CenterNet / CornerNet', ratios, {'Hourglass-104': {'whole image': quotient}}, median=True, spec='.3f')


def _row(name: str, by_round: Mapping[str, Mapping[str, float]]) -> Row:
  known = {f'Hourglass-{s}': f'{name}-{s}' for s in ('52', '104') if f'{name}-{s}' in published.MILLISECONDS}
  return Row(
    NETWORKS[name],
    by_round,
    {whose: {'whole image': published.MILLISECONDS[key]} for whose, key in known.items()},
    median=True,
  )
