"""The pure step: its arithmetic on a network of a few numbers, and that it computes the same on 1, 2 and 8 devices."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.models import detector, fast_convolution, input_pixels
from triplet_det.structs import Batch, KeypointMaps
from triplet_det.training import losses, optimizer, targets
from triplet_det.training.train_step import TrainState, init_state, make_train_step

ROOT = Path(__file__).parents[2]
SIDE, CELLS, CLASSES = 63, 16, 2


class Constants:
  """A network whose maps are constants plus the images' brightness; its statistics are the images it was shown."""

  config = SimpleNamespace(num_classes=CLASSES, norm_group=2, precision='default')

  def apply(self, variables, images, *, train, mutable, read=None):
    assert train and mutable == ['batch_stats']
    p = variables['params']
    bright = 0.1 * images.mean((1, 2, 3))[:, None, None, None]

    def maps(values):
      return jnp.broadcast_to(values, (len(images), CELLS, CELLS, values.size)) + bright

    heat, offset, embed = maps(p['heat']), maps(p['offset']), maps(p['embed'])
    stack = KeypointMaps(heat, heat - 1, embed, 2 * embed, offset, -offset, heat + 1, offset)
    return [stack], {'batch_stats': {'images': images}}


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.uniform(0, SIDE - 1, (4, 3, 2, 2)), axis=2)
  return Batch(
    images=rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8),
    boxes=np.concatenate([corners[:, :, 0], corners[:, :, 1]], -1).astype(np.float32),
    classes=rng.integers(0, CLASSES, (4, 3), np.int32),
    valid=np.arange(3) < np.array([[3], [2], [1], [0]]),
  )


ADAM = optimizer.adam(lambda step: 1e-3)
RADIUS = dict(min_overlap=0.7, published_radius=True)


def state_after(done=0):
  params = {'heat': jnp.array([-2.0, -1.5]), 'offset': jnp.array([0.3, 0.6]), 'embed': jnp.array([0.7])}
  return TrainState(jnp.asarray(done, jnp.int32), params, {'images': jnp.zeros(())}, ADAM.init(params))


@pytest.fixture(scope='module')
def plain_step():
  """The step without random colours."""
  return jax.jit(make_train_step(Constants(), ADAM, seed=0, colour_jitter=0, lighting=0, **RADIUS))


def plain_images(batch):
  return (batch.images / 255.0 - input_pixels.RGB_MEAN) / input_pixels.RGB_STD


def test_the_network_is_shown_normalised_images(batch, plain_step):
  state, _ = plain_step(state_after(), batch)
  np.testing.assert_allclose(state.batch_stats['images'], plain_images(batch), atol=1e-5)


def test_the_same_step_draws_the_same_colours_and_other_steps_others(batch):
  step, other = (jax.jit(make_train_step(Constants(), ADAM, seed=seed)) for seed in (0, 1))
  images = [step(state_after(done), batch)[0].batch_stats['images'] for done in (5, 5, 6)]
  first, again, later = map(np.asarray, images)
  np.testing.assert_array_equal(first, again)
  for different in (later, np.asarray(other(state_after(5), batch)[0].batch_stats['images']), plain_images(batch)):
    assert (np.abs(first - different).max((1, 2, 3)) > 0.01).all()  # each of the images


def test_loss_gradient_and_update(batch, plain_step):
  """Loss and terms are those of `losses` on targets of the batch; gradients are compared with finite differences."""
  state = state_after()
  after, metrics = plain_step(state, batch)
  images = jnp.asarray(plain_images(batch), jnp.float32)
  goal = targets.render(
    batch.boxes, batch.classes, batch.valid, num_classes=CLASSES, input_size=SIDE, output_size=CELLS, **RADIUS
  )

  @jax.jit
  def loss_of(params):
    maps, _ = Constants().apply({'params': params}, images, train=True, mutable=['batch_stats'])
    return losses.detection_loss(maps, goal, group=2)

  loss, terms = loss_of(state.params)
  assert metrics.keys() == {*terms, 'loss', 'gradient_norm'}
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-6)
  for name, value in terms.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-6)

  gradient = {}
  for name, values in state.params.items():
    gradient[name] = np.zeros(values.size)
    for i in range(values.size):
      up, down = (loss_of({**state.params, name: values.at[i].add(d)})[0] for d in (1e-2, -1e-2))
      gradient[name][i] = (up - down) / 2e-2
  norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
  np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-2)
  for name, g in gradient.items():  # the first step of Adam is the rate, against the gradient
    assert (np.abs(g) > 1e-3).all()
    np.testing.assert_allclose(after.params[name], state.params[name] - 1e-3 * np.sign(g), atol=2e-6)
  assert int(after.step) == 1


