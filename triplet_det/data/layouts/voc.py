"""Pascal VOC's layout: an XML per image, beside it or in Annotations/ with the images in JPEGImages/.

Boxes are as the devkit has them: pixels are counted from 1, so a box reaches from xmin - 1 to xmax.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from xml.etree import ElementTree

from triplet_det.data.layouts.inventory import Inventory, Split, coco_dictionary, split_of

NEEDS = 'an XML per image, beside it or in Annotations/ with JPEGImages/ (and ImageSets/Main for the splits)'


def look(there: Inventory) -> str:
  """Names the first XML of an image; '' if there is none."""
  for path in there.with_suffix('.xml'):
    with (there.root / path).open('rb') as file:
      if b'<annotation' in file.read(4096):
        return str(path)
  return ''


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' if nothing names one), and notes."""
  images = {}
  for image in there.images:
    images.setdefault(image.stem, []).append(image)
  found, unsized, alone = {}, [], []
  for path in there.with_suffix('.xml'):
    root = _parse(there, path)
    if root is None:
      continue
    image = _image_of(path, images)
    if image is None:
      alone.append(path)
      continue
    size = tuple(_number(there, path, root, f'size/{side}', missing=0.0) for side in ('width', 'height'))
    if min(size) < 1:
      unsized.append(path)
    upright = there.size(image)
    if min(size) >= 1 and size not in (upright, upright[::-1]):
      raise ValueError(
        f'{there.root / path}: size is {size[0]:g} x {size[1]:g}, but {there.root / image} has {upright[0]} x '
        f'{upright[1]} pixels: correct the size, or give the image that the boxes were drawn on'
      )
    found[path] = image, upright, _objects(there, path, root)
  if not found:
    raise ValueError(f'{there.root}: none of the {len(alone)} XML files has its image, such as {alone[0]}')
  names = sorted({name for _, _, boxes in found.values() for name, *_ in boxes})
  splits = {}
  for split, paths in _splits(there, list(found)).items():
    sizes = {found[path][0]: found[path][1] for path in paths}
    boxes = {found[path][0]: [(names.index(name), *box) for name, *box in found[path][2]] for path in paths}
    splits[split] = coco_dictionary(there.root, dict(sorted(sizes.items())), boxes, names)
  notes = []
  if alone:
    notes.append(f'{len(alone):,} XML files without an image are passed over, such as {alone[0]}')
  if unsized:
    notes.append(f'{len(unsized):,} XML files have no size, that of the image is taken, such as {unsized[0]}')
  if lone := len(there.images) - len({image for image, _, _ in found.values()}):
    notes.append(f'{lone:,} images without an XML are passed over')
  return splits, notes


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


def _image_of(path: PurePosixPath, images: dict[str, list[PurePosixPath]]) -> PurePosixPath | None:
  """The image of an XML, by its name: the one that lies nearest."""
  near = images.get(path.stem, ())
  return max(near, key=lambda image: len(set(image.parents) & set(path.parents)), default=None)


def _objects(there: Inventory, path: PurePosixPath, root: ElementTree.Element) -> list[tuple]:
  """(name, x, y, width, height) of each object, pixels."""
  boxes = []
  for number, one in enumerate(root.iter('object'), start=1):
    name = (one.findtext('name') or '').strip()
    if not name:
      raise ValueError(f'{there.root / path}: object {number} has no name')
    x1, y1, x2, y2 = (_number(there, path, one, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax'))
    boxes.append((name, x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))
  return boxes


def _number(there: Inventory, path: PurePosixPath, node: ElementTree.Element, key: str, missing: float | None = None):
  text = node.findtext(key)
  if text is None and missing is not None:
    return missing
  try:
    value = float(text)
  except (TypeError, ValueError):
    raise ValueError(f'{there.root / path}: {key} must be a number, got {text!r}') from None
  return int(value) if value.is_integer() else value


def _splits(there: Inventory, paths: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
  """The XMLs by split: as ImageSets/Main lists them, or as their folders are called."""
  by_stem = {path.stem: path for path in paths}
  found = {}
  for listing in there.with_suffix('.txt'):
    if listing.parts[-3:-1] == ('ImageSets', 'Main') and listing.stem in ('train', 'val', 'test'):
      stems = [line.split()[0] for line in there.read_text(listing).splitlines() if line.strip()]
      if missing := [stem for stem in stems if stem not in by_stem]:
        text = f'{len(missing)} of {len(stems)} images have no XML with their image'
        raise ValueError(f'{there.root / listing}: {text}, such as {missing[0]}')
      found[split_of(listing.stem)] = [by_stem[stem] for stem in stems]
  if not found:
    for path in paths:
      found.setdefault(split_of(path.parent) or 'all', []).append(path)
    if 'train' in found:
      found.pop('all', None)
  return found
