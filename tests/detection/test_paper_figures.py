"""The paper's figures: heat at the pixel that caused it, pairs kept and rejected as counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.detection import paper_figures
from triplet_det.detection.inference import Proposals
from triplet_det.pictures import drawing
from triplet_det.structs import KeypointMaps, Pairs, Peaks

NAMES = ('cat', 'dog', 'cow')


def colour_network(variables, images):
  """A quarter of the image; the colours red, green, blue heat top-left, bottom-right corners and centers."""
  mean = np.array([0.47026115, 0.44719302, 0.40789654])
  deviation = np.array([0.27809835, 0.27408164, 0.28863828])
  batch, height, width, _ = images.shape
  images = jnp.pad(images * deviation + mean, ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0)))
  cells = images.reshape(batch, (height + 3) // 4, 4, (width + 3) // 4, 4, 3).mean(axis=(2, 4))
  logits = variables['gain'] * cells - 4
  heats = [jnp.concatenate([jnp.full_like(heat, -9), heat], axis=-1) for heat in jnp.split(logits, 3, axis=-1)]
  nothing = jnp.zeros((*heats[0].shape[:3], 1))
  centers = dict(center_heat=heats[2], center_offset=nothing) if variables['centers'].size else {}
  return KeypointMaps(heats[0], heats[1], nothing, nothing, nothing, nothing, **centers)


def variables(*, centers=True):
  return dict(gain=np.float32(7), centers=np.zeros(int(centers)))


def peak(heat):
  """(x, y): the middle of the pixels that are nearly as hot as the hottest."""
  rows, columns = np.nonzero(heat > 0.98 * heat.max())
  return columns.mean(), rows.mean()


@pytest.mark.parametrize('size', [(45, 70), (127, 127), (31, 200)])
@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_heat_is_where_the_image_has_its_cause(size, scale):
  height, width = size
  image = np.zeros((height, width, 3), np.uint8)
  places = [(9, 11), (width - 12, height - 10), (width // 2, height // 2)]
  for channel, (x, y) in enumerate(places):
    image[y - 4 : y + 5, x - 4 : x + 5, channel] = 255
  maps = paper_figures.heatmaps(colour_network, variables(), image, scale=scale, canvas_multiple=64)
  for heat, (x, y) in zip((maps.top_left, maps.bottom_right, maps.center), places):
    assert heat.shape == size and heat.dtype == np.float32
    np.testing.assert_allclose(peak(heat), (x, y), atol=2.5 / scale)
    assert heat.max() == pytest.approx(1 / (1 + np.exp(-3)), abs=0.04)  # a cell that is all of the colour: 7 - 4
    assert heat.min() == pytest.approx(1 / (1 + np.exp(4)), abs=1e-3)
    assert np.median(heat) < 0.05


def test_without_centers_there_are_two_heatmaps():
  image = np.full((20, 30, 3), 200, np.uint8)
  maps = paper_figures.heatmaps(colour_network, variables(centers=False), image, canvas_multiple=32)
  assert maps.center is None and maps.top_left.shape == (20, 30)
  assert [panel.caption.split(' (')[0] for panel in paper_figures.draw_heatmaps(image, maps)] == [
    'top-left corners',
    'bottom-right corners',
  ]


def test_drawn_heatmaps_say_what_red_is():
  image = np.full((20, 40, 3), 90, np.uint8)
  heat = np.zeros((20, 40), np.float32)
  heat[5:8, 10:13] = 0.625
  panels = paper_figures.draw_heatmaps(image, paper_figures.Heatmaps(heat, heat / 2, heat[::-1]))
  assert [panel.caption for panel in panels] == [
    'top-left corners (red: 0.62)',
    'bottom-right corners (red: 0.31)',
    'centers (red: 0.62)',
  ]
  for panel, row in zip(panels, (6, 6, 13)):
    factor = panel.picture.shape[0] // 20
    red, green, blue = panel.picture[factor * row + factor // 2, factor * 11 + factor // 2].astype(int)
    assert red > green + 50 and red > blue + 50
    assert (panel.picture[factor * 18 :, factor * 30 :] == 90).all()


def proposals(rows, kept, centers=()):
  """Rows (x1, y1, x2, y2, score, class), and centers (x, y, score, class)."""
  rows, centers = np.array(rows, np.float32).reshape(-1, 6), np.array(centers, np.float32).reshape(-1, 4)
  score, one = rows[:, 4], np.ones(len(rows), bool)
  pairs = Pairs(rows[:, :4], score, score, score, rows[:, 5].astype(np.int32), one)
  peaks = Peaks(centers[:, 0], centers[:, 1], centers[:, 2], centers[:, 3].astype(np.int32))
  return Proposals(pairs, peaks if len(centers) else None, np.array(kept, bool))


CASE = proposals(
  [
    (10, 10, 40, 40, 0.9, 1),
    (10, 11, 40, 41, 0.8, 1),  # a near-duplicate of the first
    (10, 10, 40, 41, 0.7, 2),  # as near, but of another class
    (10, 10, 40, 62, 0.6, 1),  # IoU 0.58 with the first
    (10, 10, 40, 72, 0.5, 1),  # IoU 0.48
    (60, 10, 90, 40, 0.4, 0),
    (60, 12, 90, 42, 0.39, 0),  # a near-duplicate of the one before, but rejected
    (60, 50, 90, 80, 0.3, 0),  # not over the threshold
    (20, 50, 20, 80, 0.35, 0),  # empty
    (20, 50, 20, 80, 0.34, 0),  # the same: there is no overlap to speak of
  ],
  kept=[1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
  centers=[(25, 25, 0.8, 1), (25, 26, 0.05, 2), (26, 40, 0.25, 1), (70, 70, 0.9, 2), (5, 5, 0.1, 1), (75, 25, 0.2, 0)],
)


def test_strongest_pairs_counted_by_hand():
  kept = paper_figures.strongest_pairs(CASE, kept=True, threshold=0.3)
  np.testing.assert_allclose(kept.scores, [0.9, 0.7, 0.5, 0.4])
  rejected = paper_figures.strongest_pairs(CASE, kept=False, threshold=0.3)
  np.testing.assert_allclose(rejected.scores, [0.39, 0.35, 0.34])
  np.testing.assert_allclose(rejected.boxes[0], [60, 12, 90, 42])
  assert kept.classes.tolist() == [1, 2, 1, 0] and len(kept.boxes) == len(kept.valid) == 4
  assert paper_figures.strongest_pairs(CASE, kept=True, threshold=0.9).boxes.shape == (0, 4)


def test_at_most_thirty_and_the_best():
  rng = np.random.default_rng(0)
  scores = rng.permutation(np.linspace(0.31, 0.9, 60))
  far_apart = proposals([(20 * i, 0, 20 * i + 10, 10, score, 0) for i, score in enumerate(scores)], np.ones(60))
  chosen = paper_figures.strongest_pairs(far_apart, kept=True, threshold=0.3)
  np.testing.assert_allclose(chosen.scores, np.sort(scores)[::-1][:30], rtol=1e-6)
  image = np.zeros((100, 1200, 3), np.uint8)
  (panel,) = paper_figures.draw_pairs(image, far_apart, NAMES, threshold=0.3)
  assert panel.caption.startswith('the best 30 pairs')


def test_pairs_with_their_regions_and_centers():
  image = np.full((100, 120, 3), 100, np.uint8)
  kept, rejected = paper_figures.draw_pairs(image, CASE, NAMES, threshold=0.3)
  assert kept.caption.startswith('kept: 4 pairs') and rejected.caption.startswith('rejected: 3 pairs')
  f = 4  # 120 pixels are enlarged to 480
  assert kept.picture.shape == rejected.picture.shape == (400, 480, 3)
  colors = [np.array(drawing.class_color(c)) for c in range(3)]

  def at(panel, x, y):
    return panel.picture[round(y * f), round(x * f)]

  # Edges of boxes, in the colour of their class, where no other box is.
  for x, y in ((10, 60), (60, 25)):
    assert (at(kept, x, y) == colors[1 if x == 10 else 0]).all()
  assert (at(rejected, 60, 38) == colors[0]).all() and not (at(rejected, 10, 60) == colors[1]).any()
  # Central regions, a third of the side: that of (60, 10, 90, 40) is (70, 20, 80, 30), of (60, 12, 90, 42) two lower.
  shade = np.rint(0.6 * 100 + 0.4 * colors[0])
  assert (at(kept, 71, 21) == shade).all() and (at(kept, 69, 21) == 100).all() and (at(kept, 71, 19) == 100).all()
  assert (at(rejected, 71, 23) == shade).all() and (at(rejected, 71, 21) == 100).all()
  # Centers over the threshold, and weak ones if they keep a pair that is shown: the best of its class inside.
  for panel in (kept, rejected):
    assert (at(panel, 25, 25) == colors[1]).all()
    assert (at(panel, 70, 70) == colors[2]).all()
    assert (at(panel, 75, 25) == colors[0]).all()
    assert not (at(panel, 5, 5) == colors[1]).any()
  assert (at(kept, 26, 40) == colors[1]).all()  # keeps (10, 10, 40, 72)


def test_cornernet_has_one_panel():
  image = np.full((100, 120, 3), 100, np.uint8)
  (panel,) = paper_figures.draw_pairs(image, proposals([(10, 10, 40, 40, 0.9, 1)], [True]), NAMES, threshold=0.3)
  assert panel.caption == '1 pair: no centers in this network to reject any'
  assert (panel.picture[100, 40] == drawing.class_color(1)).all() and (panel.picture[100, 100] == 100).all()


def test_nothing_to_draw():
  image = np.full((100, 120, 3), 100, np.uint8)
  nothing = proposals([], [], centers=[(25, 25, 0.2, 1)])
  kept, rejected = paper_figures.draw_pairs(image, nothing, NAMES, threshold=0.3)
  assert (kept.picture == 100).all() and (rejected.picture == 100).all()
  assert kept.caption.startswith('kept: 0 pairs')


def test_panels_in_one_picture():
  red, blue = (np.full((50, 100, 3), color, np.uint8) for color in ((250, 0, 0), (0, 0, 250)))
  pair = [paper_figures.Panel(red, 'one'), paper_figures.Panel(blue, 'two')]
  row = paper_figures.side_by_side(pair)
  assert row.shape[1] > 200 and (row == (250, 0, 0)).all(axis=-1).sum() == 5000
  sheet = paper_figures.sheet([pair, pair, pair])
  assert (sheet == (0, 0, 250)).all(axis=-1).sum() == 3 * 200 * 400
