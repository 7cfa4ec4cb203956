"""Soft non-maximum suppression: exact on the device, and the published routine with its quirks on the host.

Both work class by class: the best box is kept and lowers the scores of the boxes that overlap it. Multi-scale
testing also moves it to a weighted mean of those boxes, without moving what it is compared with.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triplet_det.structs import Detections

METHODS = ('gaussian', 'linear', 'hard')


@dataclasses.dataclass(frozen=True)
class Rule:
  """How overlapped boxes lose their scores: the keyword arguments of both routines."""

  # 'gaussian' multiplies scores by exp(-iou^2 / sigma); 'linear' by 1 - iou and 'hard' by 0, both over the threshold.
  method: str = 'gaussian'
  sigma: float = 0.5
  overlap_threshold: float = 0.5  # IoU
  score_threshold: float = 0.001  # a box that is overlapped and falls below this is dropped
  max_detections: int = 100  # D
  # True, the published convention: x2, y2 are the last pixels inside, so sides are x2 - x1 + 1, and boxes less than a
  # pixel apart overlap.
  inclusive: bool = False
  # None keeps boxes. A number e (the published multi-scale test: 10) moves each kept box to the mean of itself and the
  # boxes of its class still there, weighted by (1 - w)^e, w the factor on their scores, times the top-left score for
  # x1, y1 and the bottom-right score for x2, y2.
  merge_exponent: float | None = None

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f'unknown soft-NMS method {self.method!r}; possible: {", ".join(METHODS)}')

  def factor(self, xp, box, boxes):
    """What box [4] multiplies the scores of boxes [N, 4] with [N], and whether they intersect at all [N]."""
    iou, overlaps = overlap(xp, box, boxes, extra=1.0 if self.inclusive else 0.0)
    if self.method == 'gaussian':
      return xp.exp(-(iou**2) / self.sigma), overlaps
    return xp.where(iou > self.overlap_threshold, 1 - iou if self.method == 'linear' else 0.0, 1.0), overlaps


def soft_nms(
  boxes: jax.Array,
  scores: jax.Array,
  classes: jax.Array,
  tl_scores: jax.Array | None = None,
  br_scores: jax.Array | None = None,
  **rule,
) -> Detections:
  """The best `max_detections` boxes of one image after soft-NMS within each class; `jax.vmap` it over a batch.

  Classes do not interact and scores only fall, so taking the best remaining box over all classes, and lowering the
  scores of its class only, meets the boxes in the order of their final scores: D picks give exactly the D best of
  the per-class algorithm, in a fixed number of steps. Equal scores are taken in the order given.

  Args:
    boxes: [N, 4] pixels.
    scores: [N]; below 0 marks padding.
    classes: [N] int32.
    tl_scores, br_scores: [N] corner scores, needed for merging only.
    **rule: see `Rule`.

  Returns:
    Detections without the batch axis, [D, ...], best first.

  Raises:
    ValueError: unknown method, or merging without corner scores.
  """
  rule = Rule(**rule)
  if boxes.shape[0] == 0:
    boxes, scores, classes = jnp.zeros((1, 4)), jnp.full((1,), -1.0), jnp.zeros((1,), jnp.int32)
    tl_scores = br_scores = None if rule.merge_exponent is None else jnp.ones((1,))
  boxes, scores, classes = jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(classes)

  def pick(remaining, _):
    i = jnp.argmax(remaining)
    score = remaining[i]
    factor, overlaps = rule.factor(jnp, boxes[i], boxes)
    touched = overlaps & (classes == classes[i])
    lowered = remaining * factor
    after = jnp.where(touched, jnp.where(lowered < rule.score_threshold, -1.0, lowered), remaining).at[i].set(-1.0)
    box = boxes[i]
    if rule.merge_exponent is not None:
      others = touched & (remaining >= 0) & (jnp.arange(remaining.size) != i)
      weight = jnp.where(others, (1 - factor) ** rule.merge_exponent, 0.0).at[i].set(1.0)
      box = _weighted_mean(jnp, boxes, weight, tl_scores, br_scores)
    return after, (box, score, classes[i], score >= 0)

  _, (kept, kept_scores, kept_classes, valid) = lax.scan(pick, scores, length=rule.max_detections)
  return Detections(
    boxes=jnp.where(valid[:, None], kept, 0.0),
    scores=jnp.where(valid, kept_scores, 0.0),
    classes=jnp.where(valid, kept_classes, 0),
    valid=valid,
  )


def soft_nms_in_place(
  boxes: np.ndarray,
  scores: np.ndarray,
  classes: np.ndarray,
  tl_scores: np.ndarray | None = None,
  br_scores: np.ndarray | None = None,
  **rule,
) -> Detections:
  """What the published test keeps of one image, stale rows included; NumPy, on the host, order matters.

  The published routine works inside one array per class. Three quirks of it change results:
    * A dropped row is overwritten by the last one and the array counts as one shorter, but its caller ignores the
      count: the last row's old copy, its score not lowered any more, goes into the results as well.
    * Merging weighs with the corner scores of array slots. Rows move between slots, their corner scores do not.
    * All boxes that tie with the last of the best `max_detections` are kept.

  Arguments as for `soft_nms`, without padding. Returns Detections of NumPy arrays without the batch axis, best
  first, all valid; more than `max_detections` in case of ties.
  """
  rule = Rule(**rule)
  rows = np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)
  results = [np.zeros((0, 6), np.float32)]
  for c in np.unique(classes):
    mine = np.flatnonzero(classes == c)
    table, count, i = rows[mine], len(mine), 0
    while i < count:
      best = i + np.argmax(table[i:count, 4])
      table[[i, best]] = table[[best, i]]
      before = table[i:count].copy()
      factor, overlaps = rule.factor(np, before[0, :4], before[1:, :4])
      count, slots = _lower_in_place(table, i, count, factor, overlaps, rule.score_threshold)
      if rule.merge_exponent is not None:
        weight = np.append(1.0, np.where(overlaps, (1 - factor) ** rule.merge_exponent, 0.0))
        corners = mine[np.append(i, slots)]
        table[i, :4] = _weighted_mean(np, before[:, :4], weight, tl_scores[corners], br_scores[corners])
      i += 1
    results.append(np.concatenate([table, np.full((len(table), 1), c, np.float32)], axis=1))
  table = np.concatenate(results)
  table = table[np.argsort(-table[:, 4], kind='stable')]
  if len(table) > rule.max_detections:
    table = table[table[:, 4] >= table[rule.max_detections - 1, 4]]
  return Detections(
    boxes=table[:, :4], scores=table[:, 4], classes=table[:, 5].astype(np.int32), valid=np.ones(len(table), bool)
  )


def _lower_in_place(table, i, count, factor, overlaps, score_threshold) -> tuple[int, np.ndarray]:
  """Lowers rows i + 1 .. count - 1 of the table [n, 5] as the published routine does.

  It visits slot after slot; a row that is dropped is overwritten by the last one, which is visited next in the same
  slot. So every row is visited once, and only its slot at that moment has to be followed.

  Returns:
    The new count, and the slot in which each of the rows was visited.
  """
  first = i + 1
  rows = table[first:count].copy()
  rows[:, 4] = np.where(overlaps, rows[:, 4] * factor, rows[:, 4])
  dropped = overlaps & (rows[:, 4] < score_threshold)
  slots = np.arange(first, count)
  last = count
  for slot in slots[dropped]:
    if slot >= last:
      break  # this row was moved and visited in an earlier slot
    row = slot
    while dropped[row - first]:
      last -= 1
      if last == slot:
        break  # overwritten by itself
      row = last
      slots[row - first] = slot
    table[slot] = rows[row - first]
  staying = np.arange(first, last)
  staying = staying[~dropped[: last - first]]
  table[staying] = rows[staying - first]
  return last, slots


def overlap(xp, box, boxes, *, extra: float = 0.0):
  """Intersection over union of box [4] with boxes [N, 4], and whether they intersect at all, both [N].

  `xp` is numpy or jax.numpy; sides are `extra` longer than x2 - x1.
  """
  sides = xp.minimum(box[2:], boxes[:, 2:]) - xp.maximum(box[:2], boxes[:, :2]) + extra
  overlaps = (sides > 0).all(axis=1)
  shared = xp.where(overlaps, sides[:, 0] * sides[:, 1], 0.0)
  area = (box[2] - box[0] + extra) * (box[3] - box[1] + extra)
  areas = (boxes[:, 2] - boxes[:, 0] + extra) * (boxes[:, 3] - boxes[:, 1] + extra)
  return shared / xp.where(overlaps, area + areas - shared, 1.0), overlaps


def _weighted_mean(xp, boxes, weight, tl_scores, br_scores):
  """Mean of boxes [N, 4], [4]: top-left corners weighted with weight * tl_scores, bottom-right with br_scores.

  Corners with different weights can pass each other where boxes have hardly any width; the mean then has none.
  """
  if tl_scores is None or br_scores is None:
    raise ValueError('merging weighs boxes by their corner scores: give tl_scores and br_scores')
  tl, br = weight * tl_scores, weight * br_scores
  near, far = ((w[:, None] * part).sum(axis=0) / w.sum() for w, part in ((tl, boxes[:, :2]), (br, boxes[:, 2:])))
  return xp.concatenate([near, xp.maximum(near, far)])
