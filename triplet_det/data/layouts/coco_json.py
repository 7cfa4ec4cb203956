"""A COCO JSON, checked and packed: what is wrong is an error or a counted repair.

Views of one file: `read_annotations` packs the boxes into arrays that are cheap to send to workers, `read_ground_truth`
gives the evaluators a dictionary of the same boxes as they were written, and `read_images` says what the images are.
"""

import dataclasses
import gc
import itertools
import json
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.data.annotations import Annotations, pack

_WANTED = 'give an object with the lists images, categories and annotations, as COCO has it'
_INT64 = -(2**63), 2**63 - 1
_FAR = 1e9  # pixels, beyond any image; and that of an area is its square
_EXACT = 2**53  # larger whole numbers may have lost digits as a float
_OURS = {'images', 'annotations', 'categories', 'id', 'file_name', 'height', 'width', 'name'} | {
  *('image_id', 'category_id', 'bbox', 'area', 'iscrowd')
}
_UNUSED = {'segmentation', 'keypoints', 'coco_url', 'flickr_url', 'date_captured'}
_shortened = reprlib.Repr()  # strings keep their quotes: '1' is not 1
_shortened.maxdict, _shortened.maxlist, _shortened.maxstring = 9, 5, 60
_short = _shortened.repr


# What gives the (height, width) that boxes belong to, of every row of `images`.
Sizes = Callable[[Sequence[Mapping]], Sequence[tuple[int, int]]]


def read_annotations(path: epath.PathLike, *, require_boxes: bool = True, sizes: Sizes | None = None) -> Annotations:
  """Reads, checks and packs a COCO JSON.

  Args:
    path: the JSON.
    require_boxes: False accepts a file without annotations, such as COCO's `image_info_test2017.json`.
    sizes: of the images, if they may differ from those in the JSON.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not a COCO JSON, or one that contradicts itself; the message names the file and the numbers.
  """
  data, repaired = _read_checked(path, require_boxes, sizes)
  packed = pack(data, path, repaired)
  if require_boxes and not len(packed.boxes):
    count = packed.report['degenerate']
    raise ValueError(f'{path}: all {count} boxes are degenerate (no width or height inside the image)')
  return packed


def read_ground_truth(
  path: epath.PathLike, *, require_boxes: bool = True, sizes: Sizes | None = None, known: Annotations | None = None
) -> dict:
  """The COCO dictionary for the evaluators, checked: exactly the boxes of `read_annotations`, as they were written.

  Outlines and other facts that nothing here reads are left out (`_UNUSED`).

  Raises: as `read_annotations`; ValueError if the file has changed since `known` was read from it.
  """
  data, repaired = _read_checked(path, require_boxes, sizes)
  packed = pack(data, path, repaired)
  if known is not None and packed.in_tfds_order('').digest != known.in_tfds_order('').digest:
    before, now = (f'{len(one)} images and {len(one.boxes)} boxes' for one in (known, packed))
    raise ValueError(f'{path} was changed after it was read: it had {before}, now {now}; put it back as it was')
  kept = set(packed.ids.tolist())
  return dict(data, annotations=[row for row in data['annotations'] if row['id'] in kept])


def read_images(path: epath.PathLike) -> dict:
  """A COCO dictionary of which `images`, and `categories` if there are any, are checked; sizes may be missing.

  Raises: as `read_annotations`.
  """
  data = _parse(path, ['images'], whole=True)
  _check_images(_Rows(path, 'images', data['images']), sizes=False)
  if data.get('categories') is not None:
    _drop_doubled_categories(data)
    _check_categories(_Rows(path, 'categories', data['categories']))
  return data


