"""Evaluation with detectors whose answers are known: every image once, files that other programs can read."""

import json
import math

import cv2
import numpy as np
import pytest

from tests.tiny_coco import write_tiny_coco
from triplet_det import __version__, evaluate, inference
from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.models import detector
from triplet_det.structs import Detections

TINY = dict(stacks=1, dims=(8, 8, 8), blocks=(1, 1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)


class FakeDetector:
  """Answers with the detections it was given per image id, last image first; notes what it was shown."""

  settings = inference.Settings()

  def __init__(self, answers):
    self.answers = answers
    self.shown = []

  def stream(self, images):
    for image_id, image in images:
      self.shown.append((image_id, image.shape))
    for image_id, _ in self.shown[::-1]:
      yield image_id, self.answers[image_id]


def found(boxes, classes, scores=None):
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else np.asarray(scores)
  return Detections(boxes, scores.astype(np.float32), np.asarray(classes, np.int32), np.ones(len(boxes), bool))


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  return write_tiny_coco(tmp_path_factory.mktemp('coco') / 'data', train=7, val=1)


@pytest.fixture(scope='module')
def source(coco):
  return pipeline.open_source('coco_json', images=coco.images(), annotations=coco.annotations())


def perfect(source):
  """Image id -> the boxes of the annotations that are not crowds."""
  answers = {}
  for image_id in source.image_ids:
    rows = [a for a in source.ground_truth['annotations'] if a['image_id'] == image_id and not a['iscrowd']]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (row['bbox'] for row in rows)]
    answers[image_id] = found(boxes, [source.categories.class_of(row['category_id']) for row in rows])
  return answers


@pytest.fixture(scope='module')
def evaluated(source, tmp_path_factory):
  """A perfect detector's evaluation: the detector, the metrics, the folder."""
  judged = FakeDetector(perfect(source))
  folder = tmp_path_factory.mktemp('evaluated') / 'eval' / 'step_000007'
  metrics = evaluate.evaluate(judged, source, source.categories, folder, about=dict(step=7, split='train'))
  return judged, metrics, folder


def test_every_image_once_by_canvas(source, evaluated):
  judged, _, _ = evaluated
  sizes = {image['id']: (image['height'], image['width'], 3) for image in source.ground_truth['images']}
  assert len(judged.shown) == 7 and dict(judged.shown) == sizes


def test_images_of_one_canvas_follow_each_other(source):
  judged = FakeDetector(perfect(source))
  judged.settings = inference.Settings(canvas_multiple=32)
  assert list(evaluate.detect(judged, source)) == [image_id for image_id, _ in judged.shown[::-1]]
  canvases = [(height | 31, width | 31) for _, (height, width, _) in judged.shown]
  assert len(set(canvases)) > 1 and canvases == sorted(canvases)


def test_an_image_that_got_lost(source):
  judged = FakeDetector(perfect(source))
  judged.stream = lambda images: [(image_id, found([], [])) for image_id, _ in images][1:]
  with pytest.raises(RuntimeError, match=r'6 different images were evaluated, the split has 7'):
    evaluate.detect(judged, source)


def test_a_perfect_detector(evaluated):
  _, metrics, _ = evaluated
  assert metrics['AP'] == metrics['AP50'] == metrics['AR100'] == 1.0
  assert math.isnan(metrics['AP_L'])


def test_results_json_is_what_coco_s_server_takes(source, evaluated):
  _, _, folder = evaluated
  rows = json.loads((folder / 'results.json').read_text())
  assert all(set(row) == {'image_id', 'category_id', 'bbox', 'score'} for row in rows)
  want = [a for a in source.ground_truth['annotations'] if not a['iscrowd']]
  key = lambda row: (row['image_id'], row['category_id'], round(row['bbox'][0], 2))  # noqa: E731
  rows, want = sorted(rows, key=key), sorted(want, key=key)
  assert [(r['image_id'], r['category_id']) for r in rows] == [(a['image_id'], a['category_id']) for a in want]
  np.testing.assert_allclose([r['bbox'] for r in rows], [a['bbox'] for a in want], atol=1e-4)
  assert all(0.6 <= row['score'] <= 0.91 for row in rows)


def test_rounded_results(source, tmp_path):
  evaluate.evaluate(FakeDetector(perfect(source)), source, source.categories, tmp_path, decimals=1)
  rows = json.loads((tmp_path / 'results.json').read_text())
  assert all(value == round(value, 1) for row in rows for value in (*row['bbox'], row['score']))


def strict(text):
  """JSON as other programs understand it, without Python's NaN."""

  def refuse(constant):
    raise ValueError(f'{constant} is not JSON')

  return json.loads(text, parse_constant=refuse)


