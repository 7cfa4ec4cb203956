"""One number per image, to find the best and the worst for a person to look at."""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask


def evaluate_images(
  ground_truth: Mapping, detections: Sequence[Mapping], *, threshold: float, iou: float = 0.5
) -> dict[int, float]:
  """F1 of every image that has objects: detections above `threshold`, matched greedily, best score first.

  Args:
    ground_truth: COCO dict; crowd boxes are left out.
    detections: COCO result rows.
    threshold: on the score.
    iou: overlap at which a detection finds an object of its category.

  Returns:
    image id -> 2 x found / (objects + detections), in [0, 1].
  """
  objects, found = {}, {}
  for annotation in ground_truth['annotations']:
    if not annotation.get('iscrowd', 0):
      objects.setdefault(annotation['image_id'], []).append(annotation)
  for row in detections:
    if row['score'] > threshold:
      found.setdefault(row['image_id'], []).append(row)
  return {image_id: _f1(boxes, found.get(image_id, []), iou) for image_id, boxes in objects.items()}


def _f1(objects: list[Mapping], rows: list[Mapping], iou: float) -> float:
  if not rows:
    return 0.0
  rows = sorted(rows, key=lambda row: -row['score'])
  overlaps = mask.iou(
    np.array([r['bbox'] for r in rows], np.float64),
    np.array([o['bbox'] for o in objects], np.float64),
    [0] * len(objects),
  )
  same = np.equal.outer([r['category_id'] for r in rows], [o['category_id'] for o in objects])
  overlaps = np.where(same, overlaps, 0.0)
  matches = 0
  for row in overlaps:
    best = row.argmax()
    if row[best] >= iou:
      matches += 1
      overlaps[:, best] = 0.0  # taken
  return 2 * matches / (len(objects) + len(rows))
