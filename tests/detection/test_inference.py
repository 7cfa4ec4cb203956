"""The whole way from images to detections: published numbers, geometry by hand, batching that changes nothing."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_networks import golden_maps
from triplet_det.categories import COCO
from triplet_det.data.augmentation import scale_to
from triplet_det.detection.batches import canvases_of, place_batch
from triplet_det.detection.canvas import canvas_size, place, resized_size
from triplet_det.detection.coco_results import results_rows
from triplet_det.detection.inference import Detector
from triplet_det.detection.nms import soft_nms_in_place
from triplet_det.detection.settings import (
  PUBLISHED_CENTERNET,
  PUBLISHED_CENTERNET_MULTI_SCALE,
  PUBLISHED_CORNERNET,
  PUBLISHED_CORNERNET_MULTI_SCALE,
  Settings,
)
from triplet_det.models import input_pixels
from triplet_det.structs import KeypointMaps

Settings = functools.partial(Settings, canvas_multiple=16)

GOLDEN = {
  name: np.load(pathlib.Path(__file__).parents[1] / 'golden' / f'decode_{name}.npz')
  for name in ('centernet', 'cornernet')
}
PUBLISHED = dict(
  centernet=(PUBLISHED_CENTERNET, PUBLISHED_CENTERNET_MULTI_SCALE),
  cornernet=(PUBLISHED_CORNERNET, PUBLISHED_CORNERNET_MULTI_SCALE),
)


def stored_network(golden, case, scales):
  """(apply_fn, variables) that answers with the stored maps of the scale whose input it sees."""
  variables = [
    dict(mean=jnp.asarray(golden[f'{case}/s{k}/input_f16_check'][0]), maps=golden_maps(golden, f'{case}/s{k}'))
    for k in range(scales)
  ]

  def apply_fn(variables, images):
    fitting = [v for v in variables if v['maps'].tl_heat.shape[1] == (images.shape[1] + 1) // 4]
    # Two scales may share a canvas; their inputs differ in the mean.
    which = jnp.argmin(jnp.stack([jnp.abs(images[0].mean() - v['mean']) for v in fitting]))
    return jax.tree.map(lambda *maps: jnp.stack(maps)[which], *(v['maps'] for v in fitting))

  return apply_fn, variables


def assert_same_rows(got, want):
  """Every row [x1 y1 x2 y2 score class] of one has its partner in the other; returns the partners' rows of `want`."""
  assert got.shape == want.shape
  apart = np.abs(got[:, None, :4] - want[None, :, :4]).max(axis=-1) / 1e-2
  apart = np.maximum(apart, np.abs(got[:, None, 4] - want[None, :, 4]) / 1e-5)
  same = (apart <= 1) & (got[:, None, 5] == want[None, :, 5])
  assert (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()
  return want[same.argmax(axis=1)]


def rows_of(detections):
  return np.column_stack([detections.boxes, detections.scores, detections.classes])


# Not CornerNet's other cases: their maps have fewer peaks than K, and torch fills up with any cells of the background.
@pytest.mark.parametrize(
  'name, case',
  [('centernet', 'single'), ('centernet', 'single_large'), ('centernet', 'multi'), ('cornernet', 'single')],
)
def test_published_detections(name, case, parity):
  golden = GOLDEN[name]
  settings = PUBLISHED[name][case == 'multi']
  assert settings.scales == tuple(golden[f'{case}/scales'])
  detector = Detector(*stored_network(golden, case, len(settings.scales)), settings, batch_size=1)
  (found,) = detector([golden[f'{case}/image'][:, :, ::-1]])
  want = golden[f'{case}/final'].copy()
  want[:, 5] -= 1  # their classes count from 1
  apart = np.abs(rows_of(found) - assert_same_rows(rows_of(found), want)).max(axis=0)
  parity(f'detections, {name}, {case}: boxes, pixels', apart[:4].max(), 1e-2)
  parity(f'detections, {name}, {case}: scores', apart[4], 1e-5)
  assert (np.diff(found.scores) <= 0).all() and found.valid.all()
  # What goes into results.json, to the digit; equal scores may stand in another order.
  written = [[row['category_id'], *row['bbox'], row['score']] for row in results_rows([(1, found)], COCO, decimals=2)]
  assert sorted(written) == sorted(golden[f'{case}/json'].tolist())
  assert detector.num_programs == len({golden[f'{case}/s{k}/input_shape'][2] for k in range(len(settings.scales))})


@pytest.mark.parametrize('name', ['centernet', 'cornernet'])
@pytest.mark.parametrize('case', ['single', 'single_large', 'multi'])
def test_published_soft_nms_of_the_rows_handed_to_it(name, case):
  rows, want = GOLDEN[name][f'{case}/pre_nms'], GOLDEN[name][f'{case}/final']
  settings = PUBLISHED[name][case == 'multi'].nms_settings()
  found = soft_nms_in_place(rows[:, :4], rows[:, 4], rows[:, 7], rows[:, 5], rows[:, 6], **settings)
  assert_same_rows(rows_of(found), want)


@pytest.mark.parametrize('case', ['single', 'single_large', 'multi'])
def test_published_network_inputs(case):
  golden = GOLDEN['centernet']
  for k, scale in enumerate(golden[f'{case}/scales']):
    canvas, _ = place(golden[f'{case}/image'][:, :, ::-1], scale, 128, cut_last_line=True)
    image = np.asarray(input_pixels.normalise(canvas))[:, :, ::-1]
    assert image.shape[:2] == tuple(golden[f'{case}/s{k}/input_shape'][2:])
    mean, std, at_60_60, _ = golden[f'{case}/s{k}/input_f16_check']
    np.testing.assert_allclose([image.mean(), image.std(), image[60, 60, 0]], [mean, std, at_60_60], atol=1e-5)
    if case == 'single':
      np.testing.assert_allclose(image.transpose(2, 0, 1), golden['single/s0/input'][0], atol=1e-6)


def test_exact_rows_are_the_published_ones_without_the_stale():
  golden = GOLDEN['centernet']
  settings = dataclasses.replace(PUBLISHED_CENTERNET, stale_rows=False)
  (found,) = Detector(*stored_network(golden, 'single', 1), settings, batch_size=1)(
    [golden['single/image'][:, :, ::-1]]
  )
  want = golden['single/final'].copy()
  want[:, 5] -= 1
  assert 0 < len(found.scores) < len(want)
  partners = [(np.abs(want - row).max(axis=1) < 1e-2).sum() for row in rows_of(found)]
  assert partners == [1] * len(partners)


@pytest.mark.parametrize(
  'size, multiple, want',
  [((1, 1), 128, (127, 127)), ((127, 128), 128, (127, 255)), ((480, 640), 128, (511, 767)), ((9, 7), 8, (15, 7))],
)
def test_canvas_size(size, multiple, want):
  assert canvas_size(*size, multiple) == want


def test_an_image_in_the_middle_of_its_canvas():
  image = np.arange(1, 5 * 6 * 3 + 1, dtype=np.uint8).reshape(5, 6, 3)
  canvas, placement = place(image, 1.0, 16)
  assert canvas.shape == (15, 15, 3)
  np.testing.assert_array_equal(canvas[5:10, 4:10], image)
  assert canvas.sum() == image.sum()
  np.testing.assert_array_equal(placement.border, [4, 5])
  np.testing.assert_array_equal(placement.size, [6, 5])


def test_the_scale_of_a_resized_image():
  image = np.full((33, 51, 3), 7, np.uint8)
  canvas, placement = place(image, 0.6, 16)
  np.testing.assert_array_equal(placement.size, [30, 19])
  np.testing.assert_allclose(placement.scale, [30 / 51, 19 / 33])
  np.testing.assert_allclose(place(image, 0.6, 16, nominal_scale=True)[1].scale, [0.6, 0.6])
  assert (canvas == 7).all(axis=-1).sum() == 30 * 19


def test_the_longer_side_has_the_pixels_asked_for():
  """To the pixel, though sides are rounded down; and a photo as large as that stays as it is."""
  for side in (319, 511, 512, 639):
    for length in range(50, 6000, 7):
      assert resized_size(length, length, scale_to(side, length, length)) == (side, side)
    assert resized_size(side, side // 2, scale_to(side, side, side // 2)) == (side, side // 2)


@pytest.mark.parametrize('factor', [2, 3, 0.5])
def test_with_an_image_side_the_resolution_does_not_matter(factor):
  """Images of one colour per block: those of the resolution asked for, and the same with more or fewer pixels."""
  settings = Settings(canvas_multiple=32, image_side=60)
  small = np.random.default_rng(0).integers(0, 255, (6, 10, 3), np.uint8).repeat(6, 0).repeat(6, 1)
  other = small.repeat(factor, 0).repeat(factor, 1) if factor > 1 else small[::2, ::2]
  assert canvases_of(*other.shape[:2], settings) == canvases_of(*small.shape[:2], settings) == ((63, 63),)
  (canvas, here), (want, there) = (place_batch([image], 1.0, settings, 1) for image in (other, small))
  np.testing.assert_array_equal(here.border, there.border)
  np.testing.assert_array_equal(here.size, there.size)
  np.testing.assert_allclose(here.scale * factor, there.scale)
  if factor > 1:  # shrunk: every block is a block again, the edges between two included
    np.testing.assert_array_equal(canvas, want)
  else:
    inside = np.abs(canvas.astype(int) - want)[0, 14:50, 2:62].reshape(6, 6, 10, 6, 3)[:, 2:4, :, 2:4]
    assert inside.max() <= 1


@pytest.mark.parametrize('cut', [False, True])
def test_an_image_as_large_as_its_canvas(cut):
  canvas, placement = place(np.full((15, 31, 3), 9, np.uint8), 1.0, 16, cut_last_line=cut)
  assert canvas.shape == (15, 31, 3) and not placement.border.any()
  assert (canvas[:-1, :-1] == 9).all() and (canvas[-1] == (0 if cut else 9)).all()
  assert (canvas[:, -1] == (0 if cut else 9)).all()


@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0])
def test_one_pixel(scale):
  canvas, placement = place(np.full((1, 1, 3), 200, np.uint8), scale, 128)
  side = max(1, int(scale))
  assert canvas.shape == (127, 127, 3) and (canvas == 200).sum() == 3 * side**2
  np.testing.assert_array_equal(placement.size, [side, side])


