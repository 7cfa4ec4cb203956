"""The data doctor: what a data set holds, what was repaired or left out, and what is wrong with it, before training.

`read_every_image` decodes all images, `read_headers` opens a few of them; all else looks at the annotations alone.
"""

import collections
import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from triplet_det.categories import CategoryTable
from triplet_det.data import image_files, systematic_faults
from triplet_det.data.annotations import Annotations
from triplet_det.data.augmentation import scale_to
from triplet_det.data.pipeline import Source
from triplet_det.data.sources import read_ahead

SIZES = ('small', 'medium', 'large')
AREAS = (32**2, 96**2)  # pixels; COCO's borders between them
COUNTED = 100  # detections of an image and class that COCO's AP counts
HEADERS = 200  # images whose EXIF data are looked at before training
TINY = 8  # pixels of a box's side that the network sees: below, its corners are in neighbouring cells or in one

# Keys of `Annotations.report`, in this order: what was found, and what became of it.
_REPAIRS = {
  'degenerate': 'boxes without width or height inside their image, left out',
  'clipped': 'boxes that reach out of their image, cut at its edges',
  'filled_area': 'boxes without area, width x height taken',
  'filled_iscrowd': 'boxes without iscrowd, taken for single objects',
  'doubled_categories': 'categories without boxes left out, which have the name of another',
  'read_as_integers': 'numbers such as 640.0 or true where an integer belongs, read as one',
  'renumbered_ids': 'annotation ids renumbered, because one was missing, 0 or there twice',
  'scaled_with_their_image': 'boxes scaled to the sides that their image has when it stands upright',
}


@dataclasses.dataclass(frozen=True)
class Repair:
  """What was repaired or left out and why, how often, and the first examples."""

  what: str
  count: int
  examples: tuple[str, ...] = ()

  def __str__(self) -> str:
    return f'{self.what}: {self.count:,}' + first_of(self.examples)


@dataclasses.dataclass(frozen=True, eq=False)
class Examination:
  """What the M images of a split hold in n objects of C classes."""

  path: str  # of the annotations
  categories: CategoryTable
  scales: np.ndarray  # [M] float64, shares of their resolution that images are worked on at; areas and sides are so
  resolution: str  # what the config says of that
  counts: np.ndarray  # [C, 3] int64, objects per class and size (`SIZES`, by the annotated area, as COCO does)
  sides: np.ndarray  # [n] float64, root of width x height of each object, pixels
  objects: np.ndarray  # [M] int64, per image
  crowds: int  # boxes around groups that are no objects here
  image_sizes: np.ndarray  # [M, 2] int32 (height, width) of the files, pixels
  file_names: tuple[str, ...]  # M
  repairs: tuple[Repair, ...]
  faults: tuple[systematic_faults.Fault, ...]

  @property
  def per_class(self) -> dict[str, int]:
    """Name -> objects."""
    return dict(zip(self.categories.names, self.counts.sum(axis=1).tolist()))


@dataclasses.dataclass(frozen=True)
class Files:
  """The image files of a split, all read and decoded."""

  digests: Mapping[str, str]  # file name -> MD5 of its bytes, of those that could be read
  unreadable: Mapping[str, str]  # file name -> why
  turned: 'Turned'


@dataclasses.dataclass(frozen=True)
class Turned:
  """Images whose EXIF data say that they are to be shown turned or mirrored."""

  setting: str  # data.train.orientation or data.eval.orientation: 'stored' or 'upright'
  looked_at: int  # images
  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """The splits, by the names that a report gives them, and what is wrong."""

  splits: Mapping[str, Examination]
  fatal: tuple[str, ...]  # what a training cannot go on with
  warnings: tuple[str, ...]

  @property
  def findings(self) -> list[str]:
    """What is wrong as lines, what stops a training first."""
    return [f'wrong: {text}' for text in self.fatal] + [f'warning: {text}' for text in self.warnings]


def examine(
  source: Source, *, scale: float = 1.0, image_side: int = 0, crowds_are_objects: bool = False
) -> Examination:
  """Counts what the annotations of a source hold.

  Args:
    source: the split.
    scale, image_side: config.image_scale and config.image_side.
    crowds_are_objects: config.augment.train_on_crowd; in an evaluation they never are.

  Raises:
    FileNotFoundError, ValueError: there is no sound JSON; see `read_annotations`.
  """
  known = source.annotations
  chosen = ~known.crowd | crowds_are_objects
  image_of = np.repeat(np.arange(len(known)), np.diff(known.starts))[chosen]
  scales = np.array([scale * scale_to(image_side, *size) for size in known.image_sizes.tolist()])
  size = np.digitize(known.areas[chosen] * scales[image_of] ** 2, AREAS)
  cells = len(known.categories) * len(SIZES)
  counts = np.bincount(known.classes[chosen] * len(SIZES) + size, minlength=cells).reshape(-1, len(SIZES))
  pixels = known.image_sizes[image_of, ::-1] * scales[image_of, None]  # x, y
  boxes = known.boxes[chosen].astype(np.float64)
  return Examination(
    path=known.path,
    categories=known.categories,
    scales=scales,
    resolution=f'image_side {image_side}' if image_side else f'image_scale {scale:g}',
    counts=counts,
    sides=np.sqrt(((boxes[:, 2:] - boxes[:, :2]) * pixels).prod(axis=1)),
    objects=np.bincount(image_of, minlength=len(known)),
    crowds=int((~chosen).sum()),
    image_sizes=known.image_sizes,
    file_names=known.file_names,
    repairs=_repairs(known, ~chosen),
    faults=tuple(systematic_faults.find(known.written, known.file_names)),
  )


