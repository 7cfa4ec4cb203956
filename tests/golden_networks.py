"""The small published networks on the device that is here: maps, a training step, decoding, and their errors."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_state import NETWORKS, nhwc, read, relative_error, state_dict, under
from triplet_det.detection.decode import decode
from triplet_det.models import detector, pooling, torch_import
from triplet_det.structs import KeypointMaps, Targets
from triplet_det.training import losses

BATCH = 2
# The published names of the fields of KeypointMaps.
MAPS = dict(
  tl_heats='tl_heat',
  br_heats='br_heat',
  ct_heats='center_heat',
  tl_tags='tl_embed',
  br_tags='br_embed',
  tl_regrs='tl_offset',
  br_regrs='br_offset',
  ct_regrs='center_offset',
)
# Halves the time to compile for a CPU; the arithmetic stays.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass(frozen=True)
class Network:
  """A small network with the published weights, input and targets."""

  name: str
  config: dict
  golden: dict[str, np.ndarray]
  variables: dict
  images: np.ndarray
  targets: Targets


@dataclasses.dataclass(frozen=True)
class Step:
  """What one training step gives; gradients and statistics under the released names, in the released layout."""

  loss: np.ndarray
  terms: dict[str, np.ndarray]
  maps: list
  gradients: dict[str, np.ndarray]
  statistics: dict[str, np.ndarray]


def targets_of(golden):
  """CornerNet's sampler has no centers; its corners stand in, and nothing reads them."""
  goal = dict(golden)
  for part in ('heat', 'tags', 'regr'):
    goal.setdefault(f'ct_{part}', goal[f'tl_{part}'])
  return Targets(
    tl_heat=nhwc(goal['tl_heat']),
    br_heat=nhwc(goal['br_heat']),
    center_heat=nhwc(goal['ct_heat']),
    tl_cell=goal['tl_tags'].astype(np.int32),
    br_cell=goal['br_tags'].astype(np.int32),
    center_cell=goal['ct_tags'].astype(np.int32),
    tl_offset=goal['tl_regr'],
    br_offset=goal['br_regr'],
    center_offset=goal['ct_regr'],
    valid=goal['mask'].astype(bool),
  )


def opened(name: str) -> Network:
  golden, config = read(f'small_net_{name}'), NETWORKS[name]
  return Network(
    name=name,
    config=config,
    golden=golden,
    variables=torch_import.import_state_dict(state_dict(golden), config),
    images=np.ascontiguousarray(nhwc(golden['x'].astype(np.float32))[..., ::-1]),  # published: blue-green-red
    targets=targets_of(under(golden, 'tgt/')),
  )


def evaluation_error(network: Network, dtype: str = 'float32') -> float:
  """Largest error of a map in testing."""
  module = detector.build(dict(network.config, dtype=dtype))
  maps = jax.jit(module.apply)(network.variables, network.images)
  assert len(maps) == 1  # the branches of the last stack alone
  return largest_error(maps, under(network.golden, 'eval/map/'))


def training_step(network: Network, dtype: str) -> Step:
  """`dtype` of the computation; of parameters and images too if it is float64."""
  return training_steps(network, dtype, [network.variables['params']])[0]


def training_steps(network: Network, dtype: str, parameters: Sequence[Mapping]) -> list[Step]:
  """The same step from each of these parameters."""
  module = detector.build(dict(network.config, dtype=dtype))

  def loss_of(params, batch_stats, images, goal):
    variables = {'params': params, 'batch_stats': batch_stats}
    maps, after = module.apply(variables, images, train=True, mutable=['batch_stats'])
    # Published: 0.1 x the sum over a GPU's images.
    loss, terms = losses.detection_loss(maps, goal, pull_weight=0.1 * BATCH, push_weight=0.1 * BATCH)
    return loss, (terms, maps, after['batch_stats'])

  options = QUICK_COMPILE if jax.default_backend() == 'cpu' else None
  step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=options)
  wide = 'float64' if dtype == 'float64' else 'float32'
  with jax.enable_x64(dtype == 'float64'):
    widened = functools.partial(jax.tree.map, lambda array: jnp.asarray(array, wide))
    rest = widened((network.variables['batch_stats'], network.images))
    return [_released(step(widened(params), *rest, network.targets), network.config, wide) for params in parameters]


def _released(found, config, dtype) -> Step:
  (loss, (terms, maps, after)), gradients = jax.tree.map(np.asarray, found)
  assert loss.dtype == maps[0].tl_heat.dtype == dtype
  released = torch_import.export_state_dict({'params': gradients, 'batch_stats': after}, config)
  is_statistic = {name: name.endswith(('running_mean', 'running_var')) for name in released}
  gradients = {name: array for name, array in released.items() if not is_statistic[name]}
  return Step(loss, terms, maps, gradients, {name: released[name] for name in released if is_statistic[name]})