def test_normalise_takes_red_first():
  pixel = np.array([[[255, 0, 51]]], np.uint8)
  want = [(1 - 0.47026115) / 0.27809835, (0 - 0.44719302) / 0.27408164, (0.2 - 0.40789654) / 0.28863828]
  np.testing.assert_allclose(input_pixels.normalise(pixel)[0, 0], want, rtol=1e-6)


def box_network(tl, br, center=None, classes=2):
  """apply_fn with one pair of corners at cells (x, y), class 1, and nothing else in every image; offsets (.25, .5)."""

  def heat(shape, cell):
    return jnp.full(shape, -jnp.inf).at[:, cell[1], cell[0], 1].set(3.0)

  def apply_fn(variables, images):
    shape = (images.shape[0], (images.shape[1] + 1) // 4, (images.shape[2] + 1) // 4, classes)
    zero = jnp.zeros((*shape[:3], 1))
    offset = jnp.broadcast_to(jnp.array([0.25, 0.5]), (*shape[:3], 2))
    maps = KeypointMaps(heat(shape, tl), heat(shape, br), zero, zero, offset, offset)
    return maps if center is None else maps.replace(center_heat=heat(shape, center), center_offset=offset)

  return apply_fn


def test_coordinates_by_hand():
  """A 40 x 20 image (w x h) lies at (3, 5) in a canvas of 47 x 31 with maps of 12 x 8."""
  apply_fn = box_network((4, 2), (10, 5))
  settings = Settings(mirror=False, max_detections=1)
  (found,) = Detector(apply_fn, {}, settings)([np.zeros((20, 40, 3), np.uint8)])
  left, top = 23 - 20, 15 - 10
  stride = (47 / 12, 31 / 8)
  want = [4.25 * stride[0] - left, 2.5 * stride[1] - top, 10.25 * stride[0] - left, 5.5 * stride[1] - top]
  np.testing.assert_allclose(found.boxes, [want], rtol=1e-5)
  np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-3))], rtol=1e-6)
  assert found.classes.tolist() == [1]

  # The mirror image shows pixel 46 of the canvas at 0; the published program takes it for pixel 47.
  for mirror_shift, last in ((False, 46), (True, 47)):
    settings = Settings(max_detections=2, mirror_shift=mirror_shift)
    (found,) = Detector(apply_fn, {}, settings)([np.zeros((20, 40, 3), np.uint8)])
    x1, x2 = (last - x * stride[0] - left for x in (10.25, 4.25))
    np.testing.assert_allclose(sorted(found.boxes.tolist()), sorted([want, [x1, want[1], x2, want[3]]]), rtol=1e-5)


