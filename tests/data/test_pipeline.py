"""Batch k is a pure function of (seed, k), whatever the data are read from and by however many."""

import collections
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from absl import flags

from tests.tiny_coco import write_tiny_coco
from triplet_det.data import image_files, pipeline, prepare_tfds
from triplet_det.data.sources import Record

SETTINGS = dict(batch_size=4, input_size=63, seed=5, border=16, max_objects=8)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  return write_tiny_coco(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def source(tiny):
  return pipeline.open_source('coco_json', images=tiny.images(), annotations=tiny.annotations())


def take(source, count, **settings):
  batches = pipeline.train_batches(source, **{**SETTINGS, **settings})
  taken = list(itertools.islice(batches, count))
  batches.close()
  return taken


def assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs):
    assert set(a) == set(b)
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope='module')
def expected(source):
  return take(source, 6)


def test_shapes_and_types(expected):
  shapes = {key: (value.shape, value.dtype) for key, value in expected[0].items()}
  assert shapes == dict(
    images=((4, 63, 63, 3), np.uint8),
    boxes=((4, 8, 4), np.float32),
    classes=((4, 8), np.int32),
    valid=((4, 8), np.bool_),
  )
  assert any(batch['valid'].any() for batch in expected)


def test_three_sources_give_the_same_batches(tiny, expected, tmp_path):
  prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root), tmp_path)
  prepared = pipeline.open_source('tfds', name='coco/2017', data_dir=str(tmp_path), split='train', annotations='')
  assert_equal(take(prepared, 6), expected)

  # A plain folder; the JSON lists the images the other way round, the objects of an image in their order.
  folder = tmp_path / 'mine'
  shutil.copytree(tiny.images(), folder)
  data = json.loads(tiny.annotations().read_text())
  data['images'].reverse()
  (folder / 'labels.json').write_text(json.dumps(data))
  mine = pipeline.open_source('coco_json', images=str(folder), annotations=str(folder / 'labels.json'), split='train')
  assert_equal(take(mine, 6), expected)


def test_rows_are_the_stated_function_of_the_record(source):
  """At scale 1, without flip, a row is the image itself, moved, with its boxes; black elsewhere."""
  batch = take(source, 2, scales=(1.0,), flip=False, input_size=256, border=128, train_on_crowd=True)[1]
  records = [source[i] for i in range(len(source))]
  decoded = [image_files.decode_image(record.encoded, record.file_name) for record in records]
  for row, boxes, valid, classes in zip(*(batch[key] for key in ('images', 'boxes', 'valid', 'classes'))):
    found = 0
    for record, image in zip(records, decoded):
      height, width = image.shape[:2]
      for top, left in np.argwhere((row == image[0, 0]).all(axis=-1)):
        if np.array_equal(row[top : top + height, left : left + width], image):
          found += 1
          assert row.sum() == image.sum()
          pixels = record.boxes * [width, height, width, height] + [left, top, left, top]
          np.testing.assert_allclose(boxes[valid], pixels, atol=1e-3)
          np.testing.assert_array_equal(classes[valid], record.classes)
    assert found == 1


def test_boxes_follow_the_pixels(tmp_path):
  """A white rectangle on black: wherever the crop and the flip put it, the box is around it."""
  image = np.zeros((90, 140, 3), np.uint8)
  image[20:71, 30:101] = 255
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  data = dict(
    images=[dict(id=1, file_name='a.png', height=90, width=140)],
    categories=[dict(id=1, name='box')],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[30, 20, 71, 51], area=1, iscrowd=0)],
  )
  (tmp_path / 'a.json').write_text(json.dumps(data))
  source = pipeline.open_source('coco_json', images=tmp_path, annotations=tmp_path / 'a.json')
  batches = take(source, 10, input_size=127, border=64)
  sides = set()
  for image, boxes, valid in zip(*(np.concatenate([b[key] for b in batches]) for key in ('images', 'boxes', 'valid'))):
    ys, xs = np.nonzero(image[..., 0] > 127)
    assert valid.sum() == 1
    # Flipping maps x to S - 1 - x although pixels are S wide, and odd crops lose a column: 2.5 pixels at scale 0.6.
    np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2.5)
    sides.add(round(float(boxes[0, 3] - boxes[0, 1])))
  assert len(sides) > 4