def _repairs(known: Annotations, left_out: np.ndarray) -> tuple[Repair, ...]:
  found = [Repair(what, known.report[key], known.examples.get(key, ())) for key, what in _REPAIRS.items()]
  counts = np.diff(known.starts)
  around_groups = np.bincount(np.repeat(np.arange(len(known)), counts)[left_out], minlength=len(known))
  groups = tuple(name for name, count in zip(known.file_names, around_groups.tolist()) if count)
  found.append(Repair('boxes around groups (iscrowd), not counted as objects', int(left_out.sum()), groups))
  empty = tuple(name for name, count in zip(known.file_names, counts) if not count)
  found.append(Repair('images without a box, kept as background', len(empty), empty))
  return tuple(repair for repair in found if repair.count)


def read_every_image(source: Source, progress: Callable[[int], None]) -> Files:
  """Reads and decodes every image once, as training does; `progress` is told how many are done."""

  def read(index: int) -> tuple[str, str, int]:
    orientation = 1
    try:
      record = source[index]
      orientation = image_files.orientation(record.encoded)
      record.decode()
    except (OSError, ValueError) as error:
      return '', str(error), orientation
    return hashlib.md5(record.encoded).hexdigest(), '', orientation

  digests, unreadable, turned = {}, {}, []
  for index, (digest, problem, orientation) in enumerate(read_ahead(read, range(len(source)))):
    name = source.annotations.file_names[index]
    if problem:
      unreadable[name] = problem
    else:
      digests[name] = digest
    turned += [name] * (orientation > 1)
    progress(index + 1)
  return Files(digests, unreadable, Turned(source.orientation, len(source), tuple(turned)))


def read_headers(source: Source) -> Turned:
  """The EXIF data of at most `HEADERS` images spread over the split: cheap enough for the start of every training."""

  def is_turned(index: int) -> bool:
    header = source.header(index)
    return header is not None and header.orientation > 1

  indices = np.linspace(0, len(source) - 1, min(HEADERS, len(source))).astype(int).tolist()
  names = tuple(
    source.annotations.file_names[i] for i, turned in zip(indices, read_ahead(is_turned, indices)) if turned
  )
  return Turned(source.orientation, len(indices), names)


def diagnose(
  train: Examination,
  evaluation: Examination | None = None,
  *,
  input_size: int,
  crop_scales: Sequence[float],
  max_objects: int,
  files: Sequence[Files] = (),
  turned: Sequence[Turned] = (),
) -> Diagnosis:
  """What is wrong with the data of a run.

  Args:
    train, evaluation: the splits; None if nothing is evaluated.
    input_size: S, side of the network's input in training, pixels.
    crop_scales: sides of the crops / S.
    max_objects: slots per image.
    files: of both splits if they were read.
    turned: of the splits.
  """
  splits = {'train': train} | ({'evaluation': evaluation} if evaluation else {})
  faults = [(split.path, fault) for split in splits.values() for fault in split.faults]
  fatal = [f'{path}: {fault.text}' for path, fault in faults if fault.fatal]
  warnings = [f'{path}: {fault.text}' for path, fault in faults if not fault.fatal]
  warnings += _turned(turned) + [text for split in splits.values() for text in _names_alike(split) + _crowded(split)]
  if not train.objects.any():
    nothing = f'{train.path} has no object to learn: {train.crowds} boxes, all around groups (iscrowd)'
    fatal.append(f'{nothing}; augment.train_on_crowd=True takes these for objects')
  fatal += [f'unreadable: {problem}' for one in files for problem in one.unreadable.values()]
  if evaluation and evaluation.categories != train.categories:
    ours, theirs = (set(split.categories.names) for split in (train, evaluation))
    what = f'only in training {sorted(ours - theirs)}, only in evaluation {sorted(theirs - ours)}'
    what = what if ours != theirs else 'same names in another order or with other ids'
    fatal.append(f'the categories of training and evaluation differ: {what}')
  elif train.objects.any():
    warnings += _missing_classes(train, evaluation)
  warnings += _sizes(train, input_size * min(crop_scales))
  if full := [name for name, count in zip(train.file_names, train.objects) if count > max_objects]:
    warnings.append(
      f'{len(full):,} training images have more than {max_objects} objects (augment.max_objects), up to '
      f'{train.objects.max():,}: if more are in a crop, the smallest are left out' + first_of(full)
    )
  if evaluation:
    warnings += _in_both(train, evaluation, files)
  return Diagnosis(splits, tuple(fatal), tuple(warnings))