def test_coordinates_of_two_scales_by_hand():
  """At scale 0.5 a 41 x 21 image is 20 x 10, and lies at (5, 2) in a canvas of 31 x 15."""
  settings = Settings(scales=(0.5,), mirror=False)
  (found,) = Detector(box_network((3, 1), (5, 2)), {}, settings)([np.zeros((21, 41, 3), np.uint8)])
  stride = (31 / 8, 15 / 4)
  want = [
    (3.25 * stride[0] - 5) * 41 / 20,
    (1.5 * stride[1] - 2) * 21 / 10,
    (5.25 * stride[0] - 5) * 41 / 20,
    (2.5 * stride[1] - 2) * 21 / 10,
  ]
  np.testing.assert_allclose(found.boxes, [want], rtol=1e-5)
  nominal = dataclasses.replace(settings, nominal_scale=True)
  (found,) = Detector(box_network((3, 1), (5, 2)), {}, nominal)([np.zeros((21, 41, 3), np.uint8)])
  np.testing.assert_allclose(found.boxes, [np.array(want) / (np.array([41 / 20, 21 / 10] * 2) / 2)], rtol=1e-5)


def test_boxes_far_outside_are_rejected_or_clipped():
  image = np.zeros((20, 33, 3), np.uint8)
  apply_fn = box_network((0, 2), (10, 5))  # begins at 0.25 * 47 / 12 - 7 = -6.02
  assert len(Detector(apply_fn, {}, Settings(mirror=False))([image])[0].scores) == 0
  for margin in (None, 7.0):
    (found,) = Detector(apply_fn, {}, Settings(mirror=False, outside_margin=margin))([image])
    np.testing.assert_allclose(found.boxes[0, 0], 0)


