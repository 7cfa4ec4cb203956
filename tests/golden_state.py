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
# mmdetection's, drawn by `drawn_weights`.
MMDETECTION = dict(NETWORKS['cornernet'], pixels='imagenet')
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


def drawn_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """mmdetection's state dict of mmdetection.npz, float32: drawn, so that it need not be stored.

  By NumPy's legacy generator, whose numbers stay the same in every version, in the order of the names.
  """
  random, weights = np.random.RandomState(1), {}
  for name in sorted(shapes):
    shape, leaf = shapes[name], name.rpartition('.')[2]
    array = random.uniform(-1, 1, shape)
    if len(shape) == 4:
      array *= np.sqrt(3 / np.prod(shape[1:]))  # as much variance out as in
    elif leaf == 'running_var' or (leaf == 'weight' and len(shape) == 1):
      array = 1 + array / 2
    else:
      array /= 5
    for output, factor in dict(heat=0.2, emb=0.12, off=0.1).items():  # scores, distances, offsets as of a trained one
      if f'_{output}.' in name and '.1.conv.weight' in name:
        array = factor * (array - array.mean(axis=1, keepdims=True))
    weights[name] = array.astype(np.float32)
  return weights


def drawn_image(height: int, width: int) -> np.ndarray:
  """uint8 [height, width, 3] RGB: blocks of colours with noise, drawn as `drawn_weights`."""
  random = np.random.RandomState(height * 1000 + width)
  blocks = random.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
  return (blocks + random.randint(0, 56, (height, width, 3))).astype(np.uint8)


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
