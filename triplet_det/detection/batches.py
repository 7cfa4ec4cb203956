"""Images to batches and back: those whose canvases are equal share one; their results are cut into images again."""

import collections
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import cv2
import jax
import numpy as np

from triplet_det.data.augmentation import scale_to
from triplet_det.detection import nms
from triplet_det.detection.canvas import Placement, canvas_size, check_image, place, resized_size
from triplet_det.detection.settings import Settings
from triplet_det.structs import Detections, Pairs

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


def rows_for(count: int, sharding: jax.sharding.NamedSharding | None) -> int:
  """Rows of the batch for `count` images: as many on every device."""
  devices = 1 if sharding is None else sharding.num_devices
  return -(-count // devices) * devices


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
  return jax.tree.map(lambda *a: np.stack(a), *placed)


def detect(
  batches: Iterable[tuple[Canvases, list[Keyed]]],
  launch: Callable[[Canvases, Sequence[np.ndarray]], Detections | Pairs],
  settings: Settings,
  failed: Callable[[Hashable, str], None] | None = None,
) -> Iterator[tuple[Hashable, Detections]]:
  """Detections of every image; the next batch is prepared and launched while the device works on the one before.

  Args:
    batches: of `in_batches`.
    launch: sends the images of a batch to the device, and returns without waiting for its result.
    settings: of the test.
    failed: is told the key of every image of a batch that memory is too short for, and the reason; None raises.
  """

  def attempt(batch: list[Keyed], step: Callable, *arguments) -> Detections | Pairs | None:
    try:
      return step(*arguments)
    except (MemoryError, jax.errors.JaxRuntimeError, cv2.error) as error:
      words = 'RESOURCE_EXHAUSTED', 'Out of memory', 'Insufficient memory'  # of XLA, of its CPU, of OpenCV
      if failed is None or not (isinstance(error, MemoryError) or any(word in str(error) for word in words)):
        raise
      for key, _ in batch:
        failed(key, (str(error) or 'MemoryError').splitlines()[0])

  launched = ((batch, attempt(batch, launch, canvases, [image for _, image in batch])) for canvases, batch in batches)
  for (batch, result), _ in itertools.pairwise(itertools.chain(launched, [None])):
    if result is not None and (result := attempt(batch, jax.device_get, result)) is not None:
      yield from per_image([key for key, _ in batch], result, settings)


def per_image(
  keys: Sequence[Hashable], result: Detections | Pairs, settings: Settings
) -> Iterator[tuple[Hashable, Detections]]:
  """Waits for a batch's result of `inference.finish` and cuts it into images: NumPy, valid rows only, no padding."""
  result = jax.device_get(result)
  for i, key in enumerate(keys):
    rows = np.flatnonzero(result.valid[i])
    one = jax.tree.map(lambda a: a[i][rows], result)  # noqa: B023, used at once
    if settings.stale_rows:  # Pairs, whose order matters
      corners = one.tl_scores, one.br_scores
      one = nms.soft_nms_in_place(one.boxes, one.scores, one.classes, *corners, **settings.nms_settings())
    yield key, one