def test_a_center_decides_and_scores():
  image = np.zeros((20, 40, 3), np.uint8)
  for center, kept in (((7, 4), 1), ((4, 4), 0)):
    found = Detector(box_network((4, 1), (10, 6), center), {}, Settings(mirror=False))([image])[0]
    assert len(found.scores) == kept
  assert len(Detector(box_network((4, 1), (10, 6)), {}, Settings(scales=(2.0,)))([image])[0].scores)
  with pytest.raises(ValueError, match=r'center_scale is 1.0, .* \(2.0,\)'):
    Detector(box_network((4, 1), (10, 6), (7, 4)), {}, Settings(scales=(2.0,)))([image])


def pixel_network(variables, images):
  """Maps that depend on every image's own pixels: three classes, the three colours of one pixel per cell."""
  cells = images[:, 1::4, 1::4] * variables['gain']
  zero, offset = jnp.zeros((*cells.shape[:3], 1)), jnp.full((*cells.shape[:3], 2), 0.5)
  return KeypointMaps(cells, cells[..., ::-1], zero, zero, offset, offset, jnp.abs(cells), offset)


VARIABLES = dict(gain=np.float32(2.0))
# mirror_shift keeps all coordinates on multiples of 1/32, so that no comparison hangs on rounding.
SMALL = Settings(
  window=1, top_k=40, num_pairs=200, max_detections=10, scales=(1.0, 1.5), merge_exponent=10, mirror_shift=True
)


def random_images(seed, sizes):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope='module')
def detector():
  return Detector(pixel_network, VARIABLES, SMALL, batch_size=4)


@pytest.fixture(scope='module')
def images_alone(detector):
  images = random_images(0, [(20, 30), (9, 9), (21, 29), (1, 1), (20, 30), (20, 31), (19, 29), (9, 10)])
  alone = [detector([image])[0] for image in images]
  assert sum(len(d.scores) for d in alone) > 30
  return images, alone


def assert_same(got, want):
  np.testing.assert_allclose(rows_of(got), rows_of(want), atol=1e-4)
  assert isinstance(got.boxes, np.ndarray) and got.valid.all() and got.valid.shape == got.scores.shape


def test_list_in_list_out_in_order(detector, images_alone):
  images, alone = images_alone
  for got, want in zip(detector(images), alone, strict=True):
    assert_same(got, want)
  assert detector([]) == []


def test_weights_are_prepared_beside_the_compiler(images_alone):
  images, alone = images_alone
  compiled = threading.Event()

  def prepare(variables):
    if isinstance(variables['gain'], np.ndarray):  # not when only the shapes are asked for
      assert compiled.wait(20), 'the compiler waits for the weights'
    return dict(gain=2 * variables['gain'])

  detector = Detector(pixel_network, dict(gain=np.array(1.0, np.float32)), SMALL, batch_size=1, prepare=prepare)
  assert detector.compile_ahead([images[0].shape[:2]]) == 2
  compiled.set()
  assert_same(detector(images[:1])[0], alone[0])
  detector.use(dict(gain=np.array(0.5, np.float32)))
  assert detector.variables['gain'] == 1 and detector.num_programs == 2


