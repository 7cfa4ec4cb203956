"""Host-side augmentation of one image (NumPy and OpenCV): random crop, resize, flip (Sec. 3.4).

The steps are those of the published sampler, in its order: a square crop at a random place, bilinear resize to the
input size, boxes clipped and dropped if empty, flip. Drawing the random numbers is apart from applying them.
Colour jitter, lighting and normalisation happen on the device. Free of JAX: workers import this file.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
# Quirk: the published program adds 0.1 in floating point, so its fifth scale is 0.9999999999999999 and cuts 510 pixels.
PUBLISHED_SCALES = tuple(np.arange(0.6, 1.4, 0.1).tolist())


@dataclasses.dataclass(frozen=True)
class Draws:
  """The random numbers of one image."""

  scale: float  # side of the crop / input size
  center_x: int  # of the crop, pixels of the image
  center_y: int
  flip: bool  # mirror left and right


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One network input."""

  image: np.ndarray  # [S, S, 3] uint8 RGB
  boxes: np.ndarray  # [n, 4] float32 x1 y1 x2 y2, input pixels, clipped to [0, S - 1], not empty
  classes: np.ndarray  # [n] int32


def scale_to(image_side: int, height: int, width: int) -> float:
  """What an image is scaled by so that its longer side has `image_side` pixels; 1 if that is 0."""
  # A little more: sides are rounded down, and height * (image_side / height) may be less than image_side.
  return (image_side + 1e-6) / max(height, width) if image_side else 1.0


def fitting_border(border: int, size: int) -> int:
  """Halves the border until its two sides leave room for a center: size - b > b."""
  divisor = 1
  while size - border // divisor <= border // divisor:
    divisor *= 2
  return border // divisor


def draw(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  scales: Sequence[float],
  border: int = 128,
  flip: bool = True,
) -> Draws:
  """Draws scale, center and flip for an image of the given size.

  Args:
    rng: consumed by four draws, whatever the settings.
    height, width: of the image, pixels.
    scales: one of them is taken.
    border: the center keeps this distance from the edges, pixels; halved until it fits. Published: 128 at input 511.
    flip: False never mirrors.
  """
  scale = float(scales[rng.integers(len(scales))])
  border_x, border_y = fitting_border(border, width), fitting_border(border, height)
  center_x = int(rng.integers(border_x, width - border_x))
  center_y = int(rng.integers(border_y, height - border_y))
  return Draws(scale, center_x, center_y, flip=bool(rng.random() < 0.5) and flip)


def interpolation(scale: float) -> int:
  """OpenCV's way to scale an image: bilinear as published, but that skips pixels below a half, where areas average.

  Not at 1 / 2 itself and above: CornerNet's smallest test scale is 0.5.
  """
  return cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA


def crop(image: np.ndarray, center_x: int, center_y: int, height: int, width: int) -> np.ndarray:
  """Cuts [height, width, 3] out of the image, black outside.

  The crop covers center +- size // 2, so at odd sizes its last row and column stay black, as in the published program.
  A view is returned where nothing has to be filled.
  """
  half_h, half_w = height // 2, width // 2
  top, left = center_y - half_h, center_x - half_w
  y1, y2 = max(top, 0), min(center_y + half_h, image.shape[0])
  x1, x2 = max(left, 0), min(center_x + half_w, image.shape[1])
  inside = image[y1:y2, x1:x2]
  if inside.shape[:2] == (height, width):
    return inside
  canvas = np.zeros((height, width, image.shape[2]), image.dtype)
  canvas[y1 - top : y2 - top, x1 - left : x2 - left] = inside
  return canvas


def apply(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, draws: Draws, input_size: int) -> Example:
  """Crops, resizes, clips and flips.

  Args:
    image: [H, W, 3] uint8.
    boxes: [n, 4] x1 y1 x2 y2, pixels of the image.
    classes: [n] int32.
    draws: the random numbers.
    input_size: S.
  """
  side = max(int(input_size * draws.scale), 1)
  cut = crop(image, draws.center_x, draws.center_y, side, side)
  resized = cv2.resize(cut, (input_size, input_size), interpolation=interpolation(input_size / side))
  origin = np.array([draws.center_x - side // 2, draws.center_y - side // 2] * 2, np.float64)
  moved = np.clip((boxes - origin) * (input_size / side), 0, input_size - 1)
  if draws.flip:
    resized = cv2.flip(resized, 1)
    moved[:, [0, 2]] = input_size - 1 - moved[:, [2, 0]]
  moved = moved.astype(np.float32)
  keep = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
  return Example(resized, moved[keep], classes[keep])


def pad(example: Example, max_objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Puts the objects into N = max_objects slots; of more objects the N largest stay, in their order.

  Returns:
    boxes [N, 4] float32, classes [N] int32, valid [N] bool; zeros in the empty slots.
  """
  boxes, classes = example.boxes, example.classes
  if len(boxes) > max_objects:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest = np.sort(np.argsort(-areas, kind='stable')[:max_objects])
    boxes, classes = boxes[largest], classes[largest]
  empty = max_objects - len(boxes)
  valid = np.arange(max_objects) < len(boxes)
  return np.pad(boxes, ((0, empty), (0, 0))), np.pad(classes, (0, empty)), valid
