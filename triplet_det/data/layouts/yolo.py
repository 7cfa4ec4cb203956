"""YOLO's layout: a text file of labels per image, `class x y width height` or `class x1 y1 x2 y2 ...` in fractions.

Which images belong to which split is said by data.yaml, or by folders such as images/train and train/images; labels lie
beside the images or where `images` in their path is `labels`. An image without a label file has no objects.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import yaml

from triplet_det.data.layouts.inventory import SPLITS, Inventory, Split, coco_dictionary, split_of

NEEDS = 'data.yaml, or a .txt of labels per image (in labels/ or beside it) and classes.txt with the names'
NAME_FILES = ('classes.txt', 'obj.names', '_darknet.labels', 'labels.txt', 'names.txt')
DECIMALS = 2  # of a pixel: six digits of a fraction tell no more
_OTHER_TEXTS = (*NAME_FILES, 'train.txt', 'val.txt', 'valid.txt', 'test.txt')


def look(there: Inventory) -> str:
  """Names data.yaml, or a label file; '' if there are neither."""
  if (found := _yaml(there)) is not None:
    return str(found[0])
  images = {path.with_suffix('') for path in there.images}
  texts = (path for path in there.with_suffix('.txt') if path.name.lower() not in _OTHER_TEXTS)
  label = next((path for path in texts if images & {*_image_stems(path)}), None)
  return str(label or '')


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' if no folder names one), and notes."""
  described = _yaml(there)
  path, about = described or (None, {})
  names = _names(there, path, about)
  images = _by_folders(there)
  if _lists_images(about):  # which many write for training and validation only
    listed = _by_yaml(there, path, about)
    taken = {image for paths in listed.values() for image in paths}
    others = {split: [image for image in paths if image not in taken] for split, paths in images.items()}
    images = {split: paths for split, paths in others.items() if paths and split == 'test'} | listed
  texts = {path for path in there.with_suffix('.txt') if path.name.lower() not in _OTHER_TEXTS}
  splits, unlabelled, used = {}, 0, set()
  for split, paths in images.items():
    sizes, boxes = {}, {}
    for image in paths:
      sizes[image] = there.size(image)
      label = next((place for place in _label_places(image) if place in texts), None)
      if label is None:
        unlabelled += 1
      else:
        used.add(label)
        boxes[image] = _boxes(there, label, sizes[image], names)
    splits[split] = coco_dictionary(there.root, sizes, boxes, names)
  if not used:
    raise ValueError(f'{there.root}: none of the {unlabelled} images has a label file: they belong into labels/')
  notes = [f'{unlabelled:,} images without a label file, kept as images without objects'] if unlabelled else []
  if strays := sorted(path for path in texts - used if 'labels' in path.parts):
    notes.append(f'{len(strays):,} label files without an image are passed over, such as {strays[0]}')
  return splits, notes


def _yaml(there: Inventory) -> tuple[PurePosixPath, Mapping] | None:
  """The one YAML that describes a data set, and its content."""
  found = []
  for path in there.with_suffix('.yaml', '.yml'):
    try:
      content = yaml.safe_load(there.read_text(path))
    except (yaml.YAMLError, ValueError) as error:
      if path.stem == 'data':
        raise ValueError(f'{there.root / path}: not a YAML file: {" ".join(str(error).split())}') from None
      continue
    if isinstance(content, Mapping) and ('names' in content or _lists_images(content)):
      found.append((path, content))
  if len(found) > 1:
    listed = ', '.join(str(path) for path, _ in found)
    raise ValueError(f'{there.root}: {len(found)} files describe a YOLO data set: {listed}; keep one of them')
  return found[0] if found else None


def _lists_images(about: Mapping) -> bool:
  return any(about.get(word) for words in SPLITS.values() for word in words)


def _names(there: Inventory, path: PurePosixPath | None, about: Mapping) -> list[str]:
  """Class names, from data.yaml or from a file beside."""
  names = about.get('names')
  if isinstance(names, Mapping):
    if sorted(names) != list(range(len(names))):
      raise ValueError(f'{there.root / path}: names must be numbered 0 to {len(names) - 1}, got {list(names)[:9]}')
    names = [names[index] for index in range(len(names))]
  if names is None:
    files = [file for file in there.files if file.name.lower() in NAME_FILES]
    if not files:
      raise ValueError(
        f'{there.root}: the names of the classes are not given: write them into data.yaml, names: [cat, dog], or into '
        'classes.txt, one per line'
      )
    path = min(files, key=lambda file: len(file.parts))
    names = [line.strip() for line in there.read_text(path).splitlines() if line.strip()]
  if not isinstance(names, list) or not names:
    raise ValueError(f'{there.root / path}: names must be a list of class names, got {names!r}')
  names = [str(name) for name in names]
  if about.get('nc') not in (None, len(names)):
    raise ValueError(f'{there.root / path}: nc is {about["nc"]}, but {len(names)} names are given: {names[:9]}')
  return names


