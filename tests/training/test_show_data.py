"""The pictures of what the network sees, pixel by pixel where it counts."""

import json
import logging
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from tests import tiny_run
from tests.tiny_coco import write_tiny_coco
from triplet_det import main, train
from triplet_det.configs import photos
from triplet_det.data import pipeline
from triplet_det.pictures import drawing
from triplet_det.training import colour_augmentation, show_data

SIDE, FACTOR, GAP = 63, 8, 12  # of the batches; 480 / 63 pixels, rounded up; between pictures 504 pixels wide
PLAIN = dict(seed=3, colour_jitter=0.0, lighting=0.0, min_overlap=0.3, published_radius=False)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  coco = write_tiny_coco(tmp_path_factory.mktemp('data') / 'coco', train=6, val=1)
  return pipeline.open_source('coco_json', images=coco.images(), annotations=coco.annotations())


def batch(images=2):
  """Grey images with one disc from (8, 8) to (40, 48), cells (2, 2) and (10, 12) of 16, center (6, 7); a free slot."""
  boxes = np.zeros((images, 2, 4), np.float32)
  boxes[:, 0] = 8, 8, 40, 48
  return dict(
    images=np.full((images, SIDE, SIDE, 3), 128, np.uint8),
    boxes=boxes,
    classes=np.zeros((images, 2), np.int32),
    valid=np.tile([True, False], (images, 1)),
  )


def endless(images=2):
  while True:
    yield batch(images)


def read(path):
  return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def panels(picture):
  """The two drawings of a sample."""
  size = SIDE * FACTOR
  return [picture[GAP : GAP + size, left : left + size] for left in (GAP, 2 * GAP + size)]


def at_cell(panel, x, y):
  """The middle of an output cell, 31.5 pixels wide in the drawing."""
  return panel[int((y + 0.5) * 31.5), int((x + 0.5) * 31.5)].tolist()


@pytest.fixture(scope='module')
def written(source, tmp_path_factory):
  """The folder with the pictures of batches of 3."""
  folder = tmp_path_factory.mktemp('written')
  assert show_data.write(source, endless(3), folder, **PLAIN) == folder / 'data.png'
  return folder


def test_the_files(written):
  """6 images of which the first has no box: 5 originals; batches of 3 give 8 samples in 3 steps."""
  names = [f'original_{n}.png' for n in range(1, 6)] + [f'sample_{n}.png' for n in range(1, 9)]
  assert sorted(path.name for path in (written / 'data').iterdir()) == sorted(names)
  assert read(written / 'data.png').shape[1] == 4 * 400 + 5 * 10


def test_targets_and_boxes_of_a_sample(written):
  """Grey 128 is half as bright under the lights: 64."""
  drawn, heat = panels(read(written / 'data/sample_8.png'))
  assert at_cell(heat, 2, 2) == [255, 64 + 60, 64 + 60]
  assert at_cell(heat, 10, 12) == [64 + 70, 64 + 130, 255]
  assert at_cell(heat, 6, 7) == [64 + 70, 255, 64 + 70]
  assert at_cell(heat, 14, 2) == at_cell(heat, 2, 12) == [64, 64, 64]
  assert drawn[28 * FACTOR, 8 * FACTOR].tolist() == list(drawing.class_color(0))
  assert drawn[48 * FACTOR, 24 * FACTOR].tolist() == list(drawing.class_color(0))
  assert drawn[28 * FACTOR, 24 * FACTOR].tolist() == [128, 128, 128]


def test_a_network_without_centers(source, tmp_path):
  show_data.write(source, endless(), tmp_path, centers=False, **PLAIN)
  _, heat = panels(read(tmp_path / 'data/sample_1.png'))
  assert at_cell(heat, 6, 7) == [64, 64, 64] and at_cell(heat, 2, 2) == [255, 124, 124]


