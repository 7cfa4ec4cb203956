"""A COCO JSON, checked and packed: what is wrong is an error or a counted repair.

Two views of one file: `read_annotations` packs the boxes into arrays that are cheap to send to workers, and
`read_ground_truth` gives pycocotools the dictionary as it was written, with the repairs that pycocotools needs.
"""

import dataclasses
import hashlib

import numpy as np

from triplet_det.categories import CategoryTable


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """The M images of a split and their n training boxes, image after image.

  Attributes:
    path: the JSON they were read from.
    categories: the class index is the position in the JSON's `categories`, as in TFDS.
    image_ids: [M] int64.
    image_sizes: [M, 2] int32 (height, width), pixels.
    file_names: M names, relative to the folder of images.
    starts: [M + 1] int64, the boxes of image i are the rows starts[i]:starts[i + 1].
    boxes: [n, 4] float32 x1 y1 x2 y2, fractions of width and height, inside [0, 1], not empty.
    classes: [n] int32.
    crowd: [n] bool.
    ids: [n] int64, annotation ids (after repair).
    areas: [n] float64, as annotated, pixels.
    report: counts of what was found and of what was repaired.
    examples: key of `report` -> the first few of what was repaired or left out, for messages.
  """

  path: str
  categories: CategoryTable
  image_ids: np.ndarray
  image_sizes: np.ndarray
  file_names: tuple[str, ...]
  starts: np.ndarray
  boxes: np.ndarray
  classes: np.ndarray
  crowd: np.ndarray
  ids: np.ndarray
  areas: np.ndarray
  report: dict[str, int]
  examples: dict[str, tuple[str, ...]]

  def __len__(self) -> int:
    return len(self.file_names)

  def rows(self, i: int) -> slice:
    """The rows of `boxes`, `classes`, ... that belong to image i."""
    return slice(int(self.starts[i]), int(self.starts[i + 1]))

  def in_tfds_order(self, split: str) -> 'Annotations':
    """The same images in the order in which TFDS stores them: by the MD5 of the split's name and the file name.

    Every source is read in this order, so equal seeds give equal batches whatever the data were read from.
    """
    keys = [hashlib.md5((split + name.replace('\\', '/')).encode()).digest() for name in self.file_names]
    order = np.array(sorted(range(len(self)), key=keys.__getitem__), np.int64)
    rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in order])
    counts = np.diff(self.starts)[order]
    return dataclasses.replace(
      self,
      image_ids=self.image_ids[order],
      image_sizes=self.image_sizes[order],
      file_names=tuple(self.file_names[i] for i in order),
      starts=np.concatenate([[0], np.cumsum(counts)]),
      boxes=self.boxes[rows],
      classes=self.classes[rows],
      crowd=self.crowd[rows],
      ids=self.ids[rows],
      areas=self.areas[rows],
    )
