"""train_step and input of `scripts/benchmark.py`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from scripts.paper.side_by_side import Table
from scripts.timing import detection_parts, quiet_pairs
from scripts.timing.benchmark_table import GEMM, OURS, TORCH, timed_row, timed_table
from scripts.timing.detection_parts import NETWORKS
from scripts.timing.quiet_pairs import Arm
from scripts.timing.timed_detection import add_network_arguments, add_twin_arguments, against_twin, model_and_side
from triplet_det import train
from triplet_det.configs import triplet
from triplet_det.data import pipeline
from triplet_det.devices import compiler, sharding
from triplet_det.structs import Batch

KB = 1e3
SLOTS = 128  # objects per image
IMAGES_PER_RUN = 256  # what threads have half done at its ends is little of it


def add_train_step_arguments(parser: argparse.ArgumentParser) -> None:
  add_network_arguments(parser)
  add_twin_arguments(parser)
  parser.add_argument('--batch', type=int, default=1, help='images per step (default: %(default)s)')


def train_step(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """Colours, targets, network, loss, gradients and Adam; the twin finds images and targets ready."""
  model, side = model_and_side(arguments)
  flops = detection_parts.network_flops(model, side, side, images=arguments.batch, train=True)
  names = ('hg', 'detector', 'batch')
  return against_twin(
    'train_step',
    f'Training step: {arguments.batch} x {side} x {side} pixels',
    f'{NETWORKS[arguments.detector]} {arguments.hg}, batch {arguments.batch}',
    makers={OURS: 'scripts.timing.timed_training:our_step', TORCH: 'scripts.timing.torch_training:train_step'},
    given=dict(model=model, batch=arguments.batch, side=side),
    flops=flops,
    settings={name: getattr(arguments, name) for name in names} | dict(size=side),
    arguments=arguments,
    measure=measure,
  )


def our_step(model: Mapping, batch: int, side: int) -> Callable[[], object]:
  """The step that the training loop runs, as it is built for a config, for a process of its own."""
  config = triplet.get_config('hg=52')
  sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
  num_classes = sizes.pop('num_classes')
  config.model.update(sizes)
  config.update(batch_size=batch, group_size=0, input_size=side)
  mesh = sharding.make_mesh(jax.devices()[:1])
  built = train.build_step(config, mesh, num_classes)
  rows = sharding.to_global(random_batch(batch, side, num_classes), mesh)
  state = built.fresh_state()
  step = built.train_step.lower(built.state, built.batch).compile()
  compiler.give_back()  # as the loop does, after both

  def run():
    nonlocal state
    state, metrics = step(state, rows)
    return jax.block_until_ready((state, metrics))

  return run


def random_batch(batch: int, side: int, num_classes: int, objects: int = 8) -> Batch:
  """Noise with so many boxes per image."""
  rng = np.random.default_rng(0)
  corners = np.sort(rng.uniform(0, side - 1, (batch, SLOTS, 2, 2)), axis=2)
  return Batch(
    images=rng.integers(0, 256, (batch, side, side, 3), np.uint8),
    boxes=corners.reshape(batch, SLOTS, 4).astype(np.float32),
    classes=rng.integers(0, num_classes, (batch, SLOTS), np.int32),
    valid=np.broadcast_to(np.arange(SLOTS) < objects, (batch, SLOTS)),
  )


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--images', required=True, help='folder of images')
  parser.add_argument('--annotations', required=True, help='their COCO JSON')
  parser.add_argument('--size', type=int, default=511, help='side of the network input, pixels (default: %(default)s)')
  parser.add_argument('--batch', type=int, default=8, help='images per batch (default: %(default)s)')
  parser.add_argument('--num_workers', type=int, default=0, help='processes; 0: threads of one (default: %(default)s)')
  parser.add_argument('--num_threads', type=int, default=2, help='in each process (default: %(default)s)')


class Feed:
  """Batches as training draws them; what is made in advance is taken out before the first one counts."""

  def __init__(self, source: pipeline.Source, *, batch: int, size: int, num_workers: int, num_threads: int):
    self._source, self._batch = source, batch
    self._how = dict(input_size=size, num_workers=num_workers, num_threads=num_threads)
    self._batches = None
    self.batches_per_run = -(-IMAGES_PER_RUN // batch)

  def open(self) -> None:
    prefetch = max(2, self._how['num_threads'])
    self._batches = pipeline.train_batches(self._source, batch_size=self._batch, seed=0, prefetch=prefetch, **self._how)
    for _ in range((prefetch + 2) * max(1, self._how['num_workers'])):
      next(self._batches)

  def __call__(self) -> Mapping[str, np.ndarray]:
    for _ in range(self.batches_per_run):
      batch = next(self._batches)
    return batch

  def close(self) -> None:
    self._batches.close()


def feed(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """The host's part of training: read, decode, crop, resize, flip, pad, batch."""
  source = pipeline.open_source('coco_json', images=arguments.images, annotations=arguments.annotations)
  names = ('batch', 'size', 'num_workers', 'num_threads')
  how = {name: getattr(arguments, name) for name in names}
  batches = Feed(source, **how)
  gemm, gemm_flops = quiet_pairs.gemm()
  ours = Arm(batches, before=batches.open, after=batches.close)
  turns = quiet_pairs.take_turns({OURS: ours, GEMM: gemm}, **measure)
  sent = next(iter(turns.rounds.values()))[OURS].result
  kilobytes = sum(array.nbytes for array in sent.values()) / arguments.batch / KB
  images = arguments.batch * batches.batches_per_run
  row = timed_row('per image', turns, gemm_flops, items=images, beside={'KB per image': kilobytes})
  rates = {label: {'images/s': 1e3 / values['ms'], **values} for label, values in row.runs.items()}
  where = f'{arguments.num_workers} processes' if arguments.num_workers else 'one process'
  return timed_table(
    'input',
    f'Input pipeline: {len(source)} images to {arguments.size} x {arguments.size} pixels, {where}',
    [dataclasses.replace(row, runs=rates)],
    turns,
    gemm_flops,
    dict(how, images=len(source)),
    ['KB per image: what is sent to the device, for an image with its boxes'],
  )