def test_frozen_parameters_have_no_gradient(batch, plain_step):
  """The others' gradients are as before, and only theirs is told."""
  plain = plain_step(state_after(), batch)[0]
  frozen = optimizer.adam(lambda step: 1e-3, freeze='heat|embed')
  step = make_train_step(Constants(), frozen, seed=0, colour_jitter=0, lighting=0, freeze='heat|embed', **RADIUS)
  state = state_after().replace(opt_state=frozen.init(state_after().params))
  after, metrics = jax.jit(step)(state, batch)
  (mine,), (theirs,) = ([s.mu for s in one.opt_state if hasattr(s, 'mu')] for one in (after, plain))
  np.testing.assert_array_equal(mine['offset'], theirs['offset'])
  np.testing.assert_allclose(metrics['gradient_norm'], np.linalg.norm(mine['offset']) / 0.1, rtol=1e-5)
  for name in ('heat', 'embed'):
    assert not np.any(mine[name]) and np.any(theirs[name])
    np.testing.assert_array_equal(after.params[name], state.params[name])


def test_groups_are_those_of_the_norms(batch, plain_step):
  """Images 1, 2 and 3, 4 are two groups: the loss is the mean of the two batches' losses."""

  def loss(rows):
    part = dataclasses.replace(batch, **{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)})
    return float(plain_step(state_after(), part)[1]['loss'])

  assert loss(slice(0, 4)) == pytest.approx((loss(slice(0, 2)) + loss(slice(2, 4))) / 2, rel=1e-6)


def exact_step(batch, remat='none', accumulate=1):
  """Gradients, statistics and metrics of a small network in float64, where nothing hides behind rounding."""
  sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=CLASSES)
  module = detector.build(dict(sizes, dtype='float64', norm_group=2, remat=remat, cascade_corner_pooling=False))
  step = make_train_step(module, ADAM, seed=0, accumulate=accumulate)
  with jax.enable_x64(True):
    state = jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, jax.jit(lambda: init_state(module, ADAM, 0))()
    )
    compiled = jax.jit(step).lower(state, batch).compile({'xla_backend_optimization_level': 0})
    after, metrics = compiled(state, batch)
  (adam_state,) = [s for s in after.opt_state if hasattr(s, 'mu')]
  return jax.device_get(dict(gradient=adam_state.mu, statistics=after.batch_stats, metrics=metrics))


@pytest.fixture(scope='module')
def exact(batch):
  return exact_step(batch)


@pytest.mark.parametrize('changes', [dict(remat='blocks'), dict(accumulate=2)], ids=str)
def test_rematerialised_or_in_parts_it_is_the_same_step(batch, exact, changes):
  got = exact_step(batch, **changes)
  assert jax.tree.structure(got) == jax.tree.structure(exact)
  for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(exact)):
    assert one.dtype == np.float64, path
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(other).max(), err_msg=str(path))


def test_moving_averages(batch):
  """They follow parameters and statistics with (1 + k) / (10 + k), at most the decay asked for, and are tested with."""
  step = jax.jit(make_train_step(Constants(), ADAM, seed=0, average_decay=0.15))
  start = state_after()
  shown = {'images': jnp.zeros(batch.images.shape)}
  average = {'params': start.params, 'batch_stats': shown}
  state = start.replace(batch_stats=shown, average=average)
  for decay in (1 / 10, 0.15, 0.15):
    before = state
    state, _ = step(before, batch)
    for kind in ('params', 'batch_stats'):
      for name, new in getattr(state, kind).items():
        want = decay * before.average[kind][name] + (1 - decay) * new
        np.testing.assert_allclose(state.average[kind][name], want, rtol=1e-5, atol=1e-6)
  assert state.variables is state.average
  assert start.variables == {'params': start.params, 'batch_stats': start.batch_stats}


# Name -> devices and settings of one step. One process with 8 CPU devices takes them all with the same batch of 48 in
# groups of 6.
CASES = {
  'all_8': dict(count=8),
  'all_2': dict(count=2),
  'all_1': dict(count=1),
  'first_8': dict(count=8, running='first'),
  'first_1': dict(count=1, running='first'),
  'state_4': dict(count=8, state_shards=4),
  'accumulate_4': dict(count=2, accumulate=4),
  'first_accumulate_4': dict(count=1, running='first', accumulate=4),
}
EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from triplet_det.devices import sharding
from triplet_det.models import detector
from triplet_det.structs import Batch
from triplet_det.training import optimizer
from triplet_det.training.train_step import init_state, make_train_step

