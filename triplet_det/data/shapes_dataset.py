"""The embedded data set: drawn scenes with COCO's features, made on first use in about half a minute.

It stands in for COCO where COCO is not at hand: a newcomer's first run, tests, a check after a change. It is a
TFDS data set like any other, with the features of `coco/2017` and its ground truth as COCO JSON beside the records;
`shapes_drawing.py` says what is drawn and why.

  <data_dir>/shapes/seed0_train2000_validation200/1.0.0/   array_record shards, annotations/instances_<split>.json
"""

import dataclasses
import json
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tqdm import tqdm

from triplet_det.categories import CategoryTable
from triplet_det.data import shapes_drawing
from triplet_det.data.annotations import pack
from triplet_det.data.prepare_tfds import CocoRecords, example
from triplet_det.data.sources import TfdsSource, is_prepared

CLASS_NAMES = shapes_drawing.CLASS_NAMES
CATEGORIES = CategoryTable(tuple(range(1, len(CLASS_NAMES) + 1)), CLASS_NAMES)
TRAIN_IMAGES, VALIDATION_IMAGES = 2000, 200
MAX_IMAGES = 50_000  # of 12 KB: TFDS brings them into their order in memory, and by TensorFlow beyond 1 GB

_STREAMS = {'train': 0, 'validation': 1}  # part of every image's seed, so that no split repeats another's image
_JPEG_QUALITY = 95


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
  """What a set depends on; the name carries all of it, so that different sets never share a directory."""

  name: str = dataclasses.field(init=False, default='')
  seed: int = 0
  train_images: int = TRAIN_IMAGES
  validation_images: int = VALIDATION_IMAGES

  def __post_init__(self):
    if self.seed < 0 or self.train_images < 1 or self.validation_images < 1:
      raise ValueError(
        f'shapes needs a seed >= 0 and at least 1 image per split, got seed {self.seed}, '
        f'{self.train_images} train and {self.validation_images} validation images'
      )
    self.name = f'seed{self.seed}_train{self.train_images}_validation{self.validation_images}'


class ShapesBuilder(CocoRecords, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS builder `shapes`; prepares without TensorFlow as array_record."""

  name = 'shapes'
  VERSION = tfds.core.Version('1.0.0')  # to be raised whenever a change alters a picture or a box
  categories = CATEGORIES

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    counts = {'train': self.builder_config.train_images, 'validation': self.builder_config.validation_images}
    return {split: self._generate_examples(split, count) for split, count in counts.items()}

  def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict]]:
    description = f'shapes {self.VERSION} {self.builder_config.name} {split}'
    truth = dict(info=dict(description=description), images=[], annotations=[], categories=CATEGORIES.to_coco())
    path = self.json_path(split)
    for index in tqdm(range(count), desc=f'Drawing shapes, {split}', unit=' images'):
      scene = draw_scene(self.builder_config.seed, split, index)
      height, width, _ = scene.image.shape
      image = dict(id=index + 1, file_name=f'{split}_{index + 1:06d}.jpg', height=height, width=width)
      annotations = [
        dict(
          id=number,
          image_id=image['id'],
          category_id=CATEGORIES.ids[item.label],
          bbox=list(item.box),
          area=item.area,
          iscrowd=0,
        )
        for number, item in enumerate(scene.objects, start=len(truth['annotations']) + 1)
      ]
      truth['images'].append(image)
      truth['annotations'].extend(annotations)
      ok, encoded = cv2.imencode('.jpg', scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
      if not ok:
        raise RuntimeError(f'OpenCV could not encode {image["file_name"]} as JPEG')
      yield example(pack(dict(truth, images=[image], annotations=annotations), path), 0, encoded.tobytes())
    path.write_text(json.dumps(truth))


def draw_scene(seed: int, split: str, index: int) -> shapes_drawing.Scene:
  """Scene number `index` (from 0) of a split; the same numbers give the same scene, to the bit."""
  return shapes_drawing.compose(np.random.default_rng([seed, _STREAMS[split], index]))


def prepare(data_dir: epath.PathLike, **settings) -> epath.Path:
  """Makes the data set if it is not there yet, and returns its directory.

  TFDS writes into a directory of its own beside the final one and renames it at the end. So a killed preparation
  leaves no half data set behind, and of several processes that start at once the first to finish wins: the others
  made the same records, or find theirs swept away, and take the winner's.

  Args:
    data_dir: where prepared data sets live.
    settings: of `ShapesConfig`.

  Raises:
    ValueError: a negative seed, a split without images, or one of more than MAX_IMAGES that is not there yet.
  """
  data_dir = epath.Path(data_dir).expanduser()
  config = ShapesConfig(**settings)
  directory = data_dir / ShapesBuilder.name / config.name / str(ShapesBuilder.VERSION)
  if is_prepared(directory):
    return directory
  if (most := max(config.train_images, config.validation_images)) > MAX_IMAGES:
    raise ValueError(f'shapes draws up to {MAX_IMAGES:,} images per split, {most:,} were asked for')
  if directory.exists():
    if is_prepared(directory):  # by another process, between the two looks
      return directory
    logging.warning('%s is not a complete data set (no dataset_info.json); it is made anew', directory)
    directory.rmtree()
  logging.info('making the embedded data set in %s', directory)
  tfds.disable_progress_bar()  # TFDS's bars know no totals; ours do
  try:
    ShapesBuilder(data_dir=data_dir, config=config).download_and_prepare(file_format='array_record')
  except Exception as error:
    if not is_prepared(directory):
      raise
    logging.info('another process has made %s meanwhile (%s: %s)', directory, type(error).__name__, error)
  finally:
    tfds.enable_progress_bar()
  for leftover in directory.parent.glob(f'incomplete.*_{ShapesBuilder.VERSION}'):
    logging.info('removing the unfinished %s', leftover)
    try:
      leftover.rmtree(missing_ok=True)
    except OSError as error:  # another process still writes there; it will find this set, and sweep for itself
      logging.info('%s stays for now: %s', leftover, error)
  return directory


def open_split(
  data_dir: epath.PathLike,
  split: str,
  *,
  seed: int = 0,
  train_images: int = TRAIN_IMAGES,
  validation_images: int = VALIDATION_IMAGES,
) -> TfdsSource:
  """The split 'train' or 'validation', prepared first if need be.

  Raises:
    ValueError: the split is unknown, or as `prepare`.
  """
  if split not in _STREAMS:
    raise ValueError(f'shapes has no split {split!r}; it has {sorted(_STREAMS)}')
  directory = prepare(data_dir, seed=seed, train_images=train_images, validation_images=validation_images)
  return TfdsSource(data_dir=directory, split=split)
