"""Checkpoints: what stays, what is restored to the bit, and what happens when files are broken or of another run."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.categories import CategoryTable
from triplet_det.devices import sharding
from triplet_det.run import array_digest
from triplet_det.run.checkpoints import Checkpoints, NonFinite, RunRecord, Unreadable, load_weights
from triplet_det.training.train_step import TrainState

ROOT = Path(__file__).parents[2]
# Orbax leaves coroutines behind when the arrays it restores are missing.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
MODEL = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, num_classes=2, norm_group=6, dtype='float32')
TABLE = CategoryTable((7, 3), ('cat', 'dog'))


def state_at(step: int) -> TrainState:
  """A state whose numbers depend on the step, with digits that a detour over text or float16 would lose."""
  params = {
    'conv': {'kernel': (jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4) + step) / 7, 'bias': jnp.ones(4) * step}
  }
  return TrainState(
    jnp.asarray(step, jnp.int32), params, {'mean': jnp.full(4, step / 3)}, {'mu': {'x': jnp.ones(2) / 11}}
  )


def record_at(step: int, **changes) -> RunRecord:
  record = dict(
    step=step, categories=TABLE, model=MODEL, test={'scales': (1.0,), 'mirror': True, 'outside_margin': None}
  )
  return RunRecord(**{**record, **changes})


def save(workdir, *steps, keep=2):
  checkpoints = Checkpoints(workdir, keep=keep)
  for step in steps:
    checkpoints.save(state_at(step), record_at(step))
  checkpoints.close()


def restore(workdir, model=MODEL):
  everywhere = sharding.replicated(sharding.make_mesh())
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state_at(0))
  checkpoints = Checkpoints(workdir)
  try:
    return checkpoints.restore_newest(like, model=model)
  finally:
    checkpoints.close()


def assert_is(state, step):
  assert jax.tree.structure(state) == jax.tree.structure(state_at(step))
  for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(step))):
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run folder with the states of steps 2 and 4, and the best weights of step 2; to be copied, not changed."""
  workdir = tmp_path_factory.mktemp('saved') / 'run'
  checkpoints = Checkpoints(workdir)
  for step in (2, 4):
    checkpoints.save(state_at(step), record_at(step, unlogged=((step, {'loss': 1 / 3}),)))
  checkpoints.save_best(state_at(2).variables, record_at(2, metrics={'AP': 0.25, 'AP_L': float('nan')}))
  checkpoints.close()
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / 'run'))


def test_the_newest_states_stay(tmp_path):
  save(tmp_path, 1, 2, 5, 7)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'5', '7'}
  save(tmp_path, 9, keep=1)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'9'}


def test_the_newest_state_comes_back_to_the_bit_with_its_record(workdir):
  state, record = restore(workdir)
  assert_is(state, 4)
  assert isinstance(state, TrainState)
  assert state.params['conv']['kernel'].sharding.is_fully_replicated
  assert record.step == 4 and record.categories == TABLE
  assert record.unlogged == ((4, {'loss': 1 / 3}),)
  assert record.model == {**MODEL, 'dims': [8, 8], 'blocks': [1, 1]}
  assert record.test == {'scales': [1.0], 'mirror': True, 'outside_margin': None}


def test_an_empty_folder(tmp_path):
  assert restore(tmp_path / 'new') is None
  assert Checkpoints(tmp_path / 'new').best_metric('AP') == float('-inf')


def test_a_step_is_saved_once(workdir):
  checkpoints = Checkpoints(workdir)
  checkpoints.save(state_at(99), record_at(4))
  checkpoints.close()
  assert_is(restore(workdir)[0], 4)


def test_a_save_holds_the_state_of_its_moment(tmp_path):
  """The loop donates the state to the next step while the save is still being written."""
  step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
  state = jax.tree.map(jnp.asarray, state_at(3))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, record_at(3))
  for _ in range(3):
    state = step(state)
  jax.block_until_ready(state)
  checkpoints.close()
  assert_is(restore(tmp_path)[0], 3)


