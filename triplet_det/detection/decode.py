"""Heatmaps to corner pairs and centers: local maxima, the K best, all pairs, the three rejections (Sec. 3.1)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from triplet_det.structs import KeypointMaps, Pairs, Peaks


def decode(
  maps: KeypointMaps,
  *,
  top_k: int = 70,
  num_pairs: int = 1000,
  window: int = 3,
  embedding_threshold: float = 0.5,
  near: jax.Array | None = None,
) -> tuple[Pairs, Peaks | None]:
  """Corner pairs and centers of a batch of maps; pure, static shapes, to be called inside `jax.jit`.

  A pair scores the mean of its two corners. It is rejected if the classes differ, if the embeddings differ by more
  than `embedding_threshold`, or if the box is inverted once the offsets are added (zero width or height is kept).

  Local maxima are found and ranked on the logits; only survivors go through the sigmoid. The published program
  compares the float32 sigmoids, which differs for logits above 8 or so, where neighbouring floats round to one
  sigmoid: a tie there, the right order here. Equal logits rank by class, row, column.

  Args:
    maps: logits, embeddings and offsets, [B, H, W, ...].
    top_k: K, peaks per heatmap over all classes (CenterNet 70, CornerNet 100); at most H * W * C are returned.
    num_pairs: P, pairs per image; at most K * K are returned.
    window: odd side of the window in which a peak must be the largest of its class; ties all survive.
    embedding_threshold: largest |embedding difference| of a pair.
    near: [B, 2] (x, y) of the images' left and top edges, at which corners are cut before they are paired; a pair
      without width or height is then rejected too. None leaves them.

  Returns:
    Pairs with boxes in output cells, and the center Peaks (None without center maps). Slots beyond the true peaks
    of a map have score 0 and pair with nothing.

  Raises:
    ValueError: a setting out of range, or center heat without center offsets.
  """
  if top_k < 1 or num_pairs < 1:
    raise ValueError(f'decode needs top_k and num_pairs of at least 1, got {top_k} and {num_pairs}')
  if window < 1 or window % 2 == 0:
    raise ValueError(f'the window of a local maximum has an odd side of at least 1, got {window}')
  if (maps.center_heat is None) != (maps.center_offset is None):
    raise ValueError('center heat and center offset go together: give both, or neither (CornerNet)')

  find = jax.vmap(functools.partial(_peaks, top_k=top_k, window=window))
  top_left, tl_cell = find(maps.tl_heat, maps.tl_offset)
  bottom_right, br_cell = find(maps.br_heat, maps.br_offset)
  pair = jax.vmap(functools.partial(_pairs, num_pairs=num_pairs, embedding_threshold=embedding_threshold))
  pairs = pair(top_left, bottom_right, _read(maps.tl_embed, tl_cell), _read(maps.br_embed, br_cell), near)
  centers = None if maps.center_heat is None else find(maps.center_heat, maps.center_offset)[0]
  return pairs, centers


def _read(embed: jax.Array, cell: jax.Array) -> jax.Array:
  """Embeddings [B, H, W, 1] at the flat cells [B, K] -> [B, K]."""
  return jnp.take_along_axis(embed.reshape(embed.shape[0], -1), cell, axis=1)


def _peaks(heat: jax.Array, offset: jax.Array, *, top_k: int, window: int) -> tuple[Peaks, jax.Array]:
  """The K best local maxima of one image's heatmap [H, W, C], and their flat cells y * W + x [K].

  Two exact stages instead of a top-k over H * W * C values: the K best values lie in the K lines (a class, a row)
  with the best maximum. Lines are taken in flat order, so that ties rank as in the one-stage top-k.
  """
  height, width, num_classes = heat.shape
  # One axis at a time: a fraction of the time of the square window on CPU, and the maximum is exact in any order.
  largest = lax.reduce_window(heat, -jnp.inf, lax.max, (window, 1, 1), (1, 1, 1), 'SAME')
  largest = lax.reduce_window(largest, -jnp.inf, lax.max, (1, window, 1), (1, 1, 1), 'SAME')
  peak = jnp.where(heat == largest, heat, -jnp.inf)

  _, lines = lax.top_k(peak.max(axis=1).T.reshape(-1), min(top_k, num_classes * height))
  lines = jnp.sort(lines)
  logits, best = lax.top_k(peak[lines % height, :, lines // height].reshape(-1), min(top_k, lines.size * width))
  line, x = lines[best // width], best % width
  y = line % height
  cell = y * width + x
  offset = offset.reshape(height * width, 2)[cell]
  peaks = Peaks(
    x=x + offset[:, 0],
    y=y + offset[:, 1],
    scores=jax.nn.sigmoid(logits),  # -inf, a slot without a peak, becomes 0
    classes=line // height,
  )
  return peaks, cell


def _pairs(
  top_left: Peaks,
  bottom_right: Peaks,
  tl_embed: jax.Array,
  br_embed: jax.Array,
  near: jax.Array | None,
  *,
  num_pairs: int,
  embedding_threshold: float,
) -> Pairs:
  """All K x K pairs of one image's corners, the best `num_pairs` of them; embeddings are [K], near is [2]."""

  def outer(rows, columns):
    return [a.reshape(-1) for a in jnp.broadcast_arrays(rows[:, None], columns[None, :])]

  x1, x2 = outer(top_left.x, bottom_right.x)
  y1, y2 = outer(top_left.y, bottom_right.y)
  tl_scores, br_scores = outer(top_left.scores, bottom_right.scores)
  tl_class, br_class = outer(top_left.classes, bottom_right.classes)
  distance = jnp.abs(tl_embed[:, None] - br_embed[None, :]).reshape(-1)

  has_sides = (x2 >= x1) & (y2 >= y1)
  if near is not None:
    x1, x2, y1, y2 = (jnp.maximum(a, edge) for a, edge in zip((x1, x2, y1, y2), near.repeat(2)))
    has_sides = (x2 > x1) & (y2 > y1)
  valid = (tl_class == br_class) & (distance <= embedding_threshold) & has_sides
  valid &= (tl_scores > 0) & (br_scores > 0)
  scores, best = lax.top_k(jnp.where(valid, (tl_scores + br_scores) / 2, -1.0), min(num_pairs, valid.size))
  return Pairs(
    boxes=jnp.stack([x1, y1, x2, y2], axis=-1)[best],
    scores=scores,
    tl_scores=tl_scores[best],
    br_scores=br_scores[best],
    classes=tl_class[best],
    valid=valid[best],
  )