cache, out, cases = sys.argv[1:]
jax.config.update('jax_compilation_cache_dir', cache)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
jax.config.update('jax_enable_x64', True)
rng = np.random.default_rng(2)
# Three slots: few enough for offsets and embeddings to be computed at their cells.
corners = np.sort(rng.uniform(0, 30, (48, 3, 2, 2)), axis=2)
batch = Batch(
  images=rng.integers(0, 256, (48, 31, 31, 3), np.uint8),
  boxes=np.concatenate([corners[:, :, 0], corners[:, :, 1]], -1).astype(np.float32),
  classes=rng.integers(0, 3, (48, 3), np.int32),
  valid=rng.random((48, 3)) < 0.7,
)
sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)
adam = optimizer.adam(lambda step: 1e-3)
for name, case in json.loads(cases).items():
  model = dict(sizes, dtype='float64', cascade_corner_pooling=False, norm_group=6)
  model['norm_running'] = case.get('running', 'all')
  module = detector.build(model)
  initial = jax.device_get(jax.jit(lambda: init_state(module, adam, 1))())
  mesh = sharding.make_mesh(jax.devices()[: case['count']], state_shards=case.get('state_shards', 1))
  everywhere = sharding.replicated(mesh)
  state_sharding = sharding.of_state(mesh, initial, smallest=500)
  step = jax.jit(
    make_train_step(module, adam, seed=0, accumulate=case.get('accumulate', 1)),
    in_shardings=(state_sharding, sharding.over_data(mesh)),
    out_shardings=(state_sharding, everywhere),
  )
  compiled = step.lower(initial, batch).compile()
  state, metrics = compiled(jax.device_put(initial, state_sharding), sharding.to_global(batch, mesh))
  # Adam's first moment after one step is a tenth of the gradient.
  (adam_state,) = [s for s in state.opt_state if hasattr(s, 'mu')]
  trees = dict(gradient=adam_state.mu, statistics=state.batch_stats, metrics=metrics)
  leaves = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(trees)}
  np.savez(f'{out}/{name}.npz', **leaves)
  open(f'{out}/{name}.txt', 'w').write(compiled.as_text())
  parts = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.params))
  open(f'{out}/{name}.size', 'w').write(str(parts))
