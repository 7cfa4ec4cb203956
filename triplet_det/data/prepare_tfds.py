"""Prepares COCO (or any COCO-JSON data set) as array_record, without TensorFlow and without re-encoding an image.

The result reads like TFDS's `coco/2017:1.1.0`: same features, same keys, same order. The original JSON is copied
beside the records, because TFDS truncates `area` and evaluation needs it whole.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core import file_adapters, writer
from tqdm import tqdm

from triplet_det.categories import CategoryTable
from triplet_det.data import sources
from triplet_det.data.annotations import Annotations
from triplet_det.data.image_files import decode_image
from triplet_det.data.layouts.coco_json import read_annotations

# The official files: name in the download -> split of TFDS, folder of images, JSON. {0} is the year.
_OFFICIAL = {
  'train': ('train', 'train{0}', 'instances_train{0}.json'),
  'val': ('validation', 'val{0}', 'instances_val{0}.json'),
  'test': ('test', 'test{0}', 'image_info_test{0}.json'),
  'test-dev': ('test_dev', 'test{0}', 'image_info_test-dev{0}.json'),
}

BYTES_PER_FILE = 2**27  # about, of images: TFDS has a file's in memory
_SIZES_LOOKED_AT = 1_000  # images of a split


@dataclasses.dataclass(frozen=True)
class Split:
  """One split to prepare: its name, its folder of images, its JSON."""

  name: str
  images: epath.PathLike
  annotations: epath.PathLike


def official_splits(root: epath.PathLike, names: Sequence[str] = ('train2017', 'val2017')) -> list[Split]:
  """The splits of an unzipped COCO download, by the names of its folders ('train2017', 'test-dev2017').

  Raises:
    ValueError: a name is not of that form, or the years differ.
  """
  root = epath.Path(root)
  if len({given[-4:] for given in names}) > 1:
    raise ValueError(f'prepare one year at a time, got the splits {list(names)}')
  splits = []
  for given in names:
    match = re.fullmatch(r'([a-z-]+)(\d{4})', given)
    if not match or match[1] not in _OFFICIAL:
      raise ValueError(
        f'unknown COCO split {given!r}; possible: {list(_OFFICIAL)}, each followed by the year, such as val2017'
      )
    name, images, annotations = (text.format(match[2]) for text in _OFFICIAL[match[1]])
    splits.append(Split(name, root / images, root / 'annotations' / annotations))
  return splits


def prepared_directory(data_dir: epath.PathLike, config: str = '2017') -> epath.Path:
  """Where `prepare` puts a data set, whether it is there or not."""
  return epath.Path(data_dir) / CocoBuilder.name / config / str(CocoBuilder.VERSION)


def prepare(splits: Sequence[Split], data_dir: epath.PathLike, config: str = '2017') -> epath.Path:
  """Writes the splits to `<data_dir>/coco/<config>/1.1.0`; does nothing if they are there already.

  A preparation that was killed, or ended by an error, leaves two directories, `incomplete...` and, of the files that
  were finished, `finished...`, from which the next one of the same JSONs and folders goes on: it does not look at the
  images in them again. Never a half data set; of several preparations at once the first to finish wins.

  Args:
    splits: what to prepare; all must have the same categories.
    data_dir: where prepared data sets live.
    config: name of this data set, '2017' for the official one; `TfdsSource(name=f'coco/{config}')` reads it.

  Returns:
    The directory of the prepared data set.

  Raises:
    FileNotFoundError: a folder, a JSON or images are missing.
    ValueError: a JSON is not sound, an image cannot be decoded or is not of the size that the JSON says, the categories
      differ between splits, or another data set, or a part of one, is already at that place.
  """
  if not splits:
    raise ValueError('nothing to prepare: got 0 splits')
  directory = prepared_directory(data_dir, config)
  if sources.is_prepared(directory):
    present = set(tfds.builder_from_directory(directory).info.splits)
    if absent := {split.name for split in splits} - present:
      raise ValueError(
        f'{directory} is already prepared with the splits {sorted(present)}, without {sorted(absent)}; '
        'remove it or choose another directory'
      )
    for split in splits:
      _check_same(directory, split)
    _remove_finished(directory)
    return directory
  if directory.exists():
    raise ValueError(
      f'{directory} is only in part there, without dataset_info.json: remove it or choose another directory'
    )
  builder = CocoBuilder(splits=splits, data_dir=str(data_dir), config=tfds.core.BuilderConfig(name=config))
  try:
    builder.download_and_prepare(file_format='array_record')
  except Exception as error:
    if not sources.is_prepared(directory):
      raise
    logging.warning('another process has made %s meanwhile (%s: %s)', directory, type(error).__name__, error)
  _remove_finished(directory)
  return directory


def _remove_finished(directory: epath.Path) -> None:
  """What is of no use any more once the data set is there."""
  for left in directory.parent.glob(f'finished.{directory.name}_*'):
    try:
      left.rmtree(missing_ok=True)
    except OSError as error:  # another process still writes there; it will find the data set, and sweep for itself
      logging.warning('%s stays for now: %s', left, error)


def _check_same(directory: epath.Path, split: Split) -> None:
  """Raises ValueError if what is prepared there lacks files, or is not of this JSON."""
  advice = 'remove it or choose another directory'
  there = tfds.builder_from_directory(directory).info.splits[split.name]
  if lacking := [path for path in map(epath.Path, there.filepaths) if not path.exists()]:
    raise ValueError(
      f'{directory} is only in part there: {len(lacking)} of {len(there.filepaths)} files of {split.name} are missing, '
      f'such as {lacking[0].name}; {advice}'
    )
  given, beside = epath.Path(split.annotations), directory / 'annotations' / f'instances_{split.name}.json'
  if beside.exists():
    same = given.stat().length == beside.stat().length and given.read_bytes() == beside.read_bytes()
  else:  # prepared by TFDS
    same = len(_read(split)) == there.num_examples
  if not same:
    raise ValueError(
      f'{directory} holds another data set: its {split.name} ({there.num_examples} images) is not of {given}; {advice}'
    )


class CocoRecords:
  """Of a TFDS builder: records have the features of TFDS's `coco`; the COCO JSON of every split lies beside them."""

  categories: CategoryTable  # to be set before `__init__`

  def _info(self) -> tfds.core.DatasetInfo:
    objects = {
      'id': np.int64,
      'area': np.int64,
      'bbox': tfds.features.BBoxFeature(),
      'label': tfds.features.ClassLabel(names=self.categories.names),
      'is_crowd': np.bool_,
    }
    features = {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'image/filename': tfds.features.Text(),
      'image/id': np.int64,
      'objects': tfds.features.Sequence(objects),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Images, boxes and labels; as COCO JSON files in `annotations/` too.',
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(categories=self.categories.to_coco()),
    )

  def json_path(self, split: str) -> epath.Path:
    """Where a split's JSON is to be written; its folder is made."""
    # While it prepares, TFDS's data_path is an incomplete directory, renamed at the end: records and JSON appear at the
    # same instant or never.
    path = epath.Path(self.data_path) / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def example(annotations: Annotations, i: int, encoded: bytes) -> tuple[str, dict]:
  """Key and record of image i, for a builder of `CocoRecords`."""
  rows = annotations.rows(i)
  columns = (annotations.ids, annotations.areas, annotations.boxes, annotations.classes, annotations.crowd)
  objects = [
    {
      'id': object_id,
      'area': int(area),
      'bbox': tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
      'label': label,
      'is_crowd': crowd,
    }
    for object_id, area, (x1, y1, x2, y2), label, crowd in zip(*(column[rows].tolist() for column in columns))
  ]
  name, image_id = annotations.file_names[i], int(annotations.image_ids[i])
  return name, {'image': encoded, 'image/filename': name, 'image/id': image_id, 'objects': objects}