def _read_checked(path: epath.PathLike, require_boxes: bool, sizes: Sizes | None) -> tuple[dict, dict[str, list[str]]]:
  """The JSON after checks and repairs, and what was repaired."""
  data = _parse(path, ['images', 'categories'] + ['annotations'] * require_boxes)
  if data.get('annotations') is None:
    data['annotations'] = []
  doubled = _drop_doubled_categories(data)
  images, categories, annotations = lists = [_Rows(path, k, data[k]) for k in ('images', 'categories', 'annotations')]
  if require_boxes and not annotations.rows:
    raise ValueError(f'{path}: 0 annotations for {len(images.rows)} images (require_boxes=False accepts a test set)')
  _check_images(images)
  _check_categories(categories)
  repaired = _check_annotations(annotations, images.column('id'), categories.column('id'))
  repaired['doubled_categories'] = doubled
  repaired['read_as_integers'] = [where for rows in lists for where in rows.read_as_integers]
  repaired['scaled_with_their_image'] = _turn(images.rows, sizes(images.rows), annotations.rows) if sizes else []
  return data, repaired


def _turn(images: list[dict], sizes: Sequence[tuple[int, int]], annotations: list[dict]) -> list[str]:
  """Gives images the (height, width) with which they stand upright, and says which boxes were scaled with them.

  Where the JSON has the size before, its boxes are pixels of the upright image, or fractions of that times the size
  before: of such boxes fewer end outside of this size than of the upright one.
  """
  both = {
    image['id']: ((image['width'], image['height']), (width, height))
    for image, (height, width) in zip(images, sizes)
    if (height, width) != (image['height'], image['width'])
  }
  for image, (height, width) in zip(images, sizes):
    image.update(height=height, width=width)
  rows = [row for row in annotations if row['image_id'] in both]
  if not rows:
    return []
  boxes = np.array([row['bbox'] for row in rows], np.float64)
  before, upright = np.array([both[row['image_id']] for row in rows], np.float64).swapaxes(0, 1)
  ends = boxes[:, :2] + boxes[:, 2:]
  if (ends > before + 1).any(axis=1).sum() >= (ends > upright + 1).any(axis=1).sum():
    return []
  for row, box in zip(rows, (boxes * np.tile(upright / before, 2)).tolist()):
    row['bbox'] = box
  return [f'annotation {row["id"]}' for row in rows]


def _parse(path: epath.PathLike, needed: Sequence[str], *, whole: bool = False) -> dict:
  path = epath.Path(path).expanduser()
  if not path.is_file():
    there = sorted(str(p) for p in path.parent.glob('*.json')) if path.parent.is_dir() else []
    raise FileNotFoundError(f'no annotations at {path}: give a COCO JSON' + (f', such as {there[0]}' if there else ''))
  try:
    data = _read_json(path, _object if whole else _without_unused)
  except UnicodeDecodeError as e:
    found = f'{e.object[e.start : e.end]!r} at byte {e.start}'
    raise ValueError(f'{path}: not a text in {e.encoding.upper()} ({found}): save it as UTF-8; {_WANTED}') from None
  except RecursionError:
    raise ValueError(f'{path}: not a COCO JSON: lists or objects inside each other, too deep to read') from None
  except ValueError as e:
    raise ValueError(f'{path}: not a JSON file ({path.stat().length} bytes): {e}; {_WANTED}') from None
  if not isinstance(data, Mapping):
    raise ValueError(f'{path}: not a COCO JSON: the top level is a {type(data).__name__}; {_WANTED}')
  missing = [key for key in needed if data.get(key) is None]
  if missing:
    raise ValueError(f'{path}: not a COCO JSON, without {missing}; it has {_short(list(data))}; {_WANTED}')
  return data


def _read_json(path: epath.Path, of_pairs: Callable[[list], dict]) -> object:
  """Parses with the search for garbage off, a quarter of the time: a million objects, none of which is any."""
  raw = path.read_bytes()
  text = raw.decode(json.detect_encoding(raw), 'surrogatepass')
  del raw  # a text and a million objects are enough
  searched = gc.isenabled()
  gc.disable()
  try:
    return json.loads(text, object_pairs_hook=of_pairs)
  finally:
    if searched:
      gc.enable()


def _without_unused(pairs: list[tuple[str, object]]) -> dict:
  """A JSON object without what a detector has no use for, half of the memory that COCO's file would take."""
  return _object([pair for pair in pairs if pair[0] not in _UNUSED])


