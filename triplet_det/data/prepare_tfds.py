"""Prepares COCO (or any COCO-JSON data set) as array_record, without TensorFlow and without re-encoding an image.

The result reads like TFDS's `coco/2017:1.1.0`: same features, same keys, same order. The original JSON is copied
beside the records, because TFDS truncates `area` and evaluation needs it whole.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
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

  A preparation that was killed leaves only a directory named `incomplete...`, never a half data set.

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
    return directory
  if directory.exists():
    raise ValueError(
      f'{directory} is only in part there, without dataset_info.json: remove it or choose another directory'
    )
  builder = CocoBuilder(splits=splits, data_dir=str(data_dir), config=tfds.core.BuilderConfig(name=config))
  builder.download_and_prepare(file_format='array_record')
  return epath.Path(builder.data_path)


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


class CocoRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder whose records have the features of TFDS's `coco`; the COCO JSON of every split lies beside them."""

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


class CocoBuilder(CocoRecords, skip_registration=True):
  """TFDS's `coco` over files that are already unpacked (use `prepare`)."""

  name = 'coco'
  VERSION = tfds.core.Version('1.1.0')

  def __init__(self, *, splits: Sequence[Split], **kwargs):
    self._splits = splits
    self._annotations = {split.name: _read(split) for split in splits}
    self.categories = self._annotations[splits[0].name].categories
    for split in splits:
      table = self._annotations[split.name].categories
      if table != self.categories:
        raise ValueError(
          f'the categories differ: {len(self.categories)} in {splits[0].annotations}, '
          f'{len(table)} in {split.annotations} (compare ids, names and order)'
        )
    super().__init__(**kwargs)

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    for split in self._splits:
      epath.Path(split.annotations).copy(self.json_path(split.name))
    return {split.name: self._generate_examples(split) for split in self._splits}

  def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict]]:
    annotations = self._annotations[split.name]
    for i, name in enumerate(tqdm(annotations.file_names, desc=f'{split.name}: reading images', unit='image')):
      path = epath.Path(split.images) / name
      encoded = path.read_bytes()
      # A broken file is found now, not in the middle of the training.
      decode_image(encoded, str(path), size=tuple(annotations.image_sizes[i].tolist()))
      yield example(annotations, i, encoded)


def _read(split: Split) -> Annotations:
  is_test = epath.Path(split.annotations).name.startswith('image_info')
  annotations = read_annotations(split.annotations, require_boxes=not is_test)
  sources.check_files(epath.Path(split.images), annotations)
  return annotations
