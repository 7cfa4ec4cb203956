"""AP against the published program's numbers, pycocotools driven by hand, and cases small enough to count."""

import contextlib
import copy
import io
import json
import math
import pathlib

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from triplet_det.categories import CategoryTable
from triplet_det.detection import coco_results
from triplet_det.evaluators import coco_ap
from triplet_det.structs import Detections

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'fd.npz'
TWELVE = ['AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L']


def golden_case():
  """The random ground truth and detections of the golden file; the annotations are numbered from 0 on purpose."""
  golden = np.load(GOLDEN)
  ids = sorted({int(i) for i in golden['gt'][:, 0]} | {int(i) for i in golden['dt'][:, 0]})
  ground_truth = {
    'images': [{'id': i, 'width': 480, 'height': 480} for i in ids],
    'categories': [{'id': i, 'name': f'class {i}'} for i in sorted({int(i) for i in golden['gt'][:, 1]})],
    'annotations': [
      {'id': n, 'image_id': int(i), 'category_id': int(c), 'bbox': [x, y, w, h], 'iscrowd': int(crowd), 'area': area}
      for n, (i, c, x, y, w, h, crowd, area) in enumerate(golden['gt'].tolist())
    ],
  }
  detections = [
    {'image_id': int(i), 'category_id': int(c), 'bbox': [x, y, w, h], 'score': s}
    for i, c, x, y, w, h, s in golden['dt'].tolist()
  ]
  return golden, ground_truth, detections


def one_object(*boxes, images=1, **annotation):
  """Class 5, `square`: one object per box, all on image 1; class 9, `round`, has none."""
  return {
    'images': [{'id': i} for i in range(1, images + 1)],
    'categories': [{'id': 9, 'name': 'round'}, {'id': 5, 'name': 'square'}],
    'annotations': [
      {'id': n, 'image_id': 1, 'category_id': 5, 'bbox': list(b), 'area': b[2] * b[3], 'iscrowd': 0} | annotation
      for n, b in enumerate(boxes)
    ],
  }


def found(*box, score=0.9, image_id=1, category_id=5):
  return {'image_id': image_id, 'category_id': category_id, 'bbox': list(box), 'score': score}


def test_equals_the_published_program(parity):
  golden, ground_truth, detections = golden_case()
  metrics = coco_ap.evaluate(ground_truth, detections)
  assert list(metrics)[:12] == TWELVE
  parity('AP and AR of COCO, 12 numbers', np.abs([metrics[name] for name in TWELVE] - golden['ap_stats']).max(), 1e-6)


def by_hand(truth, results, category_ids):
  run = COCOeval(truth, results, 'bbox')
  run.params.catIds = category_ids
  run.evaluate()
  run.accumulate()
  run.summarize()
  return run.stats


def test_equals_pycocotools_by_hand(tmp_path, capsys):
  _, ground_truth, detections = golden_case()
  renumbered = copy.deepcopy(ground_truth)
  for annotation in renumbered['annotations']:
    annotation['id'] += 1
  (tmp_path / 'gt.json').write_text(json.dumps(renumbered))
  (tmp_path / 'dt.json').write_text(json.dumps(detections))
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(tmp_path / 'gt.json'))
    found_by_hand = truth.loadRes(str(tmp_path / 'dt.json'))
    stats = [by_hand(truth, found_by_hand, [c['id']])[0] for c in ground_truth['categories']]
    stats = [*by_hand(truth, found_by_hand, truth.getCatIds()), *stats]
  before = copy.deepcopy((ground_truth, detections))
  metrics = coco_ap.evaluate(ground_truth, detections)
  assert (ground_truth, detections) == before
  assert capsys.readouterr().out == ''
  assert list(metrics) == TWELVE + [f'AP/{c["name"]}' for c in ground_truth['categories']]
  np.testing.assert_allclose(list(metrics.values()), stats, rtol=0, atol=1e-12)


