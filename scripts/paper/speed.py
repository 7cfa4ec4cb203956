"""Sec. 4.4: time per image of CornerNet and CenterNet, in one process, by turns, so that both meet the same load.

The parts: network (image and mirror image to maps), decoding (peaks, pairs, triplets), post-processing (soft-NMS), each
from inputs that are ready, and the whole image, from pixels in host memory to boxes. The parts take their inputs from
the network on the same image. Weights are random unless a checkpoint is given; random networks would find no triplets,
so that the same objects are added to the maps of both. Time hardly depends on what is found, apart from the published
soft-NMS, which works on the host and takes longer the more boxes there are: their number is told.
"""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from scripts.paper import published
from scripts.paper.side_by_side import Row, Table, common_and_notes
from scripts.timing import detection_parts, quiet_pairs
from scripts.timing.detection_parts import NETWORKS, PARTS, SETTINGS, SIZES
from triplet_det import evaluate
from triplet_det.data import image_files
from triplet_det.models import detector
from triplet_det.run import checkpoints
from triplet_det.run.config_history import flat


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--hg', choices=list(SIZES), default='tiny', help='depth of the hourglass (default: %(default)s)')
  parser.add_argument('--size', type=int, help='side of the image, pixels (default: 511, tiny 127)')
  parser.add_argument('--image', type=lambda text: Path(text).expanduser(), help='instead of noise of that size')
  parser.add_argument('--rounds', type=int, default=5, help='measured, after two to warm up (default: %(default)s)')
  parser.add_argument('--settings', choices=list(SETTINGS), default='published', help='of the test, for both')
  parser.add_argument('--checkpoint', nargs='+', default=[], metavar='NETWORK=FOLDER', help='cornernet=, centernet=')


def measure(arguments: argparse.Namespace, given: Mapping[str, epath.Path]) -> Table:
  """The comparison as a table of milliseconds, and CenterNet's time over CornerNet's.

  Args:
    arguments: of `add_arguments`.
    given: network -> run folder, instead of random weights.

  Raises:
    ValueError: an unknown network, no round, or a checkpoint of the other kind.
  """
  if unknown := sorted(given.keys() - NETWORKS.keys()):
    raise ValueError(f'no network {", ".join(unknown)} to measure; possible: {", ".join(NETWORKS)}')
  if arguments.rounds < 1:
    raise ValueError(f'there must be at least one round, got {arguments.rounds}')
  side = arguments.size or SIZES[arguments.hg]
  picture = detection_parts.noise(side, side)
  if arguments.image:
    picture = image_files.decode_image(arguments.image.read_bytes(), str(arguments.image))
  compiled, settings = {}, SETTINGS[arguments.settings]
  for name, test in settings.items():
    if name in given:
      weights = _weights(name, given[name])
    else:
      weights = detection_parts.random_weights(detection_parts.model_of(name, arguments.hg))
    compiled[name] = detection_parts.compile_parts(*weights, test, picture, objects=name not in given)
  programs = {f'{name}, {part}': compiled[name].parts[part] for part in PARTS for name in NETWORKS}
  how = dict(pairs=arguments.rounds, max_load=math.inf, min_seconds=0)
  measured = quiet_pairs.sample(lambda: quiet_pairs.take_turns(programs, **how))
  turns = measured.result
  about = dict(hg=arguments.hg, width=picture.shape[1], height=picture.shape[0], quirks=arguments.settings)
  recipes = {
    title: dict(flat(evaluate.fingerprint(settings[name], **about, cores=os.cpu_count())))
    for name, title in NETWORKS.items()
  }
  recipe, notes = common_and_notes(recipes, ('test.top_k', 'test.outside_margin'))
  for name, one in compiled.items():
    origin = given.get(name, 'random weights, objects added to the maps')
    kind = 'triplets' if name == 'centernet' else 'pairs'
    notes.append(f'{NETWORKS[name]}: {origin}; {one.pairs} {kind}, {one.boxes} boxes; {one.flops / 1e9:.1f} GFLOP')
  ratio = compiled['centernet'].flops / compiled['cornernet'].flops
  notes.append(
    f'GFLOP of CenterNet / CornerNet: {ratio:.3f} (network on image and mirror image; multiply-adds count 2)'
  )
  notes.append(f'meanwhile other processes kept {measured.others:.2f} of {os.cpu_count()} cores busy')
  title = 'Sec. 4.4: milliseconds per image, in the paper on a Tesla P100'
  rows = [_row(name, turns) for name in NETWORKS]
  return Table('speed', title, PARTS, rows, [quotient(turns)], recipe, notes)


def _weights(name: str, folder: epath.Path) -> tuple[detector.Detector, dict]:
  """Those of a run or an imported checkpoint."""
  variables, record = checkpoints.load_weights(folder)
  if record.model['center_branch'] != (name == 'centernet'):
    raise ValueError(f'{folder} is not {NETWORKS[name]}: center_branch is {record.model["center_branch"]}')
  return detector.build(record.model), variables


def _row(name: str, turns: quiet_pairs.Turns) -> Row:
  milliseconds = {
    f'round {i}': {part: 1e3 * samples[f'{name}, {part}'].seconds for part in PARTS}
    for i, samples in turns.rounds.items()
  }
  known = {f'Hourglass-{s}': published.MILLISECONDS.get(f'{name}-{s}') for s in ('52', '104')}
  paper = {whose: {'whole image': value} for whose, value in known.items() if value}
  return Row(NETWORKS[name], milliseconds, paper, median=True)


def quotient(turns: quiet_pairs.Turns) -> Row:
  """CenterNet's time over CornerNet's, round by round: what disturbs one disturbs the other."""
  runs = {
    f'round {i}': {p: samples[f'centernet, {p}'].seconds / samples[f'cornernet, {p}'].seconds for p in PARTS}
    for i, samples in turns.rounds.items()
  }
  quotient = published.MILLISECONDS['centernet-104'] / published.MILLISECONDS['cornernet-104']
  return Row('CenterNet / CornerNet', runs, {'Hourglass-104': {'whole image': quotient}}, median=True, spec='.3f')
