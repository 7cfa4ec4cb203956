"""Soft-NMS against numbers of the published routine and against the per-class algorithm on lists."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.detection.nms import soft_nms, soft_nms_in_place
from triplet_det.detection.nms_rule import METHODS

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'nms.npz')
SETS = ('clump', 'dense', 'spread', 'one', 'ties', 'low', 'dup', 'none')
THEIR_NAME = dict(gaussian='gauss', linear='linear', hard='hard')


def rows_of(detections):
  """[D, 6] valid rows: box, score, class."""
  rows = np.column_stack([detections.boxes, detections.scores, detections.classes])
  return rows[np.asarray(detections.valid)]


def ordered(rows):
  """The same rows in an order that ties cannot change."""
  rows = np.asarray(rows, np.float64).reshape(-1, 6)
  return rows[np.lexsort((*np.round(rows[:, :4].T, 2), rows[:, 5], -np.round(rows[:, 4], 5)))]


@functools.cache
def compiled(**settings):
  return jax.jit(functools.partial(soft_nms, **settings))


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('exponent', [None, 8, 10])
def test_in_place_repeats_the_published_array(name, method, exponent, parity):
  given = GOLDEN[f'{name}/in']
  merge = '' if exponent is None else f'/merge{exponent}'
  want = GOLDEN[f'{name}/{THEIR_NAME[method]}{merge}/out']
  one_class = np.full(len(given), 3)
  got = soft_nms_in_place(*_columns(given, one_class), method=method, merge_exponent=exponent, inclusive=True)
  want = want[np.argsort(-want[:, 4], kind='stable')]
  assert got.valid.all() and (got.classes == 3).all()
  assert got.boxes.shape == want[:, :4].shape
  parity('soft-NMS: boxes, pixels', np.abs(got.boxes - want[:, :4]).max(initial=0), 1e-3)
  parity('soft-NMS: scores', np.abs(got.scores - want[:, 4]).max(initial=0), 1e-6)


# In `ties` the routine meets equal scores in an order that depends on which rows it moved before.
@pytest.mark.parametrize('name', [s for s in SETS if s not in ('none', 'ties')])
@pytest.mark.parametrize('method', METHODS)
def test_the_rows_before_the_published_count_are_the_exact_ones(name, method):
  """The published array up to the count it reports has no stale rows."""
  given = np.zeros((80, 7), np.float32)
  given[:, 4] = -1  # padding, so that one program serves all sets
  given[: len(GOLDEN[f'{name}/in'])] = GOLDEN[f'{name}/in']
  want = GOLDEN[f'{name}/{THEIR_NAME[method]}/out'][: int(GOLDEN[f'{name}/{THEIR_NAME[method]}/keep'])]
  if method == 'hard':
    want = want[want[:, 4] > 0]
  got = rows_of(compiled(method=method, inclusive=True)(*_columns(given, np.zeros(80, np.int32))))
  want = np.column_stack([want[:, :5], np.zeros(len(want))])
  np.testing.assert_allclose(ordered(got), ordered(want), atol=1e-5)


def _columns(given, classes):
  return given[:, :4], given[:, 4], classes, given[:, 5], given[:, 6]


def slow_soft_nms(
  boxes, scores, classes, tl, br, *, method, inclusive, exponent=None, limit=100, threshold=0.001, sigma=0.5
):
  """Class after class on lists of Python floats; no row is ever moved."""
  extra, found = float(inclusive), []
  for c in sorted(set(classes.tolist())):
    left = [[*map(float, b), float(s), float(t), float(u)] for b, s, k, t, u in zip(boxes, scores, classes, tl, br)
            if k == c and s >= 0]  # fmt: skip
    while left:
      best = left.pop(max(range(len(left)), key=lambda i: (left[i][4], -i)))
      merged, kept = [(1.0, best)], []
      for row in left:
        w = min(best[2], row[2]) - max(best[0], row[0]) + extra
        h = min(best[3], row[3]) - max(best[1], row[1]) + extra
        if w > 0 and h > 0:
          areas = [(r[2] - r[0] + extra) * (r[3] - r[1] + extra) for r in (best, row)]
          iou = w * h / (sum(areas) - w * h)
          factor = np.exp(-(iou**2) / sigma)
          if method != 'gaussian':
            factor = 1.0 if iou <= 0.5 else 1 - iou if method == 'linear' else 0.0
          if exponent is not None:
            merged.append(((1 - factor) ** exponent, list(row)))
          row[4] *= factor
          if row[4] < threshold:
            continue
        kept.append(row)
      left = kept
      tl_sum, br_sum = sum(m * r[5] for m, r in merged), sum(m * r[6] for m, r in merged)
      box = [sum(m * r[5] * r[j] for m, r in merged) / tl_sum for j in (0, 1)]
      box += [sum(m * r[6] * r[j] for m, r in merged) / br_sum for j in (2, 3)]
      found.append([*box, best[4], c])
  return sorted(found, key=lambda r: -r[4])[:limit]


def random_rows(seed, n=150, classes=4, clumps=12):
  """Boxes in clumps, some equal; scores with repeats; a tenth padding."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 300, (clumps, 2))
  middle = np.concatenate([corner, corner + rng.uniform(20, 150, (clumps, 2))], axis=1)
  boxes = middle[rng.integers(0, clumps, n)] + rng.choice([0, 0.5, 6, 15], (n, 4)) * rng.normal(size=(n, 4))
  boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
  scores = rng.uniform(0.01, 1, n)
  scores[rng.random(n) < 0.1] = -1
  corners = rng.uniform(0.05, 1, (2, n)).astype(np.float32)
  return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, classes, n), *corners


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('inclusive', [False, True])
@pytest.mark.parametrize('exponent', [None, 10])
def test_picks_are_the_best_of_the_per_class_algorithm(method, inclusive, exponent):
  program = compiled(method=method, inclusive=inclusive, merge_exponent=exponent, max_detections=60)
  for seed, classes in ((0, 4), (1, 1), (2, 80)):
    rows = random_rows(seed, classes=classes)
    want = slow_soft_nms(*rows, method=method, inclusive=inclusive, exponent=exponent, limit=60)
    got = rows_of(program(*rows))
    assert len(got) == len(want) and (np.diff(got[:, 4]) <= 0).all()
    np.testing.assert_allclose(ordered(got), ordered(want), atol=2e-3, rtol=1e-4)


