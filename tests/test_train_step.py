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

from triplet_det import losses, optimizer, photometric, targets
from triplet_det.structs import Batch, KeypointMaps
from triplet_det.train_step import TrainState, make_train_step

ROOT = Path(__file__).parent.parent
SIDE, CELLS, CLASSES = 15, 4, 2


class Constants:
  """A network whose maps are constants plus the images' brightness; notes the images it was shown."""

  config = SimpleNamespace(num_classes=CLASSES, norm_group=2)

  def __init__(self):
    self.images = []

  def apply(self, variables, images, *, train, mutable):
    assert train and mutable == ['batch_stats']
    self.images.append(images)
    p, seen = variables['params'], variables['batch_stats']['seen']
    bright = 0.1 * images.mean((1, 2, 3))[:, None, None, None]

    def maps(values):
      return jnp.broadcast_to(values, (len(images), CELLS, CELLS, values.size)) + bright

    heat, offset, embed = maps(p['heat']), maps(p['offset']), maps(p['embed'])
    stack = KeypointMaps(heat, heat - 1, embed, 2 * embed, offset, -offset, heat + 1, offset)
    return [stack], {'batch_stats': {'seen': seen + len(images)}}


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


def fresh(adam):
  params = {'heat': jnp.array([-2.0, -1.5]), 'offset': jnp.array([0.3, 0.6]), 'embed': jnp.array([0.7])}
  return TrainState(jnp.zeros((), jnp.int32), params, {'seen': jnp.zeros(())}, adam.init(params))


def test_the_network_is_shown_normalised_images(batch):
  network, adam = Constants(), optimizer.adam(lambda step: 1e-3)
  step = make_train_step(network, adam, seed=0, colour_jitter=0, lighting=0)
  step(fresh(adam), batch)
  want = (batch.images / 255.0 - photometric.RGB_MEAN) / photometric.RGB_STD
  np.testing.assert_allclose(network.images[0], want, atol=1e-5)


def test_the_same_step_draws_the_same_colours_and_other_steps_others(batch):
  network, adam = Constants(), optimizer.adam(lambda step: 1e-3)
  state = fresh(adam)
  for seed, done in ((0, 5), (0, 5), (0, 6), (1, 5)):
    step = make_train_step(network, adam, seed=seed)
    step(state.replace(step=jnp.asarray(done, jnp.int32)), batch)
  first, again, later, other_seed = map(np.asarray, network.images)
  np.testing.assert_array_equal(first, again)
  for other in (later, other_seed):
    assert (np.abs(first - other).max((1, 2, 3)) > 0.01).all()  # each of the images
  plain = (batch.images / 255.0 - photometric.RGB_MEAN) / photometric.RGB_STD
  assert np.abs(first - plain).max() > 0.05


def test_loss_gradient_and_update(batch):
  """Loss and terms are those of `losses` on targets of the batch; gradients are compared with finite differences."""
  network, adam = Constants(), optimizer.adam(lambda step: 1e-3)
  state = fresh(adam)
  settings = dict(min_overlap=0.7, published_radius=True)
  step = make_train_step(network, adam, seed=0, colour_jitter=0, lighting=0, **settings)
  after, metrics = step(state, batch)

  goal = targets.render(
    batch.boxes, batch.classes, batch.valid, num_classes=CLASSES, input_size=SIDE, output_size=CELLS, **settings
  )

  def loss_of(params):
    variables = {'params': params, 'batch_stats': {'seen': 0}}
    maps, _ = network.apply(variables, network.images[0], train=True, mutable=['batch_stats'])
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
  assert float(after.batch_stats['seen']) == 4


def test_groups_are_those_of_the_norms(batch):
  """Images 1, 2 and 3, 4 are two groups: the loss is the mean of the two batches' losses."""
  network, adam = Constants(), optimizer.adam(lambda step: 1e-3)
  step = make_train_step(network, adam, seed=0, colour_jitter=0, lighting=0)

  def loss(rows):
    part = dataclasses.replace(batch, **{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)})
    return float(step(fresh(adam), part)[1]['loss'])

  assert loss(slice(0, 4)) == pytest.approx((loss(slice(0, 2)) + loss(slice(2, 4))) / 2, rel=1e-6)


