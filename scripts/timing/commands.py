"""What `scripts/benchmark.py` measures: a function per command, and their options."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from scripts.paper.side_by_side import Row, as_json, as_text
from scripts.timing import detection_parts, own_process, quiet_pairs, training_step
from scripts.timing.benchmark_table import GEMM, OURS, SLOWER, TORCH, Figures, compare, table_of, timed_row
from scripts.timing.detection_parts import NETWORKS, SETTINGS, SIZES, SOUND
from scripts.timing.own_process import OwnProcess
from triplet_det import dry_run
from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.detection import batches, trained_network
from triplet_det.devices import compiler
from triplet_det.export import parse_size
from triplet_det.models import torch_import
from triplet_det.run import checkpoints, output_paths

ROOT = Path(__file__).resolve().parents[2]
KB, MB = 1e3, 1e6
IMAGES_PER_RUN = 256  # of the input: what threads have half done at its ends is little of it
SETTLED = 100  # images after which memory should not grow any more

# What commands take: what was asked for, and `quiet_pairs.take_turns` as it was asked for, with the GEMM.
Options, TakeTurns = argparse.Namespace, Callable[..., quiet_pairs.Turns]


def network(options: Options, take_turns: TakeTurns) -> Figures:
  """The network on an image and its mirror image, norms folded, as detection runs it."""
  flops = detection_parts.network_flops(options.model, options.size, options.size)
  return _against_twin(options, take_turns, options.title, 'detection_parts:network', flops, side=options.size)


def train_step(options: Options, take_turns: TakeTurns) -> Figures:
  """Colours, targets, network, loss, gradients and Adam; the twin finds images and targets ready."""
  side, batch = options.size, options.batch
  flops = dry_run.step_flops(training_step.build(options.model, batch, side)[0])
  row = f'{options.title}, batch {batch}'
  return _against_twin(options, take_turns, row, 'training_step:train_step', flops, batch=batch, side=side)


def _against_twin(options: Options, take_turns: TakeTurns, row: str, maker: str, flops: int, **given: int) -> Figures:
  """Our program and, if asked for, the twin, each in a process of its own, by turns.

  Args:
    options, take_turns: of the command.
    row: its title.
    maker: 'module:function' of scripts/timing; torch_twin has a function of the same name.
    flops: of a run.
    given: to both makers.
  """
  programs, notes = {}, [f'{flops / 1e9:.1f} GFLOP']
  with contextlib.ExitStack() as stack:
    if options.against:  # first, so that there are never more than two programs in memory
      maker_of_twin = f'scripts.timing.torch_twin:{maker.partition(":")[2]}'
      twin, told = _best_form(maker_of_twin, options, **given)
      programs[TORCH] = stack.enter_context(contextlib.closing(twin))
      notes.append(f'twin: checked against the golden network; {told}')
    model = options.model | {'dtype': options.dtype}
    folder = jax.config.jax_compilation_cache_dir  # lets the other process find what is compiled already
    cache = {'JAX_COMPILATION_CACHE_DIR': folder, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1'} if folder else {}
    ours = (OwnProcess if _on_cpu() else ThisProcess)(f'scripts.timing.{maker}', cache, model=model, **given)
    stack.callback(ours.close)
    turns = take_turns({OURS: ours, **programs})
  if _on_cpu():
    notes.append('peak: most memory at once since the end of the first run, of a process that does nothing else')
    peaks = {'peak MB': ours.peak / MB} | {f'{name} peak MB': twin.peak / MB for name, twin in programs.items()}
  else:
    notes.append("peak: of the device's memory, with what the compiler took to try kernels")
    peaks = {'peak MB': ours.peak / MB}
  return Figures([timed_row(row, turns, flops=flops, beside=peaks)], turns, notes)


class ThisProcess:
  """A program in this process, which has the accelerator; stands for an `OwnProcess`, whose arguments it takes."""

  def __init__(self, maker: str, _: object = None, **settings):
    self._run = own_process.made(maker, settings)

  def __call__(self) -> None:
    self._run()

  @property
  def peak(self) -> float:
    return device_peak()

  def close(self) -> None:
    pass


def device_peak() -> float:
  """The most bytes of the first device's memory that this process had in use at once; NaN on a CPU."""
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', math.nan)


def _on_cpu() -> bool:
  return jax.default_backend() == 'cpu'


