"""Sizes, switches, initial values, groups and rematerialisation of the network, and what `build` refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.golden_state import NETWORKS
from triplet_det.models import detector

CORNERNET = dict(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
NANO = dict(stacks=2, dims=(8, 12), blocks=(1, 1), stem_width=4, head_width=8, pool_width=6, num_classes=3)
TABLE_4 = {
  'full': {},
  'conventional convolutions': dict(center_pooling=False),
  'no cascade': dict(cascade_corner_pooling=False),
  'cornernet': CORNERNET,
}
# Halves the time to compile; the arithmetic stays.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}


def shapes_of(config):
  module = detector.build(config)
  side = module.config.size_multiple - 1
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
    (dict(zebra=1), "unknown model key 'zebra'. Known model keys: stacks, dims"),
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
