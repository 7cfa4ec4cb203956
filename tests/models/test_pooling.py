"""Pools and pooling modules against the published programs, and against the definition as a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.golden_state import nhwc, read, relative_error, state_dict, under
from triplet_det.models import pooling

POOLS = dict(top=pooling.top_pool, bottom=pooling.bottom_pool, left=pooling.left_pool, right=pooling.right_pool)
CASES = ('ties', 'neg', 'odd', 'const', 'row1', 'col1', 'relu')

MODULES = dict(
  cascade_tl=('heads_centernet', pooling.CascadeCornerPooling('top_left', 128)),
  cascade_br=('heads_centernet', pooling.CascadeCornerPooling('bottom_right', 128)),
  center=('heads_centernet', pooling.CenterPooling(128)),
  corner_tl=('heads_cornernet', pooling.CornerPooling('top_left', 128)),
  corner_br=('heads_cornernet', pooling.CornerPooling('bottom_right', 128)),
)
# Ours -> the released names of the same layers.
LAYERS = {
  'vertical/conv': 'p1_conv1.conv',
  'vertical/norm': 'p1_conv1.bn',
  'horizontal/conv': 'p2_conv1.conv',
  'horizontal/norm': 'p2_conv1.bn',
  'vertical_look/conv': 'look_conv1.conv',
  'vertical_look/norm': 'look_conv1.bn',
  'horizontal_look/conv': 'look_conv2.conv',
  'horizontal_look/norm': 'look_conv2.bn',
  'vertical_join': 'P1_look_conv',
  'horizontal_join': 'P2_look_conv',
  'tail/merge/conv': 'p_conv1',
  'tail/merge/norm': 'p_bn1',
  'tail/skip/conv': 'conv1',
  'tail/skip/norm': 'bn1',
  'tail/out/conv': 'conv2.conv',
  'tail/out/norm': 'conv2.bn',
}
# Halves the time to compile; the arithmetic stays.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}
LEAVES = dict(kernel='weight', scale='weight', bias='bias', mean='running_mean', var='running_var')


def loop_pool(x, g, direction):
  """The definition, cell by cell, for x and cotangent g [B, H, W, C]: running maximum and its gradient."""
  axis = 1 if direction in ('top', 'bottom') else 2
  x, g = np.moveaxis(x, axis, 0), np.moveaxis(g, axis, 0)
  y, dx = np.empty_like(x), np.zeros_like(g)
  order = range(len(x) - 1, -1, -1) if direction in ('top', 'left') else range(len(x))
  for line in np.ndindex(x.shape[1:]):
    best = order[0]
    for i in order:
      if x[(i, *line)] > x[(best, *line)]:
        best = i
      y[(i, *line)] = x[(best, *line)]
      dx[(best, *line)] += g[(i, *line)]
  return np.moveaxis(y, 0, axis), np.moveaxis(dx, 0, axis)


@functools.partial(jax.jit, static_argnums=0)
def pulled_back(function, x, g):
  y, pull_back = jax.vjp(function, x)
  return y, pull_back(g)[0]


@pytest.fixture(params=pooling.FORMS)
def form(request, monkeypatch):
  """The pools in one of their forms, whatever the platform's own is."""
  monkeypatch.setattr(pooling, 'FORM_ON', dict(default=request.param))
  jax.clear_caches()
  yield request.param
  jax.clear_caches()


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('direction', POOLS)
def test_pools_are_the_published_ones(case, direction, form, parity):
  golden = {key: nhwc(array) for key, array in read('pools', f'{case}/').items()}
  y, dx = pulled_back(POOLS[direction], golden['x'], golden['g'])
  parity('pools: forward', relative_error(y, golden[f'{direction}/y']), 0)
  parity('pools: gradient', relative_error(dx, golden[f'{direction}/dx']), 1e-5)


@pytest.mark.parametrize('direction', POOLS)
@pytest.mark.parametrize('sides', [(6, 7), (1, 2), (16, 17)], ids=str)
def test_pools_follow_the_definition(direction, sides, form):
  rng = np.random.default_rng(0)
  x = rng.integers(-4, 0, (2, *sides, 3)).astype(np.float32)  # ties, and all negative: padding with 0 would show
  g = rng.integers(-9, 9, x.shape).astype(np.float32)
  for ours, theirs in zip(pulled_back(POOLS[direction], x, g), loop_pool(x, g, direction)):
    np.testing.assert_array_equal(ours, theirs)


def test_every_platform_has_a_form():
  """Walking costs a GPU a kernel a turn, and a TPU more than its own scan (docs/performance.md)."""
  loops = {'cpu': 8, 'cuda': 0, 'rocm': 0, 'tpu': 4}  # of four pools and their gradients
  for platform, expected in loops.items():
    both = jax.jit(lambda x, g: [part for p in POOLS.values() for part in pulled_back.__wrapped__(p, x, g)])
    shape = jax.ShapeDtypeStruct((1, 8, 8, 2), np.float32)
    text = both.trace(shape, shape).lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.while') == expected, platform


