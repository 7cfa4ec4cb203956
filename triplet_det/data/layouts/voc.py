"""Pascal VOC's layout: an XML per image, beside it or in Annotations/ with the images in JPEGImages/.

Boxes are as the devkit has them: pixels are counted from 1, so a box reaches from xmin - 1 to xmax.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath
from xml.etree import ElementTree

from triplet_det.data.layouts import pairing
from triplet_det.data.layouts.inventory import SPLIT_OF, Inventory, Split, by_split, coco_dictionary

NEEDS = 'an XML per image, beside it or in Annotations/ with JPEGImages/ (and ImageSets/Main for the splits)'
# What is said of how the files were read -> in `notes`, the files.
_ALONE = 'XML files without an image are passed over'
_UNSIZED = 'XML files have no size, that of the image is taken'
_EXCHANGED = 'XML files have boxes whose least and largest coordinates were exchanged, and are put right'
_UNKNOWN = 'images of the list for test have no XML and are passed over'
_BESIDE = 'XML files that belong to no split are passed over'
_LONE = 'images without an XML are passed over'
_NOTES = (_ALONE, _UNSIZED, _EXCHANGED, _UNKNOWN, _BESIDE, _LONE)


def look(there: Inventory) -> str:
  """Names the first XML of an image; '' if there is none."""
  for path in there.with_suffix('.xml'):
    if any(there.has_words(path, word, within=4096) for word in (b'<annotation>', b'<annotation ')):
      return str(path)
  return ''


@dataclasses.dataclass
class _Labels:
  """What an XML says of its image."""

  image: PurePosixPath
  size: tuple[int, int]  # width and height of the upright image
  boxes: list[tuple]  # (name, x, y, width, height), pixels


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' if nothing names one), and notes."""
  by_name = {}
  for image in there.images:
    for name in {pairing.key(image.stem), pairing.key(image.name)}:
      by_name.setdefault(name, []).append(image)
  found, owner = {}, {}
  notes = {text: [] for text in _NOTES}
  for path in there.with_suffix('.xml'):
    root = _parse(there, path)
    if root is None:
      continue
    image = _image_of(there, path, root, by_name)
    if image is None:
      notes[_ALONE].append(path)
      continue
    if image in owner:
      raise ValueError(f'{there.root}: {owner[image]} and {path} are both of {image}: keep one of them')
    owner[image] = path
    size = tuple(_number(there, path, root, f'size/{side}', missing=0.0) for side in ('width', 'height'))
    if min(size) < 1:
      notes[_UNSIZED].append(path)
    upright = there.size(image)
    if min(size) >= 1 and size not in (upright, upright[::-1]):
      raise ValueError(
        f'{there.root / path}: size is {size[0]:g} x {size[1]:g}, but {there.root / image} has {upright[0]} x '
        f'{upright[1]} pixels: correct the size, or give the image that the boxes were drawn on'
      )
    boxes, exchanged = _objects(there, path, root)
    found[path] = _Labels(image, upright, boxes)
    notes[_EXCHANGED] += [path] if exchanged else []
  if not found:
    alone = notes[_ALONE]
    raise ValueError(f'{there.root}: none of the {len(alone)} XML files has its image, such as {alone[0]}')
  names = sorted({name for labels in found.values() for name, *_ in labels.boxes})
  splits = {}
  by_list = _by_list(there, list(found), notes)
  paths_of, notes[_BESIDE] = (by_list, _unlisted(found, by_list)) if by_list else by_split(list(found))
  for split, paths in paths_of.items():
    sizes = {found[path].image: found[path].size for path in paths}
    boxes = {found[path].image: [(names.index(name), *box) for name, *box in found[path].boxes] for path in paths}
    splits[split] = coco_dictionary(there.root, dict(sorted(sizes.items())), boxes, names)
  notes[_LONE] = [image for image in there.images if image not in owner]
  return splits, [f'{len(paths):,} {text}, such as {paths[0]}' for text, paths in notes.items() if paths]


def _parse(there: Inventory, path: PurePosixPath) -> ElementTree.Element | None:
  """The root of the XML of an image; None for another kind of XML."""
  content = (there.root / path).read_bytes()
  if b'<!ENTITY' in content:
    raise ValueError(f'{there.root / path}: it defines entities, which no label tool does: refused')
  try:
    root = ElementTree.fromstring(content)
  except ElementTree.ParseError as error:
    raise ValueError(f'{there.root / path}: not an XML file: {error}') from None
  return root if root.tag == 'annotation' else None


