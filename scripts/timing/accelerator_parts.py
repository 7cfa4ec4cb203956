"""What `scripts/accelerator.py` measures: parts made of items, each of which a process of its own turns into rows.

Nothing here compares with a load of the machine: an accelerator is taken to be this job's alone.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from scripts.checks import pool_gradient
from scripts.paper import published
from scripts.timing import commands, detection_parts, quiet_pairs, training_step
from scripts.timing.benchmark_table import GEMM, OURS, TORCH
from tests import golden_networks
from triplet_det import dry_run
from triplet_det.data import shapes_dataset
from triplet_det.detection import batches, demo, trained_network
from triplet_det.detection.settings import settings_for
from triplet_det.devices import roofline, sharding
from triplet_det.models import detector, pooling
from triplet_det.run.metric_writers import METRICS_FILE, read_metrics
from triplet_det.run.own_commit import own_commit
from triplet_det.structs import Detections

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, DEVICES = 480_000, 48, 8  # of the paper's run (Sec. 3.4)
EXIT_STOPPED = 75  # of `triplet_det.main`, which saved its state
HIGHEST, DEFAULT, BFLOAT16 = 'float32, highest precision', 'float32, default precision', 'bfloat16'
MODES = {HIGHEST: ('float32', 'highest'), DEFAULT: ('float32', None), BFLOAT16: ('bfloat16', None)}
# What may differ from the published numbers, at highest precision and else: a hundred roundings to 8 bits in a row.
# Embeddings and gradients of a network that was never trained are the worst there is: when all weights change by 6e-7
# of themselves, in float64, maps in training move by 6e-5 to 7e-5 and the norms' median by 1.8e-4 to 4.9e-4.
BOUNDS = {
  'maps in testing': (2e-5, 0.1),
  'maps in training': (1e-4, 0.5),
  'loss': (1e-5, 0.02),
  'norms of gradients, median': (5e-4, 0.1),
  'corner pairs': (1e-6, None),
  'centers': (1e-6, None),
  'forward': (0, None),
  'gradient': (1e-5, None),
  'boxes, pixels': (0.05, 1.0),
  'scores': (1e-3, 0.02),
}

Row = dict[str, float | str]  # column -> value
Rows = dict[str, Row]  # title -> row
Item = Callable[[float], Rows]  # takes the seconds that are left


@dataclasses.dataclass(frozen=True)
class Size:
  """How large everything is."""

  networks: Mapping[str, Mapping]  # title -> settings
  dtypes: tuple[str, ...]
  side: int  # pixels, of training and of the twin
  batches: tuple[int, ...]  # of training; after the first that does not fit the next are left out
  images: tuple[tuple[int, int], ...]  # (height, width), in testing
  images_at_once: tuple[int, ...]
  canvas_multiple: int  # of the test
  pool: tuple[int, ...]  # [B, H, W, C] of the maps that are pooled
  gemm: int  # side of the matrices
  rounds: int
  min_seconds: float  # of a sample
  testing: tuple[str, ...]  # of MODES, in which small networks test
  training: tuple[tuple[str, str], ...]  # which small network trains in which of MODES
  boxes: tuple[str, ...]  # of MODES, in which the package's detector tests
  run: Mapping[str, object]  # overrides of configs/shapes.py


SIZES = {
  'paper': Size(
    networks={f'Hourglass-{hg}': detection_parts.model_of('centernet', hg) for hg in ('52', '104')},
    dtypes=('bfloat16', 'float32'),
    side=511,
    batches=(6, 12, 24, 48),
    images=((511, 511), (480, 640), (640, 480)),  # the last two are those of most images of COCO
    images_at_once=(1, 8),
    canvas_multiple=128,
    pool=(6, 128, 128, 128),
    gemm=8192,
    rounds=5,
    min_seconds=0.3,
    testing=tuple(MODES),
    training=tuple(itertools.product(golden_networks.NETWORKS, MODES)),
    boxes=tuple(MODES),
    run={},
  ),
  'tiny': Size(
    networks={'tiny': detector.VARIANTS['tiny'] | dict(dims=(8, 8), blocks=(1, 1), head_width=8, pool_width=8)},
    dtypes=('float32',),
    side=31,
    batches=(2,),
    images=((63, 63),),
    images_at_once=(1, 2),
    canvas_multiple=32,
    pool=(1, 8, 8, 4),
    gemm=256,
    rounds=3,
    min_seconds=0.0,
    testing=(HIGHEST, BFLOAT16),
    training=(),
    boxes=(BFLOAT16,),
    run={
      **{'total_steps': 4, 'log_every': 2, 'checkpoint_every': 2, 'eval_every': 4, 'batch_size': 2, 'input_size': 31},
      **{'model.dims': (8, 8), 'model.blocks': (1, 1), 'model.head_width': 8, 'model.pool_width': 8},
      **{'augment.border': 16, 'last_crops.input_size': 31, 'test.canvas_multiple': 32, 'eval_batch_size': 2},
      **{f'data.{split}.train_images': 4 for split in ('train', 'eval')},
      **{f'data.{split}.validation_images': 2 for split in ('train', 'eval')},
    },
  ),
}

PARTS = {
  'chip': 'products of square matrices, what a program can reach at best',
  'right': 'errors against published numbers, and their bounds',
  'step': 'training steps at one device',
  'detection': 'images and their mirror images to boxes, milliseconds per image',
  'pools': 'pools alone, and modules with their convolutions, milliseconds',
  'twin': 'the same networks in PyTorch, by turns with ours',
  'run': 'the embedded data set, from nothing to its AP',
}
COMPILED_AHEAD = 'right', 'step', 'detection', 'pools'

compile_only = False  # in this process: items end where they would be timed


def items(size: Size, folder: Path) -> dict[str, dict[str, Item]]:
  """Name of a part -> its items by their titles; `folder` is for the run of the embedded data set."""
  bind, goldens = functools.partial, golden_networks.NETWORKS
  right = {}
  for test, find, cases in (
    ('in testing', golden_networks.testing_errors, itertools.product(goldens, size.testing)),
    ('in training', golden_networks.training_errors, size.training),
  ):
    for name, mode in cases:
      right[f'small {name} {test}, {mode}'] = bind(golden, f'small {name}', mode, bind(find, name, MODES[mode][0]))
  for name in goldens:
    find = bind(golden_networks.decoding_errors, name)
    right[f'decoding, {name}'] = bind(golden, f'decoding, {name}', HIGHEST, find)
  right['pools'] = bind(golden, 'pools', HIGHEST, golden_networks.pool_errors)
  right |= {f'boxes, {mode}': bind(boxes, mode) for mode in size.boxes}

  kinds = itertools.product(size.networks, size.dtypes)
  networks = {f'{name}, {dtype}': size.networks[name] | {'dtype': dtype} for name, dtype in kinds}
  steps, testing, twins = {}, {}, {}
  for title, model in networks.items():
    steps |= {f'{title}, batch {batch}': bind(step, size, model, batch) for batch in size.batches}
    for image, batch in itertools.product(size.images, size.images_at_once):
      what = f'{title}, {image[1]} x {image[0]}, batch {batch}'
      testing[what] = bind(detection, size, title.partition(',')[0], model, image, batch)
    for command, form in itertools.product(('network', 'train_step'), ('', ', torch.compile')):
      twins[f'{title}, {command}{form}'] = bind(twin, size, command, model, bool(form))
  pooled = {dtype: bind(pools, size, dtype) for dtype in size.dtypes}
  first, last = {'products': bind(products, size)}, {'embedded data set': bind(trained, size, folder)}
  return dict(zip(PARTS, (first, right, steps, testing, pooled, twins, last), strict=True))


class Missing(Exception):
  """What an item needs is not on this machine: no failure."""


class Compiled(Exception):
  """Raised where an item would be timed, with `compile_only`; `columns` are those of its rows that are known then."""

  def __init__(self, columns: Row):
    super().__init__(columns)
    self.columns = columns


def _compiled(**columns: float | str) -> None:
  if compile_only:
    raise Compiled(columns)


def about() -> dict[str, object]:
  """The device, and what else a figure depends on."""
  device = jax.devices()[0]
  versions = dict(jax=jax.__version__, jaxlib=jax.lib.__version__, platform_version=device.client.platform_version)
  versions['platform_version'] = ' '.join(versions['platform_version'].split())
  return dict(platform=device.platform, device=device.device_kind, **versions, commit=own_commit())


def _turns(size: Size, programs: Mapping[str, quiet_pairs.Program]) -> quiet_pairs.Turns:
  _compiled()
  return quiet_pairs.take_turns(programs, pairs=size.rounds, max_load=math.inf, min_seconds=size.min_seconds)


def _take_turns(size: Size, programs: Mapping[str, quiet_pairs.Program]) -> dict[str, Row]:
  """Name of a program -> milliseconds: the median, the least and the most."""
  turns = _turns(size, programs)
  times = {name: [1e3 * seconds for seconds in turns.seconds(name)] for name in programs}
  return {name: {'ms': statistics.median(of), 'least': min(of), 'most': max(of)} for name, of in times.items()}


def _of_peak(flops: float, milliseconds: float, dtype: str) -> Row:
  """The rate, and its share of the chip's peak if that is known."""
  rate, chip = flops / milliseconds * 1e3, roofline.chip_of(jax.devices()[0])
  return {'TFLOP/s': rate / 1e12} | ({'% of peak': 100 * rate / chip.peak(dtype)} if chip else {})


