"""Decoding against numbers of the published programs, and against brute force on maps full of ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_networks
from triplet_det.detection.decode import decode
from triplet_det.structs import KeypointMaps


@functools.cache
def compiled(**settings):
  return jax.jit(functools.partial(decode, **settings))


@pytest.mark.parametrize('name', golden_networks.NETWORKS)
def test_published_numbers(name, parity):
  for part, error in golden_networks.decoding_errors(name).items():
    parity(f'decoding, {name}: {part}', error, 1e-6)


def random_maps(seed, height=7, width=6, classes=3, levels=6):
  """Heat with few different values, so that plateaus and equal peaks are everywhere; half the embeddings match."""
  rng = np.random.default_rng(seed)

  def heat():
    return jnp.asarray(rng.integers(-levels, levels, (2, height, width, classes)) / 2, jnp.float32)

  def embed():
    return jnp.asarray(rng.integers(0, 2, (2, height, width, 1)), jnp.float32)

  def offset():
    return jnp.asarray(rng.uniform(-0.2, 1.2, (2, height, width, 2)), jnp.float32)

  return KeypointMaps(heat(), heat(), embed(), embed(), offset(), offset(), heat(), offset())


def slow_peaks(heat, offset, top_k, window):
  """[(x, y, score, class, row, column)] of one image, best first, ties by class, row, column."""
  height, width, classes = heat.shape
  half, found = window // 2, []
  for c in range(classes):
    for y in range(height):
      for x in range(width):
        around = heat[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1, c]
        if heat[y, x, c] == around.max():
          found.append((x + offset[y, x, 0], y + offset[y, x, 1], 1 / (1 + np.exp(-heat[y, x, c])), c, y, x))
  return sorted(found, key=lambda p: -p[2])[:top_k]


def slow_decode(maps, i, top_k, num_pairs, window=3, embedding_threshold=0.5):
  maps = {k: np.asarray(v[i]) for k, v in vars(maps).items()}
  tl = slow_peaks(maps['tl_heat'], maps['tl_offset'], top_k, window)
  br = slow_peaks(maps['br_heat'], maps['br_offset'], top_k, window)
  pairs = []
  for a in tl:
    for b in br:
      distance = abs(maps['tl_embed'][a[4], a[5], 0] - maps['br_embed'][b[4], b[5], 0])
      if a[3] == b[3] and distance <= embedding_threshold and b[0] >= a[0] and b[1] >= a[1]:
        pairs.append((a[0], a[1], b[0], b[1], (a[2] + b[2]) / 2, a[2], b[2], a[3]))
  pairs.sort(key=lambda p: -np.float32(p[4]))
  return pairs[:num_pairs], slow_peaks(maps['center_heat'], maps['center_offset'], top_k, window)


@pytest.mark.parametrize(
  'settings',
  [
    dict(top_k=10, num_pairs=40),
    dict(top_k=10, num_pairs=5),
    dict(top_k=25, num_pairs=400, window=5, embedding_threshold=1.0),
    dict(top_k=200, num_pairs=50000),  # more than there are peaks, cells and pairs
  ],
)
@pytest.mark.parametrize('seed', [0, 1])
def test_brute_force(seed, settings):
  maps = random_maps(seed)
  pairs, centers = compiled(**settings)(maps)
  for i in range(2):
    want, want_centers = slow_decode(maps, i, **settings)
    valid = np.asarray(pairs.valid[i])
    assert valid.sum() == len(want) > 0 and valid[: len(want)].all()
    assert (np.asarray(pairs.scores[i])[~valid] == -1).all()
    got = np.column_stack(
      [np.asarray(v[i]) for v in (pairs.boxes, pairs.scores, pairs.tl_scores, pairs.br_scores, pairs.classes)]
    )[valid]
    order = [
      np.lexsort((*np.round(rows.T[:4], 4), rows[:, 7], -np.round(rows[:, 4], 5))) for rows in (got, np.array(want))
    ]
    if len(want) < settings['num_pairs']:  # or the cut goes through pairs of equal scores
      np.testing.assert_allclose(got[order[0]], np.array(want)[order[1]], atol=1e-5)
    np.testing.assert_allclose(got[:, 4], np.array(want)[:, 4], atol=1e-6)

    got = np.column_stack([np.asarray(v[i]) for v in (centers.x, centers.y, centers.scores, centers.classes)])
    true = len(want_centers)
    np.testing.assert_allclose(got[:true], [c[:4] for c in want_centers], atol=1e-5)
    assert (got[true:, 2] == 0).all()


def test_no_pair_survives():
  maps = random_maps(2)
  maps = maps.replace(br_embed=maps.br_embed + 10)
  pairs, _ = compiled(top_k=10, num_pairs=40)(maps)
  assert not pairs.valid.any() and (pairs.scores == -1).all()


def test_shapes_and_center_free_maps():
  maps = random_maps(3).replace(center_heat=None, center_offset=None)
  pairs, centers = jax.eval_shape(functools.partial(decode, top_k=9, num_pairs=50), maps)
  assert centers is None
  assert pairs.boxes.shape == (2, 50, 4) and pairs.classes.dtype == jnp.int32 and pairs.valid.dtype == bool


def test_equal_boundaries_are_kept():
  """A pair of no width, and one whose embeddings differ by exactly the threshold."""
  heat = jnp.full((1, 3, 3, 1), -9.0).at[0, 1, 1, 0].set(2.0)
  zero = jnp.zeros((1, 3, 3, 1))
  offset = jnp.full((1, 3, 3, 2), 0.25)
  pairs, _ = compiled(top_k=1)(KeypointMaps(heat, heat, zero, zero + 0.5, offset, offset))
  assert bool(pairs.valid[0, 0])
  np.testing.assert_allclose(pairs.boxes[0, 0], [1.25, 1.25, 1.25, 1.25])
  pairs, _ = compiled(top_k=1)(KeypointMaps(heat, heat, zero, zero + 0.51, offset, offset))
  assert not pairs.valid.any()


@pytest.mark.parametrize('settings, said', [(dict(top_k=0), 'got 0 and 1000'), (dict(window=4), 'odd side .* got 4')])
def test_bad_settings_are_refused(settings, said):
  with pytest.raises(ValueError, match=said):
    decode(random_maps(0), **settings)


def test_half_a_center_is_refused():
  with pytest.raises(ValueError, match='go together'):
    decode(random_maps(0).replace(center_offset=None))