def test_counted_by_hand():
  """Two objects, one found with IoU 0.8 (0.50 .. 0.80 pass: 7 of 10), the other missed: 51 of 101 recall points."""
  metrics = coco_ap.evaluate(one_object((0, 0, 10, 10), (50, 50, 10, 10)), [found(0, 0, 10, 8)])
  assert metrics['AP50'] == metrics['AP75'] == pytest.approx(51 / 101)
  assert metrics['AP'] == metrics['AP_S'] == metrics['AP/square'] == pytest.approx(51 / 101 * 7 / 10)
  assert metrics['AR1'] == metrics['AR100'] == metrics['AR_S'] == pytest.approx(0.5 * 7 / 10)
  # No object of these sizes, none of this class: undefined, neither 0 nor pycocotools' -1.
  assert all(math.isnan(metrics[name]) for name in ('AP_M', 'AP_L', 'AR_M', 'AR_L', 'AP/round'))


def test_detections_on_images_without_objects_count():
  """A better scored false detection on an empty image halves the precision at every recall."""
  truth = one_object((0, 0, 10, 10), images=2)
  assert coco_ap.evaluate(truth, [found(0, 0, 10, 10)])['AP'] == pytest.approx(1)
  wrong = found(0, 0, 10, 10, image_id=2, score=0.95)
  assert coco_ap.evaluate(truth, [found(0, 0, 10, 10), wrong])['AP'] == pytest.approx(0.5)


def test_no_detections_are_zeros():
  metrics = coco_ap.evaluate(one_object((0, 0, 10, 10)), [])
  assert metrics['AP'] == metrics['AP_S'] == metrics['AR100'] == metrics['AP/square'] == 0
  assert math.isnan(metrics['AP_L']) and math.isnan(metrics['AP/round'])


def test_area_and_iscrowd_may_be_missing():
  truth = one_object((0, 0, 40, 40))
  for key in ('area', 'iscrowd'):
    del truth['annotations'][0][key]
  metrics = coco_ap.evaluate(truth, [found(0, 0, 40, 40)])
  assert metrics['AP_M'] == pytest.approx(1) and math.isnan(metrics['AP_S'])


def test_crowds_are_neither_found_nor_missed():
  truth = one_object((0, 0, 10, 10))
  truth['annotations'].append(truth['annotations'][0] | {'id': 7, 'bbox': [50, 50, 40, 40], 'iscrowd': 1})
  assert coco_ap.evaluate(truth, [found(0, 0, 10, 10, score=0.5), found(55, 55, 9, 9)])['AP'] == pytest.approx(1)


