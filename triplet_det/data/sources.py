"""Detection data sets by random access: a folder with a COCO JSON, or a data set prepared by TFDS.

Both sources give the same records in the same order (see `Annotations.in_tfds_order`), to the bit.
Ground truth for evaluation always comes from the JSON, because TFDS truncates `area`.
"""

import abc
import concurrent.futures
import dataclasses
import functools
import io
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from triplet_det.categories import COCO, CategoryTable
from triplet_det.data import image_files
from triplet_det.data.annotations import Annotations
from triplet_det.data.layouts.coco_json import read_annotations, read_ground_truth

PREPARE_HINT = 'python scripts/prepare_coco.py --coco DIR --data_dir OUT'


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One image, still encoded, and its n boxes."""

  encoded: bytes  # of the image file
  image_id: int  # the data set's
  file_name: str  # for messages and results
  boxes: np.ndarray  # [n, 4] float32 x1 y1 x2 y2, fractions of width and height in [0, 1], not empty
  classes: np.ndarray  # [n] int32 class indices
  crowd: np.ndarray  # [n] bool, True for a box around a group of objects
  size: tuple[int, int] | None = None  # (height, width) that the annotations claim, pixels, if the source knows it
  upright: bool = False  # whether the boxes belong to the image as its EXIF orientation turns it
  place: str = ''  # the path of a file of its own, for messages

  def decode(self) -> np.ndarray:
    """The image [H, W, 3] uint8 RGB that the boxes belong to; ValueError as `image_files.decode_image`."""
    return image_files.decode_image(self.encoded, self.place or self.file_name, size=self.size, upright=self.upright)


class Source(abc.ABC):
  """A split by random access: `source[i]` is a `Record`; all else is read off the COCO JSON, in the records' order."""

  split: str  # on its name the order of the records depends
  annotations: Annotations
  orientation = 'stored'
  _require_boxes: bool

  def __len__(self) -> int:
    return len(self.annotations)

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record: ...

  def header(self, index: int) -> image_files.Header | None:
    """What the file of an image claims; None if it cannot be told without decoding it."""
    return image_files.read_header(io.BytesIO(self[index].encoded))

  def __getstate__(self) -> dict:
    """For workers, which need the records alone: what is read on demand stays behind."""
    on_demand = functools.cached_property
    return {k: v for k, v in vars(self).items() if not isinstance(getattr(type(self), k, None), on_demand)}

  @property
  def categories(self) -> CategoryTable:
    return self.annotations.categories

  @property
  def image_ids(self) -> list[int]:
    return self.annotations.image_ids.tolist()

  @property
  def image_sizes(self) -> list[tuple[int, int]]:
    """(height, width) of the images, pixels."""
    return [tuple(size) for size in self.annotations.image_sizes.tolist()]

  @property
  def contents(self) -> str:
    """What tells other data from these, in a few words."""
    return f'{len(self)} images, {len(self.annotations.boxes)} boxes, digest {self.annotations.digest}'

  @functools.cached_property
  def ground_truth(self) -> dict:
    """The COCO dictionary for the evaluators, without the boxes that training leaves out."""
    known, size_of = self.annotations, dict(zip(self.annotations.file_names, self.image_sizes))

    def sizes(images: Sequence[Mapping]) -> list[tuple[int, int]]:
      return [size_of.get(image['file_name'], (image['height'], image['width'])) for image in images]

    return read_ground_truth(known.path, require_boxes=self._require_boxes, sizes=sizes, known=known)


