"""FD against the published program's numbers and a case counted by hand."""

import math
import pathlib

import numpy as np
import pytest

from triplet_det.evaluators import false_discovery

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'fd.npz')


def truth_of(rows):
  """Rows (image, class, x, y, w, h, iscrowd, area) as a COCO JSON."""
  return {
    'images': [{'id': i} for i in range(20)],
    'categories': [{'id': i, 'name': str(i)} for i in range(1, 6)],
    'annotations': [
      {'id': n, 'image_id': int(i), 'category_id': int(c), 'bbox': [x, y, w, h], 'iscrowd': int(crowd), 'area': area}
      for n, (i, c, x, y, w, h, crowd, area) in enumerate(rows)
    ],
  }


def detections_of(rows):
  """Rows (image, class, x, y, w, h, score) as COCO results."""
  return [{'image_id': int(i), 'category_id': int(c), 'bbox': [x, y, w, h], 'score': s} for i, c, x, y, w, h, s in rows]


def test_equals_the_published_program(parity):
  metrics = false_discovery.evaluate(truth_of(GOLDEN['gt'].tolist()), detections_of(GOLDEN['dt'].tolist()))
  assert list(metrics) == ['FD', 'FD5', 'FD25', 'FD50', 'FD_S', 'FD_M', 'FD_L']
  parity('false discovery rates, 7 numbers', np.abs(list(metrics.values()) - GOLDEN['fd_stats']).max(), 1e-6)
  np.testing.assert_allclose(false_discovery.IOU_THRESHOLDS, GOLDEN['iou_fd'], atol=1e-12)


def test_counted_by_hand():
  """One small object met with IoU 0.27: right at 0.05 .. 0.25, wrong at 0.30 .. 0.50."""
  metrics = false_discovery.evaluate(
    truth_of([(1, 1, 0, 0, 10, 10, 0, 100)]), detections_of([(1, 1, 0, 0, 10, 2.7, 1)])
  )
  assert metrics['FD5'] == metrics['FD25'] == pytest.approx(0)
  assert metrics['FD50'] == pytest.approx(1)
  assert metrics['FD'] == metrics['FD_S'] == pytest.approx(0.5)
  assert math.isnan(metrics['FD_M']) and math.isnan(metrics['FD_L'])


def test_over_thresholds_counted_by_hand():
  """The same object and box as above, threshold by threshold."""
  result = false_discovery.accumulate(
    truth_of([(1, 1, 0, 0, 10, 10, 0, 100)]), detections_of([(1, 1, 0, 0, 10, 2.7, 1)])
  )
  rows = false_discovery.over_thresholds(result)
  assert [row['iou'] for row in rows] == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
  assert [row['FD'] for row in rows] == pytest.approx([0] * 5 + [1] * 5)
  assert [row['FD_S'] for row in rows] == [row['FD'] for row in rows]
  assert all(math.isnan(row['FD_M']) and math.isnan(row['FD_L']) for row in rows)


def test_no_detections_are_all_false():
  metrics = false_discovery.evaluate(truth_of([(1, 1, 0, 0, 10, 10, 0, 100)]), [])
  assert metrics['FD'] == metrics['FD5'] == 1
