"""Whole networks against the published ones, their norms, their sizes, and what `build` refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.golden_state import nhwc, read, relative_error, state_dict, under
from triplet_det import losses, torch_import
from triplet_det.models import detector
from triplet_det.models.norm import BatchNorm
from triplet_det.structs import Targets

SMALL = dict(stacks=2, dims=(32, 32, 48), blocks=(2, 2, 2), stem_width=16, head_width=32, pool_width=128, num_classes=5)
CORNERNET = dict(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
NETWORKS = dict(centernet=SMALL, cornernet=dict(SMALL, **CORNERNET))
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


def test_evaluation_is_the_published_one(network, parity):
  maps = jax.jit(detector.build(network.config).apply)(network.variables, network.images)
  assert len(maps) == 1  # the branches of the last stack alone
  error = largest_error(maps, under(network.golden, 'eval/map/'))
  parity(f'small {network.name}, evaluation: maps', error, 2e-5)


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
  step = request.getfixturevalue(dict(float32='step32', float64='step64')[precision])
  expected = network.golden[dict(float32='train/loss', float64='train/loss64')[precision]]
  focal = step.terms['focal_corner'] + step.terms.get('focal_center', 0)
  ours = (step.loss, focal, *(step.terms[name] for name in ('pull', 'push', 'offset')))
  for value, golden in zip(ours, expected):  # CornerNet's program gives the total alone
    parity(f'small {network.name}, {precision}: loss and its terms', relative_error(value, golden), 1e-5)


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
  """Gradients jump where pools and ReLUs change sides, so this is a matter of luck; the proof is the float64 test.

  When the weights change by 6e-7 of themselves, a few roundings, the exact gradients move by 1e-4 to 3e-4 (median) and
  4e-3 to 1.5e-2 (worst). The published float32 run is 3e-5 to 1e-4 and 2e-3 to 6e-3 away from its float64 run.
  """
  errors = norm_errors(step32.gradients, network.golden)
  parity(f'small {network.name}, float32: norms of gradients, median', np.median(errors), 5e-4)
  parity(f'small {network.name}, float32: norms of gradients, worst', errors.max(), 2e-2)


def shapes_of(config, side=None):
  module = detector.build(config)
  side = side or module.config.size_multiple - 1
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('config', 'parameters'),
  [
    pytest.param(NETWORKS['centernet'], 3_166_270, id='small centernet'),
    pytest.param(NETWORKS['cornernet'], 1_409_136, id='small cornernet'),
    pytest.param(detector.VARIANTS['hourglass-52'], 104_844_152, id='hourglass-52'),
    pytest.param(detector.VARIANTS['hourglass-104'], 210_062_960, id='hourglass-104'),
  ],
)
def test_parameter_counts_are_the_published_ones(config, parameters):
  assert count(shapes_of(config)['params']) == parameters


NANO = dict(stacks=2, dims=(8, 12), blocks=(1, 1), stem_width=4, head_width=8, pool_width=6, num_classes=3)


def random_variables(config, seed=0):
  """Weights of a size that keeps activations near 1, without the seconds that `init` compiles."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    if path[-1] == 'kernel':
      return rng.normal(0, np.prod(leaf.shape[:3]) ** -0.5, leaf.shape).astype(np.float32)
    return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)

  flat = traverse_util.flatten_dict(shapes_of(config))
  return traverse_util.unflatten_dict({path: fill(path, leaf) for path, leaf in flat.items()})


def test_outputs_have_a_cell_per_four_pixels_of_any_canvas():
  module = detector.build(NANO)
  images = jax.ShapeDtypeStruct((3, 31, 63, 3), jnp.float32)
  maps = jax.eval_shape(functools.partial(module.apply, train=False), shapes_of(NANO), images)
  assert [leaf.shape for leaf in jax.tree.leaves(maps[-1])] == [
    (3, 8, 16, channels) for channels in (3, 3, 1, 1, 2, 2, 3, 2)
  ]


