"""The training state and the one pure step that the loop, ahead-of-time compilation, benchmarks and tests share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from triplet_det import losses, photometric, targets
from triplet_det.models.detector import Detector
from triplet_det.structs import Batch


@struct.dataclass
class TrainState:
  """All that a step reads and writes."""

  step: jax.Array  # [] int32, steps done
  params: Any  # float32
  batch_stats: Any  # float32, running statistics of the norms
  opt_state: Any

  @property
  def variables(self) -> dict[str, Any]:
    """What `module.apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


def init_state(module: Detector, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  """Fresh parameters by the modules' own rules; jit this (with `out_shardings` if there is a mesh)."""
  # Threefry would spend most of the start on 210 million numbers; rbg draws them at memory speed.
  key = jax.random.key(seed, impl='rbg')
  side = module.config.size_multiple - 1
  variables = module.init(key, jnp.zeros((1, side, side, 3)))
  params = variables['params']
  return TrainState(jnp.zeros((), jnp.int32), params, variables['batch_stats'], optimizer.init(params))


def make_train_step(
  module: Detector,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  colour_jitter: float = 0.4,
  lighting: float = 0.1,
  min_overlap: float = 0.3,
  published_radius: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The step as a pure function, to be jitted by the caller with the state donated.

  Args:
    module: the network; its `norm_group` is also the group of the losses.
    optimizer: of `optimizer.adam`.
    seed: of the colour draws; step k draws the same numbers whenever it runs.
    colour_jitter, lighting: strengths, see `photometric.draw_colours`.
    min_overlap, published_radius: see `targets.render`.

  Returns:
    (state, Batch) -> (state after the step, metrics): `loss`, its terms, and `gradient_norm`, float32 scalars.
  """
  config = module.config

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    count, side = batch.images.shape[:2]
    draws = photometric.draw_colours(key, count, jitter=colour_jitter, lighting=lighting)
    images = photometric.normalise(photometric.distort(batch.images.astype(jnp.float32) / 255, draws))
    goal = targets.render(
      batch.boxes,
      batch.classes,
      batch.valid,
      num_classes=config.num_classes,
      input_size=side,
      output_size=(side + 1) // 4,
      min_overlap=min_overlap,
      published_radius=published_radius,
    )

    def loss_of(params):
      variables = {'params': params, 'batch_stats': state.batch_stats}
      maps, updated = module.apply(variables, images, train=True, mutable=['batch_stats'])
      loss, terms = losses.detection_loss(maps, goal, group=config.norm_group)
      return loss, (terms, updated['batch_stats'])

    (loss, (terms, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = dict(terms, loss=loss, gradient_norm=optax.tree.norm(gradients))
    state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)
    return state, metrics

  return train_step
