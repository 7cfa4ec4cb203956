"""Batches on the device: one is launched while the one before works; their results are cut into images again."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import cv2
import jax
import numpy as np

from triplet_det.detection import nms
from triplet_det.detection.batches import Canvases, Keyed
from triplet_det.detection.settings import Settings
from triplet_det.structs import Detections, Pairs


def rows_for(count: int, sharding: jax.sharding.NamedSharding | None) -> int:
  """Rows of the batch for `count` images: as many on every device."""
  devices = 1 if sharding is None else sharding.num_devices
  return -(-count // devices) * devices


def detect(
  batches: Iterable[tuple[Canvases, list[Keyed]]],
  launch: Callable[[Canvases, Sequence[np.ndarray]], Detections | Pairs],
  settings: Settings,
  failed: Callable[[Hashable, str], None] | None = None,
) -> Iterator[tuple[Hashable, Detections]]:
  """Detections of every image; the next batch is prepared and launched while the device works on the one before.

  Args:
    batches: of `batches.in_batches`.
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