class JsonSource(Source):
  """A folder of images and a COCO JSON.

  Args:
    images: the folder (local or gs://); `file_name`s of the JSON are relative to it.
    annotations: the JSON.
    split: name of the split.
    require_boxes: False accepts a test set without annotations.
    orientation: what the boxes belong to: 'stored', the pixels as the files have them, as COCO does; 'upright', the
      image as its EXIF orientation turns it, whichever of the two sizes the JSON has.

  Raises:
    FileNotFoundError: folder, JSON or image files are missing.
    ValueError: an unknown orientation, or the JSON is not sound (`read_annotations`).
  """

  def __init__(
    self,
    images: epath.PathLike,
    annotations: epath.PathLike,
    split: str = 'train',
    *,
    require_boxes: bool = True,
    orientation: str = 'stored',
  ):
    if orientation not in ('stored', 'upright'):
      raise ValueError(
        f"orientation is {orientation!r}: give 'stored' for boxes on the pixels as the files have them, or 'upright' "
        'for boxes that were drawn on images turned by their EXIF orientation'
      )
    self.split, self._require_boxes = split, require_boxes
    self._images = epath.Path(images).expanduser()
    self.orientation = orientation
    sizes = self._upright_sizes if orientation == 'upright' else None
    self.annotations = read_annotations(annotations, require_boxes=require_boxes, sizes=sizes).in_tfds_order(split)
    check_files(self._images, self.annotations)
    log_report(self.annotations, split)

  def __getitem__(self, index: int) -> Record:
    known = self.annotations
    rows, path = known.rows(index), self._images / known.file_names[index]
    image_files.check_regular(path)
    return Record(
      encoded=path.read_bytes(),
      image_id=int(known.image_ids[index]),
      file_name=known.file_names[index],
      boxes=known.boxes[rows],
      classes=known.classes[rows],
      crowd=known.crowd[rows],
      size=tuple(known.image_sizes[index].tolist()),
      upright=self.orientation == 'upright',
      place=str(path),
    )

  def header(self, index: int) -> image_files.Header | None:
    return image_files.header_of(self._images / self.annotations.file_names[index])

  def _upright_sizes(self, images: Sequence[Mapping]) -> list[tuple[int, int]]:
    """The (height, width) of images, rows of a JSON, when they are turned; their headers alone are read."""

    def size_of(image: Mapping) -> tuple[int, int]:
      path, claimed = self._images / image['file_name'], (image['height'], image['width'])
      header = image_files.header_of(path)
      return header.upright_size if header and claimed == header.size else claimed

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
      return list(threads.map(size_of, images))


class TfdsSource(Source):
  """A data set in array_record with the features of TFDS's `coco/2017`, read without TensorFlow.

  The JSON is read only when something asks for it: evaluation, and the data doctor before the first step of a run.

  Args:
    name: data set, configuration and, if wanted, version: 'coco/2017', 'coco/2017:1.1.0'. The newest version is taken.
    data_dir: where it was prepared; '' is TFDS's default. A directory that holds `dataset_info.json` is taken itself.
    split: 'train', 'validation', ...
    annotations: the original JSON; '' takes the one beside the records, `annotations/instances_<split>.json`.
    require_boxes: False accepts a test set without annotations.

  Raises:
    FileNotFoundError: nothing is prepared there, or it is not there in array_record.
    ValueError: the split is unknown; later, the JSON is not sound or not the split's.
  """

  def __init__(
    self,
    name: str = 'coco/2017',
    data_dir: epath.PathLike = '',
    split: str = 'train',
    annotations: epath.PathLike = '',
    *,
    require_boxes: bool = True,
  ):
    self.split, self._require_boxes = split, require_boxes
    self._directory = find_prepared(name, data_dir)
    beside = self._directory / 'annotations' / f'instances_{split}.json'
    self._json = annotations or (beside if beside.exists() else None)
    builder = tfds.builder_from_directory(self._directory)
    info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise FileNotFoundError(
        f'{self._directory} holds {info.file_format.value} files; only array_record can be read without TensorFlow. '
        f'Prepare the data set in another directory: {PREPARE_HINT}'
      )
    if split not in info.splits:
      raise ValueError(f'{self._directory} has no split {split!r}; it has {sorted(info.splits)}')
    self._records = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    logging.info('%s: split %s, %d images', self._directory, split, len(self))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    record = self._records[index]
    objects = record['objects']
    boxes = np.array(objects['bbox'], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]  # TFDS: ymin xmin ymax xmax
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # TFDS keeps the few empty boxes of COCO
    return Record(
      encoded=record['image'],
      image_id=int(record['image/id']),
      file_name=record['image/filename'].decode(),
      boxes=boxes[keep],
      classes=np.array(objects['label'], np.int32)[keep],
      crowd=np.array(objects['is_crowd'], bool)[keep],
    )

  @property
  def contents(self) -> str:
    told = (self._directory / 'dataset_info.json').read_bytes()  # the JSON of all annotations takes long to read
    return f'{len(self)} images, digest of dataset_info.json {zlib.crc32(told):08x}'

  @property
  def categories(self) -> CategoryTable:
    """From the metadata that our builders write, else from the JSON, else from the names alone."""
    info = self._records.dataset_info
    if info.metadata:
      return CategoryTable.from_coco(info.metadata['categories'])
    if self._json:
      return self.annotations.categories
    names = tuple(info.features['objects']['label'].names)
    return COCO if names == COCO.names else CategoryTable(tuple(range(1, len(names) + 1)), names)

  @functools.cached_property
  def annotations(self) -> Annotations:
    if not self._json:
      raise FileNotFoundError(
        f'{self._directory} has no annotations/instances_{self.split}.json; evaluation needs the original COCO JSON: '
        f'pass annotations=FILE, or prepare the data set by {PREPARE_HINT}'
      )
    found = read_annotations(self._json, require_boxes=self._require_boxes).in_tfds_order(self.split)
    ends = (0, len(self) - 1)
    if len(found) != len(self) or any(self[i].image_id != found.image_ids[i] for i in ends):
      raise ValueError(
        f'{found.path} ({len(found)} images) is not the JSON of split {self.split!r} in {self._directory} '
        f'({len(self)} images): the images differ'
      )
    log_report(found, self.split)
    return found


