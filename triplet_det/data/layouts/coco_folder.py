"""A folder with COCO JSONs: one per split, beside the images or in a folder of their own, or a single one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from triplet_det.data.layouts import coco_json, pairing
from triplet_det.data.layouts.inventory import SPLIT_OF, Inventory, Split, common_folder, split_of

NEEDS = 'a JSON with images, annotations and categories per split, such as train/_annotations.coco.json'
SAMPLE = 50  # names by which the folder of images is known
# Other files that COCO's download has beside the boxes.
_OTHER_TASKS = ('captions', 'person_keypoints', 'stuff', 'panoptic', 'image_info')


def look(there: Inventory) -> str:
  """Names the JSONs that have images and annotations; '' if there are none."""
  return ', '.join(map(str, _candidates(there)[:3]))


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' for a single JSON that names none), and notes."""
  found, splits, notes = {}, {}, []
  candidates = _candidates(there)
  for path in _look_alikes(there, candidates):
    if _split(path) != 'test':
      raise ValueError(
        f'{there.root / path}: no images and annotations in it, which {candidates[0]} has: replace it, or take it out'
      )
    notes.append(f'{path} is passed over: it has no annotations')
  for path in candidates:
    found.setdefault(_split(path) or 'all', []).append(path)
  if len(found) > 1 and (beside := found.pop('all', None)):
    notes.append(f'{len(beside)} JSONs of no split are passed over, such as {beside[0]}')
  for name, paths in found.items():
    if len(paths) > 1:
      listed = ', '.join(map(str, paths))
      raise ValueError(f'{there.root}: {len(paths)} JSONs of the split {name}: {listed}; keep one of them')
    (path,) = paths
    # What is wrong is said of this file, not of a part of it.
    coco_json.read_annotations(there.root / path, require_boxes=name in ('train', 'all'))
    content = coco_json.read_images(there.root / path)
    content['annotations'] = content['annotations'] or []  # null, where nothing is labelled
    images = _images_of(there, path, content)
    if images is None:
      images, content = _by_name(there, path, content)
      first = content['images'][0]['file_name']
      notes.append(f'images of {path} are found by their names, such as {images / first}')
      splits[name] = Split(there.root / images, content)
    else:
      splits[name] = Split(there.root / images, content, there.root / path)
  return _with_equal_categories(splits, notes), notes


def _candidates(there: Inventory) -> list[PurePosixPath]:
  # The keys stand anywhere, but their names are rare elsewhere.
  found = [path for path in there.with_suffix('.json') if there.has_words(path, b'"images"', b'"annotations"')]
  keypoints = [path for path in found if path.name.startswith('person_keypoints')]  # which have boxes, too
  return [path for path in found if not path.name.startswith(_OTHER_TASKS)] or keypoints


def _look_alikes(there: Inventory, candidates: Sequence[PurePosixPath]) -> list[PurePosixPath]:
  """Other JSONs that are called as these are but for the split: cut short, empty, or without annotations."""
  names = {_without_split(path) for path in candidates}
  others = [path for path in there.with_suffix('.json') if path not in candidates and _split(path)]
  return [path for path in others if _without_split(path) in names and not path.name.startswith(_OTHER_TASKS)]


def _split(path: PurePosixPath) -> str | None:
  return split_of(path.name) or split_of(path.parent)


def _without_split(path: PurePosixPath) -> str:
  words = re.findall(r'[^\W\d_]+', path.name.lower())
  return ' '.join(word for word in words if word not in SPLIT_OF)