def test_the_best_replaces_the_best_before(workdir):
  checkpoints = Checkpoints(workdir)
  assert checkpoints.best_metric('AP') == 0.25
  checkpoints.save_best(state_at(6).variables, record_at(6, metrics={'AP': 0.5}))
  assert checkpoints.best_metric('AP') == 0.5
  checkpoints.close()
  assert {p.name for p in (workdir / 'best').iterdir()} == {'6'}
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2', '4'}


def test_a_best_whose_record_is_broken_gives_way(workdir, caplog):
  (workdir / 'best/2/record/metadata').write_text('{"step": 2')
  checkpoints = Checkpoints(workdir)
  with caplog.at_level(logging.WARNING):
    assert checkpoints.best_metric('AP') == float('-inf')
  checkpoints.close()
  assert 'best/2 cannot be read (JSONDecodeError' in caplog.text
  assert (workdir / 'best_broken/2').exists() and not (workdir / 'best/2').exists()


def truncate(directory):
  """Cuts the largest file of the state in half: the disk was full."""
  largest = max((p for p in (directory / 'state').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


BREAKERS = {
  'truncated': truncate,
  'empty_files': lambda d: [os.truncate(p, 0) for p in (d / 'state').rglob('*') if p.is_file()],
  'no_state': lambda d: shutil.rmtree(d / 'state'),
  'no_record': lambda d: shutil.rmtree(d / 'record'),
  'half_a_record': lambda d: os.truncate(d / 'record/metadata', 40),
  'record_lacks_a_key': lambda d: (d / 'record/metadata').write_text('{"step": 4}'),
  'no_arrays': lambda d: [shutil.rmtree(p) for p in (d / 'state').iterdir() if p.is_dir()],
}


@pytest.mark.parametrize('name', BREAKERS)
def test_a_broken_newest_state_gives_way_to_the_one_before(workdir, caplog, name):
  BREAKERS[name](workdir / 'checkpoints/4')
  with caplog.at_level(logging.WARNING):
    state, record = restore(workdir)
  assert_is(state, 2)
  assert record.step == 2
  assert 'checkpoints/4 cannot be read' in caplog.text and 'step 2 is used' in caplog.text
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2'}
  assert (workdir / 'checkpoints_broken/4').exists()
  save(workdir, 4)  # the run comes to the step again
  assert_is(restore(workdir)[0], 4)


def test_a_half_written_directory_is_no_checkpoint(workdir):
  """What a killed save leaves behind."""
  shutil.copytree(workdir / 'checkpoints/4', workdir / 'checkpoints/6.orbax-checkpoint-tmp')
  (workdir / 'checkpoints/6.orbax-checkpoint-tmp/commit_success.txt').unlink(missing_ok=True)
  state, _ = restore(workdir)
  assert_is(state, 4)
  save(workdir, 6)
  assert {p.name for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()} == {'4', '6'}
  assert_is(restore(workdir)[0], 6)


def test_none_can_be_read(workdir):
  """Then nothing is moved or started anew: what cannot be read now may be readable in an hour."""
  truncate(workdir / 'checkpoints/2')
  BREAKERS['no_record'](workdir / 'checkpoints/4')
  with pytest.raises(Unreadable, match=r'none of the 2 checkpoints in .*checkpoints can be read: 4: .*; 2: '):
    restore(workdir)
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2', '4'}


def test_another_network(workdir):
  model = {**MODEL, 'dims': (8, 16), 'center_branch': True, 'dtype': 'bfloat16', 'norm_group': None}
  differing = r'center_branch: default there, True here; dims: \[8, 8\] there, \[8, 16\] here\. Give another --workdir'
  with pytest.raises(ValueError, match=rf'checkpoints/4 is of another network; {differing}'):
    restore(workdir, model)
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2', '4'}
  state, _ = restore(workdir, {**MODEL, 'dtype': 'bfloat16', 'remat': 'blocks', 'norm_group': 3})
  assert_is(state, 4)


def test_a_network_of_before_there_were_encoders(workdir):
  """Its record has no such key: it is an hourglass, and continues as one."""
  assert 'encoder' not in MODEL
  state, _ = restore(workdir, {**MODEL, 'encoder': 'hourglass'})
  assert_is(state, 4)
  with pytest.raises(ValueError, match=r'another network; encoder: hourglass there, efficientnet_lite0 here\. Give'):
    restore(workdir, {**MODEL, 'encoder': 'efficientnet_lite0'})


def test_another_optimizer(workdir):
  """Its state has another tree; the checkpoints are sound and must stay."""
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_at(0))
  like = like.replace(opt_state={'nu': like.opt_state['mu']})
  checkpoints = Checkpoints(workdir)
  differing = r'1 arrays are only there \(opt_state/mu/\S+, \.\.\.\); 1 arrays are only here \(opt_state/nu/'
  with pytest.raises(ValueError, match=rf'checkpoints/4 is the state of another program or optimizer: {differing}'):
    checkpoints.restore_newest(like, model=MODEL)
  checkpoints.close()
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2', '4'}


def test_weights_for_use(workdir):
  for path, which, step in (
    (workdir, 'best', 2),
    (workdir, 'checkpoints', 4),
    (workdir / 'best/2', 'best', 2),
    (workdir / 'checkpoints/2', 'best', 2),
    (workdir / 'checkpoints/4', 'best', 4),
  ):
    variables, record = load_weights(path, which=which)
    assert set(variables) == {'params', 'batch_stats'} and record.step == step and record.categories == TABLE
    for got, want in zip(jax.tree.leaves(variables), jax.tree.leaves(state_at(step).variables), strict=True):
      assert isinstance(got, np.ndarray)
      np.testing.assert_array_equal(got, want)
  assert load_weights(workdir)[1].metrics['AP'] == 0.25
  shutil.rmtree(workdir / 'best/2')
  assert load_weights(workdir)[1].step == 4  # not evaluated yet


def test_weights_that_are_not_there(workdir, tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path, workdir / 'best'):
    with pytest.raises(FileNotFoundError, match=rf'no checkpoint in {path}: expected a run folder with best/ or'):
      load_weights(path)
  with pytest.raises(ValueError, match=r"'newest' is not known; possible: best, checkpoints"):
    load_weights(workdir, which='newest')


@pytest.mark.parametrize('name', BREAKERS)
def test_broken_weights(workdir, name):
  BREAKERS[name](workdir / 'best/2')
  with pytest.raises(Unreadable, match=r'the checkpoint .*best/2 cannot be read: \w+'):
    load_weights(workdir)


EIGHT_DEVICES = """
import sys
import jax
from tests.run.test_checkpoints import record_at, state_at
from triplet_det.devices import sharding
from triplet_det.run.checkpoints import Checkpoints
mesh = sharding.make_mesh()
assert mesh.devices.size == 8
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(jax.device_put(state_at(5), sharding.replicated(mesh)), record_at(5))
variables = jax.device_put(state_at(5).variables, sharding.replicated(mesh))
checkpoints.save_best(variables, record_at(5, metrics={'AP': 0.1}))
checkpoints.close()
"""


def test_saved_on_eight_devices_restored_on_one(tmp_path):
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', EIGHT_DEVICES, tmp_path], cwd=ROOT, env=environment, check=True, timeout=120)
  assert jax.device_count() == 1
  state, _ = restore(tmp_path)
  assert_is(state, 5)
  assert len(state.params['conv']['kernel'].sharding.device_set) == 1
  variables, _ = load_weights(tmp_path)
  np.testing.assert_array_equal(variables['params']['conv']['kernel'], state_at(5).params['conv']['kernel'])


def test_the_record_survives_json():
  record = record_at(3, metrics={'AP': 1 / 3}, unlogged=((2, {'loss': 0.1}), (3, {'loss': 0.2})))
  back = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
  assert back.categories == TABLE and back.unlogged == record.unlogged and back.metrics == {'AP': 1 / 3}


def test_moving_averages_are_what_is_used(tmp_path):
  average = jax.tree.map(lambda x: x + 100, state_at(3).variables)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state_at(3).replace(average=average), record_at(3))
  checkpoints.close()
  variables, _ = load_weights(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(average))
  with pytest.raises(ValueError, match=r'checkpoints/3 keeps moving averages, this run keeps none: give the'):
    restore(tmp_path)


