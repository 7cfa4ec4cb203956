"""Heatmaps, cells, offsets and radii against the published sampler, and what must hold for any boxes."""

import functools

import jax
import numpy as np
import pytest

from tests.golden_state import read, relative_error
from triplet_det.training import targets

CASES = ('tiny', 'border', 'overlap', 'many', 'odd', 'mixed')
KINDS = dict(tl='tl', br='br', ct='center')
SLOTS = 128
# What the two published samplers do.
SAMPLERS = dict(
  centernet=dict(min_overlap=0.7, published_radius=True), cornernet=dict(min_overlap=0.3, published_radius=False)
)
render = jax.jit(
  targets.render, static_argnames=('num_classes', 'input_size', 'output_size', 'min_overlap', 'published_radius')
)


def in_slots(boxes):
  """The sampler's boxes (x1 y1 x2 y2 class from 1, float64), clipped, without the empty ones: a batch of one."""
  boxes = np.concatenate([np.clip(boxes[:, :4], 0, 510), boxes[:, 4:]], axis=1)
  boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
  padded = np.zeros((SLOTS, 5))
  padded[: len(boxes)] = boxes
  valid = np.arange(SLOTS) < len(boxes)
  return padded[None, :, :4], padded[None, :, 4].astype(np.int32) - valid, valid[None]


@pytest.fixture(scope='module')
def golden():
  return {sampler: read(f'targets_{sampler}') for sampler in SAMPLERS}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_targets_are_the_published_ones(sampler, case, golden, parity):
  expected = {key.removeprefix(f'{case}/'): v for key, v in golden[sampler].items() if key.startswith(f'{case}/')}
  # The sampler computes in float64; in `odd` a coordinate lies nearer to a cell's border than float32 can tell.
  with jax.enable_x64(True):
    goal = render(*in_slots(expected['boxes']), num_classes=80, input_size=511, output_size=128, **SAMPLERS[sampler])
    goal = jax.tree.map(np.asarray, goal)
  count = int(expected['num'])
  np.testing.assert_array_equal(goal.valid[0], expected['mask'].astype(bool))
  assert goal.valid.sum() == count
  for theirs, ours in KINDS.items():
    if f'{theirs}_tags' not in expected:
      continue  # CornerNet has no centers
    np.testing.assert_array_equal(getattr(goal, f'{ours}_cell')[0], expected[f'{theirs}_tags'])
    heat = np.zeros(80 * 128 * 128)
    heat[expected[f'{theirs}_heat/idx']] = expected[f'{theirs}_heat/val']
    error = np.abs(getattr(goal, f'{ours}_heat')[0].transpose(2, 0, 1).ravel() - heat).max()
    parity(f'targets, {sampler}: heatmaps', error, 1e-6)
    offset = getattr(goal, f'{ours}_offset')[0]
    parity(f'targets, {sampler}: offsets', np.abs(offset - expected[f'{theirs}_regr']).max(), 1e-5)


def test_radii_are_the_published_ones(golden, parity):
  for sampler, settings in SAMPLERS.items():
    sizes, radii = golden[sampler]['radius/in'], golden[sampler]['radius/out']
    ours = [
      targets.gaussian_radius(height, width, overlap, published=settings['published_radius'])
      for height, width, overlap in sizes
    ]
    parity(f'targets, {sampler}: radii', relative_error(ours, radii), 0)  # to the bit: they are floored


def test_a_whole_radius_is_not_floored_to_the_one_below():
  # 54^2 - 16 x 126 = 30^2 for a box of 12 x 15 cells at overlap 0.3: the radius is (54 - 30) / 8.
  assert float(targets.gaussian_radius(12, 15, 0.3)) == 3.0


@pytest.mark.parametrize('min_overlap', [0.3, 0.5, 0.7])
def test_the_sound_radius_reaches_exactly_the_overlap(min_overlap):
  """The worst placement of both corners within the radius overlaps the box by `min_overlap`, none by less."""
  for height, width in ((10.0, 10.0), (3.0, 40.0), (25.0, 8.0)):
    r = float(targets.gaussian_radius(height, width, min_overlap))
    overlaps = []
    for a, b in ((r, -r), (-r, r), (r, r)):  # first corner moved by (a, a), second by (b, b)
      w, h = width - a + b, height - a + b
      inner = (min(width, width + b) - max(0, a)) * (min(height, height + b) - max(0, a))
      overlaps.append(inner / (w * h + height * width - inner))
    assert min(overlaps) == pytest.approx(min_overlap, abs=1e-9)


@pytest.mark.parametrize('name', [f'{radius}_{per_sigma}' for radius in (0, 1, 2, 7, 20) for per_sigma in (5, 6)])
def test_gaussians_are_the_published_ones(name, golden, parity):
  expected = golden['centernet'][f'gauss2d/{name}']
  radius, per_sigma = map(int, name.split('_'))
  heat = targets._heatmap(
    np.array([[30, 25]]),
    np.array([radius], np.float32),
    np.array([0]),
    np.array([True]),
    num_classes=1,
    output_size=(50, 60),
    diameters_per_sigma=float(per_sigma),
  )
  heat = np.array(heat)[..., 0]
  inside = np.s_[25 - radius : 25 + radius + 1, 30 - radius : 30 + radius + 1]
  parity('Gaussians', np.abs(heat[inside] - expected).max(), 1e-6)
  heat[inside] = 0
  assert not heat.any()


