"""The files of a folder, looked at once, and what the readers of all layouts share."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from triplet_det.data import image_files

# Split -> how tools call it.
SPLITS = {
  'train': ('train', 'training'),
  'validation': ('valid', 'val', 'validation', 'dev', 'eval', 'evaluation'),
  'test': ('test', 'testing'),
}
SPLIT_OF = {word: name for name, words in SPLITS.items() for word in words}
# What folders are called because images or labels are in them, whichever these are.
KINDS = frozenset(
  (
    *('image', 'images', 'img', 'imgs', 'jpegimages', 'photo', 'photos', 'picture', 'pictures'),
    *('label', 'labels', 'annotation', 'annotations', 'annot', 'annots', 'xml', 'xmls', 'txt', 'json'),
  )
)
_FILLERS = KINDS | {'set', 'data', 'dataset', 'split', 'yolo', 'voc', 'coco', 'instances', 'obj'}
# Where ultralytics writes what its detectors have learnt and found, which is no ground truth.
_OUTPUTS = frozenset(('detect', 'segment', 'pose', 'obb', 'classify'))


def split_of(path: PurePosixPath | str, *, certain: bool = False) -> str | None:
  """'images/val2017' -> 'validation', None if no part of the path names a split; the deepest that does counts.

  Parts with other words count last: 'train/test_track' is training. `certain`: these do not count.
  """
  parts = [re.findall(r'[^\W\d_]+', part.lower()) for part in reversed(PurePosixPath(path).parts)]
  telling = [[word for word in words if word not in _FILLERS] for words in parts]
  sure = [SPLIT_OF[words[0]] for words in telling if len(words) == 1 and words[0] in SPLIT_OF]
  likely = [] if certain else [SPLIT_OF[word] for words in telling for word in reversed(words) if word in SPLIT_OF]
  return next(iter(sure + likely), None)


def by_split(paths: Sequence[PurePosixPath]) -> tuple[dict[str, list[PurePosixPath]], list[PurePosixPath]]:
  """Files by the split that their folders name ('all' if none does), and those that lie beside the splits."""
  found = {}
  for path in paths:
    found.setdefault(split_of(path.parent) or 'all', []).append(path)
  if len(found) == 1 and not any(split_of(path.parent, certain=True) for path in paths):
    return {'all': list(paths)}, []
  beside = found.pop('all') if {'train', 'all'} <= found.keys() else []
  return found, beside


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
    files: all but hidden ones and what a program has put there as its results, sorted.
    images: those of them that are images by their suffix.
    outputs: the folders of such results.
    folders, all: the folders of the files, and both.
  """

  def __init__(self, root: Path):
    self.root = root
    self.outputs = []
    found, seen, linked = [], set(), _linked_folders(root)
    for folder, folders, names in os.walk(root, followlinks=True):
      real, here = os.path.realpath(folder), PurePosixPath(Path(folder).relative_to(root).as_posix())
      # A link to a folder above it; or what a link gives its place in the data set.
      if real in seen or (real in linked and Path(real) == Path(root).resolve() / here):
        folders.clear()
        continue
      seen.add(real)
      folders[:] = [name for name in folders if not name.startswith(('.', '__MACOSX'))]
      folders.sort()
      if here.parts and ((here.name == 'runs' and _OUTPUTS & {*folders}) or _is_output(Path(folder), names)):
        self.outputs.append(here)
        folders.clear()
        continue
      found += [here / name for name in names if not name.startswith('.')]
    self.files = sorted(found)
    suffixes = image_files.suffixes()
    self.images = [path for path in self.files if path.suffix.lower() in suffixes]
    self.folders = {parent for path in self.files for parent in path.parents}
    self.all = self.folders | set(self.files)

  def with_suffix(self, *suffixes: str) -> list[PurePosixPath]:
    return [path for path in self.files if path.suffix.lower() in suffixes]

  def has_words(self, path: PurePosixPath, *words: bytes, within: int = -1) -> bool:
    """Whether all words are in a file, or in its first bytes; also of one in UTF-16."""
    image_files.check_regular(self.root / path)
    with (self.root / path).open('rb') as file:
      content = file.read(within)
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
      content = content.replace(b'\0', b'')
    return all(word in content for word in words)

  def read_text(self, path: PurePosixPath) -> str:
    """A text file; ValueError names it if it is no UTF-8."""
    image_files.check_regular(self.root / path)
    try:
      return (self.root / path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
      raise ValueError(f'{self.root / path}: not a text in UTF-8 ({error}): save it as such') from None

  def size(self, path: PurePosixPath) -> tuple[int, int]:
    """(width, height) of an image as people see it, from its header. ValueError if it is none."""
    image_files.check_regular(self.root / path)
    try:
      with (self.root / path).open('rb') as file:
        header = image_files.read_header(file)
    except FileNotFoundError:
      raise ValueError(f'{self.root / path}: a link to a file that is not there: replace it, or take it out') from None
    if header is None:
      raise ValueError(f'{self.root / path}: not an image, or cut short: replace it, or take it out')
    height, width = header.upright_size
    return width, height

  def summary(self) -> str:
    """'3 .txt, 2 .jpg files', the most frequent suffixes first."""
    counts = collections.Counter(path.suffix.lower() or 'nameless' for path in self.files)
    listed = ', '.join(f'{count:,} {suffix}' for suffix, count in counts.most_common(5))
    return f'{listed} files' if counts else 'nothing'


def _linked_folders(root: Path) -> set[str]:
  """The folders that links under `root` lead to, but for those that hold the link."""
  found = set()
  for at, folders, _ in os.walk(root):
    for link in (os.path.join(at, name) for name in folders):
      if os.path.islink(link) and not Path(at).resolve().is_relative_to(target := os.path.realpath(link)):
        found.add(target)
  return found


def _is_output(folder: Path, names: Sequence[str]) -> bool:
  return 'args.yaml' in names and (folder / 'args.yaml').read_bytes().startswith(b'task:')


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