def flip(path, bit):
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  """A run folder whose best weights are kilobytes, so that most bits are theirs; and the weights."""
  workdir = tmp_path_factory.mktemp('large') / 'run'
  weights = np.random.default_rng(0).normal(size=(3, 3, 16, 32)).astype(np.float32)
  variables = {'params': {'conv': {'kernel': weights}}, 'batch_stats': {'mean': np.arange(8, dtype=np.float32)}}
  checkpoints = Checkpoints(workdir)
  checkpoints.save_best(variables, record_at(2, metrics={'AP': 0.25}))
  checkpoints.close()
  return workdir, variables


def test_a_flipped_bit_is_harmless_or_found(large, tmp_path):
  """In any file of a checkpoint, and at least one in every kind of file."""
  source, variables = large
  draw = random.Random(0)
  names = sorted(p.relative_to(source) for p in (source / 'best/2').rglob('*') if p.is_file())
  biggest = max(names, key=lambda name: (source / name).stat().st_size)
  want, found = load_weights(source)[1], []
  for number, name in enumerate([*names, *['best/2/record/metadata'] * 8, *[biggest] * 8]):
    workdir = Path(shutil.copytree(source, tmp_path / str(number)))
    flip(workdir / name, draw.randrange(8 * (workdir / name).stat().st_size))
    try:
      got, record = load_weights(workdir)
    except Unreadable as error:
      assert f'the checkpoint {workdir}/best/2 cannot be read: ' in str(error)
      found.append(str(name))
    else:
      assert jax.tree.structure(got) == jax.tree.structure(variables)
      jax.tree.map(np.testing.assert_array_equal, got, variables)
      assert record == want
  assert {'best/2/record/metadata', str(biggest)} <= set(found)


