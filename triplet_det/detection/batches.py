"""Images to batches: those whose canvases are equal share one. Free of JAX."""

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np

from triplet_det.data.augmentation import scale_to
from triplet_det.detection.canvas import Placement, canvas_size, check_image, place, resized_size
from triplet_det.detection.settings import Settings

Canvases = tuple[tuple[int, int], ...]  # (height, width) of the canvas at each scale
Keyed = tuple[Hashable, np.ndarray]  # an image [height, width, 3] and what it is called


def canvases_of(height: int, width: int, settings: Settings) -> Canvases:
  """The canvases for an image of this size."""
  own = scale_to(settings.image_side, height, width)
  return tuple(canvas_size(*resized_size(height, width, s * own), settings.canvas_multiple) for s in settings.scales)


def in_batches(
  keyed_images: Iterable[Keyed],
  settings: Settings,
  batch_size: int,
  max_waiting: int,
  canvases_for: Callable[[np.ndarray, Hashable], Canvases] | None = None,
) -> Iterator[tuple[Canvases, list[Keyed]]]:
  """Groups images by canvases; a group goes when it is full, or the fullest when `max_waiting` images wait.

  `canvases_for` (image, key) gives other canvases than those of `canvases_of`. Raises ValueError for what is no image.
  """
  waiting = collections.defaultdict(list)
  for key, image in keyed_images:
    image = check_image(image, key)
    canvases = canvases_for(image, key) if canvases_for else canvases_of(*image.shape[:2], settings)
    waiting[canvases].append((key, image))
    if len(waiting[canvases]) == batch_size:
      yield canvases, waiting.pop(canvases)
    elif sum(map(len, waiting.values())) >= max_waiting:
      fullest = max(waiting, key=lambda c: len(waiting[c]))
      yield fullest, waiting.pop(fullest)
  yield from waiting.items()


def place_batch(
  images: Sequence[np.ndarray], scale: float, settings: Settings, rows: int, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, Placement]:
  """Images of one group on canvases [rows, H, W, 3]; the rows after the last image repeat the first.

  `size` is the (height, width) of canvases that are larger than the images need.
  """
  how = dict(nominal_scale=settings.nominal_scale, cut_last_line=settings.cut_last_line, size=size)
  own = [scale_to(settings.image_side, *image.shape[:2]) for image in images]
  placed = [place(image, scale * one, settings.canvas_multiple, **how) for image, one in zip(images, own)]
  placed += [placed[0]] * (rows - len(placed))
  canvases, placements = zip(*placed)
  return np.stack(canvases), Placement(*map(np.stack, zip(*placements)))