def _image_of(
  there: Inventory, path: PurePosixPath, root: ElementTree.Element, by_name: dict[str, list[PurePosixPath]]
) -> PurePosixPath | None:
  """The image of an XML: the one of its name that lies nearest; if none has it, of the name that it says."""
  said = PurePosixPath((root.findtext('filename') or '').strip().replace('\\', '/')).name
  for name in (path.stem, said, pairing.bare(said)):
    if near := pairing.nearest(path, by_name.get(pairing.key(name), ()) if name else ()):
      near = [image for image in near if pairing.key(image.name) == pairing.key(said)] or near
      if len(near) > 1:
        raise ValueError(f'{there.root / path}: {near[0]} and {near[1]} both have its name: keep one of them')
      return near[0]
  return None


def _objects(there: Inventory, path: PurePosixPath, root: ElementTree.Element) -> tuple[list[tuple], bool]:
  """(name, x, y, width, height) of each object, pixels; and whether corners were exchanged."""
  boxes, exchanged = [], False
  for number, one in enumerate(root.iter('object'), start=1):
    name = (one.findtext('name') or '').strip()
    if not name:
      raise ValueError(f'{there.root / path}: object {number} has no name')
    x1, y1, x2, y2 = (_number(there, path, one, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax'))
    exchanged |= x1 > x2 or y1 > y2
    (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
    boxes.append((name, x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))
  return boxes, exchanged


def _number(there: Inventory, path: PurePosixPath, node: ElementTree.Element, key: str, missing: float | None = None):
  text = node.findtext(key)
  if missing is not None and not (text or '').strip():
    return missing
  try:
    value = float(text)
  except (TypeError, ValueError):
    raise ValueError(f'{there.root / path}: {key} must be a number, got {text!r}') from None
  return int(value) if value.is_integer() else value


def _by_list(there: Inventory, paths: Sequence[PurePosixPath], notes: dict) -> dict[str, list[PurePosixPath]]:
  """The XMLs by split as the lists in ImageSets say, of one devkit or of several (VOC2007, VOC2012)."""
  found, devkits = {}, {}
  for path in there.with_suffix('.txt'):
    place = [part.lower() for part in path.parts[:-1]]
    place = place[:-1] if place[-1:] == ['main'] else place
    if place[-1:] == ['imagesets']:
      devkits.setdefault(PurePosixPath(*path.parts[: len(place) - 1]), {})[path.stem.lower()] = path
  for devkit, lists in devkits.items():
    by_name = {}
    for path in paths:
      if devkit in path.parents:
        by_name.setdefault(pairing.key(path.stem), path)
    if 'train' not in lists and 'trainval' in lists:
      lists['train'] = lists.pop('trainval')
    for word, path in lists.items():
      split = 'all' if word == 'default' else SPLIT_OF.get(word)
      lines = [line.strip() for line in there.read_text(path).splitlines() if line.strip()] if split else []
      listed = [_listed(line, by_name) for line in lines]
      missing = [line for line, xml in zip(lines, listed) if xml is None]
      if split == 'test':
        notes[_UNKNOWN] += missing
      elif missing:
        text = f'{len(missing)} of {len(lines)} images have no XML with their image'
        raise ValueError(f'{there.root / path}: {text}, such as {missing[0]}')
      if any(listed):
        found.setdefault(split, []).extend(xml for xml in dict.fromkeys(listed) if xml)
  return found


def _listed(line: str, by_name: dict[str, PurePosixPath]) -> PurePosixPath | None:
  """The XML that a line of a list means: a name, perhaps in quotes, with a suffix, a folder or a number behind it."""
  line = line.strip('"').replace('\\', '/')
  last = line.rpartition('/')[2]
  for name in (line, last, pairing.bare(last), *line.split()[:1]):
    if (path := by_name.get(pairing.key(name))) is not None:
      return path
  return None


def _unlisted(found: dict, by_list: dict) -> list[PurePosixPath]:
  listed = {path for paths in by_list.values() for path in paths}
  return [path for path in found if path not in listed]