def test_colours_are_those_of_the_training_step(source, tmp_path):
  show_data.write(source, endless(), tmp_path, **{**PLAIN, 'colour_jitter': 0.4, 'lighting': 2.0})
  seen = set()
  for step in range(4):
    key = jax.random.fold_in(jax.random.key(3), step)
    draws = colour_augmentation.draw_colours(key, 2, jitter=0.4, lighting=2.0)
    images = np.asarray(colour_augmentation.distort(np.full((2, SIDE, SIDE, 3), 128 / 255, np.float32), draws))
    for row in range(2):
      drawn, _ = panels(read(tmp_path / f'data/sample_{2 * step + row + 1}.png'))
      expected = np.rint(np.clip(images[row, 0, 0], 0, 1) * 255)
      np.testing.assert_allclose(drawn[28 * FACTOR, 24 * FACTOR], expected, atol=1)
      seen.add(tuple(expected))
  assert len(seen) == 8


def test_originals_have_the_boxes_of_the_file(source, written):
  index = int(np.flatnonzero(np.diff(source.annotations.starts))[0])
  record = source[index]
  height, width = source.image_sizes[index]
  picture = read(written / 'data/original_1.png')
  factor = -(-drawing.MIN_SIDE // max(height, width))
  assert picture.shape == (height * factor, width * factor, 3)
  x1, _, x2, y2 = record.boxes[0] * np.array([width, height] * 2) * factor  # the first is drawn last
  color = drawing.class_color(int(record.classes[0]))
  assert picture[round(float(y2)), round(float(x1 + x2) / 2)].tolist() == list(color)


def test_data_without_boxes(tmp_path):
  coco = write_tiny_coco(tmp_path / 'coco', train=1, val=1)  # the first image has none
  source = pipeline.open_source('coco_json', images=coco.images(), annotations=coco.annotations(), require_boxes=False)
  with pytest.raises(ValueError, match='no box to show'):
    show_data.write(source, endless(), tmp_path, **PLAIN)


def test_modes_check_data_and_show_data(tmp_path, capfd):
  """Through `main.run`, which is what the command calls."""
  overrides = tiny_run.OVERRIDES | tiny_run.coco_data(tmp_path / 'coco')
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict(overrides | {'mode': 'show_data'})
  workdir = tmp_path / 'run'
  main.run(config, workdir)
  assert f'to look at: {workdir / "data.png"}' in capfd.readouterr().out
  samples = [read(path) for path in (workdir / 'data').glob('sample_*.png')]
  assert len(samples) == 8 and all(sample.shape[1] == 2 * 31 * 16 + 3 * GAP for sample in samples)

  config.mode = 'check_data'
  main.run(config, tmp_path / 'none')
  said = capfd.readouterr()
  assert not (tmp_path / 'none').exists()
  assert f'evaluation: {config.data.eval.annotations}\n  3 images, ' in said.out
  assert 'reading evaluation  image 3/3  100%' in said.err
  broken = next((tmp_path / 'coco/val2017').glob('*.jpg'))
  broken.write_bytes(broken.read_bytes()[:200])
  with pytest.raises(ValueError, match=f'^1 thing makes training impossible, see above; the first: .*{broken.name}'):
    main.run(config, tmp_path / 'none')
  assert f'wrong: unreadable: {broken}: is a JPEG cut short' in capfd.readouterr().out


def test_data_that_nothing_can_be_learnt_from_stop_the_training(tmp_path, caplog):
  """Before step 0: all boxes are around groups."""
  overrides = tiny_run.OVERRIDES | tiny_run.coco_data(tmp_path / 'coco')
  path = Path(overrides['data.train.annotations'])
  truth = json.loads(path.read_text())
  boxes = len(truth['annotations'])
  path.write_text(json.dumps(truth | {'annotations': [row | {'iscrowd': 1} for row in truth['annotations']]}))
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict(overrides)
  sources = [pipeline.open_source(**config.data[split]) for split in ('train', 'eval')]
  with caplog.at_level(logging.INFO, logger='absl'):
    with pytest.raises(ValueError, match=rf'has no object to learn: {boxes} boxes, all around groups'):
      train.report_data(config, *sources)
    assert 'train: 6 images, 0 objects' in caplog.text and 'evaluation: 3 images' in caplog.text
    config.augment.train_on_crowd = True  # as published
    train.report_data(config, *sources)
    assert f'train: 6 images, {boxes} objects' in caplog.text