def test_stream_gives_the_same_and_compiles_once_per_canvas(images_alone):
  images, alone = images_alone
  streaming = Detector(pixel_network, VARIABLES, SMALL, batch_size=4)
  made = streaming.compile_ahead(image.shape[:2] for image in images)
  canvases = {canvas_size(int(h * s), int(w * s), 16) for h, w, _ in (i.shape for i in images) for s in SMALL.scales}
  assert made == streaming.num_programs == len(canvases)
  found = dict(streaming.stream((f'{i}.jpg', image) for i, image in enumerate(images)))
  assert streaming.num_programs == made
  assert list(sorted(found)) == [f'{i}.jpg' for i in range(len(images))]
  for i, want in enumerate(alone):
    assert_same(found[f'{i}.jpg'], want)


def in_central_region(box, x, y, slack):
  """Eq. (1) in words: the n-th part of the box, in its middle, n = 3 up to 150^2 pixels and 5 above."""
  x1, y1, x2, y2 = (float(v) for v in box)
  n = 3 if (x2 - x1) * (y2 - y1) <= 150**2 else 5
  reach_x, reach_y = (x2 - x1) / (2 * n) + slack, (y2 - y1) / (2 * n) + slack
  return abs(x - (x1 + x2) / 2) < reach_x and abs(y - (y1 + y2) / 2) < reach_y


def test_proposals_are_what_detections_are_chosen_from():
  images = random_images(3, [(20, 30), (175, 191), (30, 20), (20, 30)])
  images[1] = images[1] // 16 + 112  # grey, where bright pixels are corners of a large box and dark ones its centers
  images[1][[5, 9, 165, 169], [5, 13, 177, 149]] = 255
  images[1][[85, 89, 89], [93, 93, 97]] = 0
  settings = dataclasses.replace(SMALL, merge_exponent=None, num_pairs=1600)
  detector = Detector(pixel_network, VARIABLES, settings, batch_size=2)
  detections = dict(detector.stream(enumerate(images)))
  compiled = []

  def note(event, *_, **__):
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    proposals = detector.proposals(images)
    assert not compiled
    jax.jit(lambda x: x * 3.25 + 1)(np.float32(1))
    assert compiled  # the listener hears
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  assert len(proposals) == len(images)
  sizes_met = set()
  for i, one in enumerate(proposals):
    height, width = images[i].shape[:2]
    pairs, centers = one.pairs, one.centers
    assert isinstance(one.kept, np.ndarray) and one.kept.shape == pairs.scores.shape == (len(pairs.boxes),)
    assert pairs.valid.all() and 0 < one.kept.sum() < len(one.kept)
    assert (pairs.boxes >= 0).all() and (pairs.boxes <= np.array([width, height, width, height])).all()
    np.testing.assert_allclose(pairs.scores, (pairs.tl_scores + pairs.br_scores) / 2, rtol=1e-6)
    for box, label, kept in zip(pairs.boxes, pairs.classes, one.kept):
      mine = [(float(x), float(y)) for x, y, c in zip(centers.x, centers.y, centers.classes) if c == label]
      wide, narrow = (any(in_central_region(box, x, y, slack) for x, y in mine) for slack in (1e-4, -1e-4))
      assert kept in (wide, narrow)
      sizes_met.add((bool(kept), (box[2] - box[0]) * (box[3] - box[1]) > 150**2))
    best = np.argmax(pairs.scores * one.kept)
    # The best detection is a pair that was kept, its score the mean of its three keypoints.
    rows = np.flatnonzero(one.kept & (np.abs(pairs.boxes - detections[i].boxes[0]) < 1e-4).all(axis=1))
    lowest, highest = 2 * pairs.scores[rows].max() / 3, (2 * pairs.scores[rows].max() + centers.scores.max()) / 3
    assert lowest < detections[i].scores[0] <= highest + 1e-6
    assert detections[i].scores[0] >= 2 * pairs.scores[best] / 3
  assert len(sizes_met) == 4  # small and large boxes, kept and rejected


