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
  at = {f'FD{round(100 * iou)}': 1 - result.average_precision(iou) for iou in (0.05, 0.25, 0.5)}
  return {'FD': 1 - result.average_precision()} | at | _by_size(result)


def over_thresholds(result: Accumulated) -> list[dict[str, float]]:
  """FD at each IoU threshold, over all objects and by their size: rows of iou, FD, FD_S, FD_M, FD_L."""
  return [
    {'iou': round(iou, 2), 'FD': 1 - result.average_precision(iou)} | _by_size(result, iou) for iou in IOU_THRESHOLDS
  ]


def _by_size(result: Accumulated, iou: float | None = None) -> dict[str, float]:
  return {f'FD_{size}': 1 - result.average_precision(iou, area) for size, area in coco_ap.SIZES.items()}
