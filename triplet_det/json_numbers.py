"""Numbers that JSON has no notation for."""

import math


def json_safe(value: float) -> float | str:
  """The value itself, or the string that stands for NaN or an infinity in JSON; `float` reads both."""
  if math.isfinite(value):
    return value
  return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
