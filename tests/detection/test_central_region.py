"""Central regions and triplets against loops transcribed from Eq. (1) and Sec. 3.1."""

import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.detection.central_region import central_region, keep_triplets
from triplet_det.structs import Pairs, Peaks


def region_of(box, n):
  """Eq. (1), one box."""
  x1, y1, x2, y2 = (float(v) for v in box)
  return [
    ((n + 1) * x1 + (n - 1) * x2) / (2 * n),
    ((n + 1) * y1 + (n - 1) * y2) / (2 * n),
    ((n - 1) * x1 + (n + 1) * x2) / (2 * n),
    ((n - 1) * y1 + (n + 1) * y2) / (2 * n),
  ]


def random_boxes(rng, *shape, extent=400.0):
  corners = np.sort(rng.uniform(0, extent, (*shape, 2, 2)), axis=-2)
  return corners.reshape(*shape, 4).astype(np.float32)


@pytest.mark.parametrize('given, threshold', [({}, 150), (dict(small_box=60), 60)])
def test_regions_follow_the_equation_at_both_sides_of_the_threshold(given, threshold):
  boxes = random_boxes(np.random.default_rng(0), 5, 40)
  areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
  assert (areas <= threshold**2).any() and (areas > threshold**2).any()
  want = [[region_of(b, 3 if a <= threshold**2 else 5) for b, a in zip(*row)] for row in zip(boxes, areas)]
  np.testing.assert_allclose(central_region(jnp.asarray(boxes), **given), want, rtol=1e-5, atol=1e-4)


def test_a_square_of_150_is_small_and_the_next_is_large():
  regions = central_region(jnp.array([[0.0, 0, 150, 150], [0.0, 0, 150, 151]]))
  np.testing.assert_allclose(regions, [[50, 50, 100, 100], [60, 60.4, 90, 90.6]], rtol=1e-6)


@pytest.mark.parametrize('n', [1, 3, 5, 7])
def test_a_given_n_makes_the_side_an_nth(n):
  boxes = random_boxes(np.random.default_rng(n), 20)
  regions = np.asarray(central_region(jnp.asarray(boxes), n=n))
  np.testing.assert_allclose(regions, [region_of(b, n) for b in boxes], rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(regions[:, 2:] - regions[:, :2], (boxes[:, 2:] - boxes[:, :2]) / n, atol=1e-3)


@pytest.mark.parametrize('n', [0, 2, -3])
def test_an_even_n_is_refused(n):
  with pytest.raises(ValueError, match=f'odd n .* got {n}'):
    central_region(jnp.zeros((1, 4)), n=n)


def random_candidates(seed, pairs=60, centers=30, classes=3):
  rng = np.random.default_rng(seed)
  valid = rng.random((2, pairs)) < 0.9
  scores = np.where(valid, rng.uniform(0.1, 1, (2, pairs)), -1).astype(np.float32)
  return (
    Pairs(
      boxes=random_boxes(rng, 2, pairs, extent=300.0),
      scores=scores,
      tl_scores=scores,
      br_scores=scores,
      classes=rng.integers(0, classes, (2, pairs)),
      valid=valid,
    ),
    Peaks(
      x=rng.uniform(-20, 320, (2, centers)).astype(np.float32),
      y=rng.uniform(-20, 320, (2, centers)).astype(np.float32),
      # a fifth of the slots is padding
      scores=np.where(rng.random((2, centers)) < 0.2, 0, rng.uniform(0.1, 1, (2, centers))).astype(np.float32),
      classes=rng.integers(0, classes, (2, centers)),
    ),
  )


@pytest.mark.parametrize('rule, small_box', [('best', 150), ('first', 150), ('best', 220)])
def test_triplets_agree_with_loops(rule, small_box):
  pairs, centers = random_candidates(seed=1)
  got = keep_triplets(pairs, centers, center_rule=rule, small_box=small_box)
  want_scores, fitting = np.full(pairs.scores.shape, -1.0), []
  for b, p in np.ndindex(pairs.scores.shape):
    box = pairs.boxes[b, p]
    x1, y1, x2, y2 = region_of(box, 3 if (box[2] - box[0]) * (box[3] - box[1]) <= small_box**2 else 5)
    inside = [
      centers.scores[b, k]
      for k in range(centers.x.shape[1])
      if x1 < centers.x[b, k] < x2 and y1 < centers.y[b, k] < y2
      if centers.classes[b, k] == pairs.classes[b, p] and centers.scores[b, k] > 0
    ]
    fitting.append(len(inside))
    if pairs.valid[b, p] and inside:
      want_scores[b, p] = (2 * pairs.scores[b, p] + (max(inside) if rule == 'best' else inside[0])) / 3
  assert max(fitting) > 1 and 0 in fitting  # the rules differ, and boxes go
  np.testing.assert_allclose(got.scores, want_scores, rtol=1e-6)
  np.testing.assert_array_equal(got.valid, want_scores >= 0)
  np.testing.assert_array_equal(got.boxes, pairs.boxes)


def test_a_center_on_the_edge_of_the_region_is_outside_and_padding_is_no_center():
  one = np.ones((1, 1), np.float32)
  pairs = Pairs(
    boxes=np.array([[[0, 0, 90, 90]]], np.float32),
    scores=one,
    tl_scores=one,
    br_scores=one,
    classes=np.zeros((1, 1), int),
    valid=np.ones((1, 1), bool),
  )
  for x, inside in ((30.0, False), (30.001, True), (59.999, True), (60.0, False)):
    centers = Peaks(x=one * x, y=one * 45, scores=one, classes=np.zeros((1, 1), int))
    assert bool(keep_triplets(pairs, centers).valid[0, 0]) == inside
  padding = Peaks(x=one * 45, y=one * 45, scores=one * 0, classes=np.zeros((1, 1), int))
  assert not keep_triplets(pairs, padding).valid.any()


def test_an_unknown_rule_is_refused():
  with pytest.raises(ValueError, match="'last'; possible: best, first"):
    keep_triplets(*random_candidates(seed=2), center_rule='last')
