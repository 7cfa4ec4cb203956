"""Average precision and recall of COCO (Sec. 4.1, Table 2), computed by pycocotools on the original JSON.

Letters beside those of `structs`: T IoU thresholds, R = 101 recall thresholds, K categories in the order of
their ids, A = 4 areas (all, small, medium, large), M = 3 limits of detections per image and class (1, 10, 100).
"""

import collections
import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from triplet_det.categories import CategoryTable

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
AREAS = ('all', 'small', 'medium', 'large')  # bounds 32^2 and 96^2 pixels
MAX_DETECTIONS = (1, 10, 100)


@dataclasses.dataclass(frozen=True)
class Accumulated:
  """One run of COCOeval; NaN wherever no ground truth of that class and area exists (pycocotools writes -1)."""

  precision: np.ndarray  # [T, R, K, A, M] float64 in [0, 1]
  recall: np.ndarray  # [T, K, A, M] float64 in [0, 1], the largest recall reached
  recall_thresholds: np.ndarray  # [R] float64, 0, 0.01, ..., 1
  iou_thresholds: np.ndarray  # [T] float64
  names: tuple[str, ...]  # [K] category names

  def average_precision(self, iou: float | None = None, area: str = 'all', category: int | None = None) -> float:
    """AP at one IoU threshold or over all, of one position on the K axis or over all classes that have ground truth."""
    precision = self.precision[self.threshold_indices(iou), :, :, AREAS.index(area), -1]
    return _mean(precision if category is None else precision[:, :, category])

  def average_recall(self, max_detections: int = 100, area: str = 'all') -> float:
    """AR over all IoU thresholds and classes with at most `max_detections` (1, 10, 100) per image and class."""
    return _mean(self.recall[:, :, AREAS.index(area), MAX_DETECTIONS.index(max_detections)])

  def threshold_indices(self, iou: float | None) -> np.ndarray:
    """Positions on the T axis of one IoU threshold or of all. ValueError if the evaluation did not run there."""
    chosen = np.ones(len(self.iou_thresholds), bool) if iou is None else np.isclose(self.iou_thresholds, iou)
    if not chosen.any():
      raise ValueError(f'AP at IoU {iou} was asked for, but the evaluation ran at {self.iou_thresholds.tolist()}')
    return np.flatnonzero(chosen)


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """Precision over recall, area all, at most 100 detections per image and class; NaN for classes without objects."""

  recall: np.ndarray  # [R] float64, 0, 0.01, ..., 1
  precision: np.ndarray  # [T, R] float64, mean over the classes that have ground truth
  class_precision: np.ndarray  # [T, K, R] float64
  iou_thresholds: np.ndarray  # [T] float64
  names: tuple[str, ...]  # [K] category names


def evaluate(ground_truth: Mapping, detections: Sequence[Mapping]) -> dict[str, float]:
  """The 12 numbers of COCO and the AP of each class, over ALL images of the ground truth.

  Args:
    ground_truth: the parsed COCO JSON (`images`, `annotations`, `categories`); not modified.
    detections: COCO result rows dict(image_id, category_id, bbox [x, y, w, h] pixels, score); not modified.
  Returns:
    fractions in [0, 1]: AP, AP50, AP75, AP_S, AP_M, AP_L, AR1, AR10, AR100, AR_S, AR_M, AR_L, and 'AP/<name>' per
    class. NaN (pycocotools: -1) where the ground truth has no object of that size or class: not a score of zero.
  Raises:
    ValueError: as `accumulate`.
  """
  return summarise(accumulate(ground_truth, detections))


def summarise(result: Accumulated) -> dict[str, float]:
  """The metrics of `evaluate`, read off an `accumulate` at COCO's IoU thresholds."""
  metrics = {
    'AP': result.average_precision(),
    'AP50': result.average_precision(iou=0.5),
    'AP75': result.average_precision(iou=0.75),
    'AP_S': result.average_precision(area='small'),
    'AP_M': result.average_precision(area='medium'),
    'AP_L': result.average_precision(area='large'),
    'AR1': result.average_recall(1),
    'AR10': result.average_recall(10),
    'AR100': result.average_recall(100),
    'AR_S': result.average_recall(area='small'),
    'AR_M': result.average_recall(area='medium'),
    'AR_L': result.average_recall(area='large'),
  }
  return metrics | {f'AP/{name}': result.average_precision(category=k) for k, name in enumerate(result.names)}


def precision_recall(result: Accumulated, iou_thresholds: Sequence[float] = (0.5, 0.75)) -> PrecisionRecall:
  """The curves behind the AP at some of the thresholds of `result`. ValueError names those that it has."""
  chosen = np.concatenate([result.threshold_indices(iou) for iou in iou_thresholds])
  by_class = result.precision[chosen][:, :, :, AREAS.index('all'), -1]  # [T, R, K]
  present = ~np.isnan(by_class[0, 0])
  return PrecisionRecall(
    recall=result.recall_thresholds,
    precision=by_class[:, :, present].mean(axis=2),
    class_precision=by_class.transpose(0, 2, 1),
    iou_thresholds=result.iou_thresholds[chosen],
    names=result.names,
  )


