"""Weights of another run: what is taken over, counted by hand; frozen parameters; the whole of it through main."""

import json
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny_run
from triplet_det import train
from triplet_det.categories import CategoryTable
from triplet_det.configs import photos
from triplet_det.models import detector
from triplet_det.run import checkpoints
from triplet_det.training import finetune, optimizer
from triplet_det.training.train_step import TrainState

HERE = CategoryTable((1, 2, 3), ('ring', 'cube', 'disc'))
THERE = CategoryTable((7, 8, 9, 4), ('disc', 'square', 'ring', 'cone'))


def variables(rng, classes, *, width=4, neck=True):
  """A network in small: a stem, a neck of either name, and a branch; running statistics for the stem."""
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  params = {
    'stem': {'conv': {'kernel': draw(3, 3, 3, width)}, 'norm': {'scale': draw(width)}},
    'center_0': {
      'heat': {'hidden': {'bias': draw(5)}, 'out': {'kernel': draw(1, 1, 5, classes), 'bias': draw(classes)}},
      'offset': {'out': {'kernel': draw(1, 1, 5, 2)}},
    },
    'neck' if neck else 'throat': {'kernel': draw(10, 10)},
  }
  return {'params': params, 'batch_stats': {'stem': {'norm': {'mean': draw(width)}}}}


def test_merging():
  rng = np.random.default_rng(0)
  ours, theirs = variables(rng, 3), variables(rng, 4, neck=False)
  merged, transfer = finetune.merge(ours, theirs, HERE, THERE)
  stem = merged['params']['stem']
  assert stem['conv']['kernel'].tobytes() == theirs['params']['stem']['conv']['kernel'].tobytes()
  jax.tree.map(np.testing.assert_array_equal, merged['batch_stats'], theirs['batch_stats'])
  assert set(merged['params']) == {'stem', 'center_0', 'neck'}
  np.testing.assert_array_equal(merged['params']['neck']['kernel'], ours['params']['neck']['kernel'])
  for name in ('kernel', 'bias'):
    rows, here, there = (v['params']['center_0']['heat']['out'][name] for v in (merged, ours, theirs))
    np.testing.assert_array_equal(rows[..., 0], there[..., 2])  # ring
    np.testing.assert_array_equal(rows[..., 1], here[..., 1])  # cube, as initialised
    np.testing.assert_array_equal(rows[..., 2], there[..., 0])  # disc

  # The stem has 3 x 3 x 3 x 4 + 4 numbers, the branch 5 + 1 x 1 x 5 x 2 apart from its 6 numbers a class.
  assert transfer.restored == {'stem': 112, 'center_0': 15 + 2 * 6, 'neck': 0, 'throat': 0}
  assert transfer.fresh == {'stem': 0, 'center_0': 6, 'neck': 100, 'throat': 0}
  assert transfer.ignored == {'stem': 0, 'center_0': 2 * 6, 'neck': 0, 'throat': 100}
  assert transfer.share == 139 / 245
  assert (transfer.classes, transfer.fresh_classes, transfer.ignored_classes) == (
    ('ring', 'disc'),
    ('cube',),
    ('square', 'cone'),
  )
  assert transfer.misfits == ()


def test_merging_the_same_number_of_classes_in_another_order():
  rng = np.random.default_rng(1)
  ours, theirs = variables(rng, 3), variables(rng, 3)
  turned = CategoryTable((1, 2, 3), HERE.names[::-1])
  merged, transfer = finetune.merge(ours, theirs, HERE, turned)
  rows, there = (v['params']['center_0']['heat']['out']['kernel'] for v in (merged, theirs))
  np.testing.assert_array_equal(rows, there[..., ::-1])
  assert transfer.share == 1 and transfer.fresh.total() == transfer.ignored.total() == 0


def test_merging_other_shapes():
  rng = np.random.default_rng(2)
  ours, theirs = variables(rng, 3), variables(rng, 4, width=6)
  before = ours['params']['stem']['conv']['kernel'].copy()
  merged, transfer = finetune.merge(ours, theirs, HERE, THERE)
  np.testing.assert_array_equal(merged['params']['stem']['conv']['kernel'], before)
  np.testing.assert_array_equal(
    merged['batch_stats']['stem']['norm']['mean'], ours['batch_stats']['stem']['norm']['mean']
  )
  assert transfer.misfits == (
    'stem/conv/kernel (3, 3, 3, 6) there, (3, 3, 3, 4) here',
    'stem/norm/scale (6,) there, (4,) here',
  )
  assert (transfer.fresh['stem'], transfer.ignored['stem']) == (112, 168)