def test_flipped_weights_are_named_and_give_way(workdir, caplog):
  """The file system returns other numbers without an error: only the digest can tell."""
  record = workdir / 'checkpoints/4/record/metadata'
  content = json.loads(record.read_text())
  content['digest']['params'] = '0' * 8
  del content['digest']['record']
  content['digest']['record'] = array_digest.of_texts([json.dumps(content, sort_keys=True)])
  record.write_text(json.dumps(content))
  with pytest.raises(Unreadable, match=r'4 cannot be read: ValueError: params: not the numbers that were saved, by'):
    load_weights(workdir, which='checkpoints')
  with caplog.at_level(logging.WARNING):
    assert_is(restore(workdir)[0], 2)
  assert 'checkpoints/4 cannot be read (ValueError: params: not the numbers that were saved' in caplog.text


def test_a_checkpoint_without_a_digest_is_taken_with_a_warning(workdir, caplog):
  for path in workdir.glob('*/*/record/metadata'):
    content = json.loads(path.read_text())
    del content['digest'], content['evaluated_on']
    path.write_text(json.dumps(content))
  with caplog.at_level(logging.WARNING):
    assert_is(restore(workdir)[0], 4)
    load_weights(workdir)
  for name in ('checkpoints/4', 'best/2'):
    assert f'{name} is of an older version, without a digest: not checked for flipped bits' in caplog.text


