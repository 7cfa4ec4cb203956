"""The central region of a box, Eq. (1): where a center keypoint of its class must lie for the box to be kept."""

import jax
import jax.numpy as jnp

from triplet_det.detection.settings import CENTER_RULES, SMALL_BOX
from triplet_det.structs import Pairs, Peaks

SMALL_N, LARGE_N = 3, 5  # a small box needs a larger region (n = 3), or true centers are missed


def central_region(boxes: jax.Array, *, n: int | None = None, small_box: float = SMALL_BOX) -> jax.Array:
  """The central region of each box, Eq. (1).

  Args:
    boxes: [..., 4] x1 y1 x2 y2, image pixels (the scale-aware choice of n is in pixels of the original image).
    n: odd number that sets the region's side to 1/n of the box's; None is the paper's scale-aware choice,
      3 for areas up to `small_box`^2 pixels and 5 above.
    small_box: see `Settings`.

  Returns:
    [..., 4] the regions, x1 y1 x2 y2 in the unit of `boxes`.

  Raises:
    ValueError: n is even or not positive.
  """
  if n is not None and (n < 1 or n % 2 == 0):
    raise ValueError(f'the central region needs an odd n of at least 1 (the paper: 3 or 5), got {n}')
  top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
  if n is None:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    n = jnp.where(width * height <= small_box**2, SMALL_N, LARGE_N)[..., None]
  near, far = n + 1, n - 1
  return jnp.concatenate(
    [
      (near * top_left + far * bottom_right) / (2 * n),
      (far * top_left + near * bottom_right) / (2 * n),
    ],
    axis=-1,
  )


def centers_inside(pairs: Pairs, centers: Peaks, small_box: float = SMALL_BOX) -> jax.Array:
  """[..., P, K] bool: the centers [..., K] of a pair's class that lie strictly inside its central region (Sec. 3.1).

  `small_box`: see `Settings`.
  """
  region = central_region(pairs.boxes, small_box=small_box)[..., None, :]
  x, y = centers.x[..., None, :], centers.y[..., None, :]
  inside = (x > region[..., 0]) & (x < region[..., 2]) & (y > region[..., 1]) & (y < region[..., 3])
  return inside & (pairs.classes[..., None] == centers.classes[..., None, :]) & (centers.scores[..., None, :] > 0)


def keep_triplets(pairs: Pairs, centers: Peaks, *, center_rule: str = 'best', small_box: float = SMALL_BOX) -> Pairs:
  """The pairs with a center inside; a box that is kept scores the mean of its three keypoints, (2 pair + center) / 3.

  Args:
    pairs: [B, P], original pixels.
    centers: [B, K], original pixels.
    center_rule: which of several centers scores: the 'best', or the 'first' of the list, as published. The list is
      sorted for the image and for its mirror image, but not over both.
    small_box: see `Settings`.

  Raises:
    ValueError: unknown center_rule.
  """
  if center_rule not in CENTER_RULES:
    raise ValueError(f'unknown center_rule {center_rule!r}; possible: {", ".join(CENTER_RULES)}')
  fits = centers_inside(pairs, centers, small_box)
  candidates = jnp.where(fits, centers.scores[:, None], 0.0)
  if center_rule == 'best':
    score = candidates.max(axis=-1)
  else:
    score = jnp.take_along_axis(candidates, fits.argmax(axis=-1)[..., None], axis=-1)[..., 0]
  valid = pairs.valid & fits.any(axis=-1)
  return pairs.replace(valid=valid, scores=jnp.where(valid, (2 * pairs.scores + score) / 3, -1.0))