def test_the_table():
  rng = np.random.default_rng(3)
  lines = finetune.table(finetune.merge(variables(rng, 3), variables(rng, 4, neck=False), HERE, THERE)[1]).splitlines()
  rows = [line.split() for line in lines]
  assert rows[0] == ['module', 'restored', 're-initialised', 'ignored', 'share', 'restored']
  for row in ('stem 112 0 0 100.0%', 'center_0 27 6 12 81.8%', 'neck 0 100 0 0.0%', 'throat 0 0 100 -'):
    assert row.split() in rows
  assert ['all', '139', '106', '112', '56.7%'] in rows
  assert '  classes restored by name: 2 (ring, disc)' in lines
  assert '  classes re-initialised: 1 (cube)' in lines
  assert '  classes ignored: 2 (square, cone)' in lines


def save(folder, weights, model):
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(weights, checkpoints.RunRecord(step=7, categories=THERE, model=model, test={}))
  saved.close()


def test_initialising_a_state(tmp_path):
  rng = np.random.default_rng(4)
  ours, theirs = (jax.tree.map(jnp.asarray, variables(rng, classes)) for classes in (3, 4))
  save(tmp_path, theirs, dict(stacks=1))
  adam = optimizer.adam(lambda step: 0.1)
  state = TrainState(jnp.zeros((), jnp.int32), **ours, opt_state=adam.init(ours['params']), average=ours)
  found = finetune.initialise(state, tmp_path, categories=HERE, model=dict(stacks=1))
  expected, _ = finetune.merge(*jax.device_get((ours, theirs)), HERE, THERE)
  for got in ({'params': found.params, 'batch_stats': found.batch_stats}, found.average):
    jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, state)
  assert int(found.step) == 0 and found.opt_state is state.opt_state
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((found.params, found.average['params']))]
  assert len(set(pointers)) == len(pointers)  # a step is given the state's memory, and no array twice


def test_weights_that_know_other_pixels_are_refused(tmp_path):
  ours = jax.tree.map(jnp.asarray, variables(np.random.default_rng(5), 3))
  save(tmp_path, ours, dict(stacks=1, pixels='imagenet'))
  state = TrainState(jnp.zeros((), jnp.int32), **ours, opt_state=())
  with pytest.raises(ValueError, match=r'statistics of imagenet, config\.model\.pixels is coco: give --config\.model'):
    finetune.initialise(state, tmp_path, categories=HERE, model=dict(stacks=1))  # an older config has no such key
  finetune.initialise(state, tmp_path, categories=HERE, model=dict(stacks=1, pixels='imagenet'))


def test_less_than_half_is_an_error(tmp_path):
  """Of 245 numbers only the branch fits: 15, and 6 for each of 2 classes."""
  rng = np.random.default_rng(5)
  ours, theirs = jax.tree.map(jnp.asarray, (variables(rng, 3), variables(rng, 4, width=6, neck=False)))
  save(tmp_path, theirs, dict(stacks=1, dims=(6, 6), num_classes=4, dtype='bfloat16'))
  state = TrainState(jnp.zeros((), jnp.int32), **ours, opt_state=())
  with pytest.raises(ValueError) as raised:
    finetune.initialise(state, tmp_path, categories=HERE, model=dict(stacks=1, dims=(4, 4), num_classes=3))
  message = str(raised.value)
  assert f'init_from={tmp_path}: only 11% of the parameters of this network are in it, 50% are needed' in message
  assert 'dims: [6, 6] there, [4, 4] here. Give' in message
  assert 'num_classes' not in message and 'dtype' not in message
  with pytest.raises(FileNotFoundError, match=r'no checkpoint in .*nowhere'):
    finetune.initialise(state, tmp_path / 'nowhere', categories=HERE, model={})


PARAMS = {
  'stem': {'conv': {'kernel': jnp.full((2, 3), 0.5)}, 'norm': {'scale': jnp.ones(3)}},
  'neck': {'kernel': jnp.ones(4), 'norm': {'scale': jnp.full(2, 3.0)}},
}


@pytest.mark.parametrize(
  'freeze, numbers', [('', 0), ('stem', 9), ('stem/conv|neck/norm', 8), ('.*/norm/', 5), ('neck/k', 4)]
)
def test_share_that_is_frozen(freeze, numbers):
  assert optimizer.frozen_share(PARAMS, freeze) == pytest.approx(numbers / 15)


@pytest.mark.parametrize(
  'freeze, told',
  [
    ('norm', r"freeze='norm' matches no parameter; .* such as neck/kernel; modules: neck, stem$"),
    ('.', r"freeze='\.' matches all parameters, so that nothing would be trained"),
    ('stem(', r"freeze='stem\(' is not a regular expression: missing \)"),
  ],
)
def test_a_pattern_that_is_wrong(freeze, told):
  with pytest.raises(ValueError, match=told):
    optimizer.frozen_share(PARAMS, freeze)


