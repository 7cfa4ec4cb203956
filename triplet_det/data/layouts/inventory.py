"""The files of a folder, looked at once, and what the readers of all layouts share."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from triplet_det.data import image_files

# Split -> how tools call it.
SPLITS = {
  'train': ('train', 'training'),
  'validation': ('valid', 'val', 'validation'),
  'test': ('test', 'testing'),
}
_SPLIT_OF = {word: name for name, words in SPLITS.items() for word in words}
_WORD = re.compile(rf'(?<![a-z])({"|".join(sorted(_SPLIT_OF, key=len, reverse=True))})(?![a-z])', re.IGNORECASE)


def split_of(path: PurePosixPath | str) -> str | None:
  """'annotations/instances_val2017.json' -> 'validation'; the name of a file counts before those of its folders."""
  for part in reversed(PurePosixPath(path).parts):
    if words := _WORD.findall(part):
      return _SPLIT_OF[words[-1].lower()]
  return None


@dataclasses.dataclass(frozen=True)
class Split:
  """A split as a COCO dictionary."""

  images: Path  # the folder that the file_names are relative to
  content: Mapping
  path: Path | None = None  # of a JSON that holds just this

  def only(self, wanted: Callable[[int], bool]) -> 'Split':
    """The part whose image ids are wanted."""
    images = [image for image in self.content['images'] if wanted(image['id'])]
    kept = {image['id'] for image in images}
    rows = [row for row in self.content['annotations'] if row['image_id'] in kept]
    return Split(self.images, {**self.content, 'images': images, 'annotations': rows})


class Inventory:
  """The files under `root`, linked folders included, as paths relative to it.

  Attributes:
    files: all but hidden ones, sorted.
    images: those of them that are images by their suffix.
  """

  def __init__(self, root: Path):
    self.root = root
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
      real = os.path.realpath(folder)
      if real in seen:  # a link to a folder above it
        folders.clear()
        continue
      seen.add(real)
      folders[:] = [name for name in folders if not name.startswith(('.', '__MACOSX'))]
      here = PurePosixPath(Path(folder).relative_to(root).as_posix())
      found += [here / name for name in names if not name.startswith('.')]
    self.files = sorted(found)
    suffixes = image_files.suffixes()
    self.images = [path for path in self.files if path.suffix.lower() in suffixes]
    self._by_folder = collections.defaultdict(list)
    for path in self.images:
      self._by_folder[path.parent].append(path)
    self.folders = {parent for path in self.files for parent in path.parents}

  def with_suffix(self, *suffixes: str) -> list[PurePosixPath]:
    return [path for path in self.files if path.suffix.lower() in suffixes]

  def images_in(self, folder: PurePosixPath) -> list[PurePosixPath]:
    """The images that lie directly in a folder."""
    return self._by_folder.get(folder, [])

  def image_folders(self) -> list[PurePosixPath]:
    return list(self._by_folder)

  def read_text(self, path: PurePosixPath) -> str:
    """A text file; ValueError names it if it is no UTF-8."""
    try:
      return (self.root / path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
      raise ValueError(f'{self.root / path}: not a text in UTF-8 ({error}): save it as such') from None

  def size(self, path: PurePosixPath) -> tuple[int, int]:
    """(width, height) of an image as people see it, from its header. ValueError if it is none."""
    with (self.root / path).open('rb') as file:
      header = image_files.read_header(file)
    if header is None:
      raise ValueError(f'{self.root / path}: not an image, or cut short: replace it, or take it out')
    height, width = header.upright_size
    return width, height

  def summary(self) -> str:
    """'3 .txt, 2 .jpg files', the most frequent suffixes first."""
    counts = collections.Counter(path.suffix.lower() or 'nameless' for path in self.files)
    listed = ', '.join(f'{count:,} {suffix}' for suffix, count in counts.most_common(5))
    return f'{listed} files' if counts else 'nothing'


def common_folder(paths: Iterable[PurePosixPath]) -> PurePosixPath:
  """The deepest folder that holds all of them."""
  return PurePosixPath(os.path.commonpath([str(path.parent) for path in paths]) or '.')


def coco_dictionary(
  root: Path,
  images: Mapping[PurePosixPath, tuple[int, int]],
  boxes: Mapping[PurePosixPath, list[tuple[int, float, float, float, float]]],
  names: Iterable[str],
) -> Split:
  """A split of images and their boxes.

  Args:
    root: what the paths are relative to.
    images: path -> (width, height), pixels.
    boxes: path -> (class index, x, y, width, height) of each box, pixels.
    names: of the classes; the ids are 1, 2, ...
  """
  folder = common_folder(images)
  of_path = {path: number for number, path in enumerate(images, start=1)}
  rows = []
  for path, number in of_path.items():
    for category, x, y, width, height in boxes.get(path, ()):
      box = [x, y, width, height]
      one = dict(id=len(rows) + 1, image_id=number, category_id=category + 1, bbox=box, area=width * height, iscrowd=0)
      rows.append(one)
  content = dict(
    images=[
      dict(id=number, file_name=path.relative_to(folder).as_posix(), width=images[path][0], height=images[path][1])
      for path, number in of_path.items()
    ],
    categories=[dict(id=number, name=name) for number, name in enumerate(names, start=1)],
    annotations=rows,
  )
  return Split(root / folder, content)