# One process with 8 CPU devices steps the same batch of 48, groups of 6, on meshes of 8, 2 and 1 of them.
EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from triplet_det import optimizer, sharding
from triplet_det.models import detector
from triplet_det.structs import Batch
from triplet_det.train_step import init_state, make_train_step

cache, out = sys.argv[1:]
jax.config.update('jax_compilation_cache_dir', cache)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
rng = np.random.default_rng(0)
corners = np.sort(rng.uniform(0, 30, (48, 4, 2, 2)), axis=2)
batch = Batch(
  images=rng.integers(0, 256, (48, 31, 31, 3), np.uint8),
  boxes=np.concatenate([corners[:, :, 0], corners[:, :, 1]], -1).astype(np.float32),
  classes=rng.integers(0, 3, (48, 4), np.int32),
  valid=rng.random((48, 4)) < 0.7,
)
sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)
adam = optimizer.adam(lambda step: 1e-3)
for running, counts in (('all', (8, 2, 1)), ('first', (8, 1))):
  module = detector.build(dict(sizes, cascade_corner_pooling=False, norm_group=6, norm_running=running))
  initial = jax.device_get(jax.jit(lambda: init_state(module, adam, 0))())
  for count in counts:
    mesh = sharding.make_mesh(jax.devices()[:count])
    everywhere = sharding.replicated(mesh)
    step = jax.jit(
      make_train_step(module, adam, seed=0),
      in_shardings=(everywhere, sharding.over_data(mesh)),
      out_shardings=(everywhere, everywhere),
    )
    compiled = step.lower(initial, batch).compile()
    state, metrics = compiled(jax.device_put(initial, everywhere), sharding.to_global(batch, mesh))
    # Adam's first moment after one step is a tenth of the gradient.
    (adam_state,) = [s for s in state.opt_state if hasattr(s, 'mu')]
    trees = dict(gradient=adam_state.mu, statistics=state.batch_stats, metrics=metrics)
    leaves = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(trees)}
    np.savez(f'{out}/{running}{count}.npz', **leaves)
    open(f'{out}/{running}{count}.txt', 'w').write(compiled.as_text())
"""


@pytest.fixture(scope='module')
def devices(tmp_path_factory):
  """The folder with the results and the compiled text of every mesh."""
  out = tmp_path_factory.mktemp('devices')
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  arguments = [sys.executable, '-c', EIGHT_DEVICES, str(jax.config.jax_compilation_cache_dir), str(out)]
  subprocess.run(arguments, cwd=ROOT, env=environment, check=True, timeout=600)
  return out


@pytest.mark.parametrize('one, other', [('all8', 'all1'), ('all2', 'all1'), ('first8', 'first1')])
def test_any_number_of_devices_computes_the_same(devices, one, other):
  """Batch 48 in groups of 6: loss, its terms, every gradient and every running statistic."""
  got, want = np.load(devices / f'{one}.npz'), np.load(devices / f'{other}.npz')
  assert set(got) == set(want) and len(want.files) > 100
  for name in want.files:
    scale = np.abs(want[name]).max()
    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_the_running_statistics_of_all_groups_and_of_the_first_differ(devices):
  """And nothing else does: the two settings share loss and gradients."""
  all_groups, first = np.load(devices / 'all8.npz'), np.load(devices / 'first8.npz')
  differing = {name for name in first.files if not np.allclose(all_groups[name], first[name], rtol=1e-4, atol=1e-6)}
  assert differing and all(name.startswith("['statistics']") for name in differing)


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
  module = computations((devices / f'{running}8.txt').read_text())
  inside = [line for name, lines in module.items() if name != 'ENTRY' for line in lines if COLLECTIVE.search(line)]
  assert not inside
  entry = module['ENTRY']
  kinds = [COLLECTIVE.search(line)[1] for line in entry if COLLECTIVE.search(line)]
  assert kinds == ['all-reduce']
  assert sum(is_convolution(line, module) for line in entry) > 30  # so that the next line says something
  assert not [line for line in fed_by_collectives(entry) if is_convolution(line, module)]
  assert len(fed_by_collectives(entry)) > 5


def test_one_device_talks_to_nobody(devices):
  assert not COLLECTIVE.search((devices / 'all1.txt').read_text())
