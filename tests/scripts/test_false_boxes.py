"""scripts/paper/false_boxes.py on a handful of boxes counted by hand."""

from scripts.paper import false_boxes


def row(image_id, category_id, box, score):
  return dict(image_id=image_id, category_id=category_id, bbox=box, score=score)


def test_false_boxes_by_their_own_size():
  ground_truth = dict(annotations=[dict(image_id=1, category_id=2, bbox=[0, 0, 40, 40])])
  rows = [
    row(1, 2, [0, 0, 40, 40], 0.9),  # right, medium
    row(1, 2, [0, 0, 40, 21], 0.8),  # IoU 0.525: right, its own area 840: small
    row(1, 2, [0, 0, 40, 19], 0.8),  # IoU 0.475: false, small
    row(1, 3, [0, 0, 40, 40], 0.7),  # another class: false, medium
    row(2, 2, [0, 0, 40, 40], 0.7),  # another image: false, medium
    row(1, 2, [0, 0, 100, 100], 0.31),  # IoU 0.16: false, large
    row(1, 2, [60, 60, 5, 5], 0.3),  # not above the threshold
  ]
  assert false_boxes.count(ground_truth, rows, 0.3) == {'small': (1, 2), 'medium': (2, 3), 'large': (1, 1)}
