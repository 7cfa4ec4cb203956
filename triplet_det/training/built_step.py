"""The training step that a config asks for, jitted for a mesh of devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from triplet_det.devices import sharding
from triplet_det.models import detector
from triplet_det.structs import Batch, Cells
from triplet_det.training import optimizer
from triplet_det.training.train_step import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class BuiltStep:
  """What a config trains on a mesh: the network, and the step and the state before anything is computed."""

  model: dict  # settings of the network, as checkpoints keep them
  module: detector.Detector
  rate: optax.Schedule
  state: TrainState  # of jax.ShapeDtypeStruct, with shardings
  batch: Batch  # the same
  read: Cells  # where it reads offsets and embeddings, the same
  fresh_state: Callable[[], TrainState]  # jitted
  train_step: jax.stages.Wrapped  # (state, batch) -> (state, metrics); the state is donated


def build(config: ConfigDict, mesh: jax.sharding.Mesh, num_classes: int) -> BuiltStep:
  """For the loop and for ahead-of-time compilation: the devices of `mesh` may be those of another machine.

  Raises:
    ValueError: batch, devices, image size, network or schedule do not fit together.
  """
  sharding.check_batch(config.batch_size, mesh, config.group_size, config.accumulate)
  model = dict(config.model, num_classes=num_classes, norm_group=config.group_size or None)
  module = detector.build(model)
  module.config.check_side('input_size', config.input_size)
  if config.last_crops.share:
    module.config.check_side('last_crops.input_size', config.last_crops.input_size)

  schedule = config.optimizer.to_dict()
  clip_norm, base, reference, encoder_factor = (
    schedule.pop(key) for key in ('clip_norm', 'base', 'reference_batch', 'encoder_factor')
  )
  base = optimizer.scaled_rate(base, config.batch_size, reference)
  rate = optimizer.learning_rate(base=base, total_steps=config.total_steps, **schedule)
  adam = optimizer.adam(rate, clip_norm=clip_norm, freeze=config.freeze, encoder_factor=encoder_factor)

  def fresh_state():
    return init_state(module, adam, config.seed, averages=config.average_decay > 0)

  shapes = jax.eval_shape(fresh_state)
  placed = sharding.of_state(mesh, shapes)
  step_fn = make_train_step(
    *(module, adam),
    accumulate=config.accumulate,
    average_decay=config.average_decay,
    freeze=config.freeze,
    keypoint_reach=config.keypoint_reach,
    **image_settings(config),
  )

  def rows(dtype, *shape):
    return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding.over_data(mesh))

  side, objects = config.input_size, config.augment.max_objects
  cells = rows(np.int32, objects)
  return BuiltStep(
    model=model,
    module=module,
    rate=rate,
    state=jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, placed),
    batch=Batch(
      images=rows(np.uint8, side, side, 3),
      boxes=rows(np.float32, objects, 4),
      classes=rows(np.int32, objects),
      valid=rows(np.bool_, objects),
    ),
    read=Cells(cells, cells, cells, config.keypoint_reach),
    fresh_state=jax.jit(fresh_state, out_shardings=placed),
    train_step=jax.jit(
      step_fn,
      in_shardings=(placed, sharding.over_data(mesh)),
      out_shardings=(placed, sharding.replicated(mesh)),
      donate_argnums=0,
      compiler_options=sharding.compiler_options(mesh),
    ),
  )


def largest_crops(config: ConfigDict) -> int:
  """Side of the largest crops of a run, pixels: what its memory has to hold, and the largest objects fit into."""
  return max(config.input_size, config.last_crops.input_size if config.last_crops.share else 0)


def image_settings(config: ConfigDict) -> dict[str, Any]:
  """What becomes of images and boxes on the device, as `make_train_step` and `show_data.write` take it."""
  return {key: config[key] for key in ('seed', 'colour_jitter', 'lighting', 'min_overlap', 'published_radius')}