def test_equal_scores_are_taken_in_the_order_given():
  boxes = np.array([[0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 110, 10]], np.float32)
  scores, classes = np.full(3, 0.5, np.float32), np.zeros(3, np.int32)
  got = soft_nms(boxes, scores, classes, max_detections=2)
  np.testing.assert_array_equal(got.boxes, boxes[:2])


def test_fewer_boxes_than_slots_and_none_at_all():
  boxes, _, classes, _, _ = random_rows(3, n=5)
  got = soft_nms(boxes, np.full(5, -1, np.float32), classes, max_detections=7)
  assert got.boxes.shape == (7, 4) and not any(np.any(a) for a in (got.boxes, got.scores, got.classes, got.valid))
  got = soft_nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, jnp.int32), max_detections=7)
  assert got.boxes.shape == (7, 4) and not got.valid.any()
  got = soft_nms_in_place(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
  assert got.boxes.shape == (0, 4) and got.classes.dtype == np.int32


def test_boxes_without_area_neither_lower_nor_fail():
  boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 20, 20]], np.float32)
  got = soft_nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32), max_detections=3)
  np.testing.assert_allclose(got.scores, [0.9, 0.8, 0.7], rtol=1e-6)


def test_identical_boxes_of_two_classes_do_not_touch():
  boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
  got = soft_nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]), max_detections=3)
  np.testing.assert_allclose(got.scores, [0.9, 0.8, 0.7 * np.exp(-2)], rtol=1e-5)


def test_a_batch_by_vmap():
  rows = [random_rows(seed) for seed in (4, 5, 6)]
  program = jax.jit(jax.vmap(functools.partial(soft_nms, max_detections=60)))
  got = program(*(np.stack(column) for column in zip(*rows)))
  for i, one in enumerate(rows):
    alone = compiled(max_detections=60)(*one)
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), got, alone)


def test_in_place_keeps_the_ties_of_the_last():
  boxes = np.arange(12, dtype=np.float32)[:, None] * 100 + np.array([0, 0, 10, 10], np.float32)
  scores = np.array([0.9] * 3 + [0.5] * 6 + [0.1] * 3, np.float32)
  got = soft_nms_in_place(boxes, scores, np.zeros(12, int), max_detections=5)
  np.testing.assert_array_equal(got.scores, scores[:9])


def test_bad_settings_are_refused():
  rows = random_rows(0, n=3)
  with pytest.raises(ValueError, match="'soft'; possible: gaussian, linear, hard"):
    soft_nms(*rows, method='soft')
  with pytest.raises(ValueError, match='give tl_scores and br_scores'):
    soft_nms(*rows[:3], merge_exponent=10)


@pytest.mark.parametrize('function', [soft_nms, soft_nms_in_place])
def test_merged_boxes_are_never_turned_inside_out(function):
  """Boxes without width, such as those clipped at the image's edge: the corners' means round to either side."""
  rng = np.random.default_rng(0)
  x, height = rng.uniform(111.9, 112.1, 60), rng.uniform(36, 38, 60)
  boxes = np.stack([x, np.zeros(60), x, height], axis=1).astype(np.float32)
  tl_scores, br_scores = rng.uniform(0.1, 0.9, (2, 60)).astype(np.float32)
  scores, classes = (tl_scores + br_scores) / 2, np.zeros(60, np.int32)
  found = function(boxes, scores, classes, tl_scores, br_scores, inclusive=True, merge_exponent=10)
  kept = np.asarray(found.boxes)[np.asarray(found.valid)]
  assert len(kept) > 3 and (kept[:, 2:] >= kept[:, :2]).all()
