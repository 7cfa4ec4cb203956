"""PyTorch state dicts, the authors' and mmdetection's, <-> our variables, one key table for both directions.

Needs no torch: a state dict is a mapping of names to NumPy arrays.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from triplet_det.models import detector

Substitutions = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one program names its arrays."""

  # (prefix of our module path, prefix of its key, substitutions for the rest); the first match counts.
  modules: tuple[tuple[str, str, Substitutions], ...]
  prefix: str = ''  # of all keys in its files
  reads_bgr: bool = False  # its network reads blue-green-red


def _residual(skip: str) -> Substitutions:
  return (
    (r'/block/conv$', r'.conv1'),
    (r'/block/norm$', r'.bn1'),
    (r'/out/conv$', r'.conv2'),
    (r'/out/norm$', r'.bn2'),
    (r'/skip/conv$', rf'.{skip}.0'),
    (r'/skip/norm$', rf'.{skip}.1'),
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
  *_BLOCK,
)
_KINDS = {'top_left': 'tl', 'bottom_right': 'br', 'center': 'ct'}


def _outputs(key: str, names: Mapping[str, str], layers: Substitutions) -> tuple[tuple[str, str, Substitutions], ...]:
  """The heads; `key` with the kind, the output and \1 for the stack."""
  return tuple(
    (rf'{kind}_(\d+)/{ours}', key.format(kind=short, output=theirs), layers)
    for kind, short in _KINDS.items()
    for ours, theirs in names.items()
  )


AUTHORS = Layout(
  prefix='module.',
  reads_bgr=True,
  modules=(
    (r'stem/block', r'pre.0', _BLOCK),
    (r'stem/residual', r'pre.1', _residual('skip')),
    (r'hourglass_(\d+)', r'kps.\1', _LEVELS + _residual('skip')),
    (r'feature_(\d+)', r'cnvs.\1', _BLOCK),
    (r'previous_(\d+)', r'inters_.\1', _PAIR),
    (r'carried_(\d+)', r'cnvs_.\1', _PAIR),
    (r'between_(\d+)', r'inters.\1', _residual('skip')),
    *((rf'{ours}_(\d+)/pooling/', rf'{theirs}_cnvs.\1.', _POOLING) for ours, theirs in _KINDS.items()),
    *_outputs(
      r'{kind}_{output}.\1',
      {'heat': 'heats', 'embed': 'tags', 'offset': 'regrs'},
      ((r'/hidden$', r'.0.conv'), (r'/out$', r'.1')),
    ),
  ),
)
# CornerNet of OpenMMLab's Detection Toolbox: HourglassNet and CornerHead, in which no file of ours has centers.
MMDETECTION = Layout(
  modules=(
    (r'stem/block', r'backbone.stem.0', _BLOCK),
    (r'stem/residual', r'backbone.stem.1.0', _residual('downsample')),
    (r'hourglass_(\d+)', r'backbone.hourglass_modules.\1', _LEVELS + _residual('downsample')),
    (r'feature_(\d+)', r'backbone.out_convs.\1', _BLOCK),
    (r'previous_(\d+)', r'backbone.conv1x1s.\1', _BLOCK),
    (r'carried_(\d+)', r'backbone.remap_convs.\1', _BLOCK),
    (r'between_(\d+)', r'backbone.inters.\1', _residual('downsample')),
    *(
      (
        rf'{ours}_(\d+)/pooling/',
        rf'bbox_head.{_KINDS[ours]}_pool.\1.',
        (
          (r'vertical/', r'direction1_conv/'),
          (r'horizontal/', r'direction2_conv/'),
          (r'tail/merge/', r'aftpool_conv/'),
          (r'tail/skip/', r'conv1/'),
          (r'tail/out/', r'conv2/'),
          *_BLOCK,
        ),
      )
      for ours in ('top_left', 'bottom_right')
    ),
    *_outputs(
      r'bbox_head.{kind}_{output}.\1',
      {'heat': 'heat', 'embed': 'emb', 'offset': 'off'},
      ((r'/hidden$', r'.0.conv'), (r'/out$', r'.1.conv')),
    ),
  ),
)
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


def layout_of(model_config: Mapping[str, Any]) -> Layout:
  """The layout of the program that such a network is exchanged with: its pixels say whose it is."""
  return MMDETECTION if model_config.get('pixels') == 'imagenet' else AUTHORS


def torch_key(path: tuple[str, ...], layout: Layout = AUTHORS) -> str:
  """The released name of one of our arrays: ('params', 'stem', 'block', 'conv', 'kernel') -> 'pre.0.conv.weight'."""
  module = '/'.join(path[1:-1])
  for ours, theirs, substitutions in layout.modules:
    match = re.match(ours, module)
    if match:
      rest = module[match.end() :]
      for pattern, replacement in substitutions:
        rest = re.sub(pattern, replacement, rest)
      return f'{match.expand(theirs)}{rest}.{_LEAVES[path[-1]]}'
  raise KeyError(f'no released name for {"/".join(path)}')


def key_table(model_config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, tuple[int, ...]]]:
  """(path in our variables, released key, shape in our variables) for every array of the network."""
  module, layout = detector.build(model_config), layout_of(model_config)
  side = module.config.size_multiple - 1
  images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  shapes = jax.eval_shape(lambda key, x: module.init(key, x), jax.random.key(0), images)
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    yield path, torch_key(path, layout), leaf.shape