def _turned(splits: Sequence[Turned]) -> list[str]:
  warnings = []
  for split, found in zip(('train', 'eval'), splits):
    if found.names and found.setting == 'stored':
      warnings.append(
        f'{len(found.names):,} of {found.looked_at:,} images of data.{split} that were looked at are shown turned or '
        f'mirrored by viewers (EXIF orientation){first_of(found.names)}; their boxes are taken to belong to the pixels '
        'as stored. If they were drawn on the picture as people see it, give '
        f'--config.data.{split}.orientation=upright'
      )
  return warnings


def _names_alike(split: Examination) -> list[str]:
  """Classes that a merge of two label tools, or a hand, has made of one."""
  alike = collections.defaultdict(list)
  for name in split.categories.names:
    alike[' '.join(re.split(r'[\W_]+', name.casefold())).strip()].append(name)
  pairs = [' = '.join(map(repr, names)) for names in alike.values() if len(names) > 1]
  what = f'{split.path}: categories whose names differ by capitals, spaces or signs alone'
  return [f'{what}: {len(pairs)}{first_of(pairs)}; if they are one class, give their objects one id'] if pairs else []


def _crowded(split: Examination) -> list[str]:
  full = [name for name, count in zip(split.file_names, split.objects) if count > COUNTED]
  if not full:
    return []
  return [
    f'{split.path}: {len(full):,} images have more than {COUNTED} objects, up to {split.objects.max():,}'
    f'{first_of(full)}: AP counts the best {COUNTED} detections of an image and class, and no image gets more than '
    'test.max_detections; see docs/troubleshooting.md'
  ]


def _missing_classes(train: Examination, evaluation: Examination | None) -> list[str]:
  if evaluation and not evaluation.objects.any():
    return [f'{evaluation.path} has no object to find: there will be no metrics']
  measured = evaluation.per_class if evaluation else {}
  unseen = [name for name, count in train.per_class.items() if not count]
  groups = {
    'classes of the evaluation without an object to learn from, which lower the AP': [
      name for name in unseen if measured.get(name)
    ],
    'classes without any object, of which nothing can be learnt': [name for name in unseen if not measured.get(name)],
    'classes without an object in the evaluation, so that nobody will know how well they are found': [
      name for name, count in measured.items() if not count and name not in unseen
    ],
  }
  return [f'{what}: {len(names)}' + first_of(names) for what, names in groups.items() if names]


def _sizes(train: Examination, smallest_crop: float) -> list[str]:
  warnings = []
  tiny = (train.sides < TINY).mean() if len(train.sides) else 0
  if tiny > 0.5:
    which = 'all objects are' if tiny == 1 else f'{tiny:.0%} of the objects are'
    warnings.append(
      f'{which} smaller than {TINY} x {TINY} pixels, two cells of the output, at {train.resolution} '
      f'(median {np.median(train.sides):.1f}): give a larger {train.resolution.split()[0]}'
    )
  inside = train.image_sizes.max(axis=1) * train.scales < smallest_crop
  if inside.mean() > 0.1:
    warnings.append(
      f'{inside.sum():,} of {len(inside):,} training images are smaller at {train.resolution} than the '
      f'smallest crop of {smallest_crop:.0f} pixels, so the network sees much black around them: give a smaller '
      f'input_size or a larger {train.resolution.split()[0]}'
      + first_of([train.file_names[i] for i in np.flatnonzero(inside)])
    )
  return warnings


def _in_both(train: Examination, evaluation: Examination, files: Sequence[Files]) -> list[str]:
  """Images of the evaluation that are trained on: by the bytes of the files if they were read, else by their names."""
  if len(files) == 2:
    trained = set(files[0].digests.values())
    both = [name for name, digest in files[1].digests.items() if digest in trained]
    what = 'are the same file as one of the training images, byte by byte'
  else:
    trained = {posixpath.basename(name) for name in train.file_names}
    both = [name for name in evaluation.file_names if posixpath.basename(name) in trained]
    what = 'have the file name of a training image (mode check_data compares their bytes)'
  count = f'{len(both):,} of {len(evaluation.file_names):,} evaluated images'
  return [f'{count} {what}' + first_of(both)] if both else []


def first_of(names: Sequence[str]) -> str:
  return f' (first: {", ".join(names[:3])}{", ..." if len(names) > 3 else ""})' if names else ''