def _by_yaml(there: Inventory, path: PurePosixPath, about: Mapping) -> dict[str, list[PurePosixPath]]:
  """The images of each split as data.yaml lists them: folders, or text files with a path per line."""
  found, present = {}, set(there.images)
  for split, words in SPLITS.items():
    places = next((about[word] for word in words if about.get(word)), None)
    images = []
    for place in [places] if isinstance(places, str) else places or []:
      where = _find(there, path.parent / str(about.get('path') or ''), place)
      if where is None and split == 'test':  # many write a line for a split that they have not got
        continue
      if where is None:
        raise ValueError(f'{there.root / path}: {split} is {place!r}, which is not in {there.root}: correct the path')
      if where in there.folders:
        images += [image for image in there.images if where in image.parents]
      else:
        lines = [line.strip() for line in there.read_text(where).splitlines() if line.strip()]
        listed = [_find(there, where.parent, line) for line in lines]
        if missing := [line for line, image in zip(lines, listed) if image not in present]:
          raise ValueError(f'{there.root / where}: {len(missing)} of {len(lines)} images are not there: {missing[0]}')
        images += listed
    if images:
      found[split] = list(dict.fromkeys(images))
    elif places and split != 'test':
      raise ValueError(f'{there.root / path}: {split} is {places!r}, where no image is')
  if found.keys() == {'train', 'validation'} and found['train'] == found['validation']:
    found.pop('validation')  # trained and validated on the same folder
  return found


def _find(there: Inventory, base: PurePosixPath, place: str) -> PurePosixPath | None:
  """A path of data.yaml in this folder, whatever lies in front of it on the machine where it was written."""
  parts = [part for part in PurePosixPath(place.replace('\\', '/')).parts if part not in ('..', '.', '/')]
  known = there.folders | set(there.files)
  for start in range(len(parts)):
    for front in (base, PurePosixPath('.')):
      path = front.joinpath(*parts[start:])
      if path in known:
        return path
  return PurePosixPath('.') if not parts else None


def _by_folders(there: Inventory) -> dict[str, list[PurePosixPath]]:
  """The images by the split that their folders name."""
  found = {}
  for image in there.images:
    found.setdefault(split_of(image.parent) or 'all', []).append(image)
  if 'train' in found:
    found.pop('all', None)
  return found


def _label_places(image: PurePosixPath) -> list[PurePosixPath]:
  """Where the labels of an image may lie: the last folder `images` is `labels`, or beside it."""
  parts = list(image.parts[:-1])
  beside = image.with_suffix('.txt')
  for index in reversed(range(len(parts))):
    if parts[index] in ('images', 'JPEGImages'):
      return [PurePosixPath(*parts[:index], 'labels', *parts[index + 1 :], beside.name), beside]
  return [beside, image.parent / 'labels' / beside.name]


def _image_stems(label: PurePosixPath) -> list[PurePosixPath]:
  """Where the image of a label file may lie, without the suffix."""
  bare = label.with_suffix('')
  parts = list(bare.parts)
  places = [bare]
  for index in reversed(range(len(parts) - 1)):
    if parts[index] == 'labels':
      around = parts[:index], parts[index + 1 :]
      places += [PurePosixPath(*around[0], *name, *around[1]) for name in (['images'], ['JPEGImages'], [])]
      break
  return places


def _boxes(there: Inventory, label: PurePosixPath, size: tuple[int, int], names: Sequence[str]) -> list[tuple]:
  """(class, x, y, width, height) in pixels of each line; a polygon becomes the box around it."""
  boxes = []
  for number, line in enumerate(there.read_text(label).splitlines(), start=1):
    words = line.split()
    if not words:
      continue
    where = f'{there.root / label}, line {number}'
    try:
      index, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
      raise ValueError(f'{where}: {line[:60]!r} is not a class index and numbers') from None
    if not 0 <= index < len(names):
      known = f'there are {len(names)} classes, 0 to {len(names) - 1}'
      raise ValueError(f'{where}: class {index}, but {known}: correct it, or name the class')
    if len(values) not in (4, 5) and (len(values) < 6 or len(values) % 2):
      raise ValueError(f'{where}: {len(values)} numbers behind the class; a box has 4, a polygon an even number from 6')
    if not all(math.isfinite(value) and -1 <= value <= 2 for value in values):
      raise ValueError(f'{where}: {line[:60]!r} has values far outside 0 to 1: they are fractions of width and height')
    if len(values) <= 5:  # the fifth is the score of a detector that made the labels
      x, y, width, height = values[:4]
      corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
      corners = min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])
    x1, y1, x2, y2 = (round(value * side, DECIMALS) for value, side in zip(corners, size * 2))
    boxes.append((index, x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)))
  return boxes
