"""Reads the golden files: arrays that the published programs produced, their weights stored in few bits."""

from pathlib import Path

import numpy as np

# The small networks of small_net_<name>.npz.
_CENTERNET = dict(
  stacks=2, dims=(32, 32, 48), blocks=(2, 2, 2), stem_width=16, head_width=32, pool_width=128, num_classes=5
)
NETWORKS = dict(
  centernet=_CENTERNET,
  cornernet=dict(_CENTERNET, center_branch=False, center_pooling=False, cascade_corner_pooling=False),
)
GOLDEN = Path(__file__).parent / 'golden'


def read(name: str, prefix: str = '') -> dict[str, np.ndarray]:
  """The arrays of tests/golden/<name>.npz under a prefix, named without it."""
  with np.load(GOLDEN / f'{name}.npz') as archive:
    return {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The released network's state dict, float32: convolutions are int8 times a scale, all else is float16."""
  weights = {}
  for key, array in arrays.items():
    kind, _, name = key.partition('/')
    if kind == 'q':
      weights[name] = array.astype(np.float32) * np.float32(arrays[f's/{name}'])
    elif kind == 'f':
      weights[name] = array.astype(np.float32)
  return weights


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The arrays below a prefix, named without it."""
  return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def nhwc(array: np.ndarray) -> np.ndarray:
  return array.transpose(0, 2, 3, 1)


def relative_error(ours, theirs) -> float:
  """Largest difference over the largest value of what the published program gave."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, f'shapes {ours.shape} and {theirs.shape}'
  scale = np.abs(theirs).max()
  return float(np.abs(ours - theirs).max() / (scale if scale else 1.0))
