"""Ground truth in the place of predictions: nothing is lost by the decoder, and only what was asked for is replaced."""

import functools
import json
import logging
import math
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_coco import CATEGORIES
from triplet_det.data.sources import JsonSource
from triplet_det.detection import coco_results, inference
from triplet_det.detection.settings import Settings
from triplet_det.evaluators import coco_ap, error_analysis
from triplet_det.evaluators.error_analysis import OUTPUTS, REPLACED, Truth
from triplet_det.structs import KeypointMaps
from triplet_det.training import targets

Settings = functools.partial(Settings, canvas_multiple=32)
DISC, SQUARE, RING = (category['id'] for category in CATEGORIES)

# (height, width) and objects (category, x, y, w, h). The canvases are 95 x 63 and 63 x 95.
SCENES = [
  # As large as its canvas: a box of the whole image, one of the single pixel in a corner of it.
  ((95, 63), [(DISC, 0, 0, 63, 95), (RING, 62, 0, 1, 1)]),
  # The last pixels; the first ones.
  ((95, 63), [(SQUARE, 54, 88.5, 9, 6.5), (SQUARE, 0, 0, 5, 3)]),
  # One pixel from the border; two of a class that overlap, and one that touches them.
  ((60, 90), [(RING, 1, 1, 88, 58), (DISC, 20, 11, 30.3, 24), (DISC, 27.25, 20, 30, 24), (DISC, 57.25, 20, 20, 24)]),
  # Two of a class whose top-left corners are in neighbouring cells; high and narrow; low and wide.
  ((47, 81), [(SQUARE, 8, 9, 11, 11), (SQUARE, 12.5, 9, 13, 14), (RING, 30, 2, 2, 30), (DISC, 3, 30, 40, 1.5)]),
  ((47, 81), []),
]
CROWD = (SQUARE, 4, 40, 50, 30)  # on the first image


def write_scenes(folder, scenes=SCENES, crowd=CROWD):
  """The scenes as a source: images of noise, for none of the networks below looks at them."""
  rng = np.random.default_rng(0)
  data = dict(images=[], annotations=[], categories=CATEGORIES)
  for i, ((height, width), objects) in enumerate(scenes):
    image_id, name = 10 + i, f'{i}.png'
    cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3), np.uint8))
    data['images'].append(dict(id=image_id, file_name=name, height=height, width=width))
    for category, x, y, w, h in objects:
      number = len(data['annotations']) + 1
      row = dict(id=number, image_id=image_id, category_id=category, bbox=[x, y, w, h], area=w * h, iscrowd=0)
      data['annotations'].append(row)
  if crowd:
    category, *box = crowd
    row = dict(id=99, image_id=10, category_id=category, bbox=box, area=box[2] * box[3], iscrowd=1)
    data['annotations'].append(row)
  (folder / 'truth.json').write_text(json.dumps(data))
  return JsonSource(images=folder, annotations=folder / 'truth.json', split='scenes')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return write_scenes(tmp_path_factory.mktemp('scenes'))


def wild_maps(shape, seed=1, centers=True):
  """Values all over the place, the same for every image and not the same for any two cells; quick to compile."""

  def waves(channels, size=1.0):
    numbers = np.random.default_rng([seed, channels, int(size)]).uniform(1, 9, (2, shape[0], 1, 1, channels))
    down, right = jnp.arange(shape[1])[:, None, None], jnp.arange(shape[2])[:, None]
    return size * jnp.sin(numbers[0] * down + numbers[1] * right)

  maps = KeypointMaps(waves(3, 4), waves(3, 5), waves(1), waves(1, 2), waves(2), waves(2, 2))
  return maps.replace(center_heat=waves(3, 6), center_offset=waves(2, 3)) if centers else maps


