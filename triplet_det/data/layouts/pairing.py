"""Which image a label file belongs to, where tools leave that to equal names in folders of their own."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from triplet_det.data import image_files
from triplet_det.data.layouts.inventory import KINDS, SPLIT_OF, split_of


def key(name: str) -> str:
  """A name as it is compared: whatever the case, and whether marks above letters are characters of their own."""
  return unicodedata.normalize('NFC', name).casefold()


def bare(name: str) -> str:
  """A file's name without the suffix of an image, if it has one."""
  path = PurePosixPath(name)
  return path.stem if path.suffix.lower() in image_files.suffixes() else name


def nearest(label: PurePosixPath, images: Iterable[PurePosixPath]) -> list[PurePosixPath]:
  """Of the images whose name fits, those whose folders fit best; several if there is nothing between them.

  None of another split: where images are numbered anew in each, that would be another photo. Folders fit if their names
  are equal, but for words that say that images or labels are in them: annotations/val fits images/val, train_labels
  train_images, and annotations/xmls rather images than annotations/trimaps.
  """
  mine, folders, split = _place(label), {*label.parents}, split_of(label.parent)
  possible = [image for image in images if split is None or split_of(image.parent) in (None, split)]

  def distance(image: PurePosixPath) -> tuple[int, int, int]:
    its = _place(image)
    equal = next((n for n, (a, b) in enumerate(zip(reversed(mine), reversed(its))) if a != b), min(len(mine), len(its)))
    return -equal, len(mine) + len(its) - 2 * equal, -len(folders & {*image.parents})

  ordered = sorted(possible, key=lambda image: (distance(image), image))
  return [image for image in ordered if distance(image) == distance(ordered[0])]


def _place(path: PurePosixPath) -> tuple[str, ...]:
  """The names of a file's folders without words for images and labels; a split has one name."""
  found = []
  for part in path.parent.parts:
    words = [SPLIT_OF.get(word, word) for word in re.split(r'[\W_]+', key(part)) if word and word not in KINDS]
    found += ['_'.join(words)] if words else []
  return tuple(found)
