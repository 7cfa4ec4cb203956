"""A run folder with made-up numbers, as the report reads it: no network, no data set, no JAX."""

import json
from pathlib import Path

import cv2
import numpy as np

AP = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
AR = ('AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')
FD = ('FD', 'FD5', 'FD25', 'FD50', 'FD_S', 'FD_M', 'FD_L')
CLASSES = ('disc', 'ring', 'hollow square')
IOUS = tuple(round(0.05 * i, 2) for i in range(1, 11))
STEPS = range(20, 401, 20)


def write_run(folder: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
  """Log, config and two evaluations, steps 200 and 400."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  lines = []
  for step in STEPS:
    terms = {f'train/{name}': rng.uniform(0.01, 9) for name in ('loss', 'focal_corner', 'pull', 'push', 'offset')}
    lines.append({'step': step} | terms | {'train/learning_rate': 1e-3 / step, 'train/images_per_second': 40 + step})
  for step in (200, 400):
    metrics = write_evaluation(folder / 'eval' / f'step_{step:06d}', step, rng, classes)
    lines.append({'step': step} | {f'eval/{name}': value for name, value in metrics.items()})
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = {'total_steps': 400, 'draw_threshold': 0.3, 'test': {'scales': [1.0], 'nms_method': 'gaussian'}}
  write_json(folder / 'config.json', config)
  return folder


def write_evaluation(folder: Path, step: int, rng: np.random.Generator, classes: tuple[str, ...]) -> dict:
  """All files of an evaluation; returns its metrics."""
  names = (*AP, *AR, *FD, *(f'AP/{name}' for name in classes))
  metrics = {name: rng.uniform() for name in names} | {'AP_L': 'NaN', 'AR_L': 'NaN', 'FD_L': 'NaN'}
  fingerprint = {'images': 1200, 'step': step, 'split': 'validation', 'commit': 'abc1234', 'test': {'top_k': 70}}
  write_json(folder / 'metrics.json', {'metrics': metrics, 'fingerprint': fingerprint})
  write_json(folder / 'error_analysis.json', {'rows': error_rows(rng), 'fingerprint': fingerprint})
  falling = [
    {
      'iou': iou,
      'all': sorted(rng.uniform(size=101), reverse=True),
      'classes': {name: sorted(rng.uniform(size=101), reverse=True) for name in classes[:-1]}
      | {classes[-1]: ['NaN'] * 101},
    }
    for iou in (0.5, 0.75)
  ]
  rates = [{'iou': iou, 'FD_L': 'NaN'} | {name: rng.uniform() for name in ('FD', 'FD_S', 'FD_M')} for iou in IOUS]
  recall = [i / 100 for i in range(101)]
  write_json(folder / 'curves.json', {'recall': recall, 'precision_recall': falling, 'false_discovery': rates})
  write_json(folder / 'gallery.json', [write_picture(folder, title, i, rng, classes) for title, i in PICTURES])
  return metrics


PICTURES = (('best', 0), ('best', 1), ('worst', 2))


def write_picture(folder: Path, title: str, number: int, rng, classes, size: tuple[int, int] = (200, 120)) -> dict:
  """An entry of gallery.json and its plain image of noise."""
  width, height = size
  (folder / title).mkdir(parents=True, exist_ok=True)
  noise = rng.integers(0, 256, (height, width, 3), np.uint8)
  cv2.imwrite(str(folder / title / f'image_{number}.jpg'), noise, [cv2.IMWRITE_JPEG_QUALITY, 95])

  def boxes(scores) -> list[dict]:
    found = []
    for i, score in enumerate(scores):
      x, y = rng.uniform(0, 0.5, 2) * size
      box = [x, y, x + 0.3 * width, y + 0.4 * height]
      found.append({'name': classes[i % len(classes)], 'box': box} | ({} if score is None else {'score': score}))
    return found

  return {
    'title': title,
    'image': f'{title}/image_{number}.jpg',
    'file_name': f'photo_{number}.png',
    'image_id': number,
    'width': width,
    'height': height,
    'f1': 1 / (1 + number),
    'truth': boxes([None] * 3),
    'detections': boxes([0.9, 0.61, 0.35, 0.3, 0.1]),
    'rejected': boxes([0.7, 0.4]),
  }


def error_rows(rng: np.random.Generator) -> list[dict]:
  replaced = ('nothing', 'centers', 'corners', 'embeddings', 'offsets', 'everything')
  return [{'replaced': one, 'metrics': {name: rng.uniform() for name in AP}} for one in replaced]


def write_json(path: Path, content) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
