"""Adam with the two-step schedule of Sec. 3.4, and the shapes that small runs need."""

import math

import optax

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
  return base * math.sqrt(batch_size / reference_batch) if reference_batch else base


def adam(rate: optax.Schedule, *, clip_norm: float = 0.0) -> optax.GradientTransformation:
  """Adam (0.9, 0.999, 1e-8) as published: no weight decay; gradients clipped to `clip_norm` if it is above 0."""
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()  # neither has a state
  return optax.chain(clip, optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.scale_by_learning_rate(rate))
