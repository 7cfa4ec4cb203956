"""YOLO's layout: a text file of labels per image, `class x y width height` or `class x1 y1 x2 y2 ...` in fractions.

Which images belong to which split is said by data.yaml, by darknet's obj.data or lists (train.txt), or by folders such
as images/train and train/images; labels lie beside the images or where `images` in their path is `labels`, or meet them
by their names. An image without a label file has no objects.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from triplet_det.data.layouts import pairing, yolo_files
from triplet_det.data.layouts.inventory import Inventory, Split, by_split, coco_dictionary
from triplet_det.data.layouts.yolo_files import is_labels

NEEDS = 'data.yaml, or a .txt of labels per image (in labels/ or beside it) and classes.txt with the names'
DECIMALS = 2  # of a pixel: six digits of a fraction tell no more
# Folders of pictures that were made of the photos, which have their names and no labels.
_DERIVED = re.compile(r'mask|trimap|segmentation|depth|thumb|preview|visuali[sz]', re.IGNORECASE)


def look(there: Inventory) -> str:
  """Names what describes the data set, or a label file of an image; '' if there are neither."""
  if (described := yolo_files.description(there)) is not None:
    return str(described.path)
  images = {pairing.key(str(path.with_suffix(''))) for path in there.images}
  texts = yolo_files.label_texts(there)
  label = next((text for text in texts if any(pairing.key(str(stem)) in images for stem in _image_stems(text))), None)
  return str(label or '')


def look_closer(there: Inventory) -> str:
  """Names a text of labels, wherever its image is; for a folder where nothing else was found."""
  return str(next((text for text in yolo_files.label_texts(there) if is_labels(there, text)), ''))


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' if no folder names one), and notes."""
  described = yolo_files.description(there)
  notes = []
  texts = yolo_files.label_texts(there)
  paths_of, beside = _images(there, described, notes)
  label_of = _labels(there, [image for paths in paths_of.values() for image in paths], texts, notes)
  if not label_of:
    raise ValueError(_none_labelled(there, paths_of, texts))
  paths_of = _without_derived(paths_of, label_of, notes)
  names, classes_of = yolo_files.class_names(there, described, notes)
  splits = {}
  for split, paths in paths_of.items():
    sizes = {image: there.size(image) for image in paths}
    boxes = {
      image: _boxes(there, label_of[image], sizes[image], classes_of(label_of[image]), described)
      for image in paths
      if image in label_of
    }
    boxes = {image: [(names.index(name), *box) for name, *box in found] for image, found in boxes.items()}
    splits[split] = coco_dictionary(there.root, sizes, boxes, names)
  if unlabelled := [image for paths in paths_of.values() for image in paths if image not in label_of]:
    notes.append(f'{len(unlabelled):,} images without a label file, kept as images without objects')
  if beside:
    notes.append(f'{len(beside):,} images that belong to no split are passed over, such as {beside[0]}')
  used, names_beside = {*label_of.values()}, {pairing.key(image.stem) for image in beside}
  strays = [text for text in texts if text not in used and pairing.key(text.stem) not in names_beside]
  if strays := [path for path in strays if 'labels' in map(str.lower, path.parts) or is_labels(there, path)]:
    notes.append(f'{len(strays):,} label files without an image are passed over, such as {strays[0]}')
  return splits, notes


def _images(
  there: Inventory, described: yolo_files.Description | None, notes: list[str]
) -> tuple[dict[str, list[PurePosixPath]], list[PurePosixPath]]:
  """The images of each split, as they are listed or as their folders are called, and those beside."""
  in_folders, beside = by_split(there.images)
  listed = yolo_files.listed_images(there, described, notes) if described else {}
  if not listed:
    return in_folders, beside
  taken = {image for paths in listed.values() for image in paths}
  others = {split: [image for image in paths if image not in taken] for split, paths in in_folders.items()}
  # Many list the splits for training and validation only.
  more = {split: paths for split, paths in others.items() if paths and split in ('validation', 'test')}
  return {**more, **listed}, [
    image for split in others if split not in more and split in ('all', *listed) for image in others[split]
  ]


