"""Which data set lies in a folder, found out by looking: COCO JSONs, YOLO or Pascal VOC.

Whatever it is becomes a COCO dictionary per split, so that everything behind it, the doctor and pycocotools included,
knows one form only.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from triplet_det.data.layouts import coco_folder, voc, yolo
from triplet_det.data.layouts.inventory import Inventory, Split

LAYOUTS = {'coco': coco_folder, 'yolo': yolo, 'voc': voc}
HELD_OUT = 5  # one image in so many is validated on if the data set has no split for it


@dataclasses.dataclass(frozen=True)
class DataSet:
  """The splits of a folder: 'train', 'validation' and, if there is one, 'test'."""

  root: Path
  layout: str
  splits: Mapping[str, Split]
  notes: tuple[str, ...]  # what a user should know of how it was read

  def __str__(self) -> str:
    counts = ', '.join(f'{name} {len(split.content["images"]):,} images' for name, split in self.splits.items())
    names = [category['name'] for category in self.splits['train'].content['categories']]
    listed = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
    return f'{self.root}: {self.layout.upper()}, {counts}; {len(names)} classes: {listed}' + ''.join(
      f'; {note}' for note in self.notes
    )


def read(root: str | Path, layout: str = 'auto') -> DataSet:
  """Finds out what lies in a folder and reads it.

  Args:
    root: the folder.
    layout: 'coco', 'yolo' or 'voc', for a folder that has several; 'auto' is the one that it has.

  Raises:
    FileNotFoundError: no folder there.
    ValueError: none or several of the layouts, or labels that contradict themselves; names the file and the line.
  """
  if layout not in ('auto', *LAYOUTS):
    raise ValueError(f'data.layout is {layout!r}; possible: auto, {", ".join(LAYOUTS)}')
  root = Path(root).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f'no folder at data.root={root}: give the one with your images and labels')
  there = Inventory(root)
  found = {name: seen for name, module in LAYOUTS.items() if (seen := module.look(there))}
  if not found and (seen := yolo.look_closer(there)):
    found['yolo'] = seen
  if layout == 'auto':
    if len(found) != 1:
      raise ValueError(_not_one(there, found))
    (layout,) = found
  elif layout not in found:
    raise ValueError(f'data.layout={layout}, but {_not_one(there, found)}')
  splits, notes = LAYOUTS[layout].read(there)
  if not splits.keys() & {'train', 'all'}:
    only = ' and '.join(splits)
    raise ValueError(f'{root}: no images to train on, only {only}: call the folder or file of one split train')
  training = splits.pop('train', None) or splits.pop('all')
  _check_labelled(root, training, splits.get('validation'))
  if 'validation' not in splits:
    training, splits['validation'] = hold_out(training)
    count = len(splits['validation'].content['images'])
    notes = (*notes, f'no validation split: {count:,} training images are held out for it, chosen by their names')
  if there.outputs:
    notes = (*notes, f'results of a program are passed over: {", ".join(f"{path}/" for path in there.outputs[:3])}')
  ordered = {name: splits[name] for name in ('validation', 'test') if name in splits}
  return DataSet(root, layout, {'train': training, **ordered}, tuple(notes))


def hold_out(split: Split) -> tuple[Split, Split]:
  """(training, validation): one image in `HELD_OUT` goes to the second, by a hash of its name, the same in every run.

  Copies that Roboflow's augmentation made of one photo (`photo.rf.0a1b.jpg`) stay together.
  """

  def digest(image: Mapping) -> int:
    return int.from_bytes(hashlib.md5(image['file_name'].split('.rf.')[0].encode()).digest()[:8])

  images = split.content['images']
  if len(images) < 2:
    raise ValueError(f'{split.images}: {len(images)} image, and 2 are the least: one to train on, one to validate on')
  chosen = {image['id'] for image in images if digest(image) % HELD_OUT == 0}
  if len(chosen) in (0, len(images)):  # of a handful of images
    chosen = {min(images, key=digest)['id']}
  return split.only(lambda i: i not in chosen), split.only(lambda i: i in chosen)


def _check_labelled(root: Path, training: Split, validation: Split | None) -> None:
  """Raises ValueError for splits without a box; one to test on may be without, nobody evaluates on it unasked."""
  for split, purpose, way_out in (
    (training, 'train', 'label some'),
    (validation, 'validate', 'label some, or take them out, and a part of the others is held out instead'),
  ):
    if split and not split.content['annotations']:
      count, where = len(split.content['images']), split.path or split.images
      raise ValueError(f'{root}: none of the {count} images to {purpose} on has a box ({where}): {way_out}')


# What tools write that is not read here: their name, the suffix, and words in it.
_FOREIGN = (
  ('labelme', '.json', (b'"shapes"', b'"imagePath"')),
  ('the VGG Image Annotator', '.json', (b'"regions"', b'"shape_attributes"')),
  ('Supervisely', '.json', (b'"objects"', b'"size"', b'"tags"')),
  ('VoTT', '.json', (b'"asset', b'"regions"')),
  ('CreateML', '.json', (b'"annotations"', b'"coordinates"')),
  ('Label Studio', '.json', (b'"annotations"', b'"from_name"')),
  ('CVAT for images', '.xml', (b'<annotations>', b'<box ')),
  ('a table of boxes', '.csv', (b'xmin', b'ymax')),
)


def _foreign(there: Inventory) -> str:
  """Says which other tool's file lies there, '' if none of those known."""
  for path in there.with_suffix('.json', '.xml', '.csv'):
    for tool, suffix, words in _FOREIGN:
      if path.suffix.lower() == suffix and there.has_words(path, *words):
        return f'{path} looks like {tool}: export it as COCO, YOLO or Pascal VOC. '
  return ''


def _not_one(there: Inventory, found: Mapping[str, str]) -> str:
  wanted = '; '.join(f'{name} needs {module.NEEDS}' for name, module in LAYOUTS.items())
  if not found:
    return f'{there.root} holds no data set that is known here, but {there.summary()}. {_foreign(there)}{wanted}'
  seen = ' and '.join(f'{what} ({name})' for name, what in found.items())
  return f'{there.root} has the labels of {"several layouts" if len(found) > 1 else "another layout"}: {seen}. ' + (
    f'Say which with data.layout={"|".join(found)}'
  )