"""


def test_donated_parameters_are_not_copied(batch, monkeypatch):
  """XLA for CPU copies what an update might overwrite before a gradient has read it.

  But for the biases of offsets and embeddings, two numbers or one, which are fused with the loss.
  """
  sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=CLASSES)
  module = detector.build(sizes)
  state = jax.eval_shape(lambda: init_state(module, ADAM, 0))

  def copied():
    step = jax.jit(make_train_step(module, ADAM, seed=0), donate_argnums=0)
    shapes = re.findall(r'f32\[([\d,]+)\]\S* copy\(%?state_params', step.lower(state, batch).compile().as_text())
    return sum(np.prod([int(side) for side in shape.split(',')]) > 2 for shape in shapes)

  assert copied() == 0
  monkeypatch.setattr(fast_convolution, 'after', lambda _, arrays: arrays)
  jax.clear_caches()
  assert copied() > 10


@pytest.mark.parametrize('remat', detector.REMAT)
def test_every_product_of_a_step_has_the_precision_of_the_network(batch, remat):
  """Gradients as well, whose convolutions have rules of their own."""
  sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=CLASSES)

  def precisions(precision):
    module = detector.build(dict(sizes, remat=remat, precision=precision))
    state = jax.eval_shape(lambda: init_state(module, ADAM, 0))
    step = jax.make_jaxpr(make_train_step(module, ADAM, seed=0))(state, batch)
    return re.findall(r'(?:conv_general_dilated|dot_general)\[.*?precision=(?:\(Precision\.)?(\w+)', str(step), re.S)

  with jax.default_matmul_precision('default'):
    plain, highest = precisions('default'), precisions('highest')
  assert len(plain) == len(highest) > 100
  assert set(highest) - {'HIGHEST'} == set(plain) - {'DEFAULT', 'None'} == set()


@pytest.fixture(scope='module')
def devices(tmp_path_factory):
  """The folder with the results and the compiled text of every mesh."""
  out = tmp_path_factory.mktemp('devices')
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  arguments = [
    sys.executable,
    '-c',
    EIGHT_DEVICES,
    str(jax.config.jax_compilation_cache_dir),
    str(out),
    json.dumps(CASES),
  ]
  subprocess.run(arguments, cwd=ROOT, env=environment, check=True, timeout=600)
  return out


def assert_equal_to(got, want, bound, parts):
  """Leaves of these parts agree within `bound` of the leaf's largest number."""
  names = [name for name in want.files if name.startswith(tuple(f"['{part}']" for part in parts))]
  assert set(got.files) == set(want.files) and names
  for name in names:
    error = np.abs(got[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-6)
    assert error < bound, f'{name}: {error:.1e}'


@pytest.mark.parametrize('count', [8, 2])
def test_any_number_of_devices_computes_the_same(devices, count):
  """Loss, terms, every gradient and every running statistic of batch 48 in groups of 6.

  In float64: in float32 it happens, with data that depend on the kind of CPU, that two cells of a pooled row differ by
  less than the rounding, and another one is the largest on another mesh, which moves some gradients by 1e-4 to 1e-3.
  """
  got, want = (np.load(devices / f'all_{n}.npz') for n in (count, 1))
  assert_equal_to(got, want, 1e-5, ['metrics', 'statistics', 'gradient'])


@pytest.mark.parametrize(
  'name, same', [('state_4', 'all_1'), ('accumulate_4', 'all_1'), ('first_accumulate_4', 'first_1')]
)
def test_a_split_state_and_a_batch_in_parts_compute_the_same(devices, name, same):
  got, want = (np.load(devices / f'{n}.npz') for n in (name, same))
  assert_equal_to(got, want, 1e-5, ['metrics', 'statistics', 'gradient'])


def test_a_split_state_is_split(devices):
  """A device of four that share a state holds little more than a quarter of the parameters."""
  whole, part = (int((devices / f'{name}.size').read_text()) for name in ('all_8', 'state_4'))
  assert whole / 4 <= part < whole / 2.5


def test_the_running_statistics_of_the_first_group(devices):
  """The same on 8 devices and on 1, other than those of all groups; loss and gradients do not depend on the choice."""
  first, one_device = (np.load(devices / f'first_{n}.npz') for n in (8, 1))
  all_groups = np.load(devices / 'all_8.npz')
  assert_equal_to(first, one_device, 1e-5, ['metrics', 'statistics'])
  assert_equal_to(first, all_groups, 1e-5, ['metrics', 'gradient'])
  for name in first.files:
    if name.startswith("['statistics']"):
      assert np.abs(first[name] - all_groups[name]).max() > 1e-5, name


COLLECTIVE = re.compile(r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)')


def computations(text):
  """Name -> lines of every computation of a compiled module, the entry under 'ENTRY'."""
  found, name = {}, None
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      name = 'ENTRY' if head[1] else head[2]
      found[name] = []
    elif name and line.startswith('  '):
      found[name].append(line.strip())
  return found


def fed_by_collectives(lines):
  """The lines of a computation that need the result of a collective, and the collectives themselves."""
  tainted, fed = set(), []
  for line in lines:  # in the order of execution: operands come before their use
    result = re.match(r'(?:ROOT )?%?([\w.\-]+) = ', line)
    if not result:
      continue
    operands = set(re.findall(r'%([\w.\-]+)', line[result.end() :]))
    if COLLECTIVE.search(line) or operands & tainted:
      tainted.add(result[1])
      fed.append(line)
  return fed


def is_convolution(line, module):
  """Whether an instruction is a convolution, or calls a computation with one in it."""
  if re.search(r' convolution\(|custom_call_target="[^"]*[cC]onv', line):
    return True
  called = re.findall(r'(?:calls|to_apply|body|condition)=%?([\w.\-]+)', line)
  return any(is_convolution(inner, module) for name in called for inner in module.get(name, ()))


@pytest.mark.parametrize('running', ['all', 'first'])
def test_devices_talk_once_at_the_end_of_the_step(devices, running):
  """One combined sum of gradients, losses and running statistics; no convolution waits for another device."""
  module = computations((devices / f'{running}_8.txt').read_text())
  inside = [line for name, lines in module.items() if name != 'ENTRY' for line in lines if COLLECTIVE.search(line)]
  assert not inside
  entry = module['ENTRY']
  kinds = [COLLECTIVE.search(line)[1] for line in entry if COLLECTIVE.search(line)]
  assert kinds == ['all-reduce']
  assert sum(is_convolution(line, module) for line in entry) > 30  # so that the next line says something
  assert not [line for line in fed_by_collectives(entry) if is_convolution(line, module)]
  assert len(fed_by_collectives(entry)) > 5


def test_one_device_talks_to_nobody(devices):
  assert not COLLECTIVE.search((devices / 'first_1.txt').read_text())