def test_switches_are_the_rows_of_table_4():
  names = {row: set(shapes_of(dict(NANO, **switches))['params']) for row, switches in TABLE_4.items()}
  assert (
    names['full']
    == names['conventional convolutions']
    == names['no cascade']
    == names['cornernet']
    | {
      'center_0',
      'center_1',
    }
  )
  sizes = {row: count(shapes_of(dict(NANO, **switches))['params']) for row, switches in TABLE_4.items()}
  assert sizes['full'] == sizes['conventional convolutions'] > sizes['no cascade'] > sizes['cornernet']
  # Cascade corner pooling has, per direction, a second block and the inner convolution; 2 directions, corners, stacks.
  block, inner = 9 * 8 * 6 + 2 * 6, 9 * 6 * 6
  assert sizes['full'] - sizes['no cascade'] == 8 * (block + inner)


TABLE_4 = {
  'full': {},
  'conventional convolutions': dict(center_pooling=False),
  'no cascade': dict(cascade_corner_pooling=False),
  'cornernet': CORNERNET,
}


def test_initial_values_are_the_published_ones():
  config = dict(NANO, stacks=1, stem_width=24, head_width=24)
  init = jax.jit(detector.build(config).init, compiler_options=QUICK_COMPILE)
  variables = init(jax.random.key(0, impl='rbg'), jnp.zeros((1, 7, 7, 3)))
  flat = traverse_util.flatten_dict(variables['params'])
  for path, leaf in flat.items():
    if path[-1] == 'kernel' or path[-2] == 'hidden' or (path[-2] == 'out' and path[-3] in ('offset', 'embed')):
      kernel = flat[(*path[:-1], 'kernel')]
      bound = np.prod(kernel.shape[:3]) ** -0.5
      assert np.abs(leaf).max() <= bound, path
      if leaf.size > 100:
        assert np.abs(leaf).max() > 0.9 * bound and abs(np.std(leaf) / bound - 3**-0.5) < 0.1, path
    else:
      heat = path[-2:] == ('out', 'bias') and path[-3] == 'heat'
      expected = -2.19 if heat else dict(scale=1, bias=0)[path[-1]]
      np.testing.assert_allclose(leaf, expected, err_msg=str(path))
  for path, leaf in traverse_util.flatten_dict(variables['batch_stats']).items():
    np.testing.assert_array_equal(leaf, dict(mean=0, var=1)[path[-1]])


def test_rematerialised_blocks_give_the_same_step():
  config = dict(NANO, stacks=1, **CORNERNET)
  variables = random_variables(config)
  images = np.random.default_rng(1).normal(size=(2, 15, 15, 3)).astype(np.float32)
  results = []
  for remat in ('none', 'blocks'):
    module = detector.build(dict(config, remat=remat))

    def loss_of(params, module=module):
      maps, after = module.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
      return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(maps)), after

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=QUICK_COMPILE)
    results.append(step(variables['params']))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)


def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
  module = detector.build(dict(NANO, dtype='bfloat16'))
  images = jax.ShapeDtypeStruct((2, 15, 15, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  maps, after = jax.eval_shape(functools.partial(module.apply, train=True, mutable=['batch_stats']), variables, images)
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, maps, after))} == {jnp.dtype('float32')}
  jaxpr = str(jax.make_jaxpr(functools.partial(module.apply, train=False))(variables, images))
  assert jaxpr.count('bf16') > 100


def numpy_norm(x, scale, bias, group):
  """Training mode in float64: the result, and each group's mean and unbiased variance."""
  y, means, variances = [], [], []
  for start in range(0, len(x), group):
    part = x[start : start + group].astype(np.float64)
    mean, variance = part.mean((0, 1, 2)), part.var((0, 1, 2))
    y.append((part - mean) / np.sqrt(variance + 1e-5) * scale + bias)
    means.append(mean)
    variances.append(part.var((0, 1, 2), ddof=1))
  return np.concatenate(y), np.array(means), np.array(variances)


