"""What the numbers of a config can be, where nothing else would say it before it is too late."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

# Name in the config -> what is possible, and whether a value is.
LIMITS = {
  **dict.fromkeys(
    ('total_steps', 'log_every', 'checkpoint_every', 'eval_every', 'eval_batch_size', 'input_size'),
    ('at least 1', lambda value: value >= 1),
  ),
  'augment.max_objects': ('at least 1', lambda value: value >= 1),
  **dict.fromkeys(
    ('seed', 'group_size', 'data.num_workers', 'data.num_threads', 'augment.border', 'lighting'),
    ('at least 0', lambda value: value >= 0),
  ),
  **dict.fromkeys(
    ('optimizer.warmup_steps', 'optimizer.clip_norm', 'optimizer.reference_batch'),
    ('at least 0', lambda value: value >= 0),
  ),
  'image_scale': ('above 0', lambda value: value > 0),
  'optimizer.base': ('above 0', lambda value: value > 0),
  'average_decay': ('from 0, without averages, to below 1, such as 0.999', lambda value: 0 <= value < 1),
  'colour_jitter': ('from 0 to below 1', lambda value: 0 <= value < 1),
  'min_overlap': ('between 0 and 1', lambda value: 0 < value < 1),
  'draw_threshold': ('from 0 to 1', lambda value: 0 <= value <= 1),
  'model.dtype': (
    'float32, bfloat16, float16 or float64',
    lambda value: value in ('float32', 'bfloat16', 'float16', 'float64'),
  ),
}


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming every value of a config (nested dictionaries) that cannot be, with what can."""
  wrong = []
  for name, (possible, holds) in LIMITS.items():
    value = functools.reduce(operator.getitem, name.split('.'), config)
    if not holds(value):  # NaN neither
      wrong.append(f'config.{name} is {value}: give {possible}')
  if wrong:
    raise ValueError('; '.join(wrong))