def _best_form(maker: str, options: Options, **given: int) -> tuple[OwnProcess, str]:
  """The twin in the form that is fastest in one run after the first, to be closed; and all times."""
  forms = {'channels_last': dict(channels_last=True), 'contiguous': dict(channels_last=False)}
  if options.torch_compile:  # which takes minutes: in the format that GPUs are made for
    forms = {'channels_last, torch.compile': dict(channels_last=True, compiled=True)}
  how_all = dict(dtype=options.dtype, device='cpu' if _on_cpu() else 'cuda', shapes=released_shapes(options.model))
  best, seconds = None, {}
  for form, how in forms.items():
    twin = OwnProcess(maker, **how, **how_all, **given)
    twin()
    seconds[form] = quiet_pairs.sample(twin).seconds
    loser, best = (best, twin) if seconds[form] == min(seconds.values()) else (twin, best)
    if loser:
      loser.close()
  told = ', '.join(f'{form} {1e3 * value:.4g} ms' for form, value in seconds.items())
  return best, f'form: {min(seconds, key=seconds.get)} (one run each: {told})'


def released_shapes(model: dict) -> dict[str, tuple[int, ...]]:
  """Of a state dict in PyTorch, convolutions as OIHW."""
  shapes = {key: shape for _, key, shape in torch_import.key_table(model)}
  return {key: tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape for key, shape in shapes.items()}


def decode(options: Options, take_turns: TakeTurns) -> Figures:
  """Peaks, pairs, center filter and soft-NMS, of an image and its mirror image, from maps on the device to boxes."""
  settings, given = SETTINGS[options.settings][options.detector], (options.top_k, options.classes, options.sizes)
  base, programs, boxes = [values[0] for values in given], {}, {}
  for at, value in [(0, base[0]), *((i, value) for i, values in enumerate(given) for value in values[1:])]:
    top_k, classes, (height, width) = [*base[:at], value, *base[at + 1 :]]
    title = f'K {top_k}, {classes} classes, {width} x {height}'
    settings = dataclasses.replace(settings, top_k=top_k)
    run = detection_parts.decoding(settings, height, width, classes, centers=options.detector == 'centernet')
    programs[title], boxes[title] = run, len(run().scores)
  turns = take_turns(programs)
  first = next(iter(programs))
  rows = [timed_row(title, turns, title, first=first, beside={'boxes': boxes[title]}) for title in programs]
  return Figures(rows, turns)


def image(options: Options, take_turns: TakeTurns) -> Figures:
  """An image and its mirror image, from pixels in host memory to boxes, and its parts from inputs that are ready."""
  settings = SETTINGS[options.settings][options.detector]
  picture, weights = detection_parts.noise(*options.size), detection_parts.random_weights(options.model)
  compiled = detection_parts.compile_parts(*weights, settings, picture, objects=True)
  turns = take_turns(compiled.parts)
  (canvas,) = batches.canvases_of(*options.size, settings)
  flops = detection_parts.network_flops(options.model, *canvas)
  counted = dict.fromkeys(['network', 'whole image'], flops)
  rows = [timed_row(part, turns, part, flops=counted.get(part)) for part in compiled.parts]
  canvas = f'canvas {canvas[1]} x {canvas[0]}'
  return Figures(rows, turns, [f'{compiled.pairs} pairs with a score, {compiled.boxes} boxes; {canvas}'])


def feed(options: Options, take_turns: TakeTurns) -> Figures:
  """The host's part of training: read, decode, crop, resize, flip, pad, batch."""
  source = pipeline.open_source('coco_json', images=options.images, annotations=options.annotations)
  ahead, count, made = max(2, options.num_threads), -(-IMAGES_PER_RUN // options.batch), None

  @contextlib.contextmanager
  def opened():
    nonlocal made
    how = dict(num_workers=options.num_workers, num_threads=options.num_threads, prefetch=ahead)
    made = pipeline.train_batches(source, batch_size=options.batch, input_size=options.size, seed=0, **how)
    for _ in range((ahead + 2) * max(1, options.num_workers)):  # what is made in advance does not count
      next(made)
    yield
    made.close()

  def run():
    for _ in range(count):
      batch = next(made)
    return sum(array.nbytes for array in batch.values())

  turns = take_turns({OURS: run}, opened={OURS: opened})
  sent = next(iter(turns.rounds.values()))[OURS].result / options.batch
  row = timed_row('per image', turns, images=options.batch * count, beside={'KB per image': sent / KB})
  return Figures([row], turns, [f'{len(source)} images; KB per image: sent to the device, with its boxes'])


def startup(options: Options, take_turns: TakeTurns) -> Figures:
  """Fresh processes: weights on disk, programs in the compilation cache, to the boxes of a first image."""
  if jax.default_backend() == 'tpu':
    raise ValueError('a TPU belongs to one process, here to the one of the yardstick: no other can start on it')
  starts = []
  with tempfile.TemporaryDirectory() as scratch:
    checkpoint = options.checkpoint or _write_run(f'{scratch}/run', options.model)
    if Path(checkpoint).exists():
      checkpoint = str(Path(checkpoint).resolve())
    cache = {'JAX_COMPILATION_CACHE_DIR': f'{scratch}/cache', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}

    def start() -> dict[str, float]:
      given = [checkpoint, str(options.size), str(time.time())]
      command = [sys.executable, '-m', 'scripts.timing.first_detection', *given]
      done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.PIPE, text=True, check=False)
      if done.returncode:
        raise ValueError(f'no first detection from {checkpoint}; what the process said is above')
      starts.append(json.loads(done.stdout.splitlines()[-1]))
      return starts[-1]

    turns = take_turns({OURS: start})
  rows = [timed_row('whole process', turns)]
  for part in starts[0]:
    runs = {f'round {i}': {'ms': 1e3 * one[OURS].result[part]} for i, one in turns.rounds.items()}
    rows.append(Row(part, runs, {}, median=True, spec='.4g'))
  told = ', '.join(f'{part} {seconds:.1f} s' for part, seconds in starts[0].items())
  return Figures(rows, turns, [f'the first, with an empty cache: {told}'])


