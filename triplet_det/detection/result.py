"""What was found in one image, for those who use it: COCO rows, a plain form with names, a picture."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triplet_det.categories import CategoryTable
from triplet_det.data import image_files
from triplet_det.detection import coco_results
from triplet_det.pictures import drawing

if TYPE_CHECKING:
  from PIL import Image


@dataclasses.dataclass(frozen=True)
class ImageDetections:
  """The D boxes of an image, best first; NumPy."""

  boxes: np.ndarray  # [D, 4] float32, x1 y1 x2 y2 in pixels of the image
  scores: np.ndarray  # [D] float32
  classes: np.ndarray  # [D] int32, positions in `categories`
  categories: CategoryTable

  def __len__(self) -> int:
    return len(self.scores)

  @property
  def names(self) -> list[str]:
    """The class of each box as a word."""
    return [self.categories.names[c] for c in self.classes]

  @property
  def valid(self) -> np.ndarray:
    """[D] bool, all True: what is written for `structs.Detections`, which may be padded, takes these too."""
    return np.ones(len(self), bool)

  def above(self, threshold: float) -> 'ImageDetections':
    """Only the boxes with a higher score."""
    keep = self.scores > threshold
    return dataclasses.replace(self, boxes=self.boxes[keep], scores=self.scores[keep], classes=self.classes[keep])

  def to_rows(self) -> list[dict[str, Any]]:
    """The plain form, for JSON: name, score (4 digits) and box (x1 y1 x2 y2, 2 digits) of each."""
    return [
      dict(name=name, score=round(float(score), 4), box=[round(float(v), 2) for v in box])
      for name, score, box in zip(self.names, self.scores, self.boxes)
    ]

  def to_coco(self, image_id: int) -> list[dict[str, Any]]:
    """COCO result rows (bbox is x y width height) with the data set's category ids; all digits of a float32."""
    return coco_results.results_rows([(image_id, self)], self.categories)

  def to_supervision(self):
    """A `supervision.Detections` with the names in its data, as `class_name`; the class ids are positions.

    Raises:
      ImportError: the package supervision is not installed.
    """
    try:
      import supervision
    except ImportError as error:
      raise ImportError(f'to_supervision() needs the package supervision ({error}): pip install supervision') from error
    return supervision.Detections(
      xyxy=self.boxes,
      confidence=self.scores,
      class_id=self.classes.astype(int),
      data={'class_name': np.array(self.names, dtype=str)},
    )

  def draw(self, image: 'np.ndarray | str | os.PathLike | Image.Image', *, threshold: float = 0.0) -> np.ndarray:
    """The boxes with higher scores than `threshold` drawn on their image, uint8 [H, W, 3] RGB; a class is a colour.

    `image` is what the detector was given: an array, a path or a PIL image. Small images are enlarged
    (`drawing.draw_boxes`).
    """
    if isinstance(image, str | os.PathLike):
      path = os.path.expanduser(image)
      image = image_files.decode_image(Path(path).read_bytes(), path, upright=True)
    elif image_files.is_pillow(image):
      image = image_files.from_pillow(image)
    shown = self.above(threshold)
    colors = [drawing.class_color(c) for c in shown.classes]
    return drawing.draw_boxes(image, shown.boxes, shown.names, scores=shown.scores, colors=colors)
