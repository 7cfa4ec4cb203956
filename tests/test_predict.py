"""Loading a checkpoint and predicting on files: the same boxes whichever way the images come in."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import triplet_det
from triplet_det import checkpoints, predict
from triplet_det.categories import CategoryTable
from triplet_det.inference import Settings
from triplet_det.models import detector

ROOT = Path(__file__).resolve().parent.parent
MODEL = dict(
  stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3, norm_group=None
)
CATEGORIES = CategoryTable((7, 9, 12), ('cat', 'dog', 'cow'))


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  module = detector.build(MODEL)
  variables = module.init(jax.random.key(3), np.zeros((1, 63, 63, 3), np.float32))
  record = checkpoints.RunRecord(
    step=4,
    categories=CATEGORIES,
    model=MODEL,
    test=dataclasses.asdict(Settings(canvas_multiple=32, max_detections=5, embedding_threshold=9.0)),
    metrics=dict(AP=0.5),
  )
  saved = checkpoints.Checkpoints(folder)
  saved.save_best({name: variables[name] for name in ('params', 'batch_stats')}, record)
  saved.close()
  return folder


@pytest.fixture(scope='module')
def loaded(run_folder):
  return triplet_det.load(run_folder)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 50), (60, 33), (41, 52))]


@pytest.fixture
def photos(tmp_path, images):
  folder = tmp_path / 'photos'
  (folder / 'more').mkdir(parents=True)
  paths = [folder / 'a.png', folder / 'b.png', folder / 'more' / 'a.png']
  for path, image in zip(paths, images):
    cv2.imwrite(str(path), image[..., ::-1])
  (folder / 'notes.txt').write_text('not an image')
  return folder


def test_list_in_list_out_same_order(loaded, images, photos):
  found = loaded(images)
  assert loaded.categories == CATEGORIES
  assert [len(f.scores) for f in found] == [5, 5, 5]
  for image, detections in zip(images, found):
    (alone,) = loaded([image])
    np.testing.assert_allclose(detections.boxes, alone.boxes, atol=1e-3)
    np.testing.assert_allclose(detections.scores, alone.scores, atol=1e-6)
    assert (np.diff(detections.scores) <= 0).all()
    assert (detections.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
  # Files give what arrays give; PNG loses nothing.
  from_files = loaded([photos / 'a.png', str(photos / 'b.png'), images[2]])
  for a, b in zip(found, from_files):
    np.testing.assert_array_equal(a.boxes, b.boxes)


def test_other_settings_can_be_given(run_folder, images):
  settings = Settings(canvas_multiple=32, max_detections=2, embedding_threshold=9.0)
  assert len(triplet_det.load(run_folder, settings=settings)(images[:1])[0].scores) == 2


def test_predict_writes_json_and_drawings(loaded, photos, tmp_path, images):
  paths = predict.find_images([str(photos)])
  assert [p.name for p in paths] == ['a.png', 'b.png', 'a.png']
  (photos / 'broken.jpg').write_bytes(b'\xff\xd8 this is no image')
  paths.insert(1, photos / 'broken.jpg')
  out = tmp_path / 'out'
  count, unreadable = predict.predict(loaded, paths, out, threshold=0.0)
  table = json.loads((out / 'detections.json').read_text())
  assert [row['image'] for row in table] == [str(p) for p in paths if p.name != 'broken.jpg']
  assert list(unreadable) == [str(photos / 'broken.jpg')]
  assert count == 15
  for row, expected in zip(table, loaded(images)):
    assert [d['name'] for d in row['detections']] == [CATEGORIES.names[c] for c in expected.classes]
    np.testing.assert_allclose([d['box'] for d in row['detections']], expected.boxes, atol=0.006)
  assert sorted(p.name for p in out.glob('*.png')) == ['a.png', 'a_2.png', 'b.png']


def test_figures_of_every_readable_image(loaded, photos, tmp_path, images):
  (photos / 'broken.jpg').write_bytes(b'no image')
  paths = [photos / 'a.png', photos / 'broken.jpg', photos / 'more' / 'a.png']
  out = tmp_path / 'out'
  _, unreadable = predict.predict(loaded, paths, out, threshold=0.0)
  predict.draw_figures(loaded, paths, out, threshold=0.0, left_out=unreadable)
  expected = {f'{stem}_{kind}.png' for stem in ('a', 'a_2') for kind in ('heatmaps', 'pairs')}
  assert {p.name for p in (out / 'figures').iterdir()} == {*expected, 'sheet.png'}
  size = {p.name: cv2.imread(str(p)).shape for p in (out / 'figures').iterdir()}
  # 40 x 50 pixels are enlarged to 400 x 500, 41 x 52 to 410 x 520: three heatmaps, kept and rejected pairs.
  assert 1500 < size['a_heatmaps.png'][1] < 1600 and 1000 < size['a_pairs.png'][1] < 1060
  assert size['a_2_heatmaps.png'][1] > size['a_heatmaps.png'][1]
  assert 2400 < size['sheet.png'][1] < 2600  # with the detections, six pictures in a row
  maps = loaded.heatmaps(images[1])
  assert maps.top_left.shape == maps.center.shape == images[1].shape[:2]
  assert 0 <= maps.center.min() < maps.center.max() <= 1


def test_threshold_leaves_out_weaker_boxes(loaded, photos, tmp_path, images):
  scores = loaded([images[0]])[0].scores
  threshold = float(scores[2] + scores[3]) / 2
  count, _ = predict.predict(loaded, [photos / 'a.png'], tmp_path / 'out', threshold=threshold, draw=False)
  assert count == (scores > threshold).sum() == 3
  assert not list((tmp_path / 'out').glob('*.png'))


@pytest.mark.parametrize('pattern', ['a.png', '*.png', '**/*.png'])
def test_patterns(photos, pattern):
  found = predict.find_images([str(photos / pattern), str(photos / 'a.png')])
  expected = {'a.png': ['a.png'], '*.png': ['a.png', 'b.png'], '**/*.png': ['a.png', 'b.png', 'more/a.png']}[pattern]
  assert [str(p.relative_to(photos)) for p in found] == expected


def test_mistakes_are_named(loaded, tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing_here'):
    predict.find_images([str(tmp_path / 'nothing_here' / '*.jpg')])
  with pytest.raises(FileNotFoundError, match='no image'):
    loaded(['missing.jpg'])
  with pytest.raises(ValueError, match=r'pass \[path\]'):
    loaded('one.jpg')
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    triplet_det.load(tmp_path)


def test_the_command(run_folder, photos, tmp_path):
  command = [sys.executable, '-m', 'triplet_det.predict', '--checkpoint', run_folder, '--out', tmp_path / 'out']
  done = subprocess.run(
    [*command, '--threshold', '0', '--no_mirror', photos / 'a.png'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '5 boxes in 1 images' in done.stdout
  assert 'predict  image 1/1' in done.stderr
  assert not (tmp_path / 'out' / 'figures').exists()
  failed = subprocess.run([*command, '--figures', '--no_drawings', 'a.png'], cwd=ROOT, capture_output=True, text=True)
  assert failed.returncode == 2 and '--no_drawings forbids it' in failed.stderr
  failed = subprocess.run([*command, 'nothing.jpg'], cwd=ROOT, capture_output=True, text=True)
  assert failed.returncode == 2
  assert failed.stderr.strip().startswith('error: nothing.jpg')
