"""A run that goes on with other numbers of devices, and with all that saves memory, gives the curve of one device."""

import base64
import json

import jax
import numpy as np
import pytest

from tests import tiny_run
from triplet_det import checkpoints

# Step drop: unlike the cosine it does not depend on total_steps, at which the parts of the run end.
OVERRIDES = {
  'batch_size': 16,
  'group_size': 2,
  'accumulate': 2,
  'average_decay': 0.9,
  'model.dims': (8, 48),  # the inner convolutions are large enough to be sharded
  'optimizer.schedule': 'step',
  'optimizer.drop_step': 3,
}
STEPS = 9


def run_to(step, workdir, data, *, devices, **changes):
  changes = OVERRIDES | data | dict(total_steps=step, eval_every=STEPS) | changes
  flags = f'--xla_force_host_platform_device_count={devices}'
  code, said = tiny_run.run(workdir, changes, XLA_FLAGS=flags)
  assert code == 0, said
  assert f'16 images a step on {devices} cpu device(s)' in said
  return said


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The run folder of one device, and that of 8, then 2, then 1, with shared states where there are several."""
  root = tmp_path_factory.mktemp('devices')
  data = tiny_run.coco_data(root / 'coco')
  run_to(STEPS, root / 'one', data, devices=1)
  run_to(3, root / 'many', data, devices=8, state_shards=2, mode='train')
  placed = json.loads((root / 'many/checkpoints/3/state/_sharding').read_text())
  assert 'continuing at step 3' in run_to(6, root / 'many', data, devices=2, state_shards=2, mode='train')
  assert 'continuing at step 6' in run_to(STEPS, root / 'many', data, devices=1)
  return root / 'one', root / 'many', placed


def test_the_curve_is_that_of_one_device(runs):
  one, many = (tiny_run.rows(workdir) for workdir in runs[:2])
  assert [row['step'] for row in one] == [row['step'] for row in many] == [*range(1, STEPS + 1), STEPS]
  for name in ('train/loss', 'train/gradient_norm', 'train/learning_rate'):
    curves = [[row[name] for row in rows[:-1]] for rows in (one, many)]
    np.testing.assert_allclose(*curves, rtol=1e-5, err_msg=name)
  assert one[2]['train/learning_rate'] == pytest.approx(10 * one[3]['train/learning_rate'])


def test_parameters_and_optimizer_were_shared_on_several_devices(runs):
  """As orbax notes it: a name in base64 -> how that array was placed."""
  split = [base64.b64decode(name).decode() for name, placed in runs[2].items() if 'state' in str(json.loads(placed))]
  assert {name.split('.')[0] for name in split} == {'params', 'opt_state', 'average'}


def test_the_averages_are_evaluated_and_kept(runs):
  for workdir in runs[:2]:
    best, record = checkpoints.load_weights(workdir)
    assert record.step == STEPS and 0 <= record.metrics['AP'] <= 1
    newest, _ = checkpoints.load_weights(workdir, which='checkpoints')
    jax.tree.map(np.testing.assert_array_equal, best, newest)
  found = [tiny_run.rows(workdir)[-1] for workdir in runs[:2]]
  assert found[0]['eval/AP'] == pytest.approx(found[1]['eval/AP'], abs=1e-3)
  ones, manys = (jax.tree.leaves(checkpoints.load_weights(workdir)[0]['params']) for workdir in runs[:2])
  for one, many in zip(ones, manys):
    np.testing.assert_allclose(many, one, atol=1e-4)
