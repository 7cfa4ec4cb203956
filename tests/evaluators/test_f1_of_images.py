"""F1 per image against hand-counted cases."""

from triplet_det.evaluators.best_and_worst import f1_of_images

GROUND_TRUTH = {
  'annotations': [
    dict(image_id=1, category_id=3, bbox=[0, 0, 10, 10], iscrowd=0),
    dict(image_id=1, category_id=3, bbox=[20, 0, 10, 10], iscrowd=0),
    dict(image_id=2, category_id=4, bbox=[0, 0, 10, 10]),
    dict(image_id=3, category_id=4, bbox=[0, 0, 10, 10], iscrowd=1),
  ]
}


def row(image_id, category_id, box, score):
  return dict(image_id=image_id, category_id=category_id, bbox=box, score=score)


def test_counts_matches_misses_and_false_boxes():
  rows = [
    row(1, 3, [0, 0, 10, 10], 0.9),  # found
    row(1, 3, [0, 0, 10, 9], 0.8),  # the same object again: false
    row(1, 3, [20, 0, 10, 6], 0.7),  # IoU 0.6: found
    row(1, 4, [20, 0, 10, 10], 0.6),  # another category: false
    row(1, 3, [20, 0, 10, 10], 0.2),  # below the threshold
  ]
  assert f1_of_images(GROUND_TRUTH, rows, threshold=0.3) == {1: 2 * 2 / (2 + 4), 2: 0.0}


def test_the_better_score_takes_the_object_first():
  rows = [row(2, 4, [0, 0, 10, 5.5], 0.9), row(2, 4, [0, 0, 10, 10], 0.8)]
  assert f1_of_images(GROUND_TRUTH, rows, threshold=0.3)[2] == 2 * 1 / (1 + 2)


def test_overlap_bound_is_inclusive():
  rows = [row(2, 4, [0, 0, 10, 5], 0.9)]
  assert f1_of_images(GROUND_TRUTH, rows, threshold=0.3)[2] == 1.0
  assert f1_of_images(GROUND_TRUTH, rows, threshold=0.3, iou=0.51)[2] == 0.0


def test_crowds_are_not_objects():
  assert 3 not in f1_of_images(GROUND_TRUTH, [], threshold=0.3)
