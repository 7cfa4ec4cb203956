"""The best and the worst images of an evaluation, for a person to look at: drawings, plain images, and gallery.json."""

import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from etils import epath
from pycocotools import mask

from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.detection import inference, paper_figures
from triplet_det.pictures import drawing
from triplet_det.run import output_paths

SHOWN = 8  # of the best and of the worst images
JPEG_SIDE = 1024  # pixels of the longer side of a plain image, at most
JPEG_QUALITY = 90


def write(
  detector: inference.Detector,
  source: pipeline.Source,
  rows: Sequence[Mapping],
  directory: epath.Path,
  *,
  threshold: float,
) -> None:
  """Shows the images with the best and the worst F1 of an evaluation; of a split without objects, its first ones.

  Writes into `directory`, for both titles, best and worst:
    <title>/<stem>.png: ground truth (blue) and detections (red) drawn; <title>.png: a sheet of these.
    <title>/<stem>.jpg: the plain image, at most `JPEG_SIDE` pixels long.
    gallery.json: a row per image: title, image (path of the JPEG), file_name, image_id, width, height, f1 (null
      without objects), truth, detections, and rejected, the best pairs of corners that have no center in their central
      region; each a list of name, box x1 y1 x2 y2 in pixels of the original, and score.

  Args:
    detector: that found `rows`; asked again for the pairs of these images.
    source: the split.
    rows: COCO results of the whole split.
    directory: of the evaluation; pictures of an older gallery in it are removed.
    threshold: only detections and pairs with higher scores are shown.
  """
  annotations, categories = source.ground_truth['annotations'], source.categories
  quality = f1_of_images(source.ground_truth, rows, threshold=threshold)
  ranked = sorted(quality, key=lambda image_id: (-quality[image_id], image_id)) or source.image_ids
  index_of = {image_id: i for i, image_id in enumerate(source.image_ids)}
  gallery = []
  for title, image_ids in (('best', ranked[:SHOWN]), ('worst', ranked[: -SHOWN - 1 : -1])):
    _, records, images = zip(*pipeline.load_images(source, [index_of[i] for i in image_ids]))
    stems = _stems(records)
    pictures, captions = [], []
    for record, stem, image, proposals in zip(records, stems, images, detector.proposals(images)):
      truth = [row for row in annotations if row['image_id'] == record.image_id]
      found = [row for row in rows if row['image_id'] == record.image_id and row['score'] > threshold]
      entry = dict(
        title=title,
        image=f'{title}/{stem}.jpg',
        file_name=record.file_name,
        image_id=record.image_id,
        width=image.shape[1],
        height=image.shape[0],
        f1=quality.get(record.image_id),
        truth=[_box(row, categories) for row in truth],
        detections=[_box(row, categories) | dict(score=row['score']) for row in found],
        rejected=_rejected(proposals, categories, threshold),
      )
      gallery.append(entry)
      truth, found = _columns(entry['truth'], 'box', 'name'), _columns(entry['detections'], 'box', 'name', 'score')
      pictures.append(drawing.draw_ground_truth_and_detections(image, *truth, *found))
      captions.append(record.file_name + ('' if entry['f1'] is None else f'  F1 {entry["f1"]:.2f}'))
      drawing.save_png(directory / title / f'{stem}.png', pictures[-1])
      (directory / entry['image']).write_bytes(_jpeg(image))
    drawing.save_png(directory / f'{title}.png', drawing.contact_sheet(pictures, columns=4, captions=captions))
  _remove_others(directory, [entry['image'] for entry in gallery])
  output_paths.write_whole(directory / 'gallery.json', '[' + ',\n'.join(map(json.dumps, gallery)) + ']\n')


def _remove_others(directory: epath.Path, images: Sequence[str]) -> None:
  """What the gallery of an earlier evaluation has and this one has not; nothing else that lies there."""
  try:
    before = [entry['image'] for entry in json.loads((directory / 'gallery.json').read_text(encoding='utf-8'))]
    for name in before:
      output_paths.check_inside(directory, name)
  except (OSError, ValueError, KeyError, TypeError):  # there was none, or not one of ours
    return
  for name in set(before) - set(images):
    for suffix in ('.jpg', '.png'):
      (directory / name).with_suffix(suffix).unlink(missing_ok=True)


def _stems(records: Sequence[pipeline.Record]) -> list[str]:
  """The stem of each file; with the image's id where files have one name, in several folders or of several kinds."""
  stems = [epath.Path(record.file_name).stem for record in records]
  keys = [output_paths.key(stem) for stem in stems]
  alone = [keys.count(key) == 1 for key in keys]
  return output_paths.unique(
    [stem if one else f'{stem}_{record.image_id}' for stem, one, record in zip(stems, alone, records)]
  )


def _box(row: Mapping, categories: CategoryTable) -> dict:
  """An annotation or a COCO result as gallery.json has it."""
  x, y, width, height = row['bbox']
  name = categories.names[categories.class_of(row['category_id'])] + (' (crowd)' if row.get('iscrowd', 0) else '')
  return dict(name=name, box=_rounded([x, y, x + width, y + height]))


def _rejected(proposals: inference.Proposals, categories: CategoryTable, threshold: float) -> list[dict]:
  pairs = paper_figures.strongest_pairs(proposals, kept=False, threshold=threshold)
  return [
    dict(name=categories.names[c], score=round(float(score), 4), box=_rounded(box))
    for c, score, box in zip(pairs.classes, pairs.scores, pairs.boxes)
  ]


def _rounded(box: Sequence[float]) -> list[float]:
  return [round(float(v), 2) for v in box]


def _columns(rows: Sequence[Mapping], *keys: str) -> list[list]:
  return [[row[key] for row in rows] for key in keys]


def _jpeg(image: np.ndarray) -> bytes:
  shrink = JPEG_SIDE / max(image.shape[:2])
  if shrink < 1:
    size = [max(1, round(side * shrink)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  return cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def f1_of_images(
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
