"""Counts false boxes by their own size: which of them central regions take away (Sec. 4.2 and 4.3).

  python scripts/paper/false_boxes.py --config configs/shapes.py runs/tables/row_1_seed_0 runs/tables/row_3_seed_0

A box above --threshold is false if no object of its class overlaps it by IoU 0.5. FD_S and AP_S of the tables go by the
size of the objects instead, and rank the boxes. Reads the newest evaluation of each run folder that has results.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.paper.table_runs import load_config
from triplet_det.data import pipeline
from triplet_det.evaluators import coco_ap

SIZES = {'small': 32**2, 'medium': 96**2, 'large': float('inf')}  # areas in pixels, as COCO's


def count(ground_truth: Mapping, rows: Sequence[Mapping], threshold: float) -> dict[str, tuple[int, int]]:
  """Size -> (false boxes, all boxes) among the COCO results with a score above `threshold`."""
  objects = {}
  for annotation in ground_truth['annotations']:
    objects.setdefault((annotation['image_id'], annotation['category_id']), []).append(annotation['bbox'])
  counts = {size: [0, 0] for size in SIZES}
  for row in rows:
    if row['score'] <= threshold:
      continue
    near = objects.get((row['image_id'], row['category_id']), [])
    overlaps = mask.iou(np.array([row['bbox']], np.float64), np.array(near, np.float64), [0] * len(near)) if near else 0
    size = next(name for name, limit in SIZES.items() if row['bbox'][2] * row['bbox'][3] < limit)
    counts[size][0] += int(np.max(overlaps) < 0.5)
    counts[size][1] += 1
  return {size: (false, boxes) for size, (false, boxes) in counts.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('runs', nargs='+', type=lambda text: Path(text).expanduser())
  parser.add_argument('--config', required=True, help='whose data.eval the runs were evaluated on')
  parser.add_argument('--threshold', type=float, default=0.3, help='on the score (default: %(default)s)')
  arguments = parser.parse_args()
  try:
    ground_truth = pipeline.open_source(**load_config(arguments.config).data.eval).ground_truth
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  print(f'{"run":<24}' + ''.join(f'{"false " + size + " of all":>22}' for size in SIZES))
  for run in arguments.runs:
    results = sorted(run.glob('eval/*/results.json'), key=lambda path: path.stat().st_mtime)
    if not results:
      parser.error(f'no eval/*/results.json in {run}: give run folders that were evaluated')
    try:
      rows = json.loads(results[-1].read_text(encoding='utf-8'))
      coco_ap.check(ground_truth, rows)
    except ValueError as error:
      parser.error(f'{results[-1]}: {error}')
    counts = count(ground_truth, rows, arguments.threshold)
    print(f'{run.name:<24}' + ''.join(f'{false:>14} of {boxes:<4}' for false, boxes in counts.values()))


if __name__ == '__main__':
  main()