def test_without_a_center_branch_every_proposal_is_kept():
  (one,) = Detector(box_network((4, 2), (10, 5)), {}, Settings(mirror=False)).proposals(
    [np.zeros((20, 40, 3), np.uint8)]
  )
  assert one.centers is None and one.kept.tolist() == [True]
  stride = (47 / 12, 31 / 8)
  want = [4.25 * stride[0] - 3, 2.5 * stride[1] - 5, 10.25 * stride[0] - 3, 5.5 * stride[1] - 5]
  np.testing.assert_allclose(one.pairs.boxes, [want], rtol=1e-5)


def test_a_stream_holds_few_images(detector):
  sizes = [((12, 12), (12, 28), (28, 12))[i % 7 % 3] for i in range(60)]
  taken, most = 0, 0

  def feed():
    nonlocal taken
    for item in enumerate(random_images(1, sizes)):
      taken += 1
      yield item

  one_scale = Detector(pixel_network, VARIABLES, dataclasses.replace(SMALL, scales=(1.0,)), batch_size=4)
  seen = []
  for key, _ in one_scale.stream(feed(), max_waiting=2):
    seen.append(key)
    most = max(most, taken - len(seen) + 1)
  assert sorted(seen) == list(range(60))
  assert most <= 2 + 2 + 2  # waiting, on the device, being given out


def test_the_host_path_agrees_where_nothing_is_dropped():
  """With a score threshold of 0 no row is dropped, none is moved onto another, and the two soft-NMS agree."""
  settings = dataclasses.replace(SMALL, scales=(1.0,), merge_exponent=None, score_threshold=0.0)
  images = random_images(0, [(20, 30)])
  (exact,) = Detector(pixel_network, VARIABLES, settings)(images)
  (host,) = Detector(pixel_network, VARIABLES, dataclasses.replace(settings, stale_rows=True))(images)
  assert 5 < len(exact.scores) < settings.max_detections
  np.testing.assert_allclose(rows_of(host), rows_of(exact), rtol=1e-5)


FOUR_DEVICES = """
import jax, numpy as np
from tests.detection.test_inference import VARIABLES, Detector, Settings, pixel_network, random_images
settings = Settings(window=1, top_k=40, num_pairs=200, mirror_shift=True)
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
images = random_images(0, [(20, 30)] * 5)
sharded = Detector(pixel_network, VARIABLES, settings, batch_size=5, sharding=sharding)(images)
alone = Detector(pixel_network, VARIABLES, settings, batch_size=5)(images)
assert jax.device_count() == 4 and sum(len(d.scores) for d in alone) > 10
for a, b in zip(sharded, alone, strict=True):
  np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
  np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
"""


def test_four_devices_give_what_one_gives():
  environment = os.environ | dict(XLA_FLAGS='--xla_force_host_platform_device_count=4', JAX_PLATFORMS='cpu')
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', FOUR_DEVICES], cwd=root, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  'image, said',
  [
    (np.zeros((4, 5), np.uint8), r'\(4, 5\): repeat the grey channel'),
    (np.zeros((4, 5, 1), np.uint8), 'repeat the grey channel'),
    (np.zeros((4, 5, 4), np.uint8), 'drop the alpha channel'),
    (np.zeros((4, 5, 3), np.float32), 'float32 .* uint8'),
    (np.zeros((4, 5, 3), np.uint16), 'uint16 .* uint8'),
    (np.zeros((0, 5, 3), np.uint8), r'\(0, 5, 3\)'),
  ],
)
def test_images_of_another_kind_are_named(detector, image, said):
  good = np.zeros((4, 5, 3), np.uint8)
  with pytest.raises(ValueError, match=f'image 1 must be a uint8 RGB array .*{said}'):
    detector([good, image])
  with pytest.raises(ValueError, match=f"image 'a.png' must be .*{said}"):
    list(detector.stream([('a.png', image)]))


def test_bad_settings_are_refused(detector):
  with pytest.raises(ValueError, match=r'\(4, 5, 3\): pass \[image\]'):
    detector(np.zeros((4, 5, 3), np.uint8))
  with pytest.raises(ValueError, match='at least 1, got 0'):
    Detector(pixel_network, VARIABLES, SMALL, batch_size=0)
  with pytest.raises(ValueError, match=r'positive numbers, such as .*, got \(1.0, 0\)'):
    Settings(scales=(1.0, 0))
  with pytest.raises(ValueError, match="'last'; possible: best, first"):
    Settings(center_rule='last')
  with pytest.raises(ValueError, match="'none'; possible: gaussian, linear, hard"):
    Settings(nms_method='none')