@pytest.mark.parametrize('dtype', [np.float32, np.float64, jnp.bfloat16, np.int32, bool])
def test_the_digest_of_arrays(dtype):
  """That of other numbers, shapes, types and names is another; that of arrays on a device is the same."""
  x = np.arange(24).reshape(2, 3, 4).astype(dtype)
  digest, faulty = array_digest.measure({'a': {'x': x}, 'b': np.ones(())})
  assert set(digest) == {'a', 'b', 'names'} and not faulty
  if dtype is not np.float64:
    assert array_digest.measure({'a': {'x': jnp.asarray(x)}, 'b': np.ones(())})[0] == digest
  others = x.copy(), x.reshape(4, 6), x.view(np.uint8), x[::-1]
  others[0][1, 2, 3] = 0
  found = [array_digest.measure({'a': {'x': other}})[0]['a'] for other in others]
  found += [array_digest.measure({'a': {'y': x}})[0]['a'], digest['a']]
  assert len(set(found)) == len(found)


def test_what_is_not_finite_is_neither_saved_nor_read(workdir, caplog):
  bad = jax.tree.map(lambda x: x, state_at(6))
  bad.params['conv']['kernel'] = bad.params['conv']['kernel'].at[0, 0, :2].set(jnp.nan)
  checkpoints = Checkpoints(workdir)
  for state in (bad, state_at(6).replace(opt_state={'mu': {'x': jnp.asarray([1, jnp.inf])}})):
    with pytest.raises(NonFinite, match=r'^(2 numbers of params/conv/kernel|1 numbers of opt_state/mu/x) are not fi'):
      checkpoints.save(state, record_at(6))
  with pytest.raises(NonFinite):
    checkpoints.save_best(bad.variables, record_at(6))
  checkpoints.close()
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'2', '4'}
  assert [p.name for p in (workdir / 'best').iterdir()] == ['2']


def test_what_an_older_version_saved_not_finite(tmp_path, monkeypatch, caplog):
  measure = array_digest.measure
  bad = state_at(4).replace(batch_stats={'mean': jnp.full(4, jnp.nan)})
  with monkeypatch.context() as patch:
    patch.setattr(array_digest, 'measure', lambda tree: (measure(tree)[0], {}))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(2), record_at(2))
    checkpoints.save(bad, record_at(4))
    checkpoints.close()
  with pytest.raises(NonFinite, match=r'the checkpoint .*/4 is of a run that diverged: 4 numbers of batch_stats/mean'):
    load_weights(tmp_path)
  with caplog.at_level(logging.WARNING):
    assert_is(restore(tmp_path)[0], 2)
  assert 'checkpoints/4 cannot be read (NonFinite: 4 numbers of batch_stats/mean are not finite)' in caplog.text


def test_a_state_that_diverged_gives_way(workdir, caplog):
  for step, left in ((4, 2), (2, None)):
    checkpoints = Checkpoints(workdir)
    checkpoints.mark_diverged(step)
    checkpoints.mark_diverged(99)  # not kept
    checkpoints.close()
    with caplog.at_level(logging.WARNING):
      found = restore(workdir)
    assert (found[1].step if found else None) == left
    assert f'the loss of the step after {workdir}/checkpoints/{step} was not finite: it is now' in caplog.text
    assert (workdir / f'checkpoints_diverged/{step}/state').exists()


def test_the_best_of_other_data_and_of_an_earlier_step(workdir, caplog):
  checkpoints = Checkpoints(workdir)
  assert checkpoints.best_metric('AP', 'today') == 0.25  # an older version did not note the data
  checkpoints.save_best(state_at(2).variables, record_at(2, metrics={'AP': 0.5}, evaluated_on='one'))
  assert checkpoints.best_metric('AP', 'one') == 0.5
  with caplog.at_level(logging.WARNING):
    assert checkpoints.best_metric('AP', 'other') == float('-inf')
  assert 'the best AP so far, 0.500 of step 2, is of other evaluation data: it is not compared' in caplog.text
  checkpoints.save_best(state_at(1).variables, record_at(1, metrics={'AP': 0.1}, evaluated_on='other'))
  assert checkpoints.best_metric('AP', 'other') == 0.1
  checkpoints.close()
  assert [p.name for p in (workdir / 'best').iterdir()] == ['1']
