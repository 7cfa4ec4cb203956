"""Images on canvases: a test image is resized and centered in black, so that few sizes have to be compiled.

Free of JAX; this is what the host does to an image before the network sees it.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import cv2
import numpy as np

from triplet_det.data.augmentation import interpolation


class Placement(NamedTuple):
  """Where the resized images lie in their canvases; (x, y); arrays of NumPy or JAX."""

  border: Any  # [B, 2] float32, canvas pixels left of and above the image
  size: Any  # [B, 2] float32, pixels of the resized image
  scale: Any  # [B, 2] float32, resized / original


def canvas_size(height: int, width: int, multiple: int) -> tuple[int, int]:
  """The smallest canvas at least (height, width) whose sides + 1 are multiples of `multiple`, a power of two.

  The network halves an odd side n to (n + 1) / 2, so with `multiple` 2 for every halving all its levels fit:
  128, sides 127, 255, 383, ..., for the published hourglass of five levels behind a stem of stride 4.
  """
  return height | (multiple - 1), width | (multiple - 1)


def resized_size(height: int, width: int, scale: float) -> tuple[int, int]:
  """Sides of the resized image, rounded down as published, but at least one pixel."""
  return max(1, int(height * scale)), max(1, int(width * scale))


def place(
  image: np.ndarray,
  scale: float,
  multiple: int,
  *,
  nominal_scale: bool = False,
  cut_last_line: bool = False,
  size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, Placement]:
  """The image [h, w, 3] resized (bilinear) and centered in a black canvas [H, W, 3], and where it lies there.

  Args:
    image: uint8.
    scale: wanted size / original size.
    multiple: see `canvas_size`.
    nominal_scale: report `scale` as the scale, as published, and not what was left of it after rounding.
    cut_last_line: as published, an image as large as its canvas loses its last row or column.
    size: (height, width) of another canvas than that of `canvas_size`, which it holds.

  Returns:
    The canvas, and its Placement without the batch axis.
  """
  old_height, old_width = image.shape[:2]
  height, width = resized_size(old_height, old_width, scale)
  if (height, width) != (old_height, old_width):
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation(scale))
  own_height, own_width = canvas_size(height, width, multiple)
  canvas = np.zeros((*(size or (own_height, own_width)), 3), np.uint8)
  top, left = canvas.shape[0] // 2 - height // 2, canvas.shape[1] // 2 - width // 2
  if cut_last_line:  # the published crop reaches half a canvas, rounded down, to both sides of the center
    image = image[: own_height - 1, : own_width - 1]
  canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
  return canvas, Placement(
    border=np.array([left, top], np.float32),
    size=np.array([width, height], np.float32),
    scale=np.array([scale, scale] if nominal_scale else [width / old_width, height / old_height], np.float32),
  )


def check_image(image, key: Hashable) -> np.ndarray:
  """The image if it is a uint8 RGB array; ValueError with a way out otherwise."""
  image = np.asarray(image)
  if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
    return image
  advice = 'decode it again'
  if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
    advice = 'repeat the grey channel three times'
  elif image.ndim == 3 and image.shape[2] == 4:
    advice = 'drop the alpha channel: image[..., :3]'
  elif image.size and image.dtype != np.uint8:
    advice = 'convert its range to 0..255 and its type to uint8'
  raise ValueError(
    f'image {key!r} must be a uint8 RGB array [height, width, 3] with pixels in it, '
    f'got {image.dtype} of shape {image.shape}: {advice}'
  )