class Network:
  """Says the same about every image, whatever it shows; the maps of a shape are made by `make_maps(shape [B, H, W])`.

  As the real one it has two stacks, of which the last one counts.
  """

  def __init__(self, make_maps):
    self._make_maps = make_maps

  def apply(self, variables, images):
    batch, height, width, _ = images.shape
    maps = self._make_maps((batch, (height + 1) // 4, (width + 1) // 4))
    return [jax.tree.map(lambda a: a + jnp.nan, maps), maps]


def rows_of(rows):
  return {row['replaced']: row['metrics'] for row in rows}


def silent_maps(shape, centers=True):
  return jax.tree.map(lambda a: a * 0 - 1000, wild_maps(shape, centers=centers))


@pytest.mark.parametrize(
  'make_maps, settings',
  [
    (functools.partial(wild_maps, seed=0), Settings()),
    (functools.partial(wild_maps, seed=1), Settings(mirror=False)),
    (functools.partial(wild_maps, seed=2), Settings(scales=(1.0, 1.4), merge_exponent=10)),
    (functools.partial(wild_maps, seed=3, centers=False), Settings(outside_margin=None)),
    (silent_maps, Settings(stale_rows=True, inclusive=True, cut_last_line=True)),
  ],
  ids=['mirror', 'no mirror', 'two scales', 'cornernet', 'published'],
)
def test_with_everything_replaced_the_decoder_loses_nothing(source, make_maps, settings, caplog):
  caplog.set_level(logging.INFO, logger='absl')
  rows = error_analysis.analyse(Network(make_maps), {}, settings, source, batch_size=2)
  names = list(REPLACED)
  if make_maps((1, 2, 3)).center_heat is None:
    names.remove('centers')
  assert [row['replaced'] for row in rows] == names
  assert all(tuple(row['metrics']) == error_analysis.METRICS for row in rows)
  metrics = rows_of(rows)
  assert metrics['everything']['AP'] == pytest.approx(1, abs=1e-9)
  assert metrics['everything']['AP_S'] == pytest.approx(1, abs=1e-9)
  assert 'share the cell' not in caplog.text and 'top_k' not in caplog.text
  assert math.isnan(metrics['everything']['AP_L'])  # no object is that large
  for name in names[:-1]:  # one output alone does not make up for the others
    assert metrics[name]['AP'] < 0.7


def test_a_quirk_that_moves_boxes_costs_ap(source):
  """The truth stays where the image shows it, so boxes of the mirror image that are turned back wrongly are wrong."""
  rows = error_analysis.analyse(Network(silent_maps), {}, Settings(mirror_shift=True), source, batch_size=2)
  assert rows_of(rows)['everything']['AP'] < 0.99


def one_pair(shape):
  """One box in every image, of class 0: corners in cells (2, 2) and (7, 6), center in cell (4, 4), offsets 0."""

  def heat(x, y):
    return jnp.full((*shape, 3), -jnp.inf).at[:, y, x, 0].set(3.0)

  zero, offset = jnp.zeros((*shape, 1)), jnp.zeros((*shape, 2))
  return KeypointMaps(heat(2, 2), heat(7, 6), zero, zero, offset, offset, heat(4, 4), offset)


def test_rows_by_hand(tmp_path):
  """Two images on canvases of 63 x 63, maps of 16 x 16; the second shows what the network sees in both."""
  stride = 63 / 16
  seen = (DISC, 2 * stride, 2 * stride, 5 * stride, 4 * stride)
  scenes = [((63, 63), [(DISC, 40, 30.5, 14, 20)]), ((63, 63), [seen])]
  source, settings = write_scenes(tmp_path, scenes, crowd=None), Settings(mirror=False)
  metrics = rows_of(error_analysis.analyse(Network(one_pair), {}, settings, source, batch_size=2))
  half = 51 / 101  # of the recalls 0, 0.01, ..., 1 that are not above 0.5
  # The same box in both images, the wrong one first.
  assert metrics['nothing']['AP'] == pytest.approx(half / 2)
  # No center in the wrong box's central region any more, but no corners for the other object either.
  assert metrics['centers']['AP'] == pytest.approx(half)
  # One pair per image whose embeddings and offsets are right already.
  assert metrics['embeddings']['AP'] == metrics['offsets']['AP'] == pytest.approx(half / 2)
  # The first object's center is missing.
  assert metrics['corners']['AP'] == pytest.approx(half)
  assert metrics['everything']['AP'] == pytest.approx(1)

  detector = inference.Detector(lambda v, images: Network(one_pair).apply(v, images)[-1], {}, settings)
  images = [cv2.imread(str(tmp_path / name)) for name in source.annotations.file_names]
  found = coco_results.results_rows(zip(source.image_ids, detector(images)), source.categories)
  standard = coco_ap.evaluate(source.ground_truth, found)
  assert {name: standard[name] for name in error_analysis.METRICS} == pytest.approx(metrics['nothing'], nan_ok=True)


# In cells of a map of 20 x 12: two whose top-left corners are near each other, one that begins where the first ends.
BOXES = np.array([[2.3, 1.6, 12.9, 8.2], [4.7, 2.2, 9.1, 6.9], [12.4, 8.9, 18.5, 11.5]])
SHAPE = (12, 20, 3)  # H, W, C
TRUE_MAPS = jax.jit(error_analysis.true_maps, static_argnums=(2, 3))
REPLACE = jax.jit(error_analysis.replace)


def maps_of(boxes, classes, *, mirror=False, canvas=(47, 79)):
  """`true_maps` of one image whose boxes [n, 4] are given in cells; padded by a slot of garbage."""
  stride = [canvas[1] / SHAPE[1], canvas[0] / SHAPE[0]] * 2
  padded = np.concatenate([boxes * stride, [[3, 3, 40, 40]]]).astype(np.float32)
  truth = Truth(padded[None], np.array([[*classes, 1]], np.int32), (np.arange(len(padded)) < len(boxes))[None])
  predicted = wild_maps((1 + mirror, *SHAPE[:2]))
  true, hidden = TRUE_MAPS(truth, predicted, Settings(mirror=mirror), canvas)
  return jax.tree.map(np.asarray, predicted), jax.tree.map(np.asarray, true), int(hidden)


def owner_by_hand(corner, x, y):
  """The index of the nearest object whose box still has IoU 0.5 with its corner moved to the cell (x, y), or NaN."""
  best = math.nan, math.inf
  for i, box in enumerate(BOXES):
    moved, at = box.copy(), slice(0, 2) if corner == 'tl' else slice(2, 4)
    step = np.array([x, y]) - np.floor(box[at])
    moved[at] += step
    sides = np.minimum(moved[2:], box[2:]) - np.maximum(moved[:2], box[:2])
    if (sides > 0).all() and (moved[2:] > moved[:2]).all():
      area = sides.prod()
      iou = area / ((moved[2:] - moved[:2]).prod() + (box[2:] - box[:2]).prod() - area)
      if iou >= 0.5 and step @ step < best[1]:
        best = i, step @ step
  return best[0]


@pytest.mark.parametrize('corner', ['tl', 'br'])
def test_owners_of_cells(corner):
  _, true, hidden = maps_of(BOXES, [0, 1, 0])
  assert hidden == 0
  owner = np.array([[owner_by_hand(corner, x, y) for x in range(SHAPE[1])] for y in range(SHAPE[0])])
  assert 20 < np.isfinite(owner).sum() < 200 and len(np.unique(owner[np.isfinite(owner)])) == 3
  apart = 1 + 2 * 0.5
  np.testing.assert_array_equal(getattr(true, f'{corner}_embed')[0, ..., 0], (owner + 1) * apart)
  points = BOXES[:, :2] if corner == 'tl' else BOXES[:, 2:]
  fraction = np.concatenate([points - np.floor(points), [[np.nan] * 2]])[np.nan_to_num(owner, nan=3).astype(int)]
  np.testing.assert_allclose(getattr(true, f'{corner}_offset')[0], fraction, atol=1e-5)


@pytest.mark.parametrize('kind', ['tl', 'br', 'center'])
def test_cells_and_offsets_are_those_of_training(kind):
  classes, canvas = np.array([0, 1, 0]), (47, 79)
  pixels = (BOXES * ([79 / 20, 47 / 12] * 2)).astype(np.float32)
  want = targets.render(
    pixels[None], classes[None], np.ones((1, 3), bool), num_classes=3, input_size=canvas, output_size=SHAPE[:2]
  )
  _, true, _ = maps_of(BOXES, classes)
  heat, offset = getattr(true, f'{kind}_heat')[0], getattr(true, f'{kind}_offset')[0]
  assert set(np.unique(heat)) == {-np.inf, np.inf}
  np.testing.assert_array_equal(heat == np.inf, np.asarray(getattr(want, f'{kind}_heat')[0]) == 1)
  cells = np.asarray(getattr(want, f'{kind}_cell')[0])
  np.testing.assert_allclose(offset.reshape(-1, 2)[cells], getattr(want, f'{kind}_offset')[0], atol=1e-5)
  if kind == 'center':
    assert np.isfinite(offset).all(axis=-1).sum() == 3


def test_the_mirror_image_shows_pixel_0_last():
  stride, last = [79 / 20, 47 / 12] * 2, 79 - 1
  x1, y1, x2, y2 = (BOXES * stride).T
  mirrored = np.stack([last - x2, y1, last - x1, y2], axis=-1) / stride
  _, both, _ = maps_of(BOXES, [0, 1, 0], mirror=True)
  _, image, _ = maps_of(BOXES, [0, 1, 0])
  _, mirror_image, _ = maps_of(mirrored, [0, 1, 0])
  for name, maps in vars(both).items():
    np.testing.assert_allclose(maps[0], getattr(image, name)[0], atol=1e-5)
    np.testing.assert_allclose(maps[1], getattr(mirror_image, name)[0], atol=1e-5)


def test_crowds_are_not_objects(source):
  objects = error_analysis.objects_to_find(source)
  assert {image_id: len(classes) for image_id, (_, classes) in objects.items()} == {10: 2, 11: 2, 12: 4, 13: 4, 14: 0}
  boxes, classes = objects[10]
  assert boxes.tolist() == [[0, 0, 63, 95], [62, 0, 63, 1]] and classes.tolist() == [0, 2]


@pytest.mark.parametrize('chosen', OUTPUTS)
def test_only_what_is_chosen_is_replaced(chosen):
  fields = dict(
    centers={'center_heat', 'center_offset'},
    corners={'tl_heat', 'br_heat'},
    embeddings={'tl_embed', 'br_embed'},
    offsets={'tl_offset', 'br_offset'},
  )
  predicted, true, _ = maps_of(BOXES, [0, 1, 0], mirror=True)
  replaced = REPLACE(predicted, true, {output: np.bool_(output == chosen) for output in OUTPUTS})
  for name, before in vars(predicted).items():
    after, truth = np.asarray(getattr(replaced, name)), getattr(true, name)
    if name not in fields[chosen]:
      np.testing.assert_array_equal(after, before)
      continue
    known = ~np.isnan(truth)
    np.testing.assert_array_equal(after[~known], before[~known])
    if not name.endswith('embed'):
      np.testing.assert_array_equal(after[known], truth[known])
  if chosen == 'embeddings':
    tl, br = (np.unique(getattr(replaced, name)[~np.isnan(getattr(true, name))]) for name in sorted(fields[chosen]))
    largest = max(np.abs(predicted.tl_embed).max(), np.abs(predicted.br_embed).max())
    np.testing.assert_array_equal(tl, br)
    assert len(tl) == 3 and np.diff([largest, *tl]).min() > 1


def test_objects_in_one_cell_and_too_many_of_them_are_counted(tmp_path, caplog):
  twins = [(DISC, 10, 10, 20, 20), (RING, 10.5, 10.5, 30, 36), (SQUARE, 50, 30, 8, 8)]
  source = write_scenes(tmp_path, [((60, 90), twins)], crowd=None)
  with caplog.at_level(logging.INFO, logger='absl'):
    rows = error_analysis.analyse(Network(silent_maps), {}, Settings(top_k=2, mirror=False), source, batch_size=1)
  assert 'keeps 2 keypoints, 1 of 1 images have more objects, up to 3' in caplog.text
  assert 'scale 1: 1 of 3 objects share the cell' in caplog.text
  assert rows_of(rows)['everything']['AP'] < 0.7


def test_a_split_without_objects_is_refused(tmp_path):
  source = write_scenes(tmp_path, [((60, 90), [])])
  with pytest.raises(ValueError, match='no object to find on the 1 images'):
    error_analysis.analyse(Network(silent_maps), {}, Settings(), source, batch_size=1)


FOUR_DEVICES = """
import pathlib, sys, jax, pytest
from tests.evaluators.test_error_analysis import SCENES, Network, Settings, error_analysis, wild_maps, write_scenes
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
source = write_scenes(pathlib.Path(sys.argv[1]), SCENES[2:], None)
rows = error_analysis.analyse(Network(wild_maps), {}, Settings(), source, batch_size=2, sharding=sharding)
assert jax.device_count() == 4 and rows[-1]['replaced'] == 'everything'
assert rows[-1]['metrics']['AP'] == pytest.approx(1, abs=1e-9), rows[-1]
"""


def test_four_devices(tmp_path):
  environment = os.environ | dict(XLA_FLAGS='--xla_force_host_platform_device_count=4', JAX_PLATFORMS='cpu')
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, '-c', FOUR_DEVICES, str(tmp_path)]
  done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
