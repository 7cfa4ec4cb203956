"""JSON files that all programs read, with the numbers that JSON has no notation for."""

import json
import math
from collections.abc import Mapping

from etils import epath

from triplet_det.run import output_paths


def json_safe(value: float) -> float | str:
  """The value itself, or the string that stands for NaN or an infinity in JSON; `float` reads both."""
  if math.isfinite(value):
    return value
  return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'


def write_json(path: epath.Path, content: Mapping, *, indent: int | None = 1) -> None:
  """Writes JSON, whole or not at all, as all programs read it: NaN, which JSON does not have, is the string "NaN"."""

  def safe(value):
    if isinstance(value, Mapping):
      return {key: safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
      return [safe(one) for one in value]
    return json_safe(value) if isinstance(value, float) else value

  output_paths.write_whole(path, json.dumps(safe(content), indent=indent) + '\n')
