"""The authors' PyTorch state dicts <-> our variables, one key table for both directions.

Needs no torch: a state dict is a mapping of names to NumPy arrays.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from triplet_det.models import detector

_RESIDUAL = (
  (r'/block/conv$', r'.conv1'),
  (r'/block/norm$', r'.bn1'),
  (r'/out/conv$', r'.conv2'),
  (r'/out/norm$', r'.bn2'),
  (r'/skip/conv$', r'.skip.0'),
  (r'/skip/norm$', r'.skip.1'),
)
_POOLING = (
  (r'vertical_join$', r'P1_look_conv'),
  (r'horizontal_join$', r'P2_look_conv'),
  (r'vertical_look/', r'look_conv1/'),
  (r'horizontal_look/', r'look_conv2/'),
  (r'vertical/', r'p1_conv1/'),
  (r'horizontal/', r'p2_conv1/'),
  (r'tail/merge/conv$', r'p_conv1'),
  (r'tail/merge/norm$', r'p_bn1'),
  (r'tail/skip/conv$', r'conv1'),
  (r'tail/skip/norm$', r'bn1'),
  (r'tail/out/', r'conv2/'),
  (r'/conv$', r'.conv'),
  (r'/norm$', r'.bn'),
)
_PAIR = ((r'/conv$', r'.0'), (r'/norm$', r'.1'))  # an unnamed Sequential
_BLOCK = ((r'/conv$', r'.conv'), (r'/norm$', r'.bn'))
_LEVELS = (
  (r'/inner', r'.low2'),
  (r'/up_', r'.up1.'),
  (r'/down_', r'.low1.'),
  (r'/bottom_', r'.low2.'),
  (r'/back_', r'.low3.'),
)
_KINDS = {'top_left': 'tl', 'bottom_right': 'br', 'center': 'ct'}
_OUTPUTS = {'heat': 'heats', 'embed': 'tags', 'offset': 'regrs'}

# (prefix of our module path, prefix of the released key, substitutions for the rest); the first match counts.
_MODULES = (
  (r'stem/block', r'pre.0', _BLOCK),
  (r'stem/residual', r'pre.1', _RESIDUAL),
  (r'hourglass_(\d+)', r'kps.\1', _LEVELS + _RESIDUAL),
  (r'feature_(\d+)', r'cnvs.\1', _BLOCK),
  (r'previous_(\d+)', r'inters_.\1', _PAIR),
  (r'carried_(\d+)', r'cnvs_.\1', _PAIR),
  (r'between_(\d+)', r'inters.\1', _RESIDUAL),
  *((rf'{ours}_(\d+)/pooling/', rf'{theirs}_cnvs.\1.', _POOLING) for ours, theirs in _KINDS.items()),
  *(
    (rf'{kind}_(\d+)/{ours}', rf'{short}_{theirs}.\1', ((r'/hidden$', r'.0.conv'), (r'/out$', r'.1')))
    for kind, short in _KINDS.items()
    for ours, theirs in _OUTPUTS.items()
  ),
)
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


def torch_key(path: tuple[str, ...]) -> str:
  """The released name of one of our arrays: ('params', 'stem', 'block', 'conv', 'kernel') -> 'pre.0.conv.weight'."""
  module = '/'.join(path[1:-1])
  for ours, theirs, substitutions in _MODULES:
    match = re.match(ours, module)
    if match:
      rest = module[match.end() :]
      for pattern, replacement in substitutions:
        rest = re.sub(pattern, replacement, rest)
      return f'{match.expand(theirs)}{rest}.{_LEAVES[path[-1]]}'
  raise KeyError(f'no released name for {"/".join(path)}')


def key_table(model_config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, tuple[int, ...]]]:
  """(path in our variables, released key, shape in our variables) for every array of the network."""
  module = detector.build(model_config)
  side = module.config.size_multiple - 1
  images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  shapes = jax.eval_shape(lambda key, x: module.init(key, x), jax.random.key(0), images)
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    yield path, torch_key(path), leaf.shape


def _to_ours(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
  if path[-1] == 'kernel' and array.ndim == 4:  # any other array is reported by its shape
    array = np.transpose(array, (2, 3, 1, 0))  # OIHW -> HWIO
    if path[1:4] == ('stem', 'block', 'conv'):
      array = array[:, :, ::-1]  # the released network reads blue-green-red
  return np.ascontiguousarray(array, np.float32)


def _to_theirs(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
  if path[-1] == 'kernel':
    if path[1:4] == ('stem', 'block', 'conv'):
      array = array[:, :, ::-1]
    array = np.transpose(array, (3, 2, 0, 1))
  return np.ascontiguousarray(array, np.float32)


def import_state_dict(state_dict: Mapping[str, np.ndarray], model_config: Mapping[str, Any]) -> dict:
  """Released weights -> {'params', 'batch_stats'} for RGB images.

  Args:
    state_dict: names (with or without the `module.` prefix) to arrays, convolutions as OIHW.
    model_config: keys of `detector.DetectorConfig`.

  Raises:
    ValueError: lists every missing key, every key left over and every wrong shape, at once.
  """
  theirs = {re.sub(r'^(module\.)+', '', k): np.asarray(v) for k, v in state_dict.items()}
  theirs = {k: v for k, v in theirs.items() if not k.endswith('num_batches_tracked')}
  missing, misshapen, variables = [], [], {}
  for path, key, shape in key_table(model_config):
    if key not in theirs:
      missing.append(key)
      continue
    array = _to_ours(path, theirs.pop(key))
    if array.shape != shape:
      misshapen.append(f'{key}: given {array.shape}, the network has {shape} (kernels as height, width, in, out)')
    variables[path] = array
  problems = [
    f'{len(found)} {what}: {", ".join(sorted(found))}'
    for what, found in (('missing', missing), ('not known to the network', theirs), ('of another shape', misshapen))
    if found
  ]
  if problems:
    raise ValueError('the state dict does not fit the model config; ' + '; '.join(problems))
  return traverse_util.unflatten_dict(variables)


def export_state_dict(variables: Mapping[str, Any], model_config: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Our variables -> the released names, layouts and channel order; the exact inverse of `import_state_dict`.

  ValueError for a network that the authors' code does not have.
  """
  if (encoder := model_config.get('encoder', 'hourglass')) != 'hourglass':
    raise ValueError(f"the authors' code has hourglasses alone, this network has the encoder {encoder}: give another")
  flat = traverse_util.flatten_dict(dict(variables))
  return {key: _to_theirs(path, np.asarray(flat[path])) for path, key, _ in key_table(model_config)}