def _images_of(there: Inventory, path: PurePosixPath, content: Mapping) -> PurePosixPath | None:
  """The folder that the file_names are relative to, known by some of them: the nearest that has them all."""
  rows = content['images'][:: len(content['images']) // SAMPLE + 1]
  split, present = _split(path), set(there.files)
  near = [path.parent, path.parent / 'images']
  ours = sorted(folder for folder in there.folders if split and split_of(folder) == split)
  counts = {
    folder: sum(folder / row['file_name'] in present for row in rows)
    for folder in dict.fromkeys([*near, *ours, *sorted(there.folders)])
  }
  having = [folder for folder, count in counts.items() if count == len(rows)]
  if split and any(count for folder, count in counts.items() if split_of(folder) in (None, split)):
    having = [folder for folder in having if split_of(folder) in (None, split)]  # others are numbered anew in another
  if len(having) < 2 or having[0] in near or having[0] in ours:
    return next(iter(having), None)
  fitting = [folder for folder in having if all(_fits(there, folder / row['file_name'], row) for row in rows)]
  fitting = pairing.nearest(path, [folder / rows[0]['file_name'] for folder in fitting or having])
  if len(fitting) > 1:
    two = ' and '.join(map(str, fitting[:2]))
    raise ValueError(f'{there.root / path}: its images may be those of {two}: take one folder away, or nearer to it')
  return next(folder for folder in having if folder / rows[0]['file_name'] == fitting[0])


def _fits(there: Inventory, image: PurePosixPath, row: Mapping) -> bool:
  """Whether an image has the size that its row says, lying or upright."""
  size = there.size(image)
  return None in (row.get('width'), row.get('height')) or (row['width'], row['height']) in (size, size[::-1])


def _by_name(there: Inventory, path: PurePosixPath, content: Mapping) -> tuple[PurePosixPath, dict]:
  """(folder, content with file_names relative to it): each image by as much of its path as there is here.

  Tools write paths of their machine, with backslashes, in another case or another form of umlauts. An image of another
  split, or of another size, is another one of that name.
  """
  split, by_name, found, missing = _split(path), {}, [], []
  ours = [image for image in there.images if split is None or split_of(image.parent) in (None, split)]
  for image in ours or there.images:
    by_name.setdefault(pairing.key(image.name), []).append(image)
  for row in content['images']:
    written = PurePosixPath(row['file_name'].replace('\\', '/'))
    near = [image for image in by_name.get(pairing.key(written.name), ()) if _fits(there, image, row)]
    wanted = [pairing.key(part) for part in reversed(written.parts)]

    def shared(image: PurePosixPath, wanted=wanted) -> int:
      have = [pairing.key(part) for part in reversed(image.parts)]
      return next((n for n, (a, b) in enumerate(zip(wanted, have)) if a != b), min(len(wanted), len(have)))

    most = max(map(shared, near), default=0)
    near = pairing.nearest(path, [image for image in near if shared(image) == most])
    if len(near) > 1:
      two = ' and '.join(map(str, near[:2]))
      raise ValueError(f'{there.root / path}: {row["file_name"]} may be {two}: give the folder with the name')
    found += near
    missing += [] if near else [row['file_name']]
  if missing:
    count = len(content['images'])
    raise ValueError(
      f'{there.root / path}: {len(missing)} of its {count} images are nowhere in {there.root}, such as {missing[0]}: '
      'put them there, or take them out of the JSON'
    )
  if len(set(found)) < len(found):
    doubled = next(image for image in found if found.count(image) > 1)
    raise ValueError(f'{there.root / path}: several of its images can only be {doubled}: put all of them there')
  folder = common_folder(found)
  names = [image.relative_to(folder).as_posix() for image in found]
  return folder, {**content, 'images': [dict(row, file_name=name) for row, name in zip(content['images'], names)]}


def _with_equal_categories(splits: dict[str, Split], notes: list[str]) -> dict[str, Split]:
  """The splits with one list of categories: a tool that exports split by split may count them anew in each."""
  training = splits.get('train') or splits.get('all')
  if training is None:
    return splits
  first = training.content['categories']
  both = [(row['id'], row['name']) for row in first]
  for name, split in splits.items():
    mine = [(row['id'], row['name']) for row in split.content['categories']]
    if mine == both:
      continue
    ids = {category: number for number, category in both}
    used = {row['category_id'] for row in split.content['annotations']}
    if more := [category for number, category in mine if category not in ids and number in used]:
      raise ValueError(
        f'{split.path or split.images}: its class {more[0]!r} is none of those to train on '
        f'({", ".join(list(ids)[:8])}): correct the name, or take the class out'
      )
    new = {number: ids.get(category) for number, category in mine}
    rows = [dict(row, category_id=new[row['category_id']]) for row in split.content['annotations']]
    splits[name] = Split(split.images, {**split.content, 'categories': first, 'annotations': rows})
    notes.append(f'classes of {name} are those to train on of the same name')
  return splits