def _to_ours(path: tuple[str, ...], array: np.ndarray, layout: Layout) -> np.ndarray:
  if path[-1] == 'kernel' and array.ndim == 4:  # any other array is reported by its shape
    array = np.transpose(array, (2, 3, 1, 0))  # OIHW -> HWIO
    if layout.reads_bgr and path[1:4] == ('stem', 'block', 'conv'):
      array = array[:, :, ::-1]
  return np.ascontiguousarray(array, np.float32)


def _to_theirs(path: tuple[str, ...], array: np.ndarray, layout: Layout) -> np.ndarray:
  if path[-1] == 'kernel':
    if layout.reads_bgr and path[1:4] == ('stem', 'block', 'conv'):
      array = array[:, :, ::-1]
    array = np.transpose(array, (3, 2, 0, 1))
  return np.ascontiguousarray(array, np.float32)


def import_state_dict(state_dict: Mapping[str, np.ndarray], model_config: Mapping[str, Any]) -> dict:
  """Released weights -> {'params', 'batch_stats'} for RGB images.

  Args:
    state_dict: names (with or without the `module.` prefix) to arrays, convolutions as OIHW.
    model_config: keys of `detector.DetectorConfig`.

  Raises:
    ValueError: lists every missing key, every key left over, every wrong shape and values that cannot be, at once.
  """
  theirs = {re.sub(r'^(module\.)+', '', k): np.asarray(v) for k, v in state_dict.items()}
  theirs = {k: v for k, v in theirs.items() if not k.endswith('num_batches_tracked')}
  missing, misshapen, impossible, variables = [], [], [], {}
  layout = layout_of(model_config)
  for path, key, shape in key_table(model_config):
    if key not in theirs:
      missing.append(key)
      continue
    array = _to_ours(path, theirs.pop(key), layout)
    if array.shape != shape:
      misshapen.append(f'{key}: given {array.shape}, the network has {shape} (kernels as height, width, in, out)')
    if not np.isfinite(array).all() or (key.endswith('running_var') and (array < 0).any()):
      impossible.append(key)
    variables[path] = array
  problems = [
    f'{len(found)} {what}: {", ".join(sorted(found))}'
    for what, found in (
      ('missing', missing),
      ('not known to the network', theirs),
      ('of another shape', misshapen),
      ('with values that are not finite, or variances below 0', impossible),
    )
    if found
  ]
  if problems:
    raise ValueError('the state dict does not fit the model config; ' + '; '.join(problems))
  return traverse_util.unflatten_dict(variables)


def export_state_dict(variables: Mapping[str, Any], model_config: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Our variables -> the released names, layouts and channel order; the exact inverse of `import_state_dict`.

  ValueError for a network that neither the authors' code nor mmdetection has.
  """
  if (encoder := model_config.get('encoder', 'hourglass')) != 'hourglass':
    raise ValueError(f"the authors' code has hourglasses alone, this network has the encoder {encoder}: give another")
  layout = layout_of(model_config)
  if layout is MMDETECTION and any(model_config.get(key, True) for key in ('center_branch', 'cascade_corner_pooling')):
    raise ValueError('model.pixels=imagenet is of mmdetection, which has CornerNet alone: give another network')
  flat = traverse_util.flatten_dict(dict(variables))
  return {key: _to_theirs(path, np.asarray(flat[path]), layout) for path, key, _ in key_table(model_config)}


def infer_model_config(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The model config of a released state dict, read off its keys and shapes; published values for the rest.

  Raises:
    ValueError: a key that every released network has is missing.
  """
  shapes = {re.sub(r'^(module\.)+', '', key): np.shape(value) for key, value in state_dict.items()}
  own = 'imagenet' if any(key.startswith('backbone.') for key in shapes) else 'coco'
  layout = layout_of(dict(pixels=own))

  def name(module: str) -> str:
    """The released name of one of our modules."""
    return torch_key(('params', *module.split('/'), 'kernel'), layout).removesuffix('.weight')

  def has(module: str) -> bool:
    return f'{name(module)}.weight' in shapes

  def width(module: str) -> int:
    return shapes[f'{name(module)}.weight'][0]

  def count(module: str) -> int:
    """How many there are of a module with {} for their number."""
    number = 0
    while has(module.format(number)):
      number += 1
    return number

  try:
    dims, blocks, level = [width('stem/residual/out/conv')], [], 'hourglass_0'
    while has(f'{level}/down_0/block/conv'):
      dims.append(width(f'{level}/down_0/block/conv'))
      blocks.append(count(f'{level}/up_{{}}/block/conv'))
      level += '/inner'
    bottom = level.removesuffix('/inner')
    return dict(
      stacks=count('hourglass_{}/up_0/block/conv'),
      dims=tuple(dims),
      blocks=(*blocks, count(f'{bottom}/bottom_{{}}/block/conv')),
      stem_width=width('stem/block/conv'),
      head_width=width('feature_0/conv'),
      pool_width=width('top_left_0/pooling/vertical/conv'),
      num_classes=width('top_left_0/heat/out'),
      center_branch=has('center_0/heat/out'),
      center_pooling=has('center_0/heat/out'),
      cascade_corner_pooling=has('top_left_0/pooling/vertical_join'),
      norm_group=6,
      norm_running='first',
      pixels=own,
    )
  except KeyError as missing:
    raise ValueError(f'not a released CenterNet or CornerNet: no key {missing} among {len(shapes)}') from None