def _object(pairs: list[tuple[str, object]]) -> dict:
  """A JSON object; of a key that is there twice, one value would be lost without a word."""
  found = dict(pairs)
  if len(found) < len(pairs):
    lost = [(key, value) for key, value in pairs if key in _OURS and value != found[key]]
    if lost:
      (key, value), *_ = lost
      raise ValueError(f'the key {key!r} has two values in one object, {_short(value)} and {_short(found[key])}')
  return found


@dataclasses.dataclass(frozen=True)
class _Rows:
  """A list of objects, checked column by column; only what is wrong is looked for row by row."""

  path: epath.PathLike
  name: str  # of the list in the JSON
  rows: list[dict]
  read_as_integers: list[str] = dataclasses.field(default_factory=list)  # where 640.0 or true became an integer

  def __post_init__(self):
    if not isinstance(self.rows, list):
      raise ValueError(f'{self.path}: `{self.name}` must be a list of objects, not {_short(self.rows)}; {_WANTED}')
    wrong = [] if set(map(type, self.rows)) <= {dict} else [n for n, r in enumerate(self.rows) if type(r) is not dict]
    if wrong:
      found = f'{self.name}[{wrong[0]}] is {_short(self.rows[wrong[0]])}'
      raise ValueError(f'{self.path}: `{self.name}` must be a list of objects, {found}; {_WANTED}')

  def column(self, key: str) -> list:
    return [row.get(key) for row in self.rows]

  def refuse(self, key: str, wanted: str, wrong: Sequence[int]) -> None:
    """Raises ValueError about the first of the rows that are `wrong`, if there are any."""
    if wrong:
      row = self.rows[wrong[0]]
      got = _short(row[key]) if key in row else 'nothing'
      raise ValueError(
        f'{self.path}: {self.name}[{wrong[0]}]: {key} must be {wanted}, got {got} in {_short(row)}; correct it here '
        f'and wherever it is so, {len(wrong)} of {len(self.rows)} {self.name}'
      )

  def integers(self, key: str, low: int, high: int, *, optional: bool = False) -> list[int]:
    """A column of integers; of floats, those that can only be meant as one are taken, and true and false as 1 and 0."""
    values = self.column(key)
    if _are_integers(values, low, high):
      return values
    for n, value in enumerate(values):
      is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
      if is_whole or (isinstance(value, bool) and high == 1):
        values[n] = self.rows[n][key] = int(value)
        self.read_as_integers.append(f'{self.name}[{n}] {key} {json.dumps(value)}')
    wrong = [n for n, v in enumerate(values) if not (low <= v <= high if type(v) is int else optional and v is None)]
    self.refuse(key, 'an integer ' + ('of 64 bits' if (low, high) == _INT64 else f'from {low} to {high}'), wrong)
    return values

  def texts(self, key: str) -> list[str]:
    """A column of strings that are names: not blank, without control characters and halves of characters."""
    values = self.column(key)
    if not (set(map(type, values)) <= {str} and all(map(str.isprintable, values)) and all(map(str.strip, values))):
      wrong = [n for n, v in enumerate(values) if not isinstance(v, str) or not v.strip() or _has_controls(v)]
      self.refuse(key, 'a name, without control characters', wrong)
    return values


def _has_controls(text: str) -> bool:
  return any(unicodedata.category(character) in ('Cc', 'Cs') for character in text)


def _check_images(images: _Rows, *, sizes: bool = True) -> None:
  if not images.rows:
    raise ValueError(f'{images.path}: `images` is empty')
  columns = {'id': images.integers('id', *_INT64), 'file_name': images.texts('file_name')}
  for side in ('height', 'width'):
    images.integers(side, 1, 2**31 - 1, optional=not sizes)
  for key, values in columns.items():
    if more := len(values) - len(set(values)):
      seen = set()
      doubled = [value for value in values if value in seen or seen.add(value)]
      raise ValueError(f'{images.path}: {more} of {len(values)} images share their {key}: {_short(doubled)}')


def _check_categories(categories: _Rows) -> None:
  if not categories.rows:
    raise ValueError(f'{categories.path}: `categories` is empty')
  categories.integers('id', *_INT64)
  categories.texts('name')
  try:
    CategoryTable.from_coco(categories.rows)
  except ValueError as e:
    raise ValueError(f'{categories.path}: {e}') from None


