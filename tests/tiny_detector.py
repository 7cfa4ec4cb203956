"""A run folder with an untrained network that is quick to compile, and a stand-in for a detector that needs none."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from triplet_det.categories import CategoryTable
from triplet_det.detection.batches import canvases_of
from triplet_det.detection.loading import LoadedDetector
from triplet_det.detection.settings import Settings
from triplet_det.models import detector
from triplet_det.run import checkpoints
from triplet_det.structs import Detections

MODEL = dict(
  stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3, norm_group=None
)
CATEGORIES = CategoryTable((7, 9, 12), ('cat', 'dog', 'cow'))
SETTINGS = Settings(canvas_multiple=32, max_detections=5, embedding_threshold=9.0)


def write_run(
  folder: Path, settings: Settings = SETTINGS, categories: CategoryTable = CATEGORIES, model: Mapping[str, Any] = MODEL
) -> Path:
  """The run folder, with weights as training draws them."""
  module = detector.build(model)
  variables = module.init(jax.random.key(3), np.zeros((1, 63, 63, 3), np.float32))
  record = checkpoints.RunRecord(
    step=4, categories=categories, model=model, test=dataclasses.asdict(settings), metrics=dict(AP=0.5)
  )
  saved = checkpoints.Checkpoints(folder)
  saved.save_best({name: variables[name] for name in ('params', 'batch_stats')}, record)
  saved.close()
  return folder


class Colours:
  """A tester that finds in every image three boxes made of its mean colour; no network."""

  settings = SETTINGS
  batch_size = 4
  num_programs = 0

  def __init__(self, killed_after: int | None = None):
    self.seen, self._killed_after = [], killed_after

  def find(self, image: np.ndarray) -> Detections:
    red, green, blue = image.mean((0, 1))
    height, width = image.shape[:2]
    boxes = np.array([[1, 2, width / 2, height / 2], [3, 4, width, height], [0, 0, 5.5, 6.25]], np.float32)
    scores = np.sort(np.array([red, green, blue], np.float32) / 255)[::-1]
    return Detections(boxes, scores, np.array([0, 2, 1], np.int32), np.ones(3, bool))

  def canvases_for(self, image, key):
    return canvases_of(*image.shape[:2], self.settings)

  def stream(self, keyed_images, failed=None):
    """In batches and, as the true one, not in the order that they came in."""
    waiting = []
    for key, image in keyed_images:
      if len(self.seen) == self._killed_after:
        raise KeyboardInterrupt
      waiting.append((key, image))
      if len(waiting) == self.batch_size:
        yield from self._flush(waiting)
    yield from self._flush(waiting)

  def _flush(self, waiting):
    while waiting:
      key, image = waiting.pop()
      self.seen.append(key)
      yield key, self.find(image)


def stand_in(**options) -> LoadedDetector:
  return LoadedDetector(Colours(**options), CATEGORIES, dict(checkpoint='none', step=0, weights='0'))