def products(size: Size, _: float) -> Rows:
  """What a program can reach at best: the product of two square matrices."""
  kinds = {title: (size.gemm, *kind) for title, kind in MODES.items()}
  times = _take_turns(size, {title: quiet_pairs.gemm(*kind) for title, kind in kinds.items()})
  rates = {title: _of_peak(2 * size.gemm**3, row['ms'], MODES[title][0]) for title, row in times.items()}
  return {f'{size.gemm} x {size.gemm}, {title}': row | rates[title] for title, row in times.items()}


def _errors(what: str, mode: str, found: Mapping[str, float]) -> Rows:
  """The errors with their bounds."""
  rows = {}
  for part, error in found.items():
    error, bound = float(error), BOUNDS[part][mode != HIGHEST]
    rows[f'{what}, {mode}: {part}'] = dict(error=error, bound=bound, within='yes' if error <= bound else 'NO')
  return rows


def _precision(mode: str) -> contextlib.AbstractContextManager:
  return jax.default_matmul_precision(MODES[mode][1]) if MODES[mode][1] else contextlib.nullcontext()


def golden(what: str, mode: str, find: Callable[[], Mapping[str, float]], _: float) -> Rows:
  """Errors against the published programs, by a function of `golden_networks`."""
  with _precision(mode):
    return _errors(what, mode, find())


