"""Trains ultralytics' YOLO and detects with it: what scripts/peer.py executes in the environment of that program.

Nothing of triplet_det is imported here. Reads a request (JSON), writes answer.json beside it.
"""

import json
import os
import resource
import sys
from pathlib import Path

os.environ.setdefault('YOLO_OFFLINE', 'true')

import torch
import ultralytics
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

POINTS = 6  # of the curve


def cpu_minutes() -> float:
  """Of this process and its finished children."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used) / 60


def epochs_in(minutes: float, spent: list[float]) -> int:
  """How many epochs there is time for, by the last of those whose ends are `spent` CPU minutes after the start."""
  start, *_, end = [0.0, *spent][-2:]
  return max(1, int((minutes - (spent[0] - (end - start))) / (end - start)))


def train(request: dict, name: str, epochs: int, save_period: int = -1) -> tuple[DetectionTrainer, list[float]]:
  """The trained one, and the CPU minutes since its start at the end of each epoch."""
  spent, before = [], cpu_minutes()
  options = dict(
    model=request['model'],
    data=str(Path(request['data']) / 'data.yaml'),
    epochs=epochs,
    imgsz=request['size'],
    batch=request['batch'],
    seed=request['seed'],
    save_period=save_period,
    pretrained=False,
    device='cpu',
    workers=0,
    val=False,
    plots=False,
    patience=0,
    project=str(Path(request['out']).resolve()),
    name=name,
    verbose=False,
  )
  trainer = DetectionTrainer(overrides=options)
  trainer.add_callback('on_train_epoch_end', lambda trainer: spent.append(cpu_minutes() - before))
  torch.set_num_threads(request['threads'])
  trainer.train()
  return trainer, spent


def main(path: Path) -> None:
  request = json.loads(path.read_text())
  out, data = Path(request['out']), Path(request['data'])
  _, spent = train(request, 'timing', 2)
  epochs = epochs_in(request['minutes'], spent)
  print(f'{epochs} epochs in {request["minutes"]} CPU minutes', flush=True)
  trainer, spent = train(request, 'training', epochs, max(1, epochs // POINTS))
  weights = {int(p.stem.removeprefix('epoch')) + 1: p for p in Path(trainer.wdir).glob('epoch*.pt')}
  weights[epochs] = Path(trainer.last)
  curve = []
  for epoch in sorted(weights):
    row = dict(epoch=epoch, cpu_minutes=spent[epoch - 1], found={})
    for split in request['splits']:
      row['found'][split] = f'found_{split}_{epoch}.json'
      found = detect(weights[epoch], sorted((data / 'images' / split).iterdir()), request['size'])
      (out / row['found'][split]).write_text(json.dumps(found))
    curve.append(row)
  versions = dict(ultralytics=ultralytics.__version__, torch=torch.__version__)
  (out / 'answer.json').write_text(json.dumps(dict(curve=curve, versions=versions)))


def detect(weights: Path, images: list[Path], size: int) -> dict[str, list]:
  """{name of an image: [[x1, y1, x2, y2, score, class], ...]}, as that program validates: 0.001 and 0.7."""
  model = YOLO(str(weights))
  found = {}
  for image in images:
    (result,) = model.predict(
      str(image), imgsz=size, conf=0.001, iou=0.7, max_det=100, device='cpu', verbose=False, save=False
    )
    found[image.name] = result.boxes.data.tolist()
  return found


if __name__ == '__main__':
  main(Path(sys.argv[1]))
