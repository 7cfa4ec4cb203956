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

from triplet_det.data.annotations import Annotations
from triplet_det.data.image_files import decode_image
from triplet_det.data.layouts.coco_json import read_annotations
from triplet_det.data.sources import check_files

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
    name, images, annotations = _OFFICIAL[match[1]]
    year = match[2]
    splits.append(Split(name, root / images.format(year), root / 'annotations' / annotations.format(year)))
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
      differ between splits, or another data set is already at that place.
  """
  if not splits:
    raise ValueError('nothing to prepare: got 0 splits')
  directory = prepared_directory(data_dir, config)
  if (directory / 'dataset_info.json').exists():
    present = set(tfds.builder_from_directory(directory).info.splits)
    if absent := {split.name for split in splits} - present:
      raise ValueError(
        f'{directory} is already prepared with the splits {sorted(present)}, without {sorted(absent)}; '
        'remove it or choose another directory'
      )
    return directory
  builder = CocoBuilder(splits=splits, data_dir=str(data_dir), config=tfds.core.BuilderConfig(name=config))
  builder.download_and_prepare(file_format='array_record')
  return epath.Path(builder.data_path)


class CocoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS's `coco` over files that are already unpacked (use `prepare`)."""

  name = 'coco'
  VERSION = tfds.core.Version('1.1.0')

  def __init__(self, *, splits: Sequence[Split], **kwargs):
    self._sources = {split.name: split for split in splits}
    self._annotations = {split.name: _read(split) for split in splits}
    tables = {name: annotations.categories for name, annotations in self._annotations.items()}
    self._categories = tables[splits[0].name]
    for name, table in tables.items():
      if table != self._categories:
        raise ValueError(
          f'the categories differ: {len(self._categories)} in {splits[0].annotations}, '
          f'{len(table)} in {self._sources[name].annotations} (compare ids, names and order)'
        )
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'image/filename': tfds.features.Text(),
      'image/id': np.int64,
      'objects': tfds.features.Sequence(
        {
          'id': np.int64,
          'area': np.int64,
          'bbox': tfds.features.BBoxFeature(),
          'label': tfds.features.ClassLabel(names=self._categories.names),
          'is_crowd': np.bool_,
        }
      ),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Images, boxes and labels from COCO JSON files, which are kept in `annotations/`.',
      features=tfds.features.FeaturesDict(features),
      homepage='http://cocodataset.org/#home',
      metadata=tfds.core.MetadataDict(categories=self._categories.to_coco()),
    )

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    # TFDS writes to an incomplete directory and renames it at the end: the copies appear with the records or never.
    beside = epath.Path(self.data_path) / 'annotations'
    beside.mkdir(parents=True, exist_ok=True)
    for name, split in self._sources.items():
      epath.Path(split.annotations).copy(beside / f'instances_{name}.json')
    return {name: self._generate_examples(name) for name in self._sources}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    annotations = self._annotations[split]
    images = epath.Path(self._sources[split].images)
    for i in _progress(range(len(annotations)), split):
      name = annotations.file_names[i]
      encoded = (images / name).read_bytes()
      # A broken file is found now, not in the middle of the training.
      decode_image(encoded, str(images / name), size=tuple(annotations.image_sizes[i].tolist()))
      yield (
        name,
        {
          'image': encoded,
          'image/filename': name,
          'image/id': int(annotations.image_ids[i]),
          'objects': _objects(annotations, i),
        },
      )


def _objects(annotations: Annotations, i: int) -> list[dict]:
  rows = annotations.rows(i)
  objects = []
  for n, (x1, y1, x2, y2) in enumerate(annotations.boxes[rows].tolist(), start=rows.start):
    objects.append(
      {
        'id': int(annotations.ids[n]),
        'area': int(annotations.areas[n]),
        'bbox': tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
        'label': int(annotations.classes[n]),
        'is_crowd': bool(annotations.crowd[n]),
      }
    )
  return objects


def _progress(indices: range, split: str) -> Iterator[int]:
  # TFDS's own bar does not know the total.
  return iter(tfds.core.utils.tqdm(indices, desc=f'{split}: reading images', unit='image'))


def _read(split: Split) -> Annotations:
  is_test = epath.Path(split.annotations).name.startswith('image_info')
  annotations = read_annotations(split.annotations, require_boxes=not is_test)
  check_files(epath.Path(split.images), annotations)
  return annotations
