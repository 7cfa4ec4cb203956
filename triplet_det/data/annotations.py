"""The packed form in which a split's boxes go to the workers, whatever layout they were read from."""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable

_ANGLES = {'rotation', 'angle', 'theta', 'rotation_angle'}  # degrees or radians


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
  """The N boxes of M images as they are in the file, before one is cut or left out."""

  boxes: np.ndarray  # [N, 4] float64, meant as x, y, width, height, pixels
  areas: np.ndarray  # [N] float64, pixels
  classes: np.ndarray  # [N] int32
  crowd: np.ndarray  # [N] bool
  turned: np.ndarray  # [N] bool, whether a label tool has turned them by an angle that is noted beside
  image_of: np.ndarray  # [N] int64, position of the image
  image_sizes: np.ndarray  # [M, 2] int32 (height, width), pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """The M images of a split and their n training boxes, image after image."""

  path: str  # of the file they were read from
  categories: CategoryTable  # the class index is the position in the file's list of categories, as in TFDS
  image_ids: np.ndarray  # [M] int64
  image_sizes: np.ndarray  # [M, 2] int32 (height, width), pixels
  file_names: tuple[str, ...]  # M names, relative to the folder of images
  starts: np.ndarray  # [M + 1] int64, the boxes of image i are the rows starts[i]:starts[i + 1]
  boxes: np.ndarray  # [n, 4] float32 x1 y1 x2 y2, fractions of width and height, inside [0, 1], not empty
  classes: np.ndarray  # [n] int32
  crowd: np.ndarray  # [n] bool
  ids: np.ndarray  # [n] int64, annotation ids (after repair)
  areas: np.ndarray  # [n] float64, as annotated, pixels
  report: Mapping[str, int]  # counts of what was found and of what was repaired
  examples: Mapping[str, tuple[str, ...]]  # key of `report` -> the first few of what was repaired or left out
  written: Written | None = None  # for the doctor; stays behind when the rest is sent to workers

  def __len__(self) -> int:
    return len(self.file_names)

  def __getstate__(self) -> dict:
    return vars(self) | {'written': None}

  @functools.cached_property
  def digest(self) -> str:
    """Tells other annotations from these: of all that training and evaluation take from the file."""
    found = zlib.crc32(json.dumps([self.categories.to_coco(), self.file_names]).encode())
    for array in (self.image_ids, self.image_sizes, self.starts, self.boxes, self.classes, self.crowd, self.areas):
      found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), found)
    return f'{found:08x}'

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
    of_images = {name: getattr(self, name)[order] for name in ('image_ids', 'image_sizes')}
    of_boxes = {name: getattr(self, name)[rows] for name in ('boxes', 'classes', 'crowd', 'ids', 'areas')}
    starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[order])])
    names = tuple(self.file_names[i] for i in order)
    written = self.written and dataclasses.replace(
      self.written, image_of=np.argsort(order)[self.written.image_of], image_sizes=of_images['image_sizes']
    )
    return dataclasses.replace(self, file_names=names, starts=starts, written=written, **of_images, **of_boxes)


def pack(data: Mapping, path: epath.PathLike, repaired: Mapping[str, Sequence[str]] | None = None) -> Annotations:
  """Packs a COCO dictionary; boxes are cut at the edges of their image, and empty ones left out.

  Args:
    data: images, categories and annotations, which have area and iscrowd and contradict each other nowhere.
    path: the file they were read from.
    repaired: what was done to become so -> where; for `report` and `examples`, as the boxes that are cut or left out.
  """
  categories = CategoryTable.from_coco(data['categories'])
  class_of = {category_id: index for index, category_id in enumerate(categories.ids)}
  position = {image['id']: i for i, image in enumerate(data['images'])}
  annotations = sorted(data['annotations'], key=lambda annotation: position[annotation['image_id']])
  image_of = np.array([position[annotation['image_id']] for annotation in annotations], np.int64)
  image_sizes = np.array([(image['height'], image['width']) for image in data['images']], np.int32)

  # The order of operations is TFDS's, so that the float32 values agree to the bit.
  as_written = np.array([annotation['bbox'] for annotation in annotations], np.float64).reshape(-1, 4)
  x, y, w, h = as_written.T
  height, width = image_sizes[image_of].T
  fractions = np.stack([x / width, y / height, (x + w) / width, (y + h) / height], axis=1)
  inside = fractions.clip(0, 1)
  boxes = inside.astype(np.float32)
  full = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
  counts = np.bincount(image_of[full], minlength=len(position))
  written = Written(
    boxes=as_written,
    areas=np.array([annotation['area'] for annotation in annotations], np.float64),
    classes=np.array([class_of[annotation['category_id']] for annotation in annotations], np.int32),
    crowd=np.array([annotation['iscrowd'] for annotation in annotations], bool),
    turned=np.array([_is_turned(annotation) for annotation in annotations], bool),
    image_of=image_of,
    image_sizes=image_sizes,
  )
  crowd = written.crowd[full]
  file_names = tuple(image['file_name'] for image in data['images'])

  def told(chosen: np.ndarray) -> list[str]:
    return [f'{file_names[image_of[n]]} {annotations[n]["bbox"]}' for n in np.flatnonzero(chosen)]

  found = dict(
    images=len(file_names),
    images_without_boxes=int((counts == 0).sum()),
    boxes=int(full.sum()),
    most_boxes_in_an_image=int(counts.max()),
    crowd=int(crowd.sum()),
  )
  repaired = dict(clipped=told((inside != fractions).any(axis=1)), degenerate=told(~full), **(repaired or {}))
  return Annotations(
    path=str(path),
    categories=categories,
    image_ids=np.array(list(position), np.int64),
    image_sizes=image_sizes,
    file_names=file_names,
    starts=np.concatenate([[0], np.cumsum(counts)]),
    boxes=boxes[full],
    classes=written.classes[full],
    crowd=crowd,
    ids=np.array([annotation['id'] for annotation in annotations], np.int64)[full],
    areas=written.areas[full],
    report=found | {what: len(where) for what, where in repaired.items()},
    examples={what: tuple(where[:3]) for what, where in repaired.items()},
    written=written,
  )


def _is_turned(annotation: Mapping) -> bool:
  """Whether a box has an angle, as CVAT notes it among its attributes; half a turn leaves a box as it is."""
  attributes = annotation.get('attributes')
  if isinstance(attributes, list):  # [{'name': 'rotation', 'value': 33}]
    attributes = {one.get('name'): one.get('value') for one in attributes if isinstance(one, Mapping)}
  if not attributes and _ANGLES.isdisjoint(annotation):
    return False
  for place in (annotation, attributes if isinstance(attributes, Mapping) else {}):
    for key, value in place.items():
      try:
        if str(key).lower() in _ANGLES and abs((float(value) + 90) % 180 - 90) > 0.05:
          return True
      except (TypeError, ValueError, OverflowError):  # None, a word of another meaning, or no angle
        pass
  return False
