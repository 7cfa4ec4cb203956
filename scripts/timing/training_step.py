"""The step of the training loop, to be timed."""

from collections.abc import Mapping

import jax
import numpy as np

from scripts.timing.quiet_pairs import Program
from triplet_det.configs import triplet
from triplet_det.devices import compiler, sharding
from triplet_det.structs import Batch
from triplet_det.training import built_step
from triplet_det.training.built_step import BuiltStep

SLOTS = 128  # objects per image


def train_step(model: Mapping, batch: int, side: int) -> Program:
  """The step that the training loop runs, for a process of its own."""
  return ready(*build(model, batch, side))


def build(model: Mapping, batch: int, side: int) -> tuple[BuiltStep, Batch]:
  """The step as the training loop builds it for a config, on the first device, and images for it."""
  config = triplet.get_config('hg=52')
  num_classes = model['num_classes']
  config.model.update({name: value for name, value in model.items() if name != 'num_classes'})
  config.update(batch_size=batch, group_size=0, input_size=side)
  mesh = sharding.make_mesh(jax.devices()[:1])
  built = built_step.build(config, mesh, num_classes)
  return built, sharding.to_global(random_batch(batch, side, num_classes), mesh)


def ready(built: BuiltStep, rows: Batch) -> Program:
  """It compiled, with a state of its own, which is donated as in the loop."""
  state = built.fresh_state()
  step = built.train_step.lower(built.state, built.batch).compile()
  compiler.give_back()  # as the loop does, after both

  def run():
    nonlocal state
    state, metrics = step(state, rows)
    jax.block_until_ready((state, metrics))

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