@pytest.mark.parametrize('factor', [2, 4])
def test_with_an_image_side_crops_are_of_images_of_that_size(tmp_path, factor):
  """A white rectangle on black, photographed with 2 or 4 times the pixels: it has the sides of the small image's."""
  image = np.zeros((90 * factor, 140 * factor, 3), np.uint8)
  image[20 * factor : 71 * factor, 30 * factor : 101 * factor] = 255
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  data = dict(
    images=[dict(id=1, file_name='a.png', height=90 * factor, width=140 * factor)],
    categories=[dict(id=1, name='box')],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[factor * x for x in (30, 20, 71, 51)], area=1, iscrowd=0)],
  )
  (tmp_path / 'a.json').write_text(json.dumps(data))
  source = pipeline.open_source('coco_json', images=tmp_path, annotations=tmp_path / 'a.json')
  batches = take(source, 10, input_size=127, border=64, image_side=140, scales=(0.5, 1.0))
  widths = set()
  for image, boxes, valid in zip(*(np.concatenate([b[key] for b in batches]) for key in ('images', 'boxes', 'valid'))):
    ys, xs = np.nonzero(image[..., 0] > 127)
    np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2.5)
    if boxes[0, 0] > 0 and boxes[0, 2] < 126:  # whole
      widths.add(round(float(boxes[0, 2] - boxes[0, 0])))
    assert valid.sum() == 1
  # 71 pixels at scale 1 of crops; twice as many at 0.5 do not fit.
  assert widths and widths <= {70, 71, 72}


def test_restart_at_any_step(source, expected):
  assert_equal(take(source, 3, start_step=3), expected[3:])


def test_hosts_share_the_batch(source, expected):
  shares = [take(source, 6, host_index=host, host_count=2) for host in range(2)]
  for whole, first, second in zip(expected, *shares):
    for key, rows in whole.items():
      np.testing.assert_array_equal(rows, np.concatenate([first[key], second[key]]))


def test_workers_make_the_same_batches(source, expected):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  assert_equal(take(source, 3, num_workers=2, start_step=1), expected[1:4])


class PlainImages:
  """Seven images of 40 x 40 pixels; image i has the grey value 10 + 30 i."""

  def __len__(self):
    return 7

  def __getitem__(self, index):
    encoded = cv2.imencode('.png', np.full((40, 40, 3), 10 + 30 * index, np.uint8))[1].tobytes()
    return Record(
      encoded, index, f'{index}.png', np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    )


