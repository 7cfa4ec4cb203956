"""Adam with the two-step schedule of Sec. 3.4, and the shapes that small runs need."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

SCHEDULES = ('step', 'cosine')


def learning_rate(
  *, base: float, total_steps: int, schedule: str, drop_step: int = 0, drop_factor: float = 0.1, warmup_steps: int = 0
) -> optax.Schedule:
  """Step -> learning rate.

  Args:
    base: the rate before any drop (paper: 2.5e-4).
    total_steps: length of the run (paper: 480,000).
    schedule: 'step' multiplies by `drop_factor` once `drop_step` steps are done (paper: 450,000, 0.1); 'cosine' falls
      from `base` to 0 over the run.
    warmup_steps: linear rise from 0 over this many first steps (paper: none).

  Raises:
    ValueError: unknown schedule, or a drop outside the run.
  """
  if schedule == 'step':
    if not 0 < drop_step <= total_steps:
      raise ValueError(f'drop_step is {drop_step}, the run has {total_steps} steps: give a step of the run')
    rate = optax.piecewise_constant_schedule(base, {drop_step: drop_factor})
  elif schedule == 'cosine':
    rate = optax.cosine_decay_schedule(base, total_steps)
  else:
    raise ValueError(f'unknown schedule {schedule!r}; possible: {", ".join(SCHEDULES)}')
  if not warmup_steps:
    return rate
  return lambda step: rate(step) * optax.schedules.linear_schedule(0.0, 1.0, warmup_steps)(step + 1)


def scaled_rate(base: float, batch_size: int, reference_batch: int) -> float:
  """The rate for another batch size than `base` was found with: base x sqrt(batch_size / reference_batch).

  Adam divides by the gradient's spread, so its noise falls with the root of the batch, and the rate follows (Malladi
  et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022). A reference of 0 leaves the rate.
  """
  if reference_batch in (0, batch_size):
    return base
  scaled = base * math.sqrt(batch_size / reference_batch)
  logging.info(
    'learning rate %.3g = %.3g x sqrt(%d / %d): it was found for batch %d, and the noise of Adam falls with the root '
    'of the batch (optimizer.reference_batch=0 keeps %.3g)',
    *(scaled, base, batch_size, reference_batch, reference_batch, base),
  )
  return scaled


def adam(
  rate: optax.Schedule, *, clip_norm: float = 0.0, freeze: str = '', encoder_factor: float = 1.0
) -> optax.GradientTransformation:
  """Adam (0.9, 0.999, 1e-8) as published: no weight decay; gradients clipped to `clip_norm` if it is above 0.

  `freeze`: parameters that are not updated, see `frozen_share`. Neither is their gradient in the norm that is clipped.
  The running statistics of frozen norms still follow the data: a training step normalises with those of its batch,
  frozen or not, and testing has to use statistics of the same data.

  `encoder_factor`: the share of the rate for the parameters of an encoder that starts with what it has learnt already.
  """
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()  # neither has a state
  inner = optax.chain(clip, optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.scale_by_learning_rate(rate))
  if encoder_factor != 1:
    inner = _scaling(inner, encoder_factor)
  return _freezing(inner, freeze) if freeze else inner


def frozen_share(params: Any, freeze: str) -> float:
  """The share of the numbers in `params` that are frozen.

  Args:
    params: a tree of dictionaries; or their shapes.
    freeze: a regular expression, matched from the start of a parameter's path, such as 'stem/block/conv/kernel':
      'stem|hourglass_0' are two modules with all below them, '.*/norm/' all norms, '' nothing.

  Raises:
    ValueError: not a regular expression, or one that freezes nothing or everything; names the modules.
  """
  if not freeze:
    return 0.0
  sizes = {_path(at): int(np.prod(x.shape)) for at, x in jax.tree_util.tree_leaves_with_path(params)}
  try:
    frozen = [path for path in sizes if re.match(freeze, path)]
  except re.error as error:
    raise ValueError(f'freeze={freeze!r} is not a regular expression: {error}') from None
  if len(frozen) in (0, len(sizes)):
    what = 'no parameter' if not frozen else 'all parameters, so that nothing would be trained'
    modules = ', '.join(dict.fromkeys(path.partition('/')[0] for path in sizes))
    raise ValueError(
      f'freeze={freeze!r} matches {what}; it is compared with the start of paths such as {next(iter(sizes))}; '
      f'modules: {modules}'
    )
  return sum(sizes[path] for path in frozen) / sum(sizes.values())


def _scaling(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
  """`inner`, whose updates of the encoder are multiplied by `factor`; its state stays that of `inner`."""

  def update(gradients, state, params=None):
    updates, state = inner.update(gradients, state, params)
    scaled = {name: jax.tree.map(lambda x: x * factor, part) for name, part in updates.items() if name == 'encoder'}
    return {**updates, **scaled}, state

  return optax.GradientTransformation(inner.init, update)


def without_gradients(params: Any, freeze: str) -> Any:
  """`params` of which those that `freeze` matches are constants, so that no gradient of theirs is computed."""
  if not freeze:
    return params
  return jax.tree_util.tree_map_with_path(
    lambda at, x: jax.lax.stop_gradient(x) if re.match(freeze, _path(at)) else x, params
  )


def _freezing(inner: optax.GradientTransformation, freeze: str) -> optax.GradientTransformation:
  """`inner` without gradients and updates of frozen parameters. Its state stays that of `inner`, unlike that of
  optax.masked, so that a run may be continued with more or with fewer frozen parameters."""

  def zeroed(tree):
    return jax.tree_util.tree_map_with_path(lambda at, x: jnp.zeros_like(x) if re.match(freeze, _path(at)) else x, tree)

  def update(gradients, state, params=None):
    updates, state = inner.update(zeroed(gradients), state, params)
    return zeroed(updates), state

  return optax.GradientTransformation(inner.init, update)


def _path(at: tuple) -> str:
  return '/'.join(str(key.key) for key in at)
