"""Loading a checkpoint and predicting on files: the same boxes whichever way the images come in."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import triplet_det
from tests.tiny_detector import CATEGORIES, write_run
from triplet_det import predict
from triplet_det.detection import loading
from triplet_det.detection.settings import Settings, change
from triplet_det.prediction import find_files, over_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


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
    assert detections.to_coco(1)[0]['category_id'] == CATEGORIES.ids[detections.classes[0]]
  # Files and PIL images give what arrays give; PNG loses nothing.
  from_files = loaded([photos / 'a.png', str(photos / 'b.png'), Image.fromarray(images[2])])
  for a, b in zip(found, from_files):
    np.testing.assert_array_equal(a.boxes, b.boxes)


def test_other_settings_can_be_given(run_folder, images):
  settings = Settings(canvas_multiple=32, max_detections=2, embedding_threshold=9.0)
  assert len(triplet_det.load(run_folder, settings=settings)(images[:1])[0].scores) == 2
  changed = triplet_det.load(run_folder, mirror=False, scales=(0.5, 1.25)).tester.settings
  assert (changed.mirror, changed.scales, changed.center_scale) == (False, (0.5, 1.25), 1.25)
  assert changed.embedding_threshold == 9.0
  with pytest.raises(ValueError, match=r"unknown setting 'miror'; did you mean 'mirror'\?"):
    triplet_det.load(run_folder, miror=False)
  with pytest.raises(ValueError, match='scales must be one or more positive'):
    triplet_det.load(run_folder, scales=(0.0,))


def test_predict_writes_json_and_drawings(loaded, photos, tmp_path, images):
  paths = find_files.find_images([str(photos)]).paths
  assert [p.name for p in paths] == ['a.png', 'b.png', 'a.png']
  (photos / 'broken.jpg').write_bytes(b'\xff\xd8 this is no image')
  paths.insert(1, photos / 'broken.jpg')
  out = tmp_path / 'out'
  summary = over_files.predict(loaded, paths, out, threshold=0.0).summary
  table = json.loads((out / 'detections.json').read_text())
  assert [row['image'] for row in table] == [str(p) for p in paths if p.name != 'broken.jpg']
  assert list(summary.left_out) == [str(photos / 'broken.jpg')]
  assert (summary.images, summary.boxes) == (3, 15)
  for row, expected in zip(table, loaded(images)):
    assert [d['name'] for d in row['detections']] == [CATEGORIES.names[c] for c in expected.classes]
    np.testing.assert_allclose([d['box'] for d in row['detections']], expected.boxes, atol=0.006)
  assert sorted(p.name for p in out.glob('*.png')) == ['a.png', 'a_2.png', 'b.png']


def test_figures_of_every_readable_image(loaded, photos, tmp_path, images):
  (photos / 'broken.jpg').write_bytes(b'no image')
  paths = [photos / 'a.png', photos / 'broken.jpg', photos / 'more' / 'a.png']
  out = tmp_path / 'out'
  over_files.predict(loaded, paths, out, threshold=0.0, figures=True)
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
  outcome = over_files.predict(loaded, [photos / 'a.png'], tmp_path / 'out', threshold=threshold, draw=False)
  assert outcome.summary.boxes == (scores > threshold).sum() == 3
  assert not list((tmp_path / 'out').glob('*.png'))


@pytest.mark.parametrize('pattern', ['a.png', '*.png', '**/*.png'])
def test_patterns(photos, pattern):
  found = find_files.find_images([str(photos / pattern), str(photos / 'a.png')]).paths
  expected = {'a.png': ['a.png'], '*.png': ['a.png', 'b.png'], '**/*.png': ['a.png', 'b.png', 'more/a.png']}[pattern]
  assert [str(p.relative_to(photos)) for p in found] == expected


def test_mistakes_are_named(loaded, tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing_here'):
    find_files.find_images([str(tmp_path / 'nothing_here' / '*.jpg')])
  with pytest.raises(FileNotFoundError, match='no image'):
    loaded(['missing.jpg'])
  with pytest.raises(ValueError, match=r'pass \[path\]'):
    loaded('one.jpg')
  for one in (np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), Image.new('RGB', (9, 9))):
    with pytest.raises(ValueError, match=r'pass \[image\]'):
      loaded(one)
  with pytest.raises(ValueError, match=r'https://x\.org/a\.jpg is a link, and images are read from disk'):
    loaded(['https://x.org/a.jpg'])
  with pytest.raises(ValueError, match='an image is an array, a path or a PIL image, got bytes'):
    loaded([b'\xff\xd8'])
  with pytest.raises(ValueError, match='a path is empty'):
    find_files.find_images([''])
  with pytest.raises(ValueError, match=r'import_torch_checkpoint\.py net\.pkl RUN_FOLDER'):
    triplet_det.load('net.pkl')
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    triplet_det.load(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(scales='1,2'), "such as (1.0, 1.5), got '1,2'"),
    (dict(scales=(1.0, float('inf'))), 'positive numbers'),
    (dict(mirror='no'), "mirror must be bool, got 'no'"),
    (dict(image_side=10.5), 'image_side must be int, got 10.5'),
    (dict(max_detections=-1), 'max_detections -1'),
    (dict(sigma=-1.0), 'sigma -1.0 above 0'),
    (dict(sigma='0.5'), "sigma must be float, got '0.5'"),
  ],
)
def test_settings_of_another_kind(changes, message):
  with pytest.raises(ValueError) as raised:
    change(Settings(), changes)
  assert message in str(raised.value)


def test_one_scale_may_be_a_number():
  assert change(Settings(), dict(scales=1.5)).scales == change(Settings(), dict(scales=[1.5])).scales == (1.5,)


def test_long_names_are_shortened():
  names = over_files.picture_names([Path('a', 'ä' * 125 + '.jpg'), Path('b', 'ä' * 125 + '.jpg'), Path('c', 'c.jpg')])
  assert names == ['ä' * 100 + '.png', 'ä' * 100 + '_2.png', 'c.png']


def test_the_command(run_folder, photos, tmp_path):
  command = [sys.executable, '-m', 'triplet_det.predict', '--checkpoint', run_folder, '--out', tmp_path / 'out']
  command += ['--compilation_cache', str(jax.config.jax_compilation_cache_dir)]
  changed = ['--threshold', '0', '--no_mirror', '--scales', '1,0.5', '--canvas_multiple', '64', '--coco']
  done = subprocess.run([*command, *changed, photos / 'a.png'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '5 boxes in 1 images' in done.stdout
  assert re.search(r'1 images in [\d.]+ s, [\d.]+ images/s; programs compiled: 1\n', done.stdout)  # 50 and 25 pixels
  assert 'predict  image 1/1' in done.stderr
  assert not (tmp_path / 'out' / 'figures').exists()
  assert len(json.loads((tmp_path / 'out' / 'coco_results.json').read_text())) == 5
  failed = subprocess.run([*command, 'nothing.jpg'], cwd=ROOT, capture_output=True, text=True)
  assert failed.returncode == 2
  assert failed.stderr.strip().startswith('error: nothing.jpg')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--checkpoint', 'r', '--figures', '--no_drawings', 'a.png'], '--no_drawings forbids it'),
    (['--checkpoint', 'r.zip', '--figures', 'a.png'], '--figures needs a checkpoint'),
    (['--checkpoint', 'r', '--figures', '--shard', '1/2', 'a.png'], 'all images in one process'),
    (['--merge', 'a.png'], 'give neither paths nor --checkpoint'),
    (['--merge', '--threshold', '0.9'], '--merge joins what the shards were asked for: give --threshold to them'),
    (['--checkpoint', 'r', '--scales', 'inf', 'a.png'], "'inf' are no scales"),
    (['--checkpoint', 'r'], 'at least one image'),
    (['--checkpoint', 'r', '--scales', '1;2', 'a.png'], "'1;2'"),
  ],
)
def test_flags_that_do_not_go_together(monkeypatch, capsys, arguments, message):
  monkeypatch.setattr(sys, 'argv', ['predict', '--out', 'nowhere', *arguments])
  with pytest.raises(SystemExit) as stopped:
    predict.main()
  assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_batches_equal_one_by_one_in_the_order_of_the_input(loaded, images, tmp_path):
  """Sizes alternate between canvases, so batches are not runs of neighbours."""
  many = [images[i % 3] if i < 6 else np.ascontiguousarray(images[i % 3][::-1, : 50 - i]) for i in range(12)]
  paths = [tmp_path / f'{name}.png' for name in 'lkjihgfedcba']
  for path, image in zip(paths, many):
    cv2.imwrite(str(path), image[..., ::-1])
  outcome = over_files.predict(loaded, paths, tmp_path / 'out', threshold=0.0, draw=False, coco=True)
  rows = json.loads((tmp_path / 'out' / 'coco_results.json').read_text())
  alone = [row for i, image in enumerate(many) for row in loaded([image])[0].to_coco(i)]
  assert [(row['image_id'], row['category_id']) for row in rows] == [(r['image_id'], r['category_id']) for r in alone]
  np.testing.assert_allclose([row['bbox'] for row in rows], [row['bbox'] for row in alone], atol=1e-3)
  np.testing.assert_allclose([row['score'] for row in rows], [row['score'] for row in alone], atol=1e-6)
  assert outcome.images == 12 and outcome.programs <= 3 and outcome.seconds > 0


def test_demo_is_a_name_and_not_a_folder():
  assert not loading.is_exported('demo') and loading.is_exported(Path('a/b.zip'))