def test_every_epoch_has_every_image_once_in_new_order_and_new_crops():
  epochs = take(PlainImages(), 4, batch_size=7)
  orders = [[int(row.max() - 10) // 30 for row in batch['images']] for batch in epochs]
  assert all(sorted(order) == list(range(7)) for order in orders)
  assert len({tuple(order) for order in orders}) == 4
  crops = {tuple((row.max(axis=-1) > 0).ravel()) for batch in epochs for row in batch['images']}
  assert len(crops) > 24  # of 28: new numbers in each epoch and for each image
  other_seed = take(PlainImages(), 1, batch_size=7, seed=6)[0]['images']
  assert [int(row.max() - 10) // 30 for row in other_seed] != orders[0]


def test_embedded_data_set(tmp_path):
  source = pipeline.open_source(
    'shapes', data_dir=str(tmp_path), split='validation', train_images=2, validation_images=3
  )
  assert len(source) == len(source.image_ids) == 3
  batch = take(source, 1, batch_size=3, input_size=127)[0]
  assert batch['images'].shape == (3, 127, 127, 3) and batch['valid'].any()


def test_batch_larger_than_the_data_set(source):
  batch = take(source, 1, batch_size=20)[0]
  assert batch['images'].shape[0] == 20


def test_crowds_are_left_out_unless_asked_for(source):
  wide = dict(batch_size=7, scales=(3.0,), border=10**9, input_size=127, flip=False)
  objects = sum(len(source[i].classes) for i in range(7))
  assert take(source, 1, **wide)[0]['valid'].sum() == objects - 1
  assert take(source, 1, train_on_crowd=True, **wide)[0]['valid'].sum() == objects


def test_load_images_in_order(source):
  indices = [3, 0, 6, 1, 1, 5]
  loaded = list(pipeline.load_images(source, indices))
  assert [index for index, _, _ in loaded] == indices
  for index, record, image in loaded:
    assert record.image_id == source.image_ids[index]
    bgr = cv2.imdecode(np.frombuffer(record.encoded, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(image, bgr[..., ::-1])
  assert list(pipeline.load_images(source, [])) == []
  early = pipeline.load_images(source, range(7))
  next(early)
  early.close()


def test_little_shared_memory(source, expected, monkeypatch, caplog):
  """A process that finds no room there is killed; threads need none, and make the same batches."""
  room = collections.namedtuple('usage', 'total used free')(64 << 20, 64 << 20, 4096)
  monkeypatch.setattr(pipeline.shutil, 'disk_usage', lambda path: room)
  monkeypatch.setattr(pipeline.grain, 'MultiprocessingOptions', None)
  with caplog.at_level('WARNING', 'absl'):
    assert_equal(take(source, 3, num_workers=2), expected[:3])
  assert '/dev/shm has 0 MB free, batches of 2 processes (data.num_workers) take up to' in caplog.text
  assert 'docker run --shm-size=' in caplog.text


@pytest.mark.parametrize(
  'error, raised, said',
  [
    (ValueError('a.jpg: cut short'), pipeline.BrokenInput, 'a.jpg: cut short'),
    (OSError(5, 'Input/output error', 'a.jpg'), pipeline.BrokenInput, "Input/output error: 'a.jpg'"),
    (RuntimeError('Worker process was terminated unexpectedly with exit code -9. S'), pipeline.WorkerLost, 'SIGKILL'),
    (
      RuntimeError('Worker process was terminated unexpectedly with exit code -7. S'),
      pipeline.WorkerLost,
      'shm is f',
    ),
    (RuntimeError('Worker process was terminated unexpectedly with exit code 1. S'), pipeline.WorkerLost, 'code 1 '),
    (RuntimeError('another'), RuntimeError, 'another'),
  ],
)
def test_what_the_input_raises(error, raised, said):
  def batches():
    raise error
    yield

  with pytest.raises(raised, match=said) as found:
    next(pipeline._Batches(batches()))
  assert found.type is raised


def test_a_process_of_the_input_ends_with_the_first():
  """Even with one that is killed, which can tell nobody."""
  code = """
import multiprocessing, time
from triplet_det.data import pipeline
def worker(pid):
  pipeline._begin_worker(0, 1)
  pid.value = 1
  time.sleep(60)
if __name__ == '__main__':
  context = multiprocessing.get_context('fork')
  ready = context.Value('i', 0)
  child = context.Process(target=worker, args=(ready,), daemon=True)
  child.start()
  while not ready.value:
    time.sleep(0.01)
  print(child.pid, flush=True)
  time.sleep(60)
"""
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
  child = int(process.stdout.readline())
  os.kill(child, signal.SIGTERM)  # as a scheduler sends it to all processes of a job
  os.kill(child, signal.SIGINT)
  os.kill(child, 0)
  process.kill()
  start = time.monotonic()
  process.communicate()  # ends when the last process that has the pipe is gone
  assert time.monotonic() - start < 30