def rounded_otherwise(network: Network) -> dict:
  """The parameters, each a few roundings of float32 (6e-7 of itself) up or down."""
  rng = np.random.default_rng(0)

  def moved(array):
    return np.asarray(array, np.float64) * (1 + 6e-7 * rng.choice([-1, 1], np.shape(array)))

  return jax.tree.map(moved, network.variables['params'])


def largest_error(maps, golden) -> float:
  """Over all fields of the maps of consecutive stacks, the last of which is the last stack."""
  errors = []
  for theirs, ours in MAPS.items():
    for back, m in enumerate(reversed(maps)):
      expected = golden.get(f'{theirs}/{1 - back}')
      if expected is None:
        assert getattr(m, ours) is None
      else:
        errors.append(relative_error(getattr(m, ours), nhwc(expected)))
  return float(np.max(errors))  # NaN stays NaN


def norm_errors(gradients, golden) -> np.ndarray:
  """Of each parameter's gradient, the error of its norm."""
  norms = dict(zip(golden['param_names'].tolist(), golden['train/gradnorm64']))
  assert gradients.keys() == norms.keys()
  return np.array([relative_error(np.linalg.norm(gradients[k].astype(np.float64)), norms[k]) for k in norms])


def golden_maps(golden, prefix) -> KeypointMaps:
  """Stored NCHW float16 maps -> KeypointMaps."""
  names = dict(tl_heat='tl_heat', br_heat='br_heat', tl_embed='tl_tag', br_embed='br_tag')
  names |= dict(tl_offset='tl_regr', br_offset='br_regr', center_heat='ct_heat', center_offset='ct_regr')
  stored = {ours: f'{prefix}/map/{theirs}' for ours, theirs in names.items()}
  return KeypointMaps(
    **{k: jnp.asarray(golden[v].astype(np.float32).transpose(0, 2, 3, 1)) for k, v in stored.items() if v in golden}
  )


def decoding_errors(name: str) -> dict[str, float]:
  """Largest errors of the pairs of corners, and of the centers if there are any, decoded from golden maps."""
  golden = read(f'decode_{name}')
  find = jax.jit(functools.partial(decode, top_k=dict(centernet=70, cornernet=100)[name]))
  pairs, centers = find(golden_maps(golden, 'decode'))
  errors = []
  for i, rows in enumerate(golden['decode/detections']):
    rows = rows[rows[:, 4] > -1]  # the rejected come in any order
    valid = np.asarray(pairs.valid[i])
    columns = [pairs.boxes, pairs.scores[..., None], pairs.tl_scores[..., None], pairs.br_scores[..., None]]
    got = np.concatenate([*(np.asarray(c[i]) for c in columns), np.asarray(pairs.classes[i])[:, None]], axis=1)[valid]
    assert len(got) == len(rows) > 100 and valid[: len(rows)].all()
    assert (np.diff(got[:, 4]) <= 0).all()
    # In one place two pairs score the same and may change places.
    got, rows = (r[np.lexsort((r[:, 0], -r[:, 4]))] for r in (got, rows))
    errors.append(float(np.abs(got - rows).max()))
  found = {'corner pairs': float(np.max(errors))}
  assert (centers is None) == (name == 'cornernet')
  if centers is not None:
    got = np.stack([centers.x, centers.y, centers.classes, centers.scores], axis=-1)
    found['centers'] = float(np.abs(got - golden['decode/centers']).max())
  return found


def testing_errors(name: str, dtype: str) -> dict[str, float]:
  return {'maps in testing': evaluation_error(opened(name), dtype)}


def training_errors(name: str, dtype: str) -> dict[str, float]:
  """Of one step in which nothing is float64."""
  network = opened(name)
  found = training_step(network, dtype)
  return {
    'maps in training': largest_error(found.maps, under(network.golden, 'train/map/')),
    'loss': relative_error(found.loss, network.golden['train/loss'][0]),
    'norms of gradients, median': float(np.median(norm_errors(found.gradients, network.golden))),
  }


def pool_errors() -> dict[str, float]:
  """The largest of the four pools where cells tie."""
  golden = {key: nhwc(array).astype(np.float32) for key, array in read('pools', 'ties/').items()}
  errors = []
  for pool in itertools.chain(*pooling.CORNER_POOLS.values()):
    direction = pool.__name__.removesuffix('_pool')
    y, pull_back = jax.vjp(pool, golden['x'])
    found = {'y': y, 'dx': pull_back(golden['g'])[0]}
    errors.append([relative_error(array, golden[f'{direction}/{part}']) for part, array in found.items()])
  return dict(zip(('forward', 'gradient'), np.max(errors, axis=0).tolist()))