def accumulate(
  ground_truth: Mapping, detections: Sequence[Mapping], *, iou_thresholds: Sequence[float] = IOU_THRESHOLDS
) -> Accumulated:
  """Matches detections to objects once; AP, AR, FD and the curves are read off its result.

  Raises:
    ValueError: if the ground truth has no image, no category or no object that counts, or an annotation or a
      detection names an unknown image or category or carries a box or score that is not a finite number.
  """
  objects = _checked_objects(ground_truth)
  rows = _checked_detections(detections, ground_truth)
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports to stdout
    run = COCOeval(_indexed(ground_truth, objects), _indexed(ground_truth, rows), 'bbox')
    run.params.iouThrs = np.asarray(iou_thresholds, np.float64)
    run.evaluate()
    run.accumulate()
  names = {category['id']: category['name'] for category in ground_truth['categories']}
  precision, recall = run.eval['precision'], run.eval['recall']
  return Accumulated(
    precision=np.where(precision < 0, np.nan, precision),
    recall=np.where(recall < 0, np.nan, recall),
    recall_thresholds=run.params.recThrs,
    iou_thresholds=run.params.iouThrs,
    names=tuple(names[i] for i in run.params.catIds),
  )


def _mean(values: np.ndarray) -> float:
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else math.nan


def _checked_objects(ground_truth: Mapping) -> list[dict]:
  """The annotations with only what pycocotools reads, numbered from 1, because it takes id 0 for "unmatched"."""
  missing = [key for key in ('images', 'annotations', 'categories') if key not in ground_truth]
  if missing:
    raise ValueError(f'ground truth is not a COCO JSON: no {missing}, it has {sorted(ground_truth)}')
  CategoryTable.from_coco(ground_truth['categories'])  # raises if empty or doubled
  _check_images(ground_truth['images'])
  annotations = ground_truth['annotations']
  _check_rows('annotation', annotations, ground_truth)
  if all(a.get('iscrowd', 0) for a in annotations):
    raise ValueError(
      f'ground truth has no object to find: {len(annotations)} annotations, of which all are crowds, '
      f'on {len(ground_truth["images"])} images; AP is not defined'
    )
  without_area = sum('area' not in a for a in annotations)
  if without_area:
    logging.warning('%d of %d annotations have no area: using w * h of the box', without_area, len(annotations))
  return [
    {
      'id': number,
      'image_id': a['image_id'],
      'category_id': a['category_id'],
      'bbox': list(a['bbox']),
      'area': a['area'] if 'area' in a else a['bbox'][2] * a['bbox'][3],
      'iscrowd': a.get('iscrowd', 0),
    }
    for number, a in enumerate(annotations, start=1)
  ]


def _checked_detections(detections: Sequence[Mapping], ground_truth: Mapping) -> list[dict]:
  """The result rows as pycocotools' `loadRes` would make them, which modifies its input and fails on an empty list."""
  _check_rows('detection', detections, ground_truth)
  for row in detections:
    if not math.isfinite(row['score']):
      raise ValueError(f'detection with score {row["score"]}: {dict(row)}')
  return [
    {
      'id': number,
      'image_id': row['image_id'],
      'category_id': row['category_id'],
      'bbox': list(row['bbox']),
      'score': row['score'],
      'area': row['bbox'][2] * row['bbox'][3],
      'iscrowd': 0,
    }
    for number, row in enumerate(detections, start=1)
  ]


def _check_images(images: Sequence[Mapping]) -> None:
  doubled = [i for i, n in collections.Counter(image['id'] for image in images).items() if n > 1]
  if doubled or not images:
    raise ValueError(f'ground truth lists {len(images)} images, ids listed more than once: {doubled[:5]}')


def _check_rows(what: str, rows: Sequence[Mapping], ground_truth: Mapping) -> None:
  known = {
    'image_id': {image['id'] for image in ground_truth['images']},
    'category_id': {category['id'] for category in ground_truth['categories']},
  }
  required = {'image_id', 'category_id', 'bbox'} | ({'score'} if what == 'detection' else set())
  for row in rows:
    if not required <= row.keys():
      raise ValueError(f'{what} without {sorted(required - row.keys())}: {dict(row)}')
  for key, ids in known.items():
    strange = {row[key] for row in rows} - ids
    if strange:
      raise ValueError(
        f'{what}s name {len(strange)} values of {key} that the ground truth does not list, such as '
        f'{sorted(strange)[:5]}; it lists {len(ids)}, such as {sorted(ids)[:5]}'
      )
  for row in rows:
    box = row['bbox']
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
      raise ValueError(f'{what} with a box that is not finite [x, y, w, h] with w, h >= 0: {dict(row)}')


def _indexed(ground_truth: Mapping, rows: list[dict]) -> COCO:
  coco = COCO()
  coco.dataset = {'images': ground_truth['images'], 'categories': ground_truth['categories'], 'annotations': rows}
  coco.createIndex()
  return coco