def boxes(mode: str, _: float) -> Rows:
  """The detector that comes with the package, against the same in float32 on the CPU of this machine."""
  scenes = [shapes_dataset.draw_scene(0, 'validation', number).image for number in range(4)]
  weights, record = demo.load_weights()

  def found(dtype: str, device: jax.Device) -> list[Detections]:
    placed = sharding.over_data(sharding.make_mesh([device]))
    module, how = detector.build(dict(record.model, dtype=dtype)), settings_for(record.test)
    return trained_network.make_detector(module, weights, how, batch_size=len(scenes), sharding=placed)(scenes)

  with _precision(mode):
    pairs = list(zip(found('float32', jax.devices('cpu')[0]), found(MODES[mode][0], jax.devices()[0])))
  off = np.zeros(2)
  for expected, here in pairs:
    for row in np.flatnonzero(expected.scores > 0.3):  # below, some come and go
      same = here.classes == expected.classes[row]
      distances = np.abs(here.boxes[same] - expected.boxes[row]).max(axis=1)
      scores = np.abs(here.scores[same] - expected.scores[row])
      nearest = distances.argmin() if same.any() else None
      off = np.maximum(off, math.inf if nearest is None else [distances[nearest], scores[nearest]])
  return _errors("the package's detector", mode, dict(zip(('boxes, pixels', 'scores'), off)))


def step(size: Size, model: Mapping, batch: int, _: float) -> Rows:
  """The step of the training loop on one device."""
  built, rows = training_step.build(model, batch, size.side)
  planned, _ = dry_run.training_step(built, None, 1, 1)
  _compiled(**{'compiled in s': planned.compile_seconds})
  times = _take_turns(size, {OURS: training_step.ready(built, rows)})[OURS]
  per_second = 1e3 * batch / times['ms']
  days = STEPS * BATCH / per_second / 86_400
  row = times | {'images/s': per_second} | _of_peak(planned.useful_flops, times['ms'], model['dtype'])
  if math.isfinite(in_use := commands.device_peak()):
    row['GiB in use'] = in_use / roofline.GIB
  row['GiB by plan'] = planned.total_memory / roofline.GIB
  row |= {'days, 1 device': days, f'days, {DEVICES} devices': days / DEVICES, 'compiled in s': planned.compile_seconds}
  return {'': row | {'parameters': sum(leaf.size for leaf in jax.tree.leaves(built.state.params))}}


def detection(size: Size, title: str, model: Mapping, image: tuple[int, int], batch: int, _: float) -> Rows:
  """Images and their mirror images from pixels to boxes, and the parts of it; milliseconds per image."""
  settings = dataclasses.replace(detection_parts.SOUND, canvas_multiple=size.canvas_multiple)
  picture, weights = detection_parts.noise(*image), detection_parts.random_weights(model)
  compiled = detection_parts.compile_parts(*weights, settings, picture, objects=True, batch_size=batch)
  times = _take_turns(size, compiled.parts)
  row = {part: values['ms'] / batch for part, values in times.items()}
  (canvas,) = batches.canvases_of(*image, settings)
  row |= _of_peak(detection_parts.network_flops(model, *canvas), row['network'], model['dtype'])
  if paper := published.MILLISECONDS.get(title.replace('Hourglass', 'centernet')):
    row |= {'paper, P100': paper, 'times faster': paper / row['whole image']}
  return {'': row | {'canvas': f'{canvas[1]} x {canvas[0]}', 'boxes': compiled.boxes}}