def infer_model_config(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The model config of a released state dict, read off its keys and shapes; published values for the rest.

  Raises:
    ValueError: a key that every released network has is missing.
  """
  shapes = {re.sub(r'^(module\.)+', '', key): np.shape(value) for key, value in state_dict.items()}

  def count(pattern: str) -> int:
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})

  try:
    dims, blocks, level = [shapes['pre.1.conv2.weight'][0]], [], 'kps.0.'
    while f'{level}low1.0.conv1.weight' in shapes:
      dims.append(shapes[f'{level}low1.0.conv1.weight'][0])
      blocks.append(count(rf'{re.escape(level)}up1\.(\d+)\.'))
      level += 'low2.'
    return dict(
      stacks=count(r'kps\.(\d+)\.'),
      dims=tuple(dims),
      blocks=(*blocks, count(rf'{re.escape(level)}(\d+)\.')),
      stem_width=shapes['pre.0.conv.weight'][0],
      head_width=shapes['cnvs.0.conv.weight'][0],
      pool_width=shapes['tl_cnvs.0.p1_conv1.conv.weight'][0],
      num_classes=shapes['tl_heats.0.1.weight'][0],
      center_branch='ct_heats.0.1.weight' in shapes,
      center_pooling='ct_heats.0.1.weight' in shapes,
      cascade_corner_pooling='tl_cnvs.0.P1_look_conv.weight' in shapes,
      norm_group=6,
      norm_running='first',
    )
  except KeyError as missing:
    raise ValueError(f'not a released CenterNet or CornerNet: no key {missing} among {len(shapes)}') from None