def test_frozen_parameters_stay_to_the_bit():
  """And the others go as if the frozen ones did not exist, clipping included."""
  gradients = jax.tree.map(lambda x: jnp.linspace(-3, 3, x.size).reshape(x.shape), PARAMS)
  freezing, alone = (optimizer.adam(lambda step: 0.1, clip_norm=0.5, freeze=freeze) for freeze in ('stem', ''))
  params, neck = PARAMS, {'neck': PARAMS['neck']}
  state, neck_state = freezing.init(params), alone.init(neck)
  for _ in range(3):
    updates, state = freezing.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    updates, neck_state = alone.update({'neck': gradients['neck']}, neck_state, neck)
    neck = optax.apply_updates(neck, updates)
  for path in (('conv', 'kernel'), ('norm', 'scale')):
    assert params['stem'][path[0]][path[1]].tobytes() == PARAMS['stem'][path[0]][path[1]].tobytes()
  jax.tree.map(np.testing.assert_array_equal, params['neck'], neck['neck'])
  assert np.abs(params['neck']['kernel'] - 1).max() > 0.1

  # The state is that of an Adam that freezes nothing: it goes on when a run thaws, and when it freezes more.
  assert jax.tree.structure(state) == jax.tree.structure(alone.init(params))
  updates, state = alone.update(gradients, state, params)
  assert np.abs(updates['stem']['conv']['kernel']).max() > 0.01
  frozen, _ = optimizer.adam(lambda step: 0.1, freeze='neck').update(gradients, state, params)
  assert not np.any(frozen['neck']['kernel']) and np.any(frozen['stem']['norm']['scale'])


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A checkpoint of the tiny network; a run with other classes that started from it with frozen parts; what it said."""
  folder = tmp_path_factory.mktemp('runs')
  overrides = tiny_run.OVERRIDES | tiny_run.coco_data(folder / 'coco') | {'mode': 'train', 'total_steps': 2}
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict(overrides)
  module = detector.build(dict(config.model, num_classes=len(THERE)))
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 31, 31, 3)))
  rng = np.random.default_rng(6)
  weights = jax.tree.map(lambda x: np.abs(rng.normal(0, 0.1, x.shape)).astype(np.float32), shapes)
  save(folder / 'first', weights, dict(config.model, num_classes=len(THERE)))

  path = Path(overrides['data.train.annotations'])
  truth = json.loads(path.read_text())
  for category, name in zip(truth['categories'], HERE.names, strict=True):
    category['name'] = name
  path.write_text(json.dumps(truth))
  overrides |= {'init_from': str(folder / 'first'), 'freeze': 'stem|hourglass_0|(top_left|bottom_right)_0/heat'}
  code, said = tiny_run.run(folder / 'second', overrides)
  assert code == 0, said
  return folder, weights, overrides, said


def test_through_main(runs):
  folder, before, _, said = runs
  after, record = checkpoints.load_weights(folder / 'second')
  assert (record.step, record.categories.names) == (2, HERE.names)
  for module in ('stem', 'hourglass_0'):
    jax.tree.map(np.testing.assert_array_equal, after['params'][module], before['params'][module])
  for module in ('top_left_0', 'bottom_right_0'):
    new, old = (variables['params'][module]['heat'] for variables in (after, before))
    for name in ('kernel', 'bias'):
      np.testing.assert_array_equal(new['out'][name][..., [0, 2]], old['out'][name][..., [2, 0]])  # ring and disc
    np.testing.assert_array_equal(new['out']['bias'][1], np.float32(-2.19))  # cube, as initialised
    jax.tree.map(np.testing.assert_array_equal, new['hidden'], old['hidden'])
  new, old = (variables['params']['feature_0']['conv']['kernel'] for variables in (after, before))
  assert 0 < np.abs(new - old).max() < 0.01  # two steps of at most 1e-3
  new, old = (variables['batch_stats']['stem']['block']['norm']['mean'] for variables in (after, before))
  assert (new != old).all()  # running statistics follow the data, of frozen norms too

  assert f'weights of step 7 of {folder / "first"}' in said
  assert 'classes restored by name: 2 (ring, disc)' in said
  parts = [after['params'][m] for m in ('stem', 'hourglass_0')]
  parts += [after['params'][m]['heat'] for m in ('top_left_0', 'bottom_right_0')]
  total, kept = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (after['params'], parts))
  assert f'{100 * kept / total:.1f} % of the parameters are frozen' in said
  row = re.search(r'^  all +([\d,]+) +([\d,]+) +([\d,]+) ', said, re.M)
  # In each of two branches a class has 8 numbers in the kernel and one in the bias.
  assert [int(number.replace(',', '')) for number in row.groups()] == [total - 18, 18, 2 * 18]


def test_a_run_that_continues_ignores_init_from(runs, caplog):
  folder, _, overrides, _ = runs
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict(overrides | {'freeze': 'stem'})
  with caplog.at_level(logging.INFO, logger='absl'):
    assert train.train(config, folder / 'second') == {}
  assert 'init_from is ignored: the run continues from its own step 2' in caplog.text
  assert 'continuing at step 2 of 2' in caplog.text and 'restored by name' not in caplog.text
