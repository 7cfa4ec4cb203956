"""The gallery of an evaluation, made by a detector that answers to the pixels: what its JSON and pictures hold."""

import json
from types import SimpleNamespace

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_coco import write_tiny_coco
from triplet_det import evaluate
from triplet_det.data import pipeline
from triplet_det.detection import inference
from triplet_det.detection.settings import Settings
from triplet_det.evaluators import best_and_worst
from triplet_det.structs import KeypointMaps

THRESHOLD = 0.5


def pixel_network(variables, images):
  """One pixel per cell; the three colours are the three classes."""
  cells = images[:, 1::4, 1::4] * variables['gain']
  zero, half = jnp.zeros((*cells.shape[:3], 1)), jnp.full((*cells.shape[:3], 2), 0.5)
  return KeypointMaps(cells, cells[..., ::-1], zero, zero, half, half, jnp.abs(cells) - 0.5, half)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  coco = write_tiny_coco(tmp_path_factory.mktemp('coco') / 'data', train=7, val=1)
  return pipeline.open_source('coco_json', images=coco.images(), annotations=coco.annotations())


@pytest.fixture(scope='module')
def detector():
  settings = Settings(canvas_multiple=32, top_k=40, window=3)
  return inference.Detector(pixel_network, dict(gain=np.float32(0.8)), settings, batch_size=4)


@pytest.fixture(scope='module')
def folder(detector, source, tmp_path_factory):
  folder = tmp_path_factory.mktemp('evaluation')
  where = dict(split='train', run_name='run', draw_threshold=THRESHOLD)
  evaluate.evaluate(detector, source, source.categories, folder, **where)
  return folder


@pytest.fixture(scope='module')
def entries(folder):
  return json.loads((folder / 'gallery.json').read_text())


def images_of(source):
  return {record.image_id: (record, image) for _, record, image in pipeline.load_images(source, range(len(source)))}


def test_an_entry_per_image_with_objects_best_first(source, entries):
  objects = {a['image_id'] for a in source.ground_truth['annotations'] if not a['iscrowd']}
  assert [e['title'] for e in entries] == ['best'] * len(objects) + ['worst'] * len(objects)
  best, worst = ([e for e in entries if e['title'] == title] for title in ('best', 'worst'))
  assert {e['image_id'] for e in best} == objects
  assert [e['image_id'] for e in worst] == [e['image_id'] for e in best][::-1]
  f1 = [e['f1'] for e in best]
  assert f1 == sorted(f1, reverse=True) and all(0 <= v <= 1 for v in f1)


def test_truth_and_detections(source, folder, entries):
  names = dict(zip(source.categories.ids, source.categories.names))
  rows = json.loads((folder / 'results.json').read_text())
  assert sum(len(e['detections']) for e in entries) > 20
  for entry in entries:
    record, image = images_of(source)[entry['image_id']]
    assert (entry['height'], entry['width']) == image.shape[:2] and entry['file_name'] == record.file_name
    truth = [a for a in source.ground_truth['annotations'] if a['image_id'] == entry['image_id']]
    mine = [row for row in rows if row['image_id'] == entry['image_id'] and row['score'] > THRESHOLD]
    crowd = {0: '', 1: ' (crowd)'}
    assert [t['name'] for t in entry['truth']] == [names[a['category_id']] + crowd[a['iscrowd']] for a in truth]
    assert [(d['name'], d['score']) for d in entry['detections']] == [
      (names[row['category_id']], row['score']) for row in mine
    ]
    for given, wanted in ((entry['truth'], truth), (entry['detections'], mine)):
      for one, row in zip(given, wanted):
        x, y, width, height = row['bbox']
        np.testing.assert_allclose(one['box'], [x, y, x + width, y + height], atol=0.0051)


def test_rejected_pairs_have_no_center_of_their_class_in_their_region(source, detector, entries):
  """Eq. (1) with n = 3, because all boxes are small: the middle third of each side."""
  loaded = images_of(source)
  assert sum(len(e['rejected']) for e in entries) > 10
  for entry in entries:
    (proposals,) = detector.proposals([loaded[entry['image_id']][1]])
    centers, pairs = proposals.centers, proposals.pairs
    scores = [pair['score'] for pair in entry['rejected']]
    assert len(scores) <= 30 and scores == sorted(scores, reverse=True) and all(s > THRESHOLD for s in scores)
    for pair in entry['rejected']:
      x1, y1, x2, y2 = pair['box']
      label = source.categories.names.index(pair['name'])
      own = (centers.classes == label) & (centers.scores > 0)
      near_x = np.abs(centers.x - (x1 + x2) / 2) < (x2 - x1) / 6 - 0.01  # the JSON has two decimals
      near_y = np.abs(centers.y - (y1 + y2) / 2) < (y2 - y1) / 6 - 0.01
      assert not (own & near_x & near_y).any()
      same = (np.abs(pairs.boxes - pair['box']) < 0.01).all(axis=1) & (pairs.classes == label)
      assert (np.abs(pairs.scores[same] - pair['score']) < 1e-4).any()
    if not scores:  # none that could be shown was left out
      assert (proposals.kept | (pairs.scores <= THRESHOLD)).all()