def _labels(
  there: Inventory, images: Sequence[PurePosixPath], texts: Sequence[PurePosixPath], notes: list[str]
) -> dict[PurePosixPath, PurePosixPath]:
  """The label file of each image that has one: in its place, or else by its name.

  By name meet only folders of which nothing has its place: else a file that is left would get the wrong image.
  """
  in_place = {pairing.key(str(text)): text for text in texts}
  found = {}
  for image in images:
    places = (in_place.get(pairing.key(str(place))) for place in _label_places(image))
    if (text := next((place for place in places if place is not None), None)) is not None:
      found[image] = text
  served, used = {image.parent for image in found}, {text.parent for text in found.values()}
  waiting = {}
  for image in images:
    if image.parent not in served:
      for name in {pairing.key(image.stem), pairing.key(image.name)}:
        waiting.setdefault(name, []).append(image)
  matched = {}
  for text in texts:
    near = waiting.get(pairing.key(text.stem), ()) if text.parent not in used else ()
    near = pairing.nearest(text, near)
    if len(near) > 1:
      raise ValueError(f'{there.root / text}: {near[0]} and {near[1]} both have its name: keep one of them')
    if near and near[0] in matched:
      raise ValueError(f'{there.root}: {matched[near[0]]} and {text} are both of {near[0]}: keep one of them')
    matched |= {image: text for image in near}
  if matched:
    image, text = next(iter(matched.items()))
    notes.append(f'{len(matched):,} label files belong to the images of their names, such as {text} to {image}')
  return found | matched


def _none_labelled(there: Inventory, paths_of: Mapping, texts: Sequence[PurePosixPath]) -> str:
  images = [image for paths in paths_of.values() for image in paths]
  labels = [text for text in texts if is_labels(there, text)]
  if not images:
    return f'{there.root}: {len(labels)} label files, such as {labels[0]}, and no images: put them there, too'
  if not labels:
    return f'{there.root}: none of the {len(images)} images has a label file: they belong into labels/'
  return (
    f'{there.root}: none of the {len(images)} images, such as {images[0]}, has the name of one of the {len(labels)} '
    f'label files, such as {labels[0]}: give both of an image one name'
  )


def _without_derived(
  paths_of: Mapping[str, list[PurePosixPath]], label_of: Mapping, notes: list[str]
) -> dict[str, list[PurePosixPath]]:
  """The splits without masks and thumbnails of labelled photos, which else would be photos without objects."""
  labelled, served = {image.stem for image in label_of}, {image.parent for image in label_of}

  def is_derived(path: PurePosixPath) -> bool:
    return path.parent not in served and path.stem in labelled and bool(_DERIVED.search(path.parent.name))

  if derived := [path for paths in paths_of.values() for path in paths if is_derived(path)]:
    notes.append(f'{len(derived):,} images with the names of labelled ones are passed over, such as {derived[0]}')
  kept = {split: [path for path in paths if not is_derived(path)] for split, paths in paths_of.items()}
  return {split: paths for split, paths in kept.items() if paths}


def _label_places(image: PurePosixPath) -> list[PurePosixPath]:
  """Where the labels of an image may lie: the last folder `images` is `labels`, or beside it."""
  parts = list(image.parts[:-1])
  beside = image.with_suffix('.txt')
  for index in reversed(range(len(parts))):
    if parts[index].lower() in ('images', 'jpegimages'):
      return [PurePosixPath(*parts[:index], 'labels', *parts[index + 1 :], beside.name), beside]
  return [beside, image.parent / 'labels' / beside.name]


def _image_stems(label: PurePosixPath) -> list[PurePosixPath]:
  """Where the image of a label file may lie, without the suffix."""
  bare = label.with_suffix('')
  parts = list(bare.parts)
  places = [bare]
  for index in reversed(range(len(parts) - 1)):
    if parts[index].lower() == 'labels':
      around = parts[:index], parts[index + 1 :]
      places += [PurePosixPath(*around[0], *name, *around[1]) for name in (['images'], ['JPEGImages'], [])]
      break
  return places


def _boxes(
  there: Inventory,
  label: PurePosixPath,
  size: tuple[int, int],
  classes: Sequence[str],
  described: yolo_files.Description | None,
) -> list[tuple]:
  """(name, x, y, width, height) in pixels of each line; a polygon becomes the box around it."""
  keypoints = described.keypoint_numbers if described else 0
  boxes = []
  for number, line in enumerate(there.read_text(label).splitlines(), start=1):
    words = line.split()
    if not words:
      continue
    where = f'{there.root / label}, line {number}'
    try:
      index, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
      index, values = math.nan, []
    if not index.is_integer():
      raise ValueError(f'{where}: {line[:60]!r} is not a class index and numbers')
    if not 0 <= index < len(classes):
      known = f'there are {len(classes)} classes, 0 to {len(classes) - 1}'
      raise ValueError(f'{where}: class {words[0]}, but {known}: correct it, or name the class')
    if keypoints and len(values) == 4 + keypoints:
      values = values[:4]
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
    boxes.append((classes[int(index)], x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)))
  return boxes
