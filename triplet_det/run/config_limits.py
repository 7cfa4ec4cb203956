"""What a config can hold: names that are known, and numbers, where nothing else would say it before it is too late."""

import difflib
import functools
import math
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_COUNTS = 'log_every', 'checkpoint_every', 'eval_batch_size', 'input_size', 'last_crops.input_size'
_FROM_0 = (
  'seed',
  'group_size',
  'data.num_workers',
  'data.num_threads',
  'augment.border',
  'last_crops.border',
  'lighting',
  'keypoint_reach',
  'patience',
)
_FROM_0_OF_ADAM = tuple(
  f'optimizer.{name}' for name in ('warmup_steps', 'clip_norm', 'reference_batch', 'encoder_factor')
)


def _are_scales(value: Any) -> bool:
  numbers = isinstance(value, tuple | list) and all(isinstance(one, int | float) for one in value)
  return numbers and len(value) > 0 and all(0 < one <= 100 for one in value)


# Name in the config -> what is possible, and whether a value is.
LIMITS = {
  **dict.fromkeys(_COUNTS, ('at least 1', lambda value: value >= 1)),
  'augment.max_objects': ('from 1 to 100,000', lambda value: 1 <= value <= 100_000),
  'augment.scales': ('one positive number or more with commas in brackets, such as (0.8,1.0,1.2)', _are_scales),
  **dict.fromkeys((*_FROM_0, *_FROM_0_OF_ADAM), ('at least 0', lambda value: value >= 0)),
  'image_scale': ('from 0.01 to 100', lambda value: 0.01 <= value <= 100),
  'optimizer.base': ('above 0', lambda value: value > 0),
  **dict.fromkeys(
    ('total_steps', 'eval_every'), ('at least 1, or -1, from the data', lambda value: value >= 1 or value == -1)
  ),
  'image_side': ('-1, from the data, 0, as images are, or pixels', lambda value: value >= -1),
  'average_decay': ('from 0, without averages, to below 1, such as 0.999', lambda value: 0 <= value < 1),
  'colour_jitter': ('from 0 to below 1', lambda value: 0 <= value < 1),
  'min_overlap': ('between 0 and 1', lambda value: 0 < value < 1),
  'last_crops.share': ('from 0, none of the steps, to 1', lambda value: 0 <= value <= 1),
  'draw_threshold': ('from 0 to 1', lambda value: 0 <= value <= 1),
  'model.dtype': (
    'float32, bfloat16, float16 or float64',
    lambda value: value in ('float32', 'bfloat16', 'float16', 'float64'),
  ),
  'model.precision': ('default or highest', lambda value: value in ('default', 'highest')),
}


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming every value of a config (nested dictionaries) that cannot be, with what can."""
  wrong = []
  for name, (possible, holds) in LIMITS.items():
    try:
      value = functools.reduce(operator.getitem, name.split('.'), config)
    except (KeyError, TypeError):
      wrong.append(f'the config has no config.{name}: take it over from configs/triplet.py ({possible})')
      continue
    if not holds(value) or value in (math.inf, -math.inf):  # NaN neither
      wrong.append(f'config.{name} is {value}: give {possible}')
  if wrong:
    raise ValueError('; '.join(wrong))


def check_names(what: str, given: Iterable[str], known: Collection[str], where: str = '') -> None:
  """Raises ValueError for the first of the `given` names that is not known, with the nearest one that is, and all."""
  for name in given:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else '.'
      raise ValueError(f'unknown {what} {name!r}{where}{hint} Known {what}s: {", ".join(known)}')
