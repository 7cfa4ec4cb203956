"""A run that goes on with other numbers of devices, and with all that saves memory, gives the curve of one device."""

import base64
import json

import jax
import numpy as np
import pytest

from tests import tiny_run
from triplet_det.run import checkpoints

STEPS = 6
# In float32 the cells with the largest value change sides when the sums of a convolution are taken in another order.
FLOAT64 = {'JAX_ENABLE_X64': '1', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
OVERRIDES = {
  'checkpoint_every': 2,
  'eval_every': STEPS,
  'batch_size': 16,
  'group_size': 2,
  'accumulate': 2,
  'average_decay': 0.9,
  'model.dtype': 'float64',
  'model.stacks': 1,
  'model.dims': (8, 48),  # the inner convolutions are large enough to be sharded
  'optimizer.base': 2.5e-4,
  'optimizer.reference_batch': 0,
  'optimizer.schedule': 'step',  # unlike the cosine it does not depend on total_steps, at which parts of the run end
  'optimizer.drop_step': 2,
}


def run_to(step, workdir, data, *, devices, **changes):
  flags = f'{FLOAT64["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
  environment = FLOAT64 | {'XLA_FLAGS': flags}
  code, said = tiny_run.run(workdir, OVERRIDES | data | dict(total_steps=step) | changes, **environment)
  assert code == 0, said
  assert f'16 images a step on {devices} cpu device(s)' in said
  return said


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The run folder of one device; that of 8, then 2, then 1, with shared states on several; how they were placed."""
  root = tmp_path_factory.mktemp('devices')
  data = tiny_run.coco_data(root / 'coco')
  run_to(STEPS, root / 'one', data, devices=1, mode='train')
  run_to(2, root / 'many', data, devices=8, state_shards=2, mode='train')
  placed = json.loads((root / 'many/checkpoints/2/state/_sharding').read_text())
  assert 'continuing at step 2' in run_to(4, root / 'many', data, devices=2, state_shards=2, mode='train')
  assert 'continuing at step 4' in run_to(STEPS, root / 'many', data, devices=1)
  return root / 'one', root / 'many', placed


def test_the_curve_is_that_of_one_device(runs):
  one, many = (tiny_run.rows(workdir) for workdir in runs[:2])
  assert [row['step'] for row in many] == [*range(1, STEPS + 1), STEPS]  # the last one is the evaluation
  for name in ('train/loss', 'train/gradient_norm', 'train/learning_rate'):
    curves = [[row[name] for row in rows[:STEPS]] for rows in (one, many)]
    np.testing.assert_allclose(*curves, rtol=1e-5, err_msg=name)
  assert one[1]['train/learning_rate'] == pytest.approx(10 * one[2]['train/learning_rate'])


def test_large_arrays_were_shared_on_several_devices(runs):
  """As orbax notes it: a name in base64 -> how that array was placed."""
  specs = {base64.b64decode(name).decode(): json.loads(text)['partition_spec'] for name, text in runs[2].items()}
  shared = {name.split('.')[0] for name, spec in specs.items() if 'state' in spec}
  assert shared == {'params', 'opt_state', 'average'}


def test_the_averages_are_evaluated_and_kept(runs):
  _, workdir, _ = runs
  (kept, record), (newest, _) = (checkpoints.load_weights(workdir, which=name) for name in ('best', 'checkpoints'))
  assert record.step == STEPS and record.metrics['AP'] == tiny_run.rows(workdir)[-1]['eval/AP']
  jax.tree.map(np.testing.assert_array_equal, kept, newest)
  expected, _ = checkpoints.load_weights(runs[0], which='checkpoints')
  for one, many in zip(jax.tree.leaves(expected), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(many, one, atol=1e-6)
