"""What a user gets for an image: COCO rows, the plain form, supervision's class, a picture."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from PIL import Image

from triplet_det.categories import CategoryTable
from triplet_det.detection.result import ImageDetections
from triplet_det.pictures import drawing

FOUND = ImageDetections(
  boxes=np.array([[10, 20, 40, 60.5], [1.23456, 0, 3, 4]], np.float32),
  scores=np.array([0.9, 0.3], np.float32),
  classes=np.array([2, 0], np.int32),
  categories=CategoryTable((7, 9, 12), ('cat', 'dog', 'cow')),
)


def test_coco_rows_have_the_data_sets_ids_and_all_digits():
  first, second = FOUND.to_coco(5)
  assert (first['image_id'], first['category_id'], first['bbox']) == (5, 12, [10, 20, 30, 40.5])
  assert second['category_id'] == 7
  assert np.float32(second['score']) == np.float32(0.3) and np.float32(second['bbox'][0]) == FOUND.boxes[1, 0]


def test_plain_rows_have_names():
  assert FOUND.names == ['cow', 'cat'] and len(FOUND) == 2
  assert FOUND.to_rows() == [
    dict(name='cow', score=0.9, box=[10.0, 20.0, 40.0, 60.5]),
    dict(name='cat', score=0.3, box=[1.23, 0.0, 3.0, 4.0]),
  ]
  assert FOUND.above(0.3).names == ['cow']  # higher, as a float32
  assert FOUND.above(0.95).to_rows() == FOUND.above(0.95).to_coco(1) == []


def test_picture_is_of_the_boxes_above_the_threshold():
  image = np.full((80, 90, 3), 90, np.uint8)
  colors = [drawing.class_color(2)]
  expected = drawing.draw_boxes(image, FOUND.boxes[:1], ['cow'], scores=[0.9], colors=colors)
  np.testing.assert_array_equal(FOUND.draw(image, threshold=0.5), expected)
  assert (FOUND.draw(image) != expected).any()


def test_a_picture_on_what_the_detector_was_given(tmp_path):
  image = np.full((80, 90, 3), 90, np.uint8)
  image[:20] = 200
  stored, turned = Image.fromarray(np.rot90(image)), Image.Exif()  # as telephones do
  turned[274] = 6
  stored.save(tmp_path / 'a.png', exif=turned)
  opened = Image.open(tmp_path / 'a.png')
  for given in (tmp_path / 'a.png', str(tmp_path / 'a.png'), opened):
    np.testing.assert_array_equal(FOUND.draw(given), FOUND.draw(image))


def test_supervision(monkeypatch):
  """The stand-in takes what supervision.Detections takes; where the package is installed, so does that."""
  stand_in = types.ModuleType('supervision')
  stand_in.Detections = lambda *, xyxy, confidence, class_id, data: types.SimpleNamespace(**locals())
  for module in [stand_in] + ([None] if importlib.util.find_spec('supervision') else []):
    if module:
      monkeypatch.setitem(sys.modules, 'supervision', module)
    else:
      monkeypatch.delitem(sys.modules, 'supervision')
    found = FOUND.to_supervision()
    np.testing.assert_array_equal(found.xyxy, FOUND.boxes)
    np.testing.assert_array_equal(found.confidence, FOUND.scores)
    assert found.class_id.tolist() == [2, 0] and found.data['class_name'].tolist() == ['cow', 'cat']
  monkeypatch.setitem(sys.modules, 'supervision', None)  # what an import of it finds where it is not installed
  with pytest.raises(ImportError, match='pip install supervision'):
    FOUND.to_supervision()
