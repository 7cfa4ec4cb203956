"""Soft non-maximum suppression: exact on the device, and the published routine with its quirks on the host.

Both work class by class: the best box is kept and lowers the scores of the boxes that overlap it. Multi-scale
testing also moves it to a weighted mean of those boxes, without moving what it is compared with.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triplet_det.detection.nms_rule import Rule
from triplet_det.structs import Detections


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
  compared = rule.compared(jnp, boxes, scores, classes)

  def pick(remaining, _):
    # Masks, not indices: what a batch of indices becomes in a loop, converters to ONNX get wrong.
    is_picked = jnp.arange(remaining.size) == jnp.argmax(remaining)
    score = remaining.max()
    box, its_compared = (jnp.where(is_picked[:, None], a, 0).sum(axis=0) for a in (boxes, compared))
    its_class = jnp.where(is_picked, classes, 0).sum()
    factor, overlaps = rule.factor(jnp, its_compared, compared)
    touched = overlaps & (classes == its_class)
    lowered = jnp.where(touched, remaining * factor, remaining)
    dropped = (lowered < rule.score_threshold) & (touched | rule.drop_untouched)
    after = jnp.where(dropped, -1.0, lowered)
    after = jnp.where(is_picked, -1.0, after)
    if rule.merge_exponent is not None:
      others = touched & (remaining >= 0)
      weight = jnp.where(is_picked, 1.0, jnp.where(others, (1 - factor) ** rule.merge_exponent, 0.0))
      box = _weighted_mean(jnp, boxes, weight, tl_scores, br_scores)
    return after, (box, score, its_class, score >= 0)

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


def _weighted_mean(xp, boxes, weight, tl_scores, br_scores):
  """Mean of boxes [N, 4], [4]: top-left corners weighted with weight * tl_scores, bottom-right with br_scores.

  Corners with different weights can pass each other where boxes have hardly any width; the mean then has none.
  """
  if tl_scores is None or br_scores is None:
    raise ValueError('merging weighs boxes by their corner scores: give tl_scores and br_scores')
  tl, br = weight * tl_scores, weight * br_scores
  near, far = ((w[:, None] * part).sum(axis=0) / w.sum() for w, part in ((tl, boxes[:, :2]), (br, boxes[:, 2:])))
  return xp.concatenate([near, xp.maximum(near, far)])