@pytest.mark.parametrize(
  ('line_max', 'pools'),
  [(pooling.column_max, ('top', 'bottom')), (pooling.row_max, ('left', 'right'))],
  ids=['column', 'row'],
)
def test_line_maximum_is_two_opposite_pools(line_max, pools):
  rng = np.random.default_rng(1)
  x = rng.integers(-4, 0, (2, 6, 7, 3)).astype(np.float32)
  g = rng.integers(-9, 9, x.shape).astype(np.float32)

  def spread(x):
    return jnp.broadcast_to(line_max(x), x.shape)

  y, dx = pulled_back(spread, x, g)
  once, _ = loop_pool(x, g, pools[0])
  twice, d_once = loop_pool(once, g, pools[1])
  np.testing.assert_array_equal(y, twice)
  np.testing.assert_array_equal(dx, loop_pool(x, d_once, pools[0])[1])
  in_series = pulled_back(lambda x: POOLS[pools[1]](POOLS[pools[0]](x)), x, g)
  np.testing.assert_array_equal(y, in_series[0])
  np.testing.assert_array_equal(dx, in_series[1])


@pytest.mark.parametrize('line_max', [pooling.column_max, pooling.row_max])
def test_line_maximum_keeps_places_for_its_gradient(line_max):
  """A cell that is compared with the maximum again may have been computed again, rounded in another way."""
  x = np.random.default_rng(2).normal(size=(2, 6, 7, 3)).astype(np.float32)
  y, pull_back = jax.vjp(line_max, x)
  kept = [leaf.shape for leaf in jax.tree.leaves(pull_back)]
  assert kept == [y.shape]
  y, _ = jax.vjp(line_max, np.where(x == x[0, 3, 3, 0], np.nan, x))
  assert np.isnan(y).sum() == 1  # shown, not lost


def released_name(path):
  *module, leaf = path
  return f'{LAYERS["/".join(module)]}.{LEAVES[leaf]}'


def variables_of(module, weights):
  """Our variables, filled with the released weights by name."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 13, 11, 16)))

  def fill(path, leaf):
    array = weights[released_name(path[1:])]
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    assert array.shape == leaf.shape
    return array

  flat = traverse_util.flatten_dict(shapes)
  assert len(flat) == len(weights)
  return traverse_util.unflatten_dict({path: fill(path, leaf) for path, leaf in flat.items()})


def by_released_name(tree):
  return {released_name(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree).items()}


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK_COMPILE)
def forward_and_back(module, train, variables, x, g):
  """y, dx, parameter gradients and running statistics."""

  def forward(params, x):
    return module.apply({**variables, 'params': params}, x, train, mutable=['batch_stats'])

  y, pull_back, after = jax.vjp(forward, variables['params'], x, has_aux=True)
  gradients, dx = pull_back(g)
  return y, dx, gradients, after['batch_stats']


@pytest.mark.parametrize('name', MODULES)
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_modules_are_the_published_ones(name, mode, form, parity):
  file, module = MODULES[name]
  golden = read(file, f'{name}/')
  variables = variables_of(module, state_dict(golden))
  x, g = (nhwc(golden[key].astype(np.float32)) for key in 'xg')
  y, dx, gradients, after = forward_and_back(module, mode == 'train', variables, x, g)

  kind = dict(cascade='cascade corner', center='center', corner='corner')[name.partition('_')[0]]
  what = f'{kind} pooling, {dict(eval="evaluation", train="training")[mode]}'
  golden_mode = under(golden, f'{mode}/')
  parity(f'{what}: forward', relative_error(y, nhwc(golden_mode['y'])), dict(eval=2e-5, train=1e-4)[mode])
  parity(f'{what}: input gradient', relative_error(dx, nhwc(golden_mode['dx'])), 1e-5)

  gradients, norms = by_released_name(gradients), under(golden_mode, 'gradnorm/')
  assert gradients.keys() == norms.keys()
  for key, norm in norms.items():
    error = relative_error(np.linalg.norm(gradients[key].astype(np.float64)), norm)
    parity(f'{what}: parameter gradients', error, 1e-5)
  for key, vector in under(golden_mode, 'grad/').items():
    parity(f'{what}: parameter gradients', relative_error(gradients[key], vector), 1e-5)

  after = by_released_name(after)
  if mode == 'train':
    error = max(relative_error(after[key], vector) for key, vector in under(golden, 'after/').items())
    parity(f'{what}: running statistics', error, 1e-5)
  else:
    before = by_released_name(variables['batch_stats'])
    assert all((after[key] == before[key]).all() for key in before)


@pytest.mark.parametrize('pool', [True, False])
def test_without_center_pooling_a_cell_sees_its_neighbourhood(pool):
  """Three 3x3 convolutions reach 3 cells; the maxima of row and column reach every cell in line."""
  module = pooling.CenterPooling(8, pool)
  x = jax.random.normal(jax.random.key(0), (1, 12, 12, 4))
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)
  both = jnp.concatenate([x, x.at[0, 0, 0].add(9.0)])
  y = np.asarray(jax.jit(module.apply)(variables, both))
  reached = (y[0] != y[1]).any(-1)
  assert reached[:4, :4].any()
  assert reached[:2, 4:].any() == reached[4:, :2].any() == pool
  assert not reached[6:, 6:].any()