def pools(size: Size, dtype: str, _: float) -> Rows:
  """The pools alone, in every form, and the modules with their convolutions; forward, and forward and backward."""
  x, g = (jax.random.normal(key, size.pool, dtype) for key in jax.random.split(jax.random.key(0)))
  both = {**pool_gradient.pools(), 'column': pooling.column_max, 'row': pooling.row_max}
  modules = {
    'corner pooling': pooling.CornerPooling('top_left', size.pool[-1]),
    'cascade corner pooling': pooling.CascadeCornerPooling('top_left', size.pool[-1]),
    'center pooling': pooling.CenterPooling(size.pool[-1]),
  }
  for name, module in modules.items():
    module = module.clone(numerics=dataclasses.replace(module.numerics, dtype=jax.numpy.dtype(dtype)))
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)
    both[name] = lambda x, run=module, held=variables: run.apply(held, x, train=True, mutable=['batch_stats'])[0]
  programs = {(name, 'forward, ms'): (jax.jit(pool).lower(x).compile(), (x,)) for name, pool in both.items()}
  for name, pool in both.items():
    _, height, width, _ = jax.eval_shape(pool, x).shape
    gradient = pool_gradient.compile_for(jax.devices()[0], pool, x.shape, dtype)
    programs[name, 'and backward, ms'] = gradient, (x, g[:, :height, :width])
  runs = {key: lambda one=one: jax.block_until_ready(one[0](*one[1])) for key, one in programs.items()}
  rows = {f'{name}, {dtype}': {} for name in both}
  for (name, column), row in _take_turns(size, runs).items():
    rows[f'{name}, {dtype}'][column] = row['ms']
  return rows


def twin(size: Size, what: str, model: Mapping, torch_compile: bool, _: float) -> Rows:
  """Ours and the same network in PyTorch, by turns, as `scripts/benchmark.py --against torch` has them."""
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # read by the next line
  if jax.default_backend() != 'gpu':
    raise Missing(f'the twin is for a GPU; this is {jax.devices()[0].device_kind}')
  if not importlib.util.find_spec('torch'):
    raise Missing('PyTorch is not installed')
  options = argparse.Namespace(title=what, model=dict(model), dtype=model['dtype'], size=size.side)
  options.batch, options.against, options.torch_compile = size.batches[0], TORCH, torch_compile
  try:
    figures = commands.COMMANDS[what](options, lambda programs: _turns(size, programs | {GEMM: quiet_pairs.gemm()}))
  except ValueError as error:
    if 'sees no GPU' in str(error):
      raise Missing(str(error)) from error
    raise
  here = figures.rows[0].here()
  return {'': {column: here[column] for column in ('ms', 'torch ms', 'ours / torch')} | {'note': figures.notes[1]}}


def trained(size: Size, folder: Path, seconds: float) -> Rows:
  """The README's first command, stopped in time; the next call continues it."""
  spent_file, start = folder / 'seconds.txt', time.monotonic()
  spent = float(spent_file.read_text()) if spent_file.exists() else 0.0
  settings = {f'data.{split}.data_dir': str(folder / 'data') for split in ('train', 'eval')} | size.run
  given = {'config': 'configs/shapes.py', 'workdir': folder / 'run'}
  given |= {'compilation_cache': jax.config.jax_compilation_cache_dir or ''}
  given |= {f'config.{name}': value for name, value in settings.items()}
  command = [sys.executable, '-m', 'triplet_det.main', *(f'--{name}={value}' for name, value in given.items())]
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'said.txt', 'a') as said, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said) as run:
    try:
      code = run.wait(max(1.0, seconds - 60))  # to save takes a moment
    except subprocess.TimeoutExpired:
      run.send_signal(signal.SIGTERM)
      code = run.wait()
  spent += time.monotonic() - start
  spent_file.write_text(str(spent))
  if code == EXIT_STOPPED:
    raise TimeoutError(f'stopped and saved after {spent / 60:.1f} minutes')
  if code:
    raise RuntimeError(f'exit code {code}: {(folder / "said.txt").read_text()[-300:].strip()}')
  *_, last = (row for row in read_metrics(folder / 'run' / METRICS_FILE) if 'eval/AP' in row)
  return {'': {'minutes': spent / 60, 'steps': last['step'], 'AP': last['eval/AP'], 'AP50': last['eval/AP50']}}
