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
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from scripts.checks import pool_gradient
from scripts.paper import published
from scripts.timing import commands, detection_parts, quiet_pairs, training_step
from scripts.timing.benchmark_table import GEMM, OURS, TORCH
from tests import golden_networks
from tests.golden_state import nhwc, read, relative_error, under
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
# What may differ from the published numbers, at highest precision (as in the tests) and else: a hundred roundings to
# 8 bits in a row. Embeddings and gradients of a network that was never trained are the worst there is.
BOUNDS = {
  'maps in testing': (2e-5, 0.1),
  'maps in training': (1e-4, 0.5),
  'loss': (1e-5, 0.02),
  'norms of gradients, median': (1e-4, 0.1),
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
    min_seconds=1.0,
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
    training=(('cornernet', HIGHEST),),
    boxes=(BFLOAT16,),
    run={
      **{'total_steps': 4, 'log_every': 2, 'checkpoint_every': 2, 'eval_every': 4, 'batch_size': 2, 'input_size': 31},
      **{'model.dims': (8, 8), 'model.blocks': (1, 1), 'model.head_width': 8, 'model.pool_width': 8},
      **{'augment.border': 16, 'test.canvas_multiple': 32, 'eval_batch_size': 2},
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


def items(size: Size, folder: Path) -> dict[str, dict[str, Item]]:
  """Name of a part -> its items by their titles; `folder` is for the run of the embedded data set."""
  right = {
    f'small {name} in testing, {mode}': functools.partial(maps, name, mode)
    for name in golden_networks.NETWORKS
    for mode in size.testing
  }
  right |= {
    f'small {name} in training, {mode}': functools.partial(training, name, mode) for name, mode in size.training
  }
  right |= {'decoding': decoding, 'pools': pools_by_definition}
  right |= {f'boxes, {mode}': functools.partial(boxes, mode) for mode in size.boxes}
  networks = [(title, model, dtype) for title, model in size.networks.items() for dtype in size.dtypes]
  steps = {
    f'{title}, {dtype}, batch {batch}': functools.partial(step, size, model | {'dtype': dtype}, batch)
    for title, model, dtype in networks
    for batch in size.batches
  }
  testing = {
    f'{title}, {dtype}, {image[1]} x {image[0]}, batch {batch}': functools.partial(
      detection, size, title, model | {'dtype': dtype}, image, batch
    )
    for title, model, dtype in networks
    for image in size.images
    for batch in size.images_at_once
  }
  twins = {
    f'{title}, {dtype}, {what}{form}': functools.partial(twin, size, what, model | {'dtype': dtype}, bool(form))
    for title, model, dtype in networks
    for what in ('network', 'train_step')
    for form in ('', ', torch.compile')
  }
  pooled = {dtype: functools.partial(pools, size, dtype) for dtype in size.dtypes}
  one = {'products': functools.partial(products, size)}, {'embedded data set': functools.partial(trained, size, folder)}
  return dict(zip(PARTS, (one[0], right, steps, testing, pooled, twins, one[1]), strict=True))


class Missing(Exception):
  """What an item needs is not on this machine: no failure."""


def execute(item: Item, seconds: float, send: Callable[[dict], None]) -> None:
  """In a process of its own, which it makes the first of a group: sends the item's rows, or one line that says why not.

  Under 'full' that memory was too short, 'missing' what this machine lacks, 'unfinished' that the time was.
  """
  os.setpgid(0, 0)
  try:
    send({'rows': item(seconds)})
  except Missing as error:
    send({'missing': str(error)})
  except TimeoutError as error:
    send({'unfinished': str(error)})
  except Exception as error:
    line = (str(error) or repr(error)).strip().splitlines()[0][:300]
    words = 'RESOURCE_EXHAUSTED', 'ut of memory', 'does not fit'  # of XLA, PyTorch, `compiled_program`
    if any(word in str(error) for word in words):
      send({'full': f'does not fit: {line}'})
    else:
      traceback.print_exc()
      send({'error': f'{type(error).__name__}: {line}'})


def about() -> dict[str, object]:
  """The device, and what else a figure depends on."""
  device = jax.devices()[0]
  versions = dict(jax=jax.__version__, jaxlib=jax.lib.__version__, platform_version=device.client.platform_version)
  versions['platform_version'] = ' '.join(versions['platform_version'].split())
  commit = own_commit()
  return dict(platform=device.platform, device=device.device_kind, **versions, commit=commit)


@contextlib.contextmanager
def folder_for_run(json_file: Path | None) -> Iterator[Path]:
  """Beside the file that figures are kept in, or for this time only."""
  if json_file:
    yield json_file.with_suffix('.run').absolute()
  else:
    with tempfile.TemporaryDirectory() as folder:
      yield Path(folder)


def _turns(size: Size, programs: Mapping[str, quiet_pairs.Program]) -> quiet_pairs.Turns:
  return quiet_pairs.take_turns(programs, pairs=size.rounds, max_load=math.inf, min_seconds=size.min_seconds)


def _take_turns(size: Size, programs: Mapping[str, quiet_pairs.Program]) -> dict[str, Row]:
  """Name of a program -> milliseconds: the median, the least and the most."""
  turns = _turns(size, programs)
  times = {name: [1e3 * seconds for seconds in turns.seconds(name)] for name in programs}
  return {name: {'ms': statistics.median(all_), 'least': min(all_), 'most': max(all_)} for name, all_ in times.items()}


def _of_peak(flops: float, milliseconds: float, dtype: str) -> Row:
  """The rate, and its share of the chip's peak if that is known."""
  rate, chip = flops / milliseconds * 1e3, roofline.chip_of(jax.devices()[0])
  return {'TFLOP/s': rate / 1e12} | ({'% of peak': 100 * rate / chip.peak(dtype)} if chip else {})


def products(size: Size, _: float) -> Rows:
  """What a program can reach at best: the product of two square matrices."""
  kinds = {title: (size.gemm, *kind) for title, kind in MODES.items()}
  times = _take_turns(size, {title: quiet_pairs.gemm(*kind) for title, kind in kinds.items()})
  flops = 2 * size.gemm**3
  return {
    f'{size.gemm} x {size.gemm}, {title}': row | _of_peak(flops, row['ms'], MODES[title][0])
    for title, row in times.items()
  }


def _errors(what: str, mode: str, errors: Mapping[str, float]) -> Rows:
  bounds = {part: BOUNDS[part][mode != HIGHEST] for part in errors}
  return {f'{what}, {mode}: {part}': _error(error, bounds[part]) for part, error in errors.items()}


def _error(error: float, bound: float) -> Row:
  return {'error': float(error), 'bound': bound, 'within': 'yes' if error <= bound else 'NO'}


def _precision(mode: str) -> contextlib.AbstractContextManager:
  return jax.default_matmul_precision(MODES[mode][1]) if MODES[mode][1] else contextlib.nullcontext()


def maps(name: str, mode: str, _: float) -> Rows:
  """Of the golden network in testing."""
  with _precision(mode):
    error = golden_networks.evaluation_error(golden_networks.opened(name), MODES[mode][0])
  return _errors(f'small {name}', mode, {'maps in testing': error})


def training(name: str, mode: str, _: float) -> Rows:
  """One step of the golden network."""
  network = golden_networks.opened(name)
  with _precision(mode):
    found = golden_networks.training_step(network, MODES[mode][0])
  errors = {
    'maps in training': golden_networks.largest_error(found.maps, under(network.golden, 'train/map/')),
    'loss': relative_error(found.loss, network.golden['train/loss'][0]),
    'norms of gradients, median': np.median(golden_networks.norm_errors(found.gradients, network.golden)),
  }
  return _errors(f'small {name}', mode, errors)


def decoding(_: float) -> Rows:
  """Maps to pairs of corners and centers, of the published programs."""
  return {
    f'decoding, {name}: {part}': _error(error, 1e-6)
    for name in golden_networks.NETWORKS
    for part, error in golden_networks.decoding_errors(name).items()
  }


def pools_by_definition(_: float) -> Rows:
  """The four pools and their gradients where cells tie, of the published program."""
  golden = {key: nhwc(array).astype(np.float32) for key, array in read('pools', 'ties/').items()}
  errors = {'forward': 0.0, 'gradient': 0.0}
  for corner in pooling.CORNER_POOLS.values():
    for pool in corner:
      name = pool.__name__.removesuffix('_pool')
      found = pool_gradient.compile_for(jax.devices()[0], pool, golden['x'].shape, 'float32')(golden['x'], golden['g'])
      for part, ours, theirs in zip(errors, found, ('y', 'dx')):
        errors[part] = max(errors[part], relative_error(ours, golden[f'{name}/{theirs}']))
  return {f'pools: {part}': _error(error, 0 if part == 'forward' else 1e-5) for part, error in errors.items()}


def boxes(mode: str, _: float) -> Rows:
  """The detector that comes with the package, against the same in float32 on the CPU of this machine."""
  scenes = [shapes_dataset.draw_scene(0, 'validation', number).image for number in range(4)]
  weights, record = demo.load_weights()

  def found(dtype: str, device: jax.Device) -> list[Detections]:
    placed = sharding.over_data(sharding.make_mesh([device]))
    module = detector.build(dict(record.model, dtype=dtype))
    how = dict(batch_size=len(scenes), sharding=placed)
    return trained_network.make_detector(module, weights, settings_for(record.test), **how)(scenes)

  with _precision(mode):
    pairs = list(zip(found('float32', jax.devices('cpu')[0]), found(MODES[mode][0], jax.devices()[0])))
  off = {'boxes, pixels': 0.0, 'scores': 0.0}
  for expected, here in pairs:
    for row in np.flatnonzero(expected.scores > 0.3):  # below, some come and go
      same = np.flatnonzero(here.classes == expected.classes[row])
      distances = np.abs(here.boxes[same] - expected.boxes[row]).max(axis=1, initial=0)
      nearest = same[distances.argmin()] if len(same) else None
      apart = math.inf, math.inf
      if nearest is not None:
        apart = distances.min(), abs(here.scores[nearest] - expected.scores[row])
      off = {part: max(most, float(one)) for (part, most), one in zip(off.items(), apart)}
  return _errors("the package's detector", mode, off)


def step(size: Size, model: Mapping, batch: int, _: float) -> Rows:
  """The step of the training loop on one device."""
  built, rows = training_step.build(model, batch, size.side)
  planned, _ = dry_run.training_step(built, None, 1, 1)
  times = _take_turns(size, {OURS: training_step.ready(built, rows)})[OURS]
  per_second = 1e3 * batch / times['ms']
  days = STEPS * BATCH / per_second / 86_400
  row = times | {'images/s': per_second} | _of_peak(planned.useful_flops, times['ms'], model['dtype'])
  if math.isfinite(in_use := commands.device_peak()):
    row['GiB in use'] = in_use / roofline.GIB
  row['GiB by plan'] = planned.total_memory / roofline.GIB
  row |= {'days, 1 device': days, f'days, {DEVICES} devices': days / DEVICES}
  row |= {'compiled in s': planned.compile_seconds}
  row |= {'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(built.state.params))}
  return {'': row}


def detection(size: Size, title: str, model: Mapping, image: tuple[int, int], batch: int, _: float) -> Rows:
  """Images and their mirror images from pixels to boxes, and the parts of it; milliseconds per image."""
  settings = dataclasses.replace(detection_parts.SOUND, canvas_multiple=size.canvas_multiple)
  picture = detection_parts.noise(*image)
  weights = detection_parts.random_weights(model)
  compiled = detection_parts.compile_parts(*weights, settings, picture, objects=True, batch_size=batch)
  times = _take_turns(size, compiled.parts)
  row = {part: values['ms'] / batch for part, values in times.items()}
  (canvas,) = batches.canvases_of(*image, settings)
  flops = detection_parts.network_flops(model, *canvas)
  row |= _of_peak(flops, row['network'], model['dtype'])
  if paper := published.MILLISECONDS.get(title.replace('Hourglass', 'centernet')):
    row |= {'paper, P100': paper, 'times faster': paper / row['whole image']}
  return {'': row | {'canvas': f'{canvas[1]} x {canvas[0]}', 'boxes': compiled.boxes}}


def pools(size: Size, dtype: str, _: float) -> Rows:
  """The pools alone, in every form, and the modules with their convolutions; forward, and forward and backward."""
  device = jax.devices()[0]
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
  alone = both | {
    f'{name}, by walking': functools.partial(pooling.max_by_walking, axis=axis, from_last=True)
    for name, axis in (('top', pooling.HEIGHT), ('left', pooling.WIDTH))
  }
  programs = {(name, 'forward, ms'): (jax.jit(pool).lower(x).compile(), (x,)) for name, pool in alone.items()}
  for name, pool in both.items():
    shape = jax.eval_shape(pool, x)
    gradient = pool_gradient.compile_for(device, pool, x.shape, dtype)
    programs[name, 'and backward, ms'] = gradient, (x, g[:, : shape.shape[1], : shape.shape[2]])
  times = _take_turns(
    size, {key: lambda one=one: jax.block_until_ready(one[0](*one[1])) for key, one in programs.items()}
  )
  rows = {f'{name}, {dtype}': {} for name in alone}
  for (name, column), row in times.items():
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
  command = [
    sys.executable,
    '-m',
    'triplet_det.main',
    '--config',
    'configs/shapes.py',
    '--workdir',
    str(folder / 'run'),
  ]
  settings = {f'data.{split}.data_dir': str(folder / 'data') for split in ('train', 'eval')} | size.run
  command += [f'--config.{name}={value}' for name, value in settings.items()]
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
