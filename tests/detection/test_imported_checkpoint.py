"""The authors' weights as a run folder: `load`, mode eval and `predict` take it and find the same boxes; no torch."""

import dataclasses
import json

import numpy as np
import pytest

import triplet_det
from scripts import import_torch_checkpoint
from tests.golden_state import NETWORKS, read, state_dict
from triplet_det import main, predict
from triplet_det.configs import cornernet, triplet
from triplet_det.detection import trained_network
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CORNERNET
from triplet_det.models import detector, torch_import
from triplet_det.pictures import drawing
from triplet_det.prediction import find_files, over_files

# Weights that never saw an image give embeddings far apart and few corners and centers that agree.
GENEROUS = {'embedding_threshold': 1e3, 'top_k': 300, 'num_pairs': 20_000}
SIZES = {1: (100, 120), 2: (60, 70), 3: (90, 126)}  # image id -> height, width: one canvas


@pytest.fixture(scope='module', params=NETWORKS)
def imported(request, tmp_path_factory):
  """Name, run folder with the imported weights, a split of five classes, its images, and the boxes to be found."""
  name, folder, rng = request.param, tmp_path_factory.mktemp('imported'), np.random.default_rng(0)
  images = {i: rng.integers(0, 256, (*size, 3), np.uint8) for i, size in SIZES.items()}
  for i, image in images.items():
    drawing.save_png(folder / 'images' / f'{i}.png', image)
  split = dict(
    images=[dict(id=i, file_name=f'{i}.png', height=h, width=w) for i, (h, w) in SIZES.items()],
    annotations=[dict(id=i, image_id=i, category_id=10, bbox=[5, 6, 40, 30], area=1200, iscrowd=0) for i in SIZES],
    categories=[dict(id=10 * i, name=f'class {i}') for i in range(1, 6)],
  )
  (folder / 'split.json').write_text(json.dumps(split))
  weights = state_dict(read(f'small_net_{name}'))
  import_torch_checkpoint.write_run(weights, folder / 'run', folder / 'split.json', step=480_000)

  # Around the run folder: the network and the published settings, put together by hand.
  published = PUBLISHED_CENTERNET if name == 'centernet' else PUBLISHED_CORNERNET
  settings = dataclasses.replace(published, **GENEROUS)
  variables = torch_import.import_state_dict(weights, NETWORKS[name])
  by_hand = trained_network.make_detector(detector.build(NETWORKS[name]), variables, settings, batch_size=4)
  expected = dict(zip(images, by_hand(list(images.values()))))
  assert all(len(found.scores) > 5 for found in expected.values())
  return name, folder, images, settings, expected


def test_load(imported):
  _, folder, images, settings, expected = imported
  loaded = triplet_det.load(folder / 'run', settings=settings)
  assert loaded.categories.names == tuple(f'class {i}' for i in range(1, 6))
  for found, wanted in zip(loaded(list(images.values())), expected.values(), strict=True):
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
    np.testing.assert_array_equal(found.classes, wanted.classes)


def test_its_own_settings_are_the_published_ones(imported):
  name, folder, *_ = imported
  published = PUBLISHED_CENTERNET if name == 'centernet' else PUBLISHED_CORNERNET
  assert triplet_det.load(folder / 'run').tester.settings == published


def test_mode_eval(imported):
  name, folder, _, _, expected = imported
  config = triplet.get_config('hg=104') if name == 'centernet' else cornernet.get_config('hg=104')
  config.mode = 'eval'
  config.data.eval = dict(
    format='coco_json',
    images=str(folder / 'images'),
    annotations=str(folder / 'split.json'),
    split='validation',
    require_boxes=True,
  )
  config.test.update(GENEROUS)
  main.run(config, str(folder / 'run'))
  (results,) = (folder / 'run' / 'eval').glob('*/results.json')
  rows = json.loads(results.read_text())
  assert len(rows) == sum(len(wanted.scores) for wanted in expected.values())
  for i, wanted in expected.items():
    found = sorted((row for row in rows if row['image_id'] == i), key=lambda row: -row['score'])
    np.testing.assert_allclose([row['score'] for row in found], wanted.scores, atol=0.00501)  # two decimals, published
    best = found[0]
    x, y, width, height = best['bbox']
    same = np.abs(wanted.boxes - [x, y, x + width, y + height]).max(axis=1) < 0.011
    assert (10 * (wanted.classes[same] + 1) == best['category_id']).any()  # the data set's ids


def test_predict(imported):
  _, folder, _, settings, expected = imported
  paths = find_files.find_images([str(folder / 'images')]).paths
  loaded = predict.load(folder / 'run', settings=settings)
  summary = over_files.predict(loaded, paths, folder / 'boxes', threshold=0.0, draw=False).summary
  assert not summary.left_out and summary.boxes == sum(len(wanted.scores) for wanted in expected.values())
  table = json.loads((folder / 'boxes' / 'detections.json').read_text())
  for row, wanted in zip(table, expected.values(), strict=True):
    np.testing.assert_allclose([found['box'] for found in row['detections']], wanted.boxes, atol=0.006)
    assert {found['name'] for found in row['detections']} <= {f'class {i}' for i in range(1, 6)}