def numpy_targets(boxes, classes, *, cells, pixels, num_classes, min_overlap):
  """One image in float64, object by object, pixel by pixel, with exact arithmetic for the cells."""
  heat = {kind: np.zeros((cells, cells, num_classes)) for kind in KINDS.values()}
  where = {kind: [] for kind in KINDS.values()}
  for (x1, y1, x2, y2), c in zip(boxes.astype(np.float64), classes):
    width, height = (int(np.ceil(side * cells / pixels)) for side in (x2 - x1, y2 - y1))
    radius = max(0, int(targets.gaussian_radius(height, width, min_overlap)))
    points = dict(tl=(x1, y1), br=(x2, y2), center=((x1 + x2) / 2, (y1 + y2) / 2))
    for kind, (x, y) in points.items():
      column, row = int(x * cells // pixels), int(y * cells // pixels)
      where[kind].append(row * cells + column)
      sigma = (2 * radius + 1) / (5 if kind == 'center' else 6)
      for i in range(max(0, row - radius), min(cells, row + radius + 1)):
        for j in range(max(0, column - radius), min(cells, column + radius + 1)):
          value = np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
          heat[kind][i, j, c] = max(heat[kind][i, j, c], value)
  return heat, where


@functools.cache
def random_boxes(count=40, side=127):
  """Boxes of quarter pixels, so that many corners lie on cell borders and float32 is exact; 12 slots are padding."""
  rng = np.random.default_rng(0)
  first, second = rng.integers(0, 4 * (side - 1), (2, 2, count, 2)) / 4
  boxes = np.concatenate([np.minimum(first, second), np.maximum(first, second) + 0.25], axis=-1)
  classes = rng.integers(0, 3, (2, count)).astype(np.int32)
  valid = rng.permuted(np.tile(np.arange(count) >= 12, (2, 1)), axis=1)
  return boxes.astype(np.float32), classes, valid


SMALL = dict(num_classes=3, input_size=127, output_size=32, min_overlap=0.3)


def test_targets_follow_the_definition():
  boxes, classes, valid = random_boxes()
  goal = render(boxes, classes, valid, **SMALL)
  for image in range(2):
    kept = valid[image]
    heat, where = numpy_targets(
      boxes[image][kept], classes[image][kept], cells=32, pixels=127, num_classes=3, min_overlap=0.3
    )
    for kind in KINDS.values():
      np.testing.assert_allclose(getattr(goal, f'{kind}_heat')[image], heat[kind], atol=1e-6)
      np.testing.assert_array_equal(np.asarray(getattr(goal, f'{kind}_cell'))[image][kept], where[kind])


def test_a_box_of_whole_cells_is_not_a_cell_larger():
  side = 8 * 127 / 32
  boxes = np.array([[[40, 40, 40 + side, 40 + side]]], np.float32)
  goal = render(boxes, np.zeros((1, 1), np.int32), np.ones((1, 1), bool), **SMALL)
  radius, larger = (int(targets.gaussian_radius(cells, cells, SMALL['min_overlap'])) for cells in (8, 9))
  assert larger > radius
  assert int((goal.tl_heat[0, 10, :, 0] > 0).sum()) == 2 * radius + 1


def test_padding_slots_leave_no_trace_and_order_does_not_matter():
  boxes, classes, valid = random_boxes()
  goal = render(boxes, classes, valid, **SMALL)
  noise = np.random.default_rng(1).uniform(0, 126, boxes.shape).astype(np.float32)
  other = render(np.where(valid[..., None], boxes, noise), np.where(valid, classes, 2 - classes), valid, **SMALL)
  jax.tree.map(np.testing.assert_array_equal, goal, other)

  order = np.random.default_rng(2).permutation(boxes.shape[1])
  shuffled = render(boxes[:, order], classes[:, order], valid[:, order], **SMALL)
  for kind in KINDS.values():
    np.testing.assert_array_equal(getattr(shuffled, f'{kind}_heat'), getattr(goal, f'{kind}_heat'))
    np.testing.assert_array_equal(
      getattr(shuffled, f'{kind}_cell'), np.asarray(getattr(goal, f'{kind}_cell'))[:, order]
    )


def test_an_image_without_objects_is_all_zero():
  goal = render(np.zeros((1, 4, 4), np.float32), np.zeros((1, 4), np.int32), np.zeros((1, 4), bool), **SMALL)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(goal))


def test_input_and_output_may_be_oblong():
  boxes = np.array([[[4.0, 8.0, 250.0, 120.0]]], np.float32)
  goal = render(
    boxes,
    np.zeros((1, 1), np.int32),
    np.ones((1, 1), bool),
    num_classes=1,
    input_size=(127, 255),
    output_size=(32, 64),
    min_overlap=0.3,
  )
  assert goal.tl_heat.shape == (1, 32, 64, 1)
  for kind, (x, y) in dict(tl=(4, 8), br=(250, 120), center=(127, 64)).items():
    column, row = x * 64 // 255, y * 32 // 127
    assert int(getattr(goal, f'{kind}_cell')[0, 0]) == row * 64 + column
    assert float(getattr(goal, f'{kind}_heat')[0, row, column, 0]) == 1
    np.testing.assert_allclose(
      getattr(goal, f'{kind}_offset')[0, 0], [x * 64 / 255 - column, y * 32 / 127 - row], atol=1e-5
    )