def is_prepared(directory: epath.Path) -> bool:
  """Whether TFDS has prepared a data set there, to its end."""
  return (directory / 'dataset_info.json').exists()


def find_prepared(name: str, data_dir: epath.PathLike = '') -> epath.Path:
  """The directory of a prepared data set: `<data_dir>/<name>/<newest version>`, or data_dir itself.

  Raises:
    FileNotFoundError: nothing is prepared there.
  """
  root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
  parent = root / name.replace(':', '/')
  for path in (root, parent):
    if is_prepared(path):
      return path
  versions = [path for path in parent.iterdir() if is_prepared(path)] if parent.is_dir() else []
  if not versions:
    raise FileNotFoundError(f'no prepared data set {name!r} in {root}; prepare COCO by {PREPARE_HINT}')
  return max(versions, key=lambda path: tfds.core.Version(path.name))


def check_files(images: epath.Path, annotations: Annotations) -> None:
  """Lists every folder that the JSON names once, and compares.

  Raises:
    ValueError: names that lead out of the folder; they are not followed.
    FileNotFoundError: with the number of the missing files and the first of them.
  """
  if not images.is_dir():
    raise FileNotFoundError(
      f'no folder of images at {images} (for {annotations.path}): give the one that its file_names are relative to, '
      f'such as {annotations.file_names[0]}'
    )
  outside = [name for name in annotations.file_names if name.startswith('/') or '..' in name.split('/')]
  if outside:
    raise ValueError(
      f'{len(outside)} of the {len(annotations)} file_names of {annotations.path} lead out of {images}: '
      f'{_examples(outside)}; they are not followed: write them relative to a folder that holds all, and give that one'
    )
  present = set()
  for folder in {posixpath.dirname(name) for name in annotations.file_names}:
    if (images / folder).is_dir():
      present.update(posixpath.join(folder, path.name) for path in (images / folder).iterdir())
  missing = sorted(name for name in annotations.file_names if name not in present)
  if missing:
    raise FileNotFoundError(
      f'{len(missing)} of the {len(annotations)} images of {annotations.path} are not in {images}: '
      f'{_examples(missing)}; it holds {len(present)} files, {_examples(sorted(present))}: give the folder that the '
      'names are relative to'
    )


def read_ahead(load: Callable[[int], Any], indices: Iterable[int], threads: int = 2) -> Iterator[Any]:
  """What `load` gives for each index, in order; threads load the next ones meanwhile."""
  read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  loaded = iter(grain.MapDataset.source(list(indices)).map(load).to_iter_dataset(read))
  try:
    yield from loaded
  finally:
    loaded.close()


def log_report(annotations: Annotations, split: str) -> None:
  """One line with every count that is not zero."""
  counts = ', '.join(f'{what} {count}' for what, count in annotations.report.items() if count)
  logging.info('%s: split %s, %s', annotations.path, split, counts)


def _examples(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
