"""A small trained detector of the embedded data set: `triplet_det.load('demo')`.

Made by scripts/make_demo_weights.py; provenance.json says from which run, and how good it is.
"""

import json
from pathlib import Path

import numpy as np
from flax import traverse_util

from triplet_det.run.checkpoints import RunRecord

WEIGHTS, PROVENANCE = 'weights.npz', 'provenance.json'


def load_weights(folder: Path = Path(__file__).parent) -> tuple[dict, RunRecord]:
  """({'params', 'batch_stats'} of float32 NumPy arrays, record), as `checkpoints.load_weights`.

  Raises:
    FileNotFoundError: the package was installed without its data.
  """
  for name in (WEIGHTS, PROVENANCE):
    if not (folder / name).exists():
      raise FileNotFoundError(f'{folder / name} is missing: install triplet_det again, or run make_demo_weights.py')
  with np.load(folder / WEIGHTS) as stored:
    flat = {name: stored[name].astype(np.float32) for name in stored}
  record = json.loads((folder / PROVENANCE).read_text(encoding='utf-8'))['record']
  return traverse_util.unflatten_dict(flat, sep='/'), RunRecord.from_json(record)


def save_weights(variables: dict, folder: Path) -> int:
  """Writes the weights as float16 (norms, biases and statistics, which are few, as float32); returns the bytes.

  Raises:
    ValueError: a weight that float16 cannot hold; says of which array.
  """
  flat = traverse_util.flatten_dict(variables, sep='/')
  for name, value in flat.items():
    if not np.abs(value).max() <= np.finfo(np.float16).max:  # or not a number
      raise ValueError(f'{name} has weights up to {np.abs(value).max():.3g}, float16 holds 65504')
  stored = {name: value.astype(np.float16 if value.ndim > 1 else np.float32) for name, value in flat.items()}
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / WEIGHTS, **stored)
  return (folder / WEIGHTS).stat().st_size
