"""The false discovery rate (Sec. 3.1, footnote 1; Sec. 4.3, Tables 1 and 3)."""

from collections.abc import Mapping, Sequence

import numpy as np

from triplet_det.evaluators import coco_ap
from triplet_det.evaluators.coco_ap import Accumulated

IOU_THRESHOLDS = tuple(np.linspace(0.05, 0.5, 10).tolist())


def evaluate(ground_truth: Mapping, detections: Sequence[Mapping]) -> dict[str, float]:
  """FD = 1 - AP, the AP taken at IoU 0.05, 0.10, ..., 0.50.

  Args:
    ground_truth: the parsed COCO JSON; not modified.
    detections: COCO result rows; not modified.
  Returns:
    fractions in [0, 1], lower is better: FD; FD5, FD25, FD50 at one IoU (percent); FD_S, FD_M, FD_L by the size of
    the object. NaN where the ground truth has no object of that size.
  Raises:
    ValueError: as `coco_ap.accumulate`.
  """
  return summarise(accumulate(ground_truth, detections))


def accumulate(ground_truth: Mapping, detections: Sequence[Mapping]) -> Accumulated:
  """`coco_ap.accumulate` at the thresholds of FD."""
  return coco_ap.accumulate(ground_truth, detections, iou_thresholds=IOU_THRESHOLDS)


def summarise(result: Accumulated) -> dict[str, float]:
  """The metrics of `evaluate`, read off its `accumulate`."""
  return {
    'FD': 1 - result.average_precision(),
    'FD5': 1 - result.average_precision(iou=0.05),
    'FD25': 1 - result.average_precision(iou=0.25),
    'FD50': 1 - result.average_precision(iou=0.5),
    'FD_S': 1 - result.average_precision(area='small'),
    'FD_M': 1 - result.average_precision(area='medium'),
    'FD_L': 1 - result.average_precision(area='large'),
  }


def over_thresholds(result: Accumulated) -> list[dict[str, float]]:
  """FD at each IoU threshold, over all objects and by their size: rows of iou, FD, FD_S, FD_M, FD_L."""
  areas = {'FD': 'all', 'FD_S': 'small', 'FD_M': 'medium', 'FD_L': 'large'}
  return [
    {'iou': round(iou, 2)} | {name: 1 - result.average_precision(iou, area) for name, area in areas.items()}
    for iou in IOU_THRESHOLDS
  ]
