"""Detections as COCO result rows: what the evaluators read, and what COCO's server takes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.run import output_paths


def results_rows(
  detections: Iterable[tuple[int, object]], categories: CategoryTable, *, decimals: int | None = None
) -> list[dict]:
  """COCO result rows of the valid detections.

  Args:
    detections: pairs (image id, `structs.Detections` of that image: NumPy boxes [D, 4] as x1 y1 x2 y2 pixels,
      scores [D], classes [D], valid [D]).
    categories: the table that turns class indices into the data set's ids.
    decimals: digits after the point of boxes and scores. The published program writes 2, which ties scores and moves
      the AP a little; None writes nine significant digits, enough to give every float32 back.
  Raises:
    ValueError: if a class index is outside the table.
  """
  digits = '.9g' if decimals is None else f'.{decimals}f'
  rows = []
  for image_id, found in detections:
    valid = np.asarray(found.valid, bool)
    corners, scores, classes = (np.asarray(a)[valid] for a in (found.boxes, found.scores, found.classes))
    if classes.size and not 0 <= classes.min() <= classes.max() < len(categories):
      raise ValueError(
        f'image {image_id}: detections have classes {classes.min()}..{classes.max()}, '
        f'the category table has {len(categories)} (0..{len(categories) - 1})'
      )
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    for box, score, class_index in zip(boxes.tolist(), scores.tolist(), classes.tolist()):
      rows.append(
        {
          'image_id': int(image_id),
          'category_id': categories.ids[class_index],
          'bbox': [float(format(v, digits)) for v in box],
          'score': float(format(score, digits)),
        }
      )
  return rows


def write_results(path: epath.PathLike, rows: Sequence[Mapping]) -> dict[str, int | str]:
  """Writes COCO result rows as JSON, whole or not at all; returns their number and the file's bytes and SHA-256.

  Raises:
    ValueError: a number is NaN or infinite.
  """
  path = epath.Path(path)
  text = json.dumps(rows, allow_nan=False).replace('}, {', '},\n{') + '\n'  # a line each: rows hold no other braces
  path.parent.mkdir(parents=True, exist_ok=True)
  output_paths.write_whole(path, text)
  return dict(boxes=len(rows), bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())


def server_file_name(split: str, algorithm: str) -> str:
  """The name that COCO's server wants, detections_[testset]_[alg]_results.json, e.g. for the split test-dev2017."""
  return f'detections_{split}_{algorithm}_results.json'