def _write_run(folder: str, model: dict) -> str:
  """A run folder with random weights."""
  _, variables = detection_parts.random_weights(model)
  ids = range(1, 1 + model['num_classes'])
  categories = CategoryTable(tuple(ids), tuple(f'class {i}' for i in ids))
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(variables, checkpoints.RunRecord(0, categories, model, dataclasses.asdict(SOUND)))
  saved.close()
  return folder


def memory(options: Options, _: TakeTurns) -> Figures:
  """Memory over many predictions of images of mixed sizes, and how many programs these sizes take."""
  if options.images < 2:
    raise ValueError(f'growth takes at least 2 images, got {options.images}')
  detector = trained_network.make_detector(*detection_parts.random_weights(options.model), SOUND, batch_size=1)
  settled, held, rng = min(SETTLED, options.images // 2), {}, np.random.default_rng(0)
  for number in range(1, options.images + 1):
    sides = [options.largest, rng.integers(options.largest // 3, options.largest + 1)]
    detector([detection_parts.noise(*rng.permutation(sides))])
    if number in (settled, options.images):
      held[number] = own_process.memory('VmRSS') / MB
  before, end = held.values()
  values = {f'MB after {settled}': before, 'MB at the end': end, 'growth %': 100 * (end / before - 1)}
  row = Row(f'{options.images} images', {'run': values | {'programs': detector.num_programs}}, {}, spec='.4g')
  lengths = {batches.canvases_of(side, 1, SOUND)[0][0] for side in range(1, options.largest + 1)}
  largest = f'{options.largest} x {options.largest}'
  return Figures([row], notes=[f'any images up to {largest} take at most {len(lengths) ** 2} programs'])


COMMANDS = dict(
  network=network, train_step=train_step, decode=decode, image=image, input=feed, startup=startup, memory=memory
)
ALL = ' '.join(COMMANDS)
BASE = 'of images; the first of all three lists is the base, of which one is changed at a time'
HG = dict(choices=list(SIZES), help='depth of the hourglass')
DETECTOR = dict(choices=list(NETWORKS), default='centernet', help='which network')
MANY, WH = dict(nargs='+', type=int, help='see --sizes'), dict(type=parse_size, metavar='WxH')
# Name of an option, the commands that have it, and what it is.
OPTIONS = [
  ('hg', 'network train_step image', dict(HG, default='52')),
  ('hg', 'startup', dict(HG, default='104')),
  ('hg', 'memory', dict(HG, default='tiny')),
  ('detector', 'network train_step decode image startup memory', DETECTOR),
  ('size', 'network train_step startup', dict(type=int, help='side of the images, pixels (511, tiny 127)')),
  ('size', 'image', dict(WH, default=(375, 500), help='pixels, given as (height, width)')),
  ('size', 'input', dict(type=int, default=511, help='side of the network input, pixels')),
  ('batch', 'train_step', dict(type=int, default=1, help='images per step')),
  ('batch', 'input', dict(type=int, default=8, help='images per batch')),
  ('against', 'network train_step', dict(choices=[TORCH], help='measure the PyTorch twin too, by turns (extra torch)')),
  ('dtype', 'network train_step', dict(choices=['float32', 'bfloat16'], default='float32', help='of the computation')),
  ('torch_compile', 'network train_step', dict(action='store_true', help='the twin by torch.compile')),
  ('settings', 'decode image', dict(choices=list(SETTINGS), default='sound', help='of the test')),
  ('sizes', 'decode', dict(WH, nargs='+', default=[(375, 500), (480, 640), (960, 1280)], help=BASE)),
  ('top_k', 'decode', dict(MANY, default=[70, 20, 100, 200])),
  ('classes', 'decode', dict(MANY, default=[80, 5, 20, 400])),
  ('images', 'input', dict(required=True, help='folder of images')),
  ('annotations', 'input', dict(required=True, help='their COCO JSON')),
  ('num_workers', 'input', dict(type=int, default=0, help='processes; 0: threads of one')),
  ('num_threads', 'input', dict(type=int, default=2, help='in each process')),
  ('checkpoint', 'startup', dict(help='run folder, exported file or demo, instead of random weights of that network')),
  ('images', 'memory', dict(type=int, default=1000, help='how many are predicted')),
  ('largest', 'memory', dict(type=int, default=640, help='longest side, pixels')),
  ('pairs', ALL, dict(type=int, default=5, help='quiet rounds that are wanted')),
  ('max_load', ALL, dict(type=float, help='cores that others may keep busy (default: 0.1; all but on a CPU)')),
  (
    'min_seconds',
    ALL,
    dict(type=float, default=quiet_pairs.MIN_SECONDS, help='of a sample; what is quick is repeated'),
  ),
  ('json', ALL, dict(type=lambda text: Path(text).expanduser(), metavar='FILE', help='where all figures go')),
  ('compare', ALL, dict(type=lambda text: Path(text).expanduser(), metavar='FILE', help='of an earlier --json')),
  ('compilation_cache', ALL, dict(default='~/.cache/triplet_det', help='folder of compiled programs; empty: none')),
]


def parse(description: str, argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Options]:
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  chosen = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', help=', '.join(COMMANDS))
  parsers = {
    command: chosen.add_parser(command, allow_abbrev=False, description=measure.__doc__)
    for command, measure in COMMANDS.items()
  }
  for name, commands, how in OPTIONS:
    default = ' (default: %(default)s)' if how.get('default') else ''
    for command in commands.split():
      parsers[command].add_argument(f'--{name}', **how | dict(help=how['help'] + default))
  return parser, parser.parse_args(argv)


def _earlier(path: Path) -> dict:
  """A measurement that --json has written; ValueError names the file if it is none."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'--compare={path} is no JSON ({error}): give a file that --json has written') from error
  if not isinstance(found, dict) or not {'table', 'recipe', 'rows'} <= found.keys():
    raise ValueError(f'--compare={path} is no measurement: give a file that --json has written')
  return found


def main(description: str, argv: Sequence[str] | None = None) -> int:
  parser, options = parse(description, argv)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # absl's log and the workers of the input pipeline want it
  if getattr(options, 'against', None) and importlib.util.find_spec('torch') is None:
    parser.error("--against torch: PyTorch is not installed; pip install -e '.[torch]'")
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU is for the twin too
  compiler.keep_programs(options.compilation_cache)
  if 'hg' in options:
    options.size = getattr(options, 'size', None) or SIZES[options.hg]
    options.model = detection_parts.model_of(options.detector, options.hg)
    options.title = f'{NETWORKS[options.detector]} {options.hg}'
  own = [name for name, commands, _ in OPTIONS if options.command in commands.split() and commands != ALL]
  settings = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
  if options.max_load is None:
    options.max_load = quiet_pairs.allowed_load()
  how = dict(pairs=options.pairs, max_load=options.max_load, min_seconds=options.min_seconds)

  def take_turns(programs: dict, **more) -> quiet_pairs.Turns:
    return quiet_pairs.take_turns({**programs, GEMM: quiet_pairs.gemm()}, **how, **more)

  try:
    before = _earlier(options.compare) if options.compare else None
    if options.json:
      output_paths.make_place('--json', options.json)
    measure = COMMANDS[options.command]
    table = table_of(options.command, measure.__doc__, measure(options, take_turns), settings)
    print(as_text(table))
    if options.json:
      output_paths.write_whole(options.json, as_json(table) + '\n')
    changes = compare(before, json.loads(as_json(table))) if before else []
  except (ValueError, FileNotFoundError, RuntimeError) as error:
    parser.error(str(error))
  for change in changes:
    print(change)
  warned = any(note.startswith('WARNING') for note in table.notes)
  return 1 if warned or any(change.factor > SLOWER for change in changes) else 0