def _drop_doubled_categories(data: dict) -> list[str]:
  """Takes out categories of a name that is there twice and that no box is of, and says which.

  Roboflow puts the project in front of its classes, which may be called as one of them.
  """
  rows, annotations = data['categories'], data.get('annotations')
  if not (isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows)):
    return []
  names = [str(row.get('name')) for row in rows]
  if len(set(names)) == len(names):
    return []
  rows_of_boxes = annotations if isinstance(annotations, list) else []
  used = {str(row.get('category_id')) for row in rows_of_boxes if isinstance(row, Mapping)}
  dropped = [
    n
    for n, row in enumerate(rows)
    if names.count(names[n]) > 1 and str(row.get('id')) not in used and row.get('supercategory') == 'none'
  ]
  data['categories'] = [row for n, row in enumerate(rows) if n not in dropped]
  return [f'categories[{n}] {names[n]}' for n in dropped]


def _check_annotations(table: _Rows, image_ids: list[int], category_ids: list[int]) -> dict[str, list[str]]:
  """Fills and renumbers in place; what was repaired -> where."""
  rows = table.rows
  for key, ids in (('image_id', set(image_ids)), ('category_id', set(category_ids))):
    values = table.integers(key, *_INT64)
    if not ids.issuperset(values):
      strangers = [n for n, value in enumerate(values) if value not in ids]
      raise ValueError(
        f'{table.path}: {len(strangers)} of {len(rows)} annotations have an unknown {key}; the first is '
        f'annotations[{strangers[0]}] with {key} {values[strangers[0]]}; known: {len(ids)} ids, {_short(sorted(ids))}. '
        f'Correct these, or list what they mean under `{"images" if key == "image_id" else "categories"}`'
      )
  boxes = table.column('bbox')
  if not (
    set(map(type, boxes)) <= {list}
    and set(map(len, boxes)) <= {4}
    and _are_numbers(list(itertools.chain.from_iterable(boxes)), _FAR)
  ):
    wrong = [n for n, b in enumerate(boxes) if not (isinstance(b, list) and len(b) == 4 and _are_numbers(b, _FAR))]
    table.refuse('bbox', '4 numbers of pixels (x, y, width, height)', wrong)
  repaired = {}
  for key, usual in (('iscrowd', lambda row: 0), ('area', lambda row: row['bbox'][2] * row['bbox'][3])):
    lacking = [n for n, value in enumerate(table.column(key)) if value is None]
    for n in lacking:
      rows[n][key] = usual(rows[n])
    repaired[f'filled_{key}'] = [f'annotations[{n}]' for n in lacking]
  table.integers('iscrowd', 0, 1)
  areas = table.column('area')
  if not (_are_numbers(areas, _FAR**2) and min(areas, default=0) >= 0):
    # The area of a box of negative size, which is left out, may be negative too.
    wrong = [n for n, area in enumerate(areas) if not _are_numbers([area], _FAR**2) or area < 0 < min(boxes[n][2:])]
    table.refuse('area', 'a number of pixels, at least 0 (without the key, width x height is taken)', wrong)
  ids = table.column('id')
  # pycocotools marks an unmatched detection by annotation id 0 and indexes annotations by id.
  if _are_integers(ids, *_INT64) and 0 not in ids and len(set(ids)) == len(ids):
    return dict(repaired, renumbered_ids=[])
  for n, row in enumerate(rows, start=1):
    row['id'] = n
  return dict(repaired, renumbered_ids=[f'annotations[{n}]' for n in range(len(rows))])


def _are_integers(values: Sequence, low: int, high: int) -> bool:
  return set(map(type, values)) <= {int} and low <= min(values, default=low) and max(values, default=high) <= high


def _are_numbers(values: Sequence, most: float) -> bool:
  """Whether all are numbers of at most this size: NaN, infinity and what is written as text are not."""
  return set(map(type, values)) <= {int, float} and all(-most <= value <= most for value in values)
