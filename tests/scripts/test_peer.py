"""scripts/peer.py with a stand-in for the other detector: its data are ours, and what it finds is scored as ours is."""

import json
import re
import sys

import numpy as np
import pytest

from scripts import peer
from tests.data.layouts.test_folder import LAYOUTS, NAMES, boxes_by_file, scenes
from triplet_det import evaluate
from triplet_det.data.layouts import folder

# Answers as scripts/peer_ultralytics.py does: at first nothing is found, at the end every box of the labels.
STAND_IN = """
import json, sys
from pathlib import Path
import cv2
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
  (tmp_path / 'env' / 'complete').touch()

  def call(*more):
    given = ['--root', tmp_path / 'data', '--out', tmp_path / 'out', '--env', tmp_path / 'env', *more]
    monkeypatch.setattr('sys.argv', ['peer.py', *map(str, given)])
    peer.main()

  return call


def test_the_same_boxes_and_the_same_score(call, tmp_path, capsys):
  call('--minutes', '8')
  data = folder.read(tmp_path / 'data')
  theirs = folder.read(tmp_path / 'out' / 'data')
  assert theirs.layout == 'yolo'
  for split, name in (('train', 'train'), ('valid', 'validation')):
    expected = [[(NAMES[i], *box) for i, *box in boxes] for _, boxes in scenes(split).values()]
    for boxes, wanted in zip(boxes_by_file(theirs.splits[name].content).values(), expected, strict=True):
      assert [label for label, *_ in boxes] == [label for label, *_ in wanted]
      np.testing.assert_allclose([box for _, *box in boxes], [box for _, *box in wanted], atol=1e-3)
  first, last = json.loads((tmp_path / 'out' / 'peer.json').read_text())['curve']
  rows = [dict(row, score=0.9) for row in data.splits['validation'].content['annotations']]
  perfect, _ = evaluate.measure(data.splits['validation'].content, rows)
  assert (first['validation']['AP50'], last['validation']['AP50']) == (0, perfect['AP50'])
  assert last['validation']['AP'] == pytest.approx(perfect['AP'], abs=1e-9) and perfect['AP'] == pytest.approx(1)
  assert 'epoch 2, 8.0 CPU minutes: validation AP 1.000, AP50 1.000' in capsys.readouterr().out


def test_a_class_and_an_image_are_told_by_name():
  categories = [dict(id=7, name='a'), dict(id=3, name='b')]
  (row,) = peer.results_rows({'x.png': [[1, 2, 4, 8, 0.5, 1.0]]}, {'x.png': 12}, categories)
  assert row == dict(image_id=12, category_id=3, bbox=[1, 2, 3, 6], score=0.5)


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (('--out', '{tmp}/data/out'), r'data/out lies in \S+/data, which is only read: give another place'),
    (('--out', '{tmp}/env'), r'env is there already: give another folder'),
    (('--root', '{tmp}/none'), r'no folder at data.root=\S+/none'),
  ],
)
def test_what_is_refused(more, message, call, tmp_path, capsys):
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(SystemExit) as ended:
    call(*(part.format(tmp=tmp_path) for part in more))
  assert ended.value.code == 2
  assert re.search(message, capsys.readouterr().err)
  assert sorted(tmp_path.rglob('*')) == before
