"""What describes a data set in YOLO's layout: data.yaml, darknet's obj.data, lists of images, files of class names."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import yaml

from triplet_det.data.layouts.inventory import SPLIT_OF, SPLITS, Inventory, split_of

NAME_FILES = ('classes.txt', 'obj.names', '_darknet.labels', 'labels.txt', 'names.txt')
_LISTS = tuple(f'{word}.txt' for word in SPLIT_OF)
_NOTHING = ('', 'null', '~', 'none')  # a value that is left open


@dataclasses.dataclass(frozen=True)
class Description:
  """A file that says where the images of each split are, and what the classes are called; strings as written."""

  path: PurePosixPath
  about: Mapping

  @property
  def keypoint_numbers(self) -> int:
    """How many numbers of keypoints follow the four of a box."""
    shape = self.about.get('kpt_shape') or ()
    return math.prod(map(int, shape)) if shape and all(str(side).isdigit() for side in shape) else 0


def description(there: Inventory) -> Description | None:
  """The one file that describes the data set; without one the lists train.txt and so on, if there are."""
  found = []
  for path in there.with_suffix('.yaml', '.yml'):
    try:  # words stay what they are: a class may be called no
      content = yaml.load(there.read_text(path), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:
      if path.stem == 'data':
        raise ValueError(f'{there.root / path}: not a YAML file: {" ".join(str(error).split())}') from None
      continue
    if isinstance(content, Mapping) and not {'task', 'mode'} <= content.keys():  # ultralytics' settings
      content = {key: value for key, value in content.items() if str(value).lower() not in _NOTHING}
      if 'names' in content or content.keys() & SPLIT_OF.keys():
        found.append(Description(path, content))
  if not found:
    for path in there.with_suffix('.data'):
      lines = [line.partition('=') for line in there.read_text(path).splitlines() if '=' in line]
      found.append(Description(path, {key.strip(): value.strip() for key, _, value in lines}))
  if len(found) > 1:
    listed = ', '.join(str(one.path) for one in found)
    raise ValueError(f'{there.root}: {len(found)} files describe a YOLO data set: {listed}; keep one of them')
  if found:
    return found[0]
  lists = {path.stem.lower(): str(path) for path in there.with_suffix('.txt') if _is_list(there, path)}
  return Description(PurePosixPath(next(iter(lists.values()))), lists) if lists else None


def is_labels(there: Inventory, path: PurePosixPath) -> bool:
  """Whether the first line of a text is a class and numbers."""
  try:
    words = next((line.split() for line in there.read_text(path).splitlines() if line.strip()), [])
    return len(words) >= 5 and float(words[0]).is_integer() and all(math.isfinite(float(word)) for word in words)
  except ValueError:
    return False


def label_texts(there: Inventory) -> list[PurePosixPath]:
  """The texts that can be labels; names.txt may be those of names.jpg."""
  others = {*NAME_FILES, *_LISTS}
  return [path for path in there.with_suffix('.txt') if path.name.lower() not in others or is_labels(there, path)]


def class_names(
  there: Inventory, described: Description | None, notes: list[str]
) -> tuple[list[str], Callable[[PurePosixPath], Sequence[str]]]:
  """The names of all classes, and of those that a label file counts."""
  names = described.about.get('names') if described else None
  if isinstance(names, str):  # darknet's, a file
    files = [path for path in [find(there, described.path.parent, names)] if path is not None]
  elif names is None:
    files = [path for path in there.files if path.name.lower() in NAME_FILES and not is_labels(there, path)]
  else:
    names = _written_names(there, described)
    return names, lambda label: names
  lists = {path: _checked(there, path, there.read_text(path).splitlines()) for path in files}
  if not lists:
    raise ValueError(
      f'{there.root}: the names of the classes are not given: write them into data.yaml, names: [cat, dog], or into '
      'classes.txt, one per line'
    )
  ordered = sorted(lists, key=lambda path: len(path.parts))
  if any(lists[path] != lists[ordered[0]] for path in ordered):
    notes.append(f'classes are counted otherwise in {ordered[0]} and {ordered[-1]}: for each label the nearest counts')
  else:
    ordered = ordered[:1]

  def of_label(label: PurePosixPath) -> Sequence[str]:
    return lists[max(ordered, key=lambda path: len({*path.parents} & {*label.parents}))]

  return list(dict.fromkeys(name for path in ordered for name in lists[path])), of_label


def _written_names(there: Inventory, described: Description) -> list[str]:
  names, path = described.about['names'], there.root / described.path
  if isinstance(names, Mapping):
    if sorted(names, key=str) != sorted(map(str, range(len(names)))):
      raise ValueError(f'{path}: names must be numbered 0 to {len(names) - 1}, got {list(names)[:9]}')
    names = [names[str(index)] for index in range(len(names))]
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError(f'{path}: names must be a list of class names, got {names!r}')
  names = _checked(there, described.path, names)
  if described.about.get('nc', str(len(names))) != str(len(names)):
    raise ValueError(f'{path}: nc is {described.about["nc"]}, but {len(names)} names are given: {names[:9]}')
  return names


def _checked(there: Inventory, path: PurePosixPath, names: Sequence[str]) -> list[str]:
  names = [name.strip() for name in names if name.strip()]
  if not names:
    raise ValueError(f'{there.root / path}: it has no class names: give at least one')
  if doubled := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f'{there.root / path}: several classes are called {doubled[0]!r}: give each a name of its own')
  return names


def listed_images(there: Inventory, described: Description, notes: list[str]) -> dict[str, list[PurePosixPath]]:
  """The images of each split as the description lists them: folders, or text files with a path per line.

  Only the images to train on must be there: tools write a line for splits that they have not got, and darknet's file
  goes without its lists.
  """
  found, present, about = {}, set(there.images), described.about
  for split, words in SPLITS.items():
    places = next((about[word] for word in words if word in about), None)
    images = []
    for place in [places] if isinstance(places, str) else places or []:
      where = find(there, described.path.parent / str(about.get('path') or ''), str(place))
      if where is None and split == 'train' and described.path.suffix.lower() != '.data':
        text = f'{split} is {place!r}, which is not in {there.root}: correct the path'
        raise ValueError(f'{there.root / described.path}: {text}')
      if where in there.folders:
        images += [image for image in there.images if where in image.parents]
      elif where is not None:
        lines = [line.strip() for line in there.read_text(where).splitlines() if line.strip()]
        listed = [find(there, where.parent, line) for line in lines]
        if missing := [line for line, image in zip(lines, listed) if image not in present]:
          raise ValueError(f'{there.root / where}: {len(missing)} of {len(lines)} images are not there: {missing[0]}')
        images += listed
    if images:
      found[split] = list(dict.fromkeys(images))
    elif places and split == 'train' and described.path.suffix.lower() != '.data':
      raise ValueError(f'{there.root / described.path}: {split} is {places!r}, where no image is')
    elif places and split != 'test':
      notes.append(f'{described.path} says {split} is {places!r}, where no image is')
  if found.keys() == {'train', 'validation'} and found['train'] == found['validation']:
    found.pop('validation')  # trained and validated on the same folder
  return found


def find(there: Inventory, base: PurePosixPath, place: str) -> PurePosixPath | None:
  """A path of a description in this folder, whatever lies in front of it on the machine where it was written."""
  parts = _parts(place)
  if not parts:
    return PurePosixPath('.')
  front, split = _parts(str(base)), split_of(place)
  for start in range(len(parts)):
    for ahead in range(len(front) + 1):
      path = PurePosixPath(*front[ahead:], *parts[start:])
      is_other = path in there.folders and split not in (None, split_of(path))  # valid/images is not just any images/
      if path in there.all and not is_other:
        return path
  return None


def _parts(place: str) -> list[str]:
  return [part for part in PurePosixPath(place.replace('\\', '/')).parts if part not in ('..', '.', '/')]


def _is_list(there: Inventory, path: PurePosixPath) -> bool:
  """Whether a text called train.txt lists images."""
  if path.name.lower() not in _LISTS:
    return False
  first = next((line.strip() for line in there.read_text(path).splitlines() if line.strip()), '')
  return bool(first) and find(there, path.parent, first) in set(there.images)