class FinishedFiles(writer.ExampleWriter):
  """Keeps a link to every file of records that is whole in `folder`, and takes those that are there."""

  def __init__(self, file_format: tfds.core.FileFormat, folder: epath.Path):
    super().__init__(file_format)
    self._folder = folder
    self._to_take = set()

  def has(self, path: epath.Path, count: int) -> bool:
    """Whether the file that is to become `path` is there, with so many records; then its examples are not read."""
    kept = self._folder / path.name
    try:
      if not kept.exists() or file_adapters.ADAPTER_FOR_FORMAT[self.file_format].num_examples(kept) != count:
        return False
    except Exception:  # whatever the reader says of a file that a crash of the machine has cut short
      return False
    self._to_take.add(path.name)
    return True

  def write(self, path: epath.PathLike, examples: Iterator) -> None:
    kept = self._folder / epath.Path(path).name
    if kept.name in self._to_take:
      os.link(kept, path)
      return
    super().write(path, examples)
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      kept.unlink(missing_ok=True)
      os.link(path, kept)
    except OSError as error:  # behind a URL, or on a file system without links; or another process was faster
      logging.log_first_n(logging.INFO, 'a preparation that is killed will begin anew: %s', 1, error)


class CocoBuilder(CocoRecords, tfds.core.ShardBasedBuilder, skip_registration=True):
  """TFDS's `coco` over files that are already unpacked (use `prepare`).

  Images are read in the order in which they are stored, one file of records after the other: TFDS's own builders bring
  them into it by TensorFlow as soon as they have more than 1 GB.
  """

  name = 'coco'
  VERSION = tfds.core.Version('1.1.0')

  def __init__(self, *, splits: Sequence[Split], **kwargs):
    self._splits = splits
    self._annotations = {split.name: _read(split).in_tfds_order(split.name) for split in splits}
    self.categories = self._annotations[splits[0].name].categories
    for split in splits:
      table = self._annotations[split.name].categories
      if table != self.categories:
        raise ValueError(
          f'the categories differ: {len(self.categories)} in {splits[0].annotations}, '
          f'{len(table)} in {split.annotations} (compare ids, names and order)'
        )
    super().__init__(**kwargs)
    same = hashlib.md5()
    for split in splits:
      same.update(f'{split.name} {split.images} '.encode() + epath.Path(split.annotations).read_bytes())
    # Beside the data set, so that files can be linked: the finished ones, until it is there.
    self.finished = epath.Path(self.data_path).parent / f'finished.{self.VERSION}_{same.hexdigest()[:8]}'

  @functools.cached_property
  def _finished_files(self) -> FinishedFiles:
    return FinishedFiles(self.info.file_format, self.finished)

  def _example_writer(self) -> FinishedFiles:
    return self._finished_files

  def _shard_iterators_per_split(self, dl_manager: object) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
    del dl_manager  # nothing is downloaded
    for split in self._splits:
      epath.Path(split.annotations).copy(self.json_path(split.name))
    return {split.name: self._files(split) for split in self._splits}

  def _files(self, split: Split) -> list[Callable[[], Iterator[tuple[str, dict | None]]]]:
    """For each file of records what gives its keys and records."""
    names = self._annotations[split.name].file_names
    count = len(names)
    looked_at = names[:: -(-count // _SIZES_LOOKED_AT)]
    size = sum((epath.Path(split.images) / name).stat().length for name in looked_at) / len(looked_at)
    number = min(count, math.ceil(count * size / BYTES_PER_FILE))
    bounds = [round(count * k / number) for k in range(number + 1)]
    template = self._get_filename_template(split_name=split.name)
    paths = [template.sharded_filepath(shard_index=k, num_shards=number) for k in range(number)]
    files = [range(*pair) for pair in itertools.pairwise(bounds)]
    there = [self._finished_files.has(path, len(rows)) for path, rows in zip(paths, files, strict=True)]
    if any(there):
      taken = sum(len(rows) for rows, has in zip(files, there) if has)
      logging.warning('%s: %d of %d images are there from a preparation before', split.name, taken, count)
    progress = functools.cache(lambda: tqdm(total=count, desc=f'{split.name}: reading images', unit='image'))

    def records(rows: range, there: bool) -> Iterator[tuple[str, dict | None]]:
      for record in self._placeholders(split, rows) if there else self._records(split, rows):
        yield record
        progress().update()
      if rows.stop == count:
        progress().close()

    return [functools.partial(records, *of_file) for of_file in zip(files, there, strict=True)]

  def _placeholders(self, split: Split, rows: range) -> Iterator[tuple[str, None]]:
    """For TFDS to count."""
    names = self._annotations[split.name].file_names
    return ((names[i], None) for i in rows)

  def _records(self, split: Split, rows: range) -> Iterator[tuple[str, dict]]:
    annotations = self._annotations[split.name]

    def load(i: int) -> bytes:
      path = epath.Path(split.images) / annotations.file_names[i]
      encoded = path.read_bytes()
      # A broken file is found now, not in the middle of the training.
      decode_image(encoded, str(path), size=tuple(annotations.image_sizes[i].tolist()))
      return encoded

    for i, encoded in zip(rows, sources.read_ahead(load, rows, _threads()), strict=True):
      yield example(annotations, i, encoded)


def _threads() -> int:
  """One for each core that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _read(split: Split) -> Annotations:
  is_test = epath.Path(split.annotations).name.startswith('image_info')
  annotations = read_annotations(split.annotations, require_boxes=not is_test)
  sources.check_files(epath.Path(split.images), annotations)
  return annotations
