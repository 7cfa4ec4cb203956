"""The training state and the one pure step that the loop, ahead-of-time compilation, benchmarks and tests share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from triplet_det.models import fast_convolution, input_pixels
from triplet_det.models.detector import Detector, multiplying
from triplet_det.structs import Batch, Cells
from triplet_det.training import colour_augmentation, losses, targets
from triplet_det.training.optimizer import without_gradients


@struct.dataclass
class TrainState:
  """All that a step reads and writes."""

  step: jax.Array  # [] int32, steps done
  params: Any  # float32
  batch_stats: Any  # float32, running statistics of the norms
  opt_state: Any
  average: Any = None  # exponential moving averages {'params', 'batch_stats'} if the run keeps them

  @property
  def variables(self) -> dict[str, Any]:
    """What `module.apply` takes for testing: the averages if there are any."""
    return self.average or {'params': self.params, 'batch_stats': self.batch_stats}


def init_state(
  module: Detector, optimizer: optax.GradientTransformation, seed: int, *, averages: bool = False
) -> TrainState:
  """Fresh parameters by the modules' own rules; jit this (with `out_shardings` if there is a mesh).

  `averages`: the state keeps exponential moving averages, as `make_train_step(average_decay=...)` needs.
  """
  # Threefry would spend most of the start on 210 million numbers; rbg draws them at memory speed.
  key = jax.random.key(seed, impl='rbg')
  side = module.config.size_multiple - 1
  variables = module.init(key, jnp.zeros((1, side, side, 3)))
  params, batch_stats = variables['params'], variables['batch_stats']
  average = {'params': params, 'batch_stats': batch_stats} if averages else None
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average)


def make_train_step(
  module: Detector,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  colour_jitter: float = 0.4,
  lighting: float = 0.1,
  min_overlap: float = 0.3,
  published_radius: bool = False,
  accumulate: int = 1,
  average_decay: float = 0.0,
  freeze: str = '',
  keypoint_reach: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The step as a pure function, to be jitted by the caller with the state donated.

  Args:
    module: the network; its `norm_group` is also the group of the losses.
    optimizer: of `optimizer.adam`.
    seed: of the colour draws; step k draws the same numbers whenever it runs.
    colour_jitter, lighting: strengths, see `colour_augmentation.draw_colours`.
    min_overlap, published_radius: see `targets.render`.
    accumulate: parts that the batch goes through the network in, one after the other; a step stays one step of the
      optimizer. With norm groups the result is that of the whole batch; without, each part is a group of its own.
    average_decay: of the moving averages of parameters and statistics, which the state must have; 0 keeps none. The
      first steps decay faster, (1 + k) / (10 + k), so that the averages forget the initial weights.
    freeze: parameters that `optimizer` does not update, see `optimizer.frozen_share`: their gradients are zero.
    keypoint_reach: `reach` of `losses.detection_loss`.

  Returns:
    (state, Batch) -> (state after the step, metrics): `loss`, its terms, and `gradient_norm`, float32 scalars.
  """
  config = module.config

  def loss_of(params, batch_stats, batch: Batch, draws: colour_augmentation.ColourDraws):
    images = input_pixels.normalise(colour_augmentation.distort(batch.images.astype(jnp.float32) / 255, draws))
    radius = dict(min_overlap=min_overlap, published_radius=published_radius)
    goal = targets.of_batch(batch, num_classes=config.num_classes, **radius)
    variables = {'params': without_gradients(params, freeze), 'batch_stats': batch_stats}
    read = Cells(goal.tl_cell, goal.br_cell, goal.center_cell, keypoint_reach)
    maps, updated = module.apply(variables, images, train=True, read=read, mutable=['batch_stats'])
    loss, terms = losses.detection_loss(maps, goal, group=config.norm_group, reach=keypoint_reach)
    return loss, (dict(terms, loss=loss), updated['batch_stats'])

  gradient_of = jax.grad(loss_of, has_aux=True)

  def over_parts(params, batch_stats, batch: Batch, draws: colour_augmentation.ColourDraws):
    """`gradient_of` as the mean over the parts, which share the statistics from before the step."""
    parts = jax.tree.map(lambda x: _in_parts(x, accumulate, config.norm_group or 1), (batch, draws))
    # Published: only the first group's statistics are kept, and the first part has it.
    kept = jnp.arange(accumulate) == 0 if config.norm_running == 'first' else jnp.full(accumulate, 1 / accumulate)

    def add_part(total, part_and_share):
      part, share = part_and_share
      gradients, (metrics, statistics) = gradient_of(params, batch_stats, *part)
      scaled = jax.tree.map(lambda x: x / accumulate, (gradients, metrics))
      found = *scaled, jax.tree.map(lambda x: x * share, statistics)
      return jax.tree.map(jnp.add, total, found), None

    shapes = jax.eval_shape(gradient_of, params, batch_stats, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], *shapes[1]))
    (gradients, metrics, statistics), _ = jax.lax.scan(add_part, zeros, (parts, kept))
    return gradients, (metrics, statistics)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    draws = colour_augmentation.draw_colours(key, batch.images.shape[0], jitter=colour_jitter, lighting=lighting)
    compute = gradient_of if accumulate == 1 else over_parts
    with multiplying(config.precision):
      gradients, (metrics, batch_stats) = compute(state.params, state.batch_stats, batch, draws)
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    # All gradients, then the first update: else XLA for CPU keeps a copy of all parameters, which are donated.
    gradients = jax.lax.platform_dependent(
      metrics['gradient_norm'], gradients, cpu=fast_convolution.after, default=lambda _, same: same
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average_decay:
      decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
      after = {'params': params, 'batch_stats': batch_stats}
      average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, after)
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

  return train_step


def _in_parts(x: jax.Array, parts: int, group: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]: whole groups, dealt out in turn, so that each device has its share of each."""
  dealt = x.reshape(x.shape[0] // (parts * group), parts, group, *x.shape[1:])
  return jnp.moveaxis(dealt, 1, 0).reshape(parts, x.shape[0] // parts, *x.shape[1:])
