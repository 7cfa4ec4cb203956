"""Machines with little: a locale of ASCII alone, a small /dev/shm. In processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks, tiny_run
from tests.tiny_coco import write_tiny_coco
from tests.tiny_detector import write_run
from triplet_det.categories import CategoryTable

NAMES = ('Schlüssel', '鍵', 'κλειδί')
IMAGE = 'é photo — 写真.jpg'


@pytest.fixture(scope='module')
def in_c_locale(tmp_path_factory):
  """The folder, and how check_data and predict ended in it."""
  folder = tmp_path_factory.mktemp('locale')
  coco = write_tiny_coco(folder / 'coco')
  for split in ('train2017', 'val2017'):
    data = json.loads(coco.annotations(split).read_text())
    for category, name in zip(data['categories'], NAMES):
      category['name'] = name
    (coco.images(split) / data['images'][1]['file_name']).rename(coco.images(split) / IMAGE)
    data['images'][1]['file_name'] = IMAGE
    coco.annotations(split).write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
  run = write_run(folder / 'run', categories=CategoryTable(tuple(c['id'] for c in data['categories']), NAMES))
  flags = {
    f'data.{split}.{key}': str(path)
    for split, name in (('train', 'train2017'), ('eval', 'val2017'))
    for key, path in (('images', coco.images(name)), ('annotations', coco.annotations(name)))
  }
  check = tiny_run.command(folder / 'work', 'configs/coco_json.py', {**flags, 'mode': 'check_data'})[1:]
  predict = ['-m', 'triplet_det.predict', f'--checkpoint={run}', '--threshold=0', '--no_mirror']
  photos = str(coco.images('val2017'))
  annotated = f'--annotations={coco.annotations("val2017")}'
  ascii_alone = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONPATH': forks.IMPORTS, 'JAX_PLATFORMS': 'cpu'}
  told = dict(env={**os.environ, **ascii_alone}, capture_output=True, text=True, encoding='utf-8', timeout=300)
  commands = check, [*predict, f'--out={folder}/boxes', annotated, photos]
  return folder, [subprocess.run([sys.executable, *words], cwd=forks.ROOT, **told) for words in commands]


def test_names_that_are_not_ascii_in_the_c_locale(in_c_locale):
  folder, (check, predict) = in_c_locale
  for end in (check, predict):
    assert end.returncode == 0, end.stderr
    assert 'Traceback' not in end.stderr
  assert 'Schlüssel' in check.stdout
  rows = json.loads((folder / 'boxes/detections.json').read_text(encoding='utf-8'))
  assert [Path(row['image']).name for row in rows] == sorted(os.listdir(folder / 'coco/val2017'))
  assert IMAGE in os.listdir(folder / 'coco/val2017')
  assert {row['image_id'] for row in rows} == {100, 107, 114}
  assert set() < {one['name'] for row in rows for one in row['detections']} <= set(NAMES)
  assert (folder / 'boxes' / Path(IMAGE).with_suffix('.png').name).is_file()


BATCHES = """
import sys, zlib
from absl import app
from triplet_det.data import pipeline


def main(argv):
  source = pipeline.open_source(format='coco_json', images=argv[1], annotations=argv[2])
  batches = pipeline.train_batches(source, batch_size=8, input_size=255, seed=0, num_workers=int(argv[3]))
  for _ in range(12):
    print(zlib.crc32(next(batches)['images']))
  batches.close()


if __name__ == '__main__':
  app.run(main)
"""


def test_shared_memory_of_8_megabytes(tmp_path):
  """Batches of two processes would take 19; one that finds no room is killed by SIGBUS."""
  own_mounts = ['unshare', '--map-root-user', '--mount', 'sh', '-c']
  small = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"'
  try:
    subprocess.run([*own_mounts, small, '', 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'no mounts of its own: {error}')
  coco = write_tiny_coco(tmp_path / 'coco')
  script = tmp_path / 'batches.py'
  script.write_text(BATCHES)
  command = [sys.executable, str(script), str(coco.images()), str(coco.annotations())]
  told = dict(capture_output=True, text=True, timeout=120, env={**os.environ, 'PYTHONPATH': forks.IMPORTS})
  threads = subprocess.run([*command, '0'], **told)
  assert threads.returncode == 0 and len(threads.stdout.splitlines()) == 12, threads.stderr
  processes = subprocess.run([*own_mounts, small, '', *command, '2'], **told)
  assert processes.returncode == 0, processes.stderr
  assert processes.stdout == threads.stdout
  assert '/dev/shm has 8 MB free, batches of 2 processes (data.num_workers) take up to 18 MB' in processes.stderr