def test_metrics_json(evaluated):
  _, metrics, folder = evaluated
  written = strict((folder / 'metrics.json').read_text())
  assert written['metrics']['AP'] == 1.0 and written['metrics']['AP_L'] == 'NaN'
  again = evaluate.read_metrics(folder)
  assert all(isinstance(value, float) for value in again.values())
  assert {k: v for k, v in again.items() if v == v} == {k: v for k, v in metrics.items() if v == v}
  assert [k for k, v in again.items() if v != v] == [k for k, v in metrics.items() if v != v] != []
  assert evaluate.read_metrics(folder.parent / 'nowhere') == {}
  assert evaluate.evaluation_folder(folder.parent.parent, 7) == folder


def test_the_fingerprint_says_how_the_metrics_came_about(evaluated):
  _, _, folder = evaluated
  recipe = strict((folder / 'metrics.json').read_text())['fingerprint']
  assert (recipe['step'], recipe['split'], recipe['images'], recipe['decimals']) == (7, 'train', 7, -1)
  assert recipe['triplet_det'] == __version__ and recipe['devices'] == 1
  assert set(recipe['versions']) == {'jax', 'flax', 'pycocotools', 'opencv-python-headless'}
  test = recipe['test']
  assert (test['scales'], test['mirror'], test['nms_method'], test['top_k']) == ([1.0], True, 'gaussian', 70)


def test_the_best_and_the_worst_are_drawn(source, tmp_path, monkeypatch):
  """One object image is answered with nothing, one with the wrong class; the image without objects is no candidate."""
  monkeypatch.setattr(evaluate, 'DRAWN', 2)
  answers = perfect(source)
  name_of = {image['id']: image['file_name'].removesuffix('.jpg') for image in source.ground_truth['images']}
  empty, wrong = 121, 128
  answers[empty] = found([], [])
  answers[wrong] = found(answers[wrong].boxes, (answers[wrong].classes + 1) % 3)
  evaluate.evaluate(FakeDetector(answers), source, source.categories, tmp_path)
  assert {p.stem for p in (tmp_path / 'worst').iterdir()} == {name_of[empty], name_of[wrong]}
  assert {p.stem for p in (tmp_path / 'best').iterdir()} == {name_of[107], name_of[114]}
  for picture in ('best.png', 'worst.png', f'worst/{name_of[wrong]}.png'):
    assert cv2.imread(str(tmp_path / picture)).std() > 1


def test_other_categories(source, tmp_path):
  other = CategoryTable((3, 1, 90), ('disc', 'square', 'triangle'))
  message = r"do not fit the checkpoint: 3 categories instead of 3; not known: \['ring'\]; lacking: \['triangle'\]"
  with pytest.raises(ValueError, match=message):
    evaluate.evaluate(FakeDetector({}), source, other, tmp_path / 'out')
  other = CategoryTable((1, 3, 90), ('square', 'disc', 'ring'))
  with pytest.raises(ValueError, match=r'the 3 category names agree, their order or ids differ'):
    evaluate.evaluate(FakeDetector({}), source, other, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['test_set', 'all_crowd'])
def test_a_split_without_an_object_to_find(coco, source, tmp_path, kind):
  """Results and pictures, but no metrics: an AP of 0 or a crash would both be wrong."""
  truth = json.loads(coco.annotations().read_text())
  if kind == 'test_set':
    del truth['annotations']
  else:
    truth['annotations'] = [{**a, 'iscrowd': 1} for a in truth['annotations']]
  path = tmp_path / 'truth.json'
  path.write_text(json.dumps(truth))
  bare = pipeline.open_source('coco_json', images=coco.images(), annotations=path, require_boxes=False)
  folder = tmp_path / 'out'
  assert evaluate.evaluate(FakeDetector(perfect(source)), bare, bare.categories, folder) == {}
  assert len(json.loads((folder / 'results.json').read_text())) == sum(len(d.boxes) for d in perfect(source).values())
  assert strict((folder / 'metrics.json').read_text())['metrics'] == {}
  assert len(list((folder / 'best').iterdir())) == 7
  assert (folder / 'best.png').exists()


def test_a_canvas_that_does_not_fit_the_network():
  module = detector.build(TINY)
  with pytest.raises(ValueError, match=r'canvas_multiple is 8, the network needs a multiple of 16'):
    evaluate.make_detector(module, {}, inference.Settings(canvas_multiple=8), batch_size=1)


def test_the_table_for_the_terminal():
  table = evaluate.format_metrics({'AP': 0.44949, 'AP_L': float('nan'), 'AP/cat': 0.5, 'AP/long name': 0.25})
  assert table.splitlines() == [
    '  AP      0.449',
    '  AP_L    nan',
    '  AP of cat        0.500',
    '  AP of long name  0.250',
  ]
