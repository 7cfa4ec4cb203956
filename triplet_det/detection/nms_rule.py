"""How a box that is kept lowers the scores of those that it overlaps, for NumPy and JAX alike; free of JAX."""

import dataclasses

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
  # True, mmdetection's convention: a box below score_threshold is dropped, overlapped or not.
  drop_untouched: bool = False
  # True, mmdetection's way to keep classes apart: boxes of class i are moved by i times one more than the largest
  # coordinate, in float32, so that overlaps are those of rounded boxes.
  class_shift: bool = False

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f'unknown soft-NMS method {self.method!r}; possible: {", ".join(METHODS)}')

  def compared(self, xp, boxes, scores, classes):
    """What overlaps are taken from: boxes [N, 4], moved apart by their classes [N] with `class_shift`."""
    if not self.class_shift:
      return boxes
    step = xp.where(scores[:, None] >= 0, boxes, 0).max() + 1
    return boxes + (classes * step)[:, None]

  def factor(self, xp, box, boxes):
    """What box [4] multiplies the scores of boxes [N, 4] with [N], and whether they intersect at all [N]."""
    iou, overlaps = overlap(xp, box, boxes, extra=1.0 if self.inclusive else 0.0)
    if self.method == 'gaussian':
      return xp.exp(-(iou**2) / self.sigma), overlaps
    return xp.where(iou > self.overlap_threshold, 1 - iou if self.method == 'linear' else 0.0, 1.0), overlaps


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
