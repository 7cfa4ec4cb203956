"""Whole small networks against the published ones: maps, loss, gradients, running statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_state import NETWORKS, nhwc, read, relative_error, state_dict, under
from triplet_det.models import detector, fast_convolution, torch_import
from triplet_det.structs import Targets
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
# Halves the time to compile; the arithmetic stays.
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


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
  golden, config = read(f'small_net_{request.param}'), NETWORKS[request.param]
  return Network(
    name=request.param,
    config=config,
    golden=golden,
    variables=torch_import.import_state_dict(state_dict(golden), config),
    images=np.ascontiguousarray(nhwc(golden['x'].astype(np.float32))[..., ::-1]),  # published: blue-green-red
    targets=targets_of(under(golden, 'tgt/')),
  )


def training_step(network, dtype):
  module = detector.build(dict(network.config, dtype=dtype))

  def loss_of(params, batch_stats, images, goal):
    variables = {'params': params, 'batch_stats': batch_stats}
    maps, after = module.apply(variables, images, train=True, mutable=['batch_stats'])
    # Published: 0.1 x the sum over a GPU's images.
    loss, terms = losses.detection_loss(maps, goal, pull_weight=0.1 * BATCH, push_weight=0.1 * BATCH)
    return loss, (terms, maps, after['batch_stats'])

  step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=QUICK_COMPILE)
  with jax.enable_x64(dtype == 'float64'):
    params, batch_stats, images = jax.tree.map(
      lambda array: jnp.asarray(array, dtype),
      (network.variables['params'], network.variables['batch_stats'], network.images),
    )
    (loss, (terms, maps, after)), gradients = step(params, batch_stats, images, network.targets)
    assert loss.dtype == maps[0].tl_heat.dtype == dtype
    loss, terms, maps, after, gradients = jax.tree.map(np.asarray, (loss, terms, maps, after, gradients))
  released = torch_import.export_state_dict({'params': gradients, 'batch_stats': after}, network.config)
  is_statistic = {name: name.endswith(('running_mean', 'running_var')) for name in released}
  return Step(
    loss,
    terms,
    maps,
    {name: array for name, array in released.items() if not is_statistic[name]},
    {name: array for name, array in released.items() if is_statistic[name]},
  )


@pytest.fixture(scope='module')
def step32(network):
  return training_step(network, 'float32')


@pytest.fixture(scope='module')
def step64(network):
  return training_step(network, 'float64')


def largest_error(maps, golden):
  """Over all fields of the maps of consecutive stacks, the last of which is the last stack."""
  errors = []
  for theirs, ours in MAPS.items():
    for back, m in enumerate(reversed(maps)):
      expected = golden.get(f'{theirs}/{1 - back}')
      if expected is None:
        assert getattr(m, ours) is None
      else:
        errors.append(relative_error(getattr(m, ours), nhwc(expected)))
  return max(errors)


@pytest.mark.parametrize('convolution', ['by definition', 'minimal filtering'])
def test_evaluation_is_the_published_one(network, convolution, parity, monkeypatch):
  what = f'small {network.name}, evaluation: maps'
  if convolution == 'minimal filtering':  # wherever it can be; by its own rule not in maps as small as these
    monkeypatch.setattr(fast_convolution, 'MIN_HEIGHT', fast_convolution.ROWS)
    monkeypatch.setattr(fast_convolution, 'MIN_CHANNELS', 1)
    what += f', {convolution}'
  maps = jax.jit(detector.build(network.config).apply)(network.variables, network.images)
  assert len(maps) == 1  # the branches of the last stack alone
  parity(what, largest_error(maps, under(network.golden, 'eval/map/')), 2e-5)


def test_training_forward_is_the_published_one(network, step32, parity):
  assert len(step32.maps) == 2
  error = largest_error(step32.maps, under(network.golden, 'train/map/'))
  parity(f'small {network.name}, training: maps', error, 1e-4)


def test_training_statistics_are_the_published_ones(network, step32, parity):
  expected = {k: v for k, v in under(network.golden, 'after/').items() if not k.endswith('num_batches_tracked')}
  assert step32.statistics.keys() == expected.keys()
  for name, vector in expected.items():
    error = relative_error(step32.statistics[name], vector)
    parity(f'small {network.name}, training: running statistics', error, 1e-5)


@pytest.mark.parametrize('precision', ['float32', 'float64'])
def test_loss_and_its_terms_are_the_published_ones(network, precision, request, parity):
  """The proof is the float64 test. In float32 a term can be no closer than the maps that it is computed from, whose
  bound in training is 1e-4: pull is made of small differences of embeddings, and how it rounds is a matter of the
  processor (2e-6 on one, 1.3e-5 on another)."""
  step = request.getfixturevalue(dict(float32='step32', float64='step64')[precision])
  expected = network.golden[dict(float32='train/loss', float64='train/loss64')[precision]]
  focal = step.terms['focal_corner'] + step.terms.get('focal_center', 0)
  ours = (focal, *(step.terms[name] for name in ('pull', 'push', 'offset')))
  what = f'small {network.name}, {precision}'
  parity(f'{what}: loss', relative_error(step.loss, expected[0]), 1e-5)
  for value, golden in zip(ours, expected[1:]):  # CornerNet's program gives the total alone
    parity(f'{what}: terms of the loss', relative_error(value, golden), dict(float32=1e-4, float64=1e-5)[precision])


def norm_errors(gradients, golden):
  norms = dict(zip(golden['param_names'].tolist(), golden['train/gradnorm64']))
  assert gradients.keys() == norms.keys()
  return np.array([relative_error(np.linalg.norm(gradients[k].astype(np.float64)), norms[k]) for k in norms])


def test_gradients_are_the_published_ones(network, step64, parity):
  what, golden = f'small {network.name}, float64', network.golden
  parity(f'{what}: norms of all gradients', norm_errors(step64.gradients, golden).max(), 1e-5)
  for name, total, norm in zip(golden['param_names'].tolist(), golden['train/gradsum64'], golden['train/gradnorm64']):
    array = step64.gradients[name].astype(np.float64)
    error = abs(array.sum() - total) / (norm * np.sqrt(array.size))
    parity(f'{what}: sums of all gradients', error, 1e-5)
  # Stored from the published program's float32 run, whose own distance to its float64 run this is.
  for name, array in under(golden, 'train/grad/').items():
    parity(f'{what}: gradients against float32 ones', relative_error(step64.gradients[name], array), 1e-2)


def test_gradients_in_float32_are_the_published_ones_up_to_ties(network, step32, parity):
  """Gradients jump where pools and ReLUs change sides; the proof is the float64 test.

  When the weights change by 6e-7 of themselves, a few roundings, the exact gradients move by 1e-4 to 3e-4 (median) and
  4e-3 to 1.5e-2 (worst). The published float32 run is 3e-5 to 1e-4 and 2e-3 to 6e-3 away from its float64 run.
  """
  errors = norm_errors(step32.gradients, network.golden)
  parity(f'small {network.name}, float32: norms of gradients, median', np.median(errors), 1e-4)
  parity(f'small {network.name}, float32: norms of gradients, worst', errors.max(), 1e-2)
