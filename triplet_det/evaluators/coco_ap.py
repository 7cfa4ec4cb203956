"""Average precision and recall of COCO (Sec. 4.1, Table 2), by pycocotools' rules on the original JSON.

Computed by faster-coco-eval, pycocotools' loops in C++: the same precision to 2^-52, which pycocotools adds to the
number of detections that it divides by.

Letters beside those of `structs`: T IoU thresholds, R = 101 recall thresholds, K categories in the order of
their ids, A = 4 areas (all, small, medium, large), M = 3 limits of detections per image and class (1, 10, 100).
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from faster_coco_eval import COCO, COCOeval_faster

from triplet_det.categories import CategoryTable

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
SIZES = {'S': 'small', 'M': 'medium', 'L': 'large'}  # bounds 32^2 and 96^2 pixels
AREAS = ('all', *SIZES.values())
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

  def at(self, iou_thresholds: Sequence[float]) -> 'Accumulated':
    """The part at these thresholds. ValueError if the evaluation did not run at one of them."""
    chosen = np.concatenate([self.threshold_indices(iou) for iou in iou_thresholds])
    return dataclasses.replace(
      self, precision=self.precision[chosen], recall=self.recall[chosen], iou_thresholds=self.iou_thresholds[chosen]
    )


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
  }
  metrics |= {f'AP_{size}': result.average_precision(area=area) for size, area in SIZES.items()}
  metrics |= {f'AR{limit}': result.average_recall(limit) for limit in MAX_DETECTIONS}
  metrics |= {f'AR_{size}': result.average_recall(area=area) for size, area in SIZES.items()}
  return metrics | {f'AP/{name}': result.average_precision(category=k) for k, name in enumerate(result.names)}


def precision_recall(result: Accumulated, iou_thresholds: Sequence[float] = (0.5, 0.75)) -> list[dict]:
  """The curves behind the AP, area all, at most 100 detections per image and class.

  Returns:
    A row per IoU threshold: iou; all, the mean precision of the classes that have ground truth at each of
    `result.recall_thresholds`; classes, name -> that of the class, NaN without ground truth.

  Raises:
    ValueError: the evaluation did not run at one of the thresholds.
  """
  rows = []
  for iou in iou_thresholds:
    (index,) = result.threshold_indices(iou)
    precision = result.precision[index, :, :, AREAS.index('all'), -1]  # [R, K]
    mean = precision[:, ~np.isnan(precision[0])].mean(axis=1)
    classes = dict(zip(result.names, precision.T.tolist()))
    rows.append(dict(iou=round(iou, 2), all=mean.tolist(), classes=classes))
  return rows


def accumulate(
  ground_truth: Mapping, detections: Sequence[Mapping], *, iou_thresholds: Sequence[float] = IOU_THRESHOLDS
) -> Accumulated:
  """Matches detections to objects once; AP, AR, FD and the curves are read off its result.

  Raises:
    ValueError: if the ground truth has no image, no category or no object that counts, or an annotation or a
      detection names an unknown image or category or carries a box or score that is not a finite number.
  """
  check(ground_truth, detections)
  objects = _indexed(ground_truth, ground_truth['annotations'], ('area', 'iscrowd'))
  found = _indexed(ground_truth, detections, ('score',))
  run = COCOeval_faster(objects, found, 'bbox')
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


def check(ground_truth: Mapping, detections: Sequence[Mapping]) -> None:
  """Raises ValueError that names the first thing in COCO's rows, of whatever program, that cannot be measured."""
  missing = [key for key in ('images', 'annotations', 'categories') if key not in ground_truth]
  if missing:
    raise ValueError(f'ground truth is not a COCO JSON: no {missing}, it has {sorted(ground_truth)}')
  CategoryTable.from_coco(ground_truth['categories'])  # raises if empty or doubled
  images, annotations = ground_truth['images'], ground_truth['annotations']
  doubled = [i for i, n in collections.Counter(image['id'] for image in images).items() if n > 1]
  if doubled or not images:
    raise ValueError(f'ground truth lists {len(images)} images, ids listed more than once: {doubled[:5]}')
  _check_rows('annotation', annotations, ground_truth)
  if all(annotation.get('iscrowd', 0) for annotation in annotations):
    raise ValueError(
      f'ground truth has no object to find: {len(annotations)} annotations, of which all are crowds, '
      f'on {len(images)} images; AP is not defined'
    )
  if without_area := sum('area' not in annotation for annotation in annotations):
    logging.warning('%d of %d annotations have no area: using w * h of the box', without_area, len(annotations))
  _check_rows('detection', detections, ground_truth)
  for row in detections:
    if not _is_number(row['score']):
      raise ValueError(f'detection with score {row["score"]}: {dict(row)}')


def _check_rows(what: str, rows: Sequence[Mapping], ground_truth: Mapping) -> None:
  known = {
    'image_id': {image['id'] for image in ground_truth['images']},
    'category_id': {category['id'] for category in ground_truth['categories']},
  }
  required = {'image_id', 'category_id', 'bbox'} | ({'score'} if what == 'detection' else set())
  for row in rows:
    if not isinstance(row, Mapping):
      raise ValueError(f'{what} that is no object with {", ".join(sorted(required))}: {row!r:.100}')
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
    numbers = isinstance(box, Sequence | np.ndarray) and len(box) == 4 and all(map(_is_number, box))
    if not numbers or box[2] < 0 or box[3] < 0:
      raise ValueError(f'{what} with a box that is not finite [x, y, w, h] with w, h >= 0: {dict(row)}')


def _is_number(value: object) -> bool:
  return isinstance(value, int | float | np.number) and math.isfinite(value)


def _indexed(ground_truth: Mapping, rows: Sequence[Mapping], own: Sequence[str]) -> COCO:
  """Rows as pycocotools takes them: copies, which it modifies, numbered from 1, because it takes id 0 for "unmatched".

  `own` are the keys, beside those that all have, whose values are the rows' own.
  """
  copies = [
    {'id': number, 'area': row['bbox'][2] * row['bbox'][3], 'iscrowd': 0}
    | {key: row[key] for key in ('image_id', 'category_id', 'bbox', *own) if key in row}
    for number, row in enumerate(rows, start=1)
  ]
  coco = COCO()
  coco.dataset = {'images': ground_truth['images'], 'categories': ground_truth['categories'], 'annotations': copies}
  coco.createIndex()
  return coco
