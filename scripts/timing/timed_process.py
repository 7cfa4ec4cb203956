"""startup and memory of `scripts/benchmark.py`."""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from scripts.paper.side_by_side import Row, Table
from scripts.timing import detection_parts, quiet_pairs
from scripts.timing.benchmark_table import GEMM, OURS, plain_table, timed_row, timed_table
from scripts.timing.detection_parts import NETWORKS, SIZES, SOUND
from scripts.timing.own_process import ROOT, memory
from scripts.timing.quiet_pairs import Arm
from scripts.timing.timed_detection import MB, add_network_arguments
from triplet_det.categories import CategoryTable
from triplet_det.data.layouts.coco_json import read_annotations
from triplet_det.detection import batches, trained_network
from triplet_det.run import checkpoints

SETTLED = 100  # images after which memory should not grow any more


def add_startup_arguments(parser: argparse.ArgumentParser) -> None:
  add_network_arguments(parser, hg='104')
  parser.add_argument('--checkpoint', type=Path, help='run folder, instead of random weights of that network')
  parser.add_argument('--size', type=int, help='side of the image, pixels (default: 511, tiny 127)')


def startup(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """Fresh processes: weights on disk, programs in the compilation cache, to the boxes of a first image."""
  side = arguments.size or SIZES[arguments.hg]
  with contextlib.ExitStack() as stack:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = arguments.checkpoint or write_run(
      scratch / 'run', detection_parts.model_of(arguments.detector, arguments.hg)
    )
    cache = {'JAX_COMPILATION_CACHE_DIR': str(scratch / 'cache'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}

    def start() -> dict:
      module = 'scripts.timing.first_detection'
      command = [sys.executable, '-m', module, str(folder), str(side), str(side), str(time.time())]
      done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.PIPE, text=True, check=False)
      if done.returncode:
        raise ValueError(f'no first detection from {folder}; what the process said is above')
      return json.loads(done.stdout.splitlines()[-1])

    first = start()['seconds']
    gemm, gemm_flops = quiet_pairs.gemm()
    turns = quiet_pairs.take_turns({OURS: Arm(start, warm=True), GEMM: gemm}, **measure)
  rows = [timed_row('whole process', turns, gemm_flops)]
  for part in first:
    runs = {f'round {i}': {'ms': 1e3 * one[OURS].result['seconds'][part]} for i, one in turns.rounds.items()}
    rows.append(Row(part, runs, {}, median=True, spec='.4g'))
  told = ', '.join(f'{part} {seconds:.1f} s' for part, seconds in first.items())
  network = arguments.checkpoint or f'{NETWORKS[arguments.detector]} {arguments.hg}'
  settings = dict(hg=arguments.hg, detector=arguments.detector, size=side, checkpoint=str(arguments.checkpoint or ''))
  title = f'Start to first detection: {network}, {side} x {side} pixels'
  return timed_table('startup', title, rows, turns, gemm_flops, settings, [f'the first, with an empty cache: {told}'])


def write_run(folder: Path, model: Mapping) -> Path:
  """A run folder with random weights."""
  _, variables = detection_parts.random_weights(model)
  names = tuple(f'class {i}' for i in range(model['num_classes']))
  categories = CategoryTable(tuple(range(1, 1 + len(names))), names)
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(
    variables,
    checkpoints.RunRecord(step=0, categories=categories, model=model, test=dataclasses.asdict(SOUND)),
  )
  saved.close()
  return folder


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
  add_network_arguments(parser, hg='tiny')
  parser.add_argument('--images', type=int, default=1000, help='how many are predicted (default: %(default)s)')
  parser.add_argument('--largest', type=int, default=640, help='longest side, pixels (default: %(default)s)')
  parser.add_argument('--annotations', type=Path, help='COCO JSON whose image sizes are taken in turn, not random ones')


def resident(arguments: argparse.Namespace, _: Mapping) -> Table:
  """Memory over many predictions of images of mixed sizes, and how many programs these sizes take."""
  if arguments.images < 2:
    raise ValueError(f'growth takes at least 2 images, got {arguments.images}')
  sizes = _sizes(arguments)
  network = detection_parts.random_weights(detection_parts.model_of(arguments.detector, arguments.hg))
  detector = trained_network.make_detector(*network, SOUND, batch_size=1)
  settled = min(SETTLED, arguments.images // 2)
  held = {}
  for number in range(1, arguments.images + 1):
    detector([detection_parts.noise(*next(sizes))])
    if number in (settled, arguments.images):
      held[number] = memory('VmRSS') / MB
  growth = 100 * (held[arguments.images] / held[settled] - 1)
  values = {f'MB after {settled}': held[settled], 'MB at the end': held[arguments.images], 'growth %': growth}
  row = Row(f'{arguments.images} images', {'run': values | {'programs': detector.num_programs}}, {}, spec='.4g')
  settings = {name: getattr(arguments, name) for name in ('hg', 'detector', 'images', 'largest')}
  title = f'Memory of a process that predicts: {NETWORKS[arguments.detector]} {arguments.hg}'
  return plain_table('memory', title, [row], settings, [_programs_needed(arguments)])


def _sizes(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
  """(height, width), one side the longest as in COCO; without end."""
  if arguments.annotations:
    known = read_annotations(arguments.annotations).image_sizes
    while True:
      yield from ((int(height), int(width)) for height, width in known)
  rng = np.random.default_rng(0)
  while True:
    sides = [arguments.largest, int(rng.integers(arguments.largest // 3, arguments.largest + 1))]
    yield tuple(rng.permutation(sides).tolist())


def _programs_needed(arguments: argparse.Namespace) -> str:
  if arguments.annotations:
    known = read_annotations(arguments.annotations).image_sizes.tolist()
    needed = {batches.canvases_of(*size, SOUND) for size in known}
    return f'the {len(known)} images of {arguments.annotations.name} take {len(needed)} programs'
  lengths = {batches.canvases_of(side, 1, SOUND)[0][0] for side in range(1, arguments.largest + 1)}
  return f'any images up to {arguments.largest} x {arguments.largest} take at most {len(lengths) ** 2} programs'
