"""scripts/peer.py with a stand-in for the other detector: its data are ours, and what it finds is scored as ours is."""

import json
import re
import runpy
import sys
import types
import typing

import cv2
import numpy as np
import pytest

from scripts import peer
from tests.data.layouts.test_folder import LAYOUTS, NAMES, scenes
from triplet_det.categories import CategoryTable

# Answers as scripts/peer_ultralytics.py does: at first nothing is found, at the end every box of the labels.
STAND_IN = """
import json, sys
from pathlib import Path
import cv2
if sys.argv[1] == '-c':
  sys.exit()  # asked whether ultralytics is there
request = json.loads(Path(sys.argv[2]).read_text())
data, out, curve = Path(request['data']), Path(request['out']), []
for epoch in (1, 2):
  row = dict(epoch=epoch, cpu_minutes=request['minutes'] * epoch / 2, found={})
  for split in request['splits']:
    found = {}
    for image in sorted((data / 'images' / split).iterdir()):
      height, width = cv2.imread(str(image)).shape[:2]
      found[image.name] = rows = []
      for line in (data / 'labels' / split / f'{image.stem}.txt').read_text().splitlines() if epoch == 2 else ():
        place, x, y, w, h = map(float, line.split())
        corners = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        rows.append([*corners, 0.9, place])
    row['found'][split] = f'found_{split}_{epoch}.json'
    (out / row['found'][split]).write_text(json.dumps(found))
  curve.append(row)
(out / 'answer.json').write_text(json.dumps(dict(curve=curve, versions={})))
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
  """Calls the command with an environment that holds the stand-in."""
  LAYOUTS['coco, annotations/'](tmp_path / 'data')
  python = tmp_path / 'env' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  (tmp_path / 'stand_in.py').write_text(STAND_IN)
  python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/stand_in.py "$@"\n')
  python.chmod(0o755)

  def call(*more):
    given = ['--root', tmp_path / 'data', '--out', tmp_path / 'out', '--env', tmp_path / 'env', *more]
    monkeypatch.setattr('sys.argv', ['peer.py', *map(str, given)])
    peer.main()

  return call


def change_annotations(folder, change):
  (path,) = (p for p in folder.rglob('*.json') if 'val' in p.name)
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_the_same_boxes_and_the_same_score(call, tmp_path, capsys):
  """Also where a box has no size: of ours it is no object either."""
  change_annotations(
    tmp_path / 'data', lambda c: c['annotations'].append(dict(c['annotations'][0], id=999, bbox=[3, 3, 0, 0], area=0))
  )
  before = {path: path.read_bytes() for path in (tmp_path / 'data').rglob('*') if path.is_file()}
  call('--minutes', '8')
  assert before == {path: path.read_bytes() for path in (tmp_path / 'data').rglob('*') if path.is_file()}
  written = tmp_path / 'out' / 'data'
  assert not any(path.is_symlink() for path in written.rglob('*'))
  for split, name in (('train', 'train'), ('valid', 'validation')):
    for number, (image, boxes) in enumerate(scenes(split).values(), start=1):
      np.testing.assert_array_equal(cv2.imread(str(written / f'images/{name}/{number}.png')), image)
      rows = [line.split() for line in (written / f'labels/{name}/{number}.txt').read_text().splitlines()]
      height, width = image.shape[:2]
      expected = [(i, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height) for i, x, y, w, h in boxes]
      np.testing.assert_allclose(np.array(rows, float), expected or np.empty((0,)), atol=2e-6)
  first, last = json.loads((tmp_path / 'out' / 'peer.json').read_text())['curve']
  assert (first['validation']['AP50'], last['validation']['AP50']) == (0, pytest.approx(1))
  assert last['validation']['AP'] == pytest.approx(1)
  assert 'epoch 2, 8.0 CPU minutes: validation AP 1.000, AP50 1.000' in capsys.readouterr().out
  assert f'names: {json.dumps(list(NAMES))}' in (written / 'data.yaml').read_text()


def test_what_is_trained_is_scored_again(call, tmp_path, capsys):
  call()
  told = (tmp_path / 'out' / 'peer.json').read_text()
  (tmp_path / 'out' / 'peer.json').unlink()
  (tmp_path / 'stand_in.py').write_text('raise SystemExit("trained again")')
  call()
  assert (tmp_path / 'out' / 'peer.json').read_text() == told


def test_a_class_and_an_image_are_told_by_name():
  (row,) = peer.results_rows({'12.png': [[1, 2, 4, 8, 0.5, 1.0]]}, CategoryTable((7, 3), ('a', 'b')))
  assert row == dict(image_id=12, category_id=3, bbox=[1, 2, 3, 6], score=0.5)


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (('--out', '{tmp}/data/out'), r'data/out lies in \S+/data, which is only read: give another place'),
    (('--out', '{tmp}/env'), r'env is there already: give another folder'),
    (('--root', '{tmp}/none'), r'no folder at data.root=\S+/none'),
    (('--env', '{tmp}/data'), r'data is there, and is no environment with ultralytics: give another one'),
  ],
)
def test_what_is_refused(more, message, call, tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    call(*(part.format(tmp=tmp_path) for part in more))
  assert ended.value.code == 2
  assert re.search(message, capsys.readouterr().err)


class Trainer:
  """Of that program: an epoch takes 2 minutes, the first one 3 more."""

  made: typing.ClassVar[list] = []

  def __init__(self, overrides):
    self.options, self.callbacks = overrides, []
    self.wdir = overrides['project'] + '/' + overrides['name']
    self.last = self.wdir + '/last.pt'
    Trainer.made.append(self)

  def add_callback(self, event, callback):
    assert event == 'on_train_epoch_end'
    self.callbacks.append(callback)

  def train(self):
    epochs, period = self.options['epochs'], self.options['save_period']
    for epoch in range(epochs):
      Clock.minutes += 2 + 3 * (epoch == 0)
      for callback in self.callbacks:
        callback(self)
      if period > 0 and epoch % period == 0:
        path = type(self).folder / self.options['name'] / f'epoch{epoch}.pt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class Clock:
  minutes = 0.0


@pytest.mark.parametrize(('minutes', 'epochs'), [(27, 12), (26, 11), (4, 1)])  # 3 + 2 x 12 = 27
def test_what_is_executed_there(minutes, epochs, tmp_path, monkeypatch):
  """Trained anew for the epochs that there is time for; stand-ins for PyTorch and the rest."""
  Trainer.folder, Trainer.made, Clock.minutes = tmp_path, [], 0.0
  result = types.SimpleNamespace(boxes=types.SimpleNamespace(data=np.array([[1.0, 2, 3, 4, 0.5, 0]])))
  yolo = lambda path: types.SimpleNamespace(predict=lambda image, **_: [result])  # noqa: E731
  modules = {
    'torch': dict(set_num_threads=lambda n: None, __version__='2'),
    'ultralytics': dict(YOLO=yolo, __version__='8'),
    'ultralytics.models.yolo.detect': dict(DetectionTrainer=Trainer),
  }
  for name in ('ultralytics.models', 'ultralytics.models.yolo', *modules):
    module = types.ModuleType(name)
    vars(module).update(modules.get(name, {}))
    monkeypatch.setitem(sys.modules, name, module)
  usage = lambda who: types.SimpleNamespace(ru_utime=60 * Clock.minutes / 2, ru_stime=0)  # noqa: E731
  monkeypatch.setattr('resource.getrusage', usage)
  (tmp_path / 'data/images/validation').mkdir(parents=True)
  (tmp_path / 'data/images/validation/7.png').touch()
  request = dict(minutes=minutes, size=320, batch=16, threads=1, seed=0, model='m', splits=['validation'])
  (tmp_path / 'request.json').write_text(json.dumps(request | dict(data=str(tmp_path / 'data'), out=str(tmp_path))))
  runpy.run_path(str(peer.CHILD))['main'](tmp_path / 'request.json')
  assert [trainer.options['epochs'] for trainer in Trainer.made] == [2, epochs]
  answer = json.loads((tmp_path / 'answer.json').read_text())
  assert answer['curve'][-1]['epoch'] == epochs
  assert all(row['cpu_minutes'] == 3 + 2 * row['epoch'] for row in answer['curve'])
  found = json.loads((tmp_path / answer['curve'][-1]['found']['validation']).read_text())
  assert found == {'7.png': [[1.0, 2, 3, 4, 0.5, 0]]}