@pytest.mark.parametrize(
  ('truth', 'rows', 'message'),
  [
    ({'images': [], 'annotations': []}, [], r"no \['categories'\]"),
    ({'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]}, [], 'lists 0 images'),
    (one_object(), [], '0 annotations'),
    (one_object((0, 0, 5, 5), iscrowd=1), [], 'all are crowds'),
    (one_object((0, 0, 5, 5), image_id=8), [], r'annotations name 1 values of image_id .* \[8\]; it lists 1'),
    (one_object((0, 0, 5, 5), category_id=1), [], r'annotations name .* category_id'),
    (one_object((0, 0, 5, math.nan)), [], 'not finite'),
    (one_object((0, 0, 5, -1)), [], 'w, h >= 0'),
    (one_object((0, 0, 5, 5)), [found(0, 0, 5, 5, image_id=3)], r'detections name 1 values of image_id'),
    (one_object((0, 0, 5, 5)), [found(0, 0, 5, 5, category_id=0)], r'category_id .* \[0\]; it lists 2.*\[5, 9\]'),
    (one_object((0, 0, 5, 5)), [found(0, 0, 5, 5, score=math.nan)], 'score nan'),
    (one_object((0, 0, 5, 5)), [{'image_id': 1, 'category_id': 5, 'score': 1.0}], r"detection without \['bbox'\]"),
    (one_object((0, 0, 5, 5)), [found(0, 0, 5, 5, score='0.9')], r"score 0\.9: .*'score': '0\.9'"),
    (one_object((0, 0, 5, 5)), [found(0, 0, 5, None)], r'detection with a box .* \[0, 0, 5, None\]'),
    (one_object((0, 0, 5, 5)), [dict(found(0, 0, 5, 5), bbox=None)], r"detection with a box .* 'bbox': None"),
    (one_object((0, 0, 5, 5)), {'annotations': []}, r"detection that is no object with .*: 'annotations'"),
  ],
)
def test_errors_say_what_was_given(truth, rows, message):
  with pytest.raises(ValueError, match=message):
    coco_ap.evaluate(truth, rows)


def test_doubled_image_is_an_error():
  truth = one_object((0, 0, 5, 5))
  truth['images'].append({'id': 1})
  with pytest.raises(ValueError, match=r'more than once: \[1\]'):
    coco_ap.evaluate(truth, [])


def test_precision_recall():
  """Right, wrong, right over two objects: precision 1 up to recall 1/2, then 2/3."""
  truth = one_object((0, 0, 10, 10), (50, 50, 10, 10))
  rows = [found(0, 0, 10, 10), found(30, 0, 9, 9, score=0.8), found(50, 50, 10, 6, score=0.7)]
  result = coco_ap.accumulate(truth, rows)
  np.testing.assert_allclose(result.recall_thresholds, np.arange(101) / 100, atol=1e-12)
  curves = coco_ap.precision_recall(result)
  assert [curve['iou'] for curve in curves] == [0.5, 0.75]
  for curve, second in zip(curves, (2 / 3, 0)):
    expected = np.where(np.arange(101) <= 50, 1, second)
    np.testing.assert_allclose(curve['all'], expected, atol=1e-12)
    assert list(curve['classes']) == ['square', 'round']  # by id
    np.testing.assert_allclose(curve['classes']['square'], expected, atol=1e-12)
    assert np.isnan(curve['classes']['round']).all()


def test_unknown_iou_threshold():
  result = coco_ap.accumulate(one_object((0, 0, 10, 10)), [])
  with pytest.raises(ValueError, match=r'IoU 0\.4'):
    result.average_precision(iou=0.4)
  with pytest.raises(ValueError, match=r'IoU 0\.4'):
    coco_ap.precision_recall(result, (0.5, 0.4))


TABLE = CategoryTable(ids=(5, 9), names=('square', 'round'))


def two_detections():
  """The first row is one of the published program's, with the line it wrote to results.json."""
  return Detections(
    boxes=np.array([[59.69384765625, 6.595703125, 118.791015625, 39.08984375], [0, 0, 1 / 3, 2], [0] * 4], np.float32),
    scores=np.array([0.8962942957878113, 0.1, 0.05], np.float32),
    classes=np.array([1, 0, 0], np.int32),
    valid=np.array([True, True, False]),
  )


def test_results_rows_as_published():
  rows = coco_results.results_rows([(7, two_detections())], TABLE, decimals=2)
  assert rows[0] == {'image_id': 7, 'category_id': 9, 'bbox': [59.69, 6.6, 59.1, 32.49], 'score': 0.9}
  assert len(rows) == 2 and rows[1]['category_id'] == 5


def test_results_rows_give_every_float32_back(tmp_path):
  rows = coco_results.results_rows([(7, two_detections()), (8, two_detections())], TABLE)
  coco_results.write_results(tmp_path / 'new' / 'results.json', rows)
  text = (tmp_path / 'new' / 'results.json').read_text()
  assert json.loads(text) == rows and [json.loads(line.strip('[],')) for line in text.splitlines()] == rows
  assert [row['image_id'] for row in rows] == [7, 7, 8, 8]
  x, y, w, h = np.float32(rows[1]['bbox'])
  assert (x, y, w, h, np.float32(rows[1]['score'])) == (0, 0, np.float32(1 / 3), 2, np.float32(0.1))
  assert rows[1]['bbox'][2] == 0.333333343
  assert [p.name for p in (tmp_path / 'new').iterdir()] == ['results.json']


def test_results_rows_unknown_class():
  with pytest.raises(ValueError, match=r'image 7: .* 0\.\.1, the category table has 1'):
    coco_results.results_rows([(7, two_detections())], CategoryTable((5,), ('square',)))