def test_pictures_of_each_entry(source, folder, entries):
  loaded = images_of(source)
  for entry in entries:
    path = folder / entry['image']
    plain = cv2.imread(str(path))[..., ::-1]
    original = loaded[entry['image_id']][1]
    assert plain.shape == original.shape
    assert np.abs(plain.astype(int) - original).mean() < 4  # nothing is drawn on it
    drawn = cv2.imread(str(path.with_suffix('.png')))[..., ::-1]
    assert max(drawn.shape) >= 480 and (drawn == (30, 100, 255)).all(axis=-1).any()
  assert cv2.imread(str(folder / 'best.png')) is not None


def test_large_images_are_made_smaller_for_the_page(detector, tmp_path):
  rng = np.random.default_rng(0)
  image = cv2.resize(rng.integers(0, 256, (12, 24, 3), np.uint8), (2048, 600))
  for name in ('a/one.jpg', 'b/one.jpg'):
    (tmp_path / name).parent.mkdir()
    cv2.imwrite(str(tmp_path / name), image)
  box = dict(category_id=7, bbox=[1500.0, 20.0, 400.0, 300.0], area=120000.0, iscrowd=0)
  truth = dict(
    images=[dict(id=i, file_name=f'{f}/one.jpg', height=600, width=2048) for i, f in ((4, 'a'), (9, 'b'))],
    annotations=[dict(id=1, image_id=4, **box), dict(id=2, image_id=9, **box)],
    categories=[dict(id=i, name=n) for i, n in ((7, 'cat'), (8, 'dog'), (9, 'cow'))],
  )
  (tmp_path / 'truth.json').write_text(json.dumps(truth))
  source = pipeline.open_source('coco_json', images=tmp_path, annotations=tmp_path / 'truth.json')
  out = tmp_path / 'out'
  out.mkdir()
  detector.proposals = lambda images: inference.Detector.proposals(detector, [image[::8, ::8] for image in images])
  best_and_worst.write(detector, source, [], out, threshold=0.5)
  entries = json.loads((out / 'gallery.json').read_text())
  assert cv2.imread(str(out / entries[0]['image'])).shape == (300, 1024, 3)
  assert (entries[0]['width'], entries[0]['height']) == (2048, 600)
  assert entries[0]['truth'] == [dict(name='cat', box=[1500, 20, 1900, 320])]
  # Two files of one name are told apart.
  assert {e['image'] for e in entries} == {f'{t}/one_{i}.jpg' for t in ('best', 'worst') for i in (4, 9)}


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['a.jpg', 'b.jpg'], ['a', 'b']),
    (['x/a.jpg', 'y/a.jpg', 'a_1.jpg'], ['a_1', 'a_2', 'a_1_2']),
    (['a.jpg', 'a.png', 'A.jpg', 'a_2_2.jpg'], ['a_1', 'a_2', 'A_3', 'a_2_2']),
    (['x/a.jpg', 'y/a.jpg', 'A_1.jpg', 'a_1.png'], ['a_1', 'a_2', 'A_1_3', 'a_1_4']),
  ],
)
def test_stems_are_unique(names, expected):
  records = [SimpleNamespace(file_name=name, image_id=i) for i, name in enumerate(names, start=1)]
  assert best_and_worst._stems(records) == expected


def test_pictures_of_an_older_gallery_go_and_nothing_else(detector, source, tmp_path):
  for path in ('mine.txt', 'best/old.png', 'best/old.jpg', 'best/mine.png', 'worst/folder/mine.jpg'):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text('mine')
  (tmp_path / 'gallery.json').write_text('[{"image": "best/old.jpg"}, {"image": "mine.txt"}]')
  best_and_worst.write(detector, source, [], tmp_path, threshold=0.5)
  assert not list(tmp_path.glob('best/old.*'))
  kept = {path for path in tmp_path.rglob('*') if path.is_file() and path.read_bytes() == b'mine'}
  assert kept == {tmp_path / name for name in ('mine.txt', 'best/mine.png', 'worst/folder/mine.jpg')}
  (tmp_path / 'evaluation').mkdir()
  (tmp_path / 'evaluation' / 'gallery.json').write_text('[{"image": "../mine.jpg"}]')
  (tmp_path / 'mine.jpg').write_text('mine')
  best_and_worst.write(detector, source, [], tmp_path / 'evaluation', threshold=0.5)
  assert (tmp_path / 'mine.jpg').read_text() == 'mine'
