"""Adam with the two-step schedule of Sec. 3.4, and the shapes that small runs need."""

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


def adam(rate: optax.Schedule, *, clip_norm: float = 0.0) -> optax.GradientTransformation:
  """Adam (0.9, 0.999, 1e-8) as published: no weight decay; gradients clipped to `clip_norm` if it is above 0."""
  transform = optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)
  return optax.chain(optax.clip_by_global_norm(clip_norm), transform) if clip_norm else transform
