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

MANY = 100_000  # epochs, until it is known how many there is time for
POINTS = 6  # of the curve


def cpu_minutes() -> float:
  """Of this process and its finished children."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used) / 60


class Budget:
  """Ends the training with its minutes: after two epochs it is known how many more there will be."""

  def __init__(self, minutes: float):
    self.minutes = minutes
    self.spent = {}  # epoch -> CPU minutes at its end

  def on_train_epoch_end(self, trainer):
    done = trainer.epoch + 1
    self.spent[done] = cpu_minutes()
    if done == 2 or (done == 1 and self.spent[1] > self.minutes / 3):
      start = self.spent[1] if done == 2 else 0
      an_epoch = (self.spent[done] - start) / (done - 1 or 1)
      trainer.epochs = trainer.args.epochs = max(done + 1, done + int((self.minutes - self.spent[done]) / an_epoch))
      trainer.save_period = max(1, trainer.epochs // POINTS)
      trainer._setup_scheduler()  # the rate falls over these epochs
      trainer.scheduler.last_epoch = trainer.epoch
      print(f'{trainer.epochs} epochs of {an_epoch:.2f} CPU minutes', flush=True)


def main(path: Path) -> None:
  request = json.loads(path.read_text())
  torch.set_num_threads(request['threads'])
  out, data = Path(request['out']), Path(request['data'])
  budget = Budget(request['minutes'])
  options = dict(
    model=request['model'],
    data=str(data / 'data.yaml'),
    epochs=MANY,
    imgsz=request['size'],
    batch=request['batch'],
    seed=request['seed'],
    pretrained=False,
    device='cpu',
    workers=0,
    val=False,
    plots=False,
    patience=0,
    project=str(out.resolve()),
    name='training',
    verbose=False,
  )
  trainer = DetectionTrainer(overrides=options)
  trainer.add_callback('on_train_epoch_end', budget.on_train_epoch_end)
  torch.set_num_threads(request['threads'])
  trainer.train()
  weights = {int(p.stem.removeprefix('epoch')) + 1: p for p in Path(trainer.wdir).glob('epoch*.pt')}
  weights[max(budget.spent)] = Path(trainer.last)
  curve = []
  for epoch in sorted(weights):
    row = dict(epoch=epoch, cpu_minutes=budget.spent[epoch], found={})
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