@pytest.mark.parametrize('running', ['all', 'first'])
@pytest.mark.parametrize('group', [3, None])
def test_norm_statistics_are_per_group(group, running):
  rng = np.random.default_rng(0)
  x = (rng.normal(3, 2, (6, 2, 3, 4)) * rng.uniform(0.5, 3, (6, 1, 1, 1))).astype(np.float32)
  variables = {
    'params': dict(scale=rng.normal(1, 0.3, 4), bias=rng.normal(0, 1, 4)),
    'batch_stats': dict(mean=rng.normal(0, 1, 4), var=rng.uniform(0.5, 2, 4)),
  }
  variables = jax.tree.map(np.float32, variables)
  before = variables['batch_stats']
  y, after = BatchNorm(group, running).apply(variables, x, train=True, mutable=['batch_stats'])
  expected, means, variances = numpy_norm(x, **variables['params'], group=group or 6)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  kept = np.s_[:1] if running == 'first' else np.s_[:]
  after = after['batch_stats']
  np.testing.assert_allclose(after['mean'], 0.9 * before['mean'] + 0.1 * means[kept].mean(0), rtol=1e-5)
  np.testing.assert_allclose(after['var'], 0.9 * before['var'] + 0.1 * variances[kept].mean(0), rtol=1e-5)

  tested = BatchNorm(group, running).apply(variables, x, train=False)
  scaled = (x - before['mean']) / np.sqrt(before['var'] + 1e-5)
  np.testing.assert_allclose(tested, scaled * variables['params']['scale'] + variables['params']['bias'], atol=1e-5)


def test_a_group_of_images_does_not_see_the_others():
  config = dict(NANO, stacks=1, norm_group=2)
  variables = random_variables(config)
  images = np.random.default_rng(1).normal(size=(4, 15, 15, 3)).astype(np.float32)
  module = detector.build(config)
  train = jax.jit(functools.partial(module.apply, train=True, mutable=['batch_stats']))
  together, after = train(variables, images)
  first, after_first = train(variables, images[:2])
  second, after_second = train(variables, images[2:])
  apart = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), together, apart)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, after_first, after_second)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), after, mean)


def test_one_pixel_one_image_norm_is_finite():
  x = np.full((1, 1, 1, 2), 3.0, np.float32)
  variables = BatchNorm().init(jax.random.key(0), x, train=False)
  y, after = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
  np.testing.assert_array_equal(y, np.zeros_like(x))
  np.testing.assert_allclose(after['batch_stats']['var'], 0.9)


def test_batch_must_be_a_multiple_of_the_norm_group():
  with pytest.raises(ValueError, match='batch of 4 images is not a multiple of the norm group of 3 images'):
    BatchNorm(3).init(jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), train=True)


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((1, 500, 511, 3), 'height 500 .* multiple of 128 minus 1, for example 383 or 511'),
    ((1, 511, 520, 3), 'width 520 .* multiple of 128 minus 1, for example 511 or 639'),
    ((1, 50, 127, 3), 'height 50 .* for example 127 or 255'),
  ],
)
def test_image_side_that_cannot_be_halved(shape, message):
  module = detector.build(detector.VARIANTS['hourglass-52'])
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(stack=1), "unknown model key 'stack'; did you mean 'stacks'"),
    (dict(zebra=1), "unknown model key 'zebra' Known keys: stacks, dims"),
    (dict(blocks=(1, 1, 1)), r'2 dims \(8, 12\), 3 blocks \(1, 1, 1\)'),
    (dict(dims=(8,), blocks=(1,)), 'at least 2 levels'),
    (dict(norm_running='last'), "model.norm_running is 'last'; possible: all, first"),
    (dict(remat='all'), "model.remat is 'all'; possible: none, blocks"),
  ],
)
def test_build_says_what_is_wrong(change, message):
  with pytest.raises(ValueError, match=message):
    detector.build({**NANO, **change})


def test_build_names_all_missing_keys():
  with pytest.raises(ValueError, match='lacks dims, num_classes'):
    detector.build({key: value for key, value in NANO.items() if key not in ('dims', 'num_classes')})
