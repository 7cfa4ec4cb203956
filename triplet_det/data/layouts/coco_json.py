"""A COCO JSON, checked and packed: what is wrong is an error or a counted repair.

Two views of one file: `read_annotations` packs the boxes into arrays that are cheap to send to workers, and
`read_ground_truth` gives pycocotools the dictionary as it was written, with the repairs that pycocotools needs.
"""

import collections
import json
import math
from collections.abc import Mapping

from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.data.annotations import Annotations, pack

_WANTED = 'give an object with the lists images, categories and annotations, as COCO has it'


def read_annotations(path: epath.PathLike, *, require_boxes: bool = True) -> Annotations:
  """Reads, checks and packs a COCO JSON.

  Args:
    path: the JSON.
    require_boxes: False accepts a file without annotations, such as COCO's `image_info_test2017.json`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not a COCO JSON, or one that contradicts itself; the message names the file and the numbers.
  """
  data, repaired = _read_checked(path, require_boxes)
  packed = pack(data, path, repaired)
  if require_boxes and not len(packed.boxes):
    count = packed.report['degenerate']
    raise ValueError(f'{path}: all {count} boxes are degenerate (no width or height inside the image)')
  return packed


def read_ground_truth(path: epath.PathLike, *, require_boxes: bool = True) -> dict:
  """The COCO dictionary for pycocotools, checked; boxes as written, only what pycocotools stumbles over is repaired.

  Raises: as `read_annotations`.
  """
  return _read_checked(path, require_boxes)[0]


def _read_checked(path: epath.PathLike, require_boxes: bool) -> tuple[dict, dict[str, list[str]]]:
  """The JSON after checks and repairs, and what was repaired."""
  data = _parse(path)
  needed = ['images', 'categories'] + ['annotations'] * require_boxes
  missing = [key for key in needed if not isinstance(data.get(key), list)]
  if missing:
    raise ValueError(f'{path}: not a COCO JSON, without {missing}; it has {list(data)[:9]}; {_WANTED}')
  data = {'info': {}, 'annotations': [], **data}  # pycocotools copies `info` into the results
  for key in ('images', 'categories'):
    if not data[key]:
      raise ValueError(f'{path}: `{key}` is empty')
  if require_boxes and not data['annotations']:
    raise ValueError(f'{path}: 0 annotations for {len(data["images"])} images (require_boxes=False accepts a test set)')
  _check_images(path, data['images'])
  _check_categories(path, data['categories'])
  _check_annotations(path, data)
  return data, _repair(data['annotations'])


def _parse(path: epath.PathLike) -> dict:
  path = epath.Path(path).expanduser()
  if not path.is_file():
    there = sorted(str(p) for p in path.parent.glob('*.json')) if path.parent.is_dir() else []
    raise FileNotFoundError(f'no annotations at {path}: give a COCO JSON' + (f', such as {there[0]}' if there else ''))
  try:
    data = json.loads(path.read_bytes())
  except ValueError as e:
    raise ValueError(f'{path}: not a JSON file ({path.stat().length} bytes): {e}; {_WANTED}') from None
  if not isinstance(data, Mapping):
    raise ValueError(f'{path}: not a COCO JSON: the top level is a {type(data).__name__}; {_WANTED}')
  return data


def _check_images(path: epath.PathLike, images: list[dict]) -> None:
  for n, image in enumerate(images):
    numbers = [image.get(key) for key in ('id', 'height', 'width')]
    if not all(isinstance(v, int) for v in numbers) or not isinstance(image.get('file_name'), str):
      raise ValueError(f'{path}: images[{n}] needs integers id, height, width and a file_name, got {_short(image)}')
    if image['height'] < 1 or image['width'] < 1:
      raise ValueError(f'{path}: images[{n}] is {image["height"]} x {image["width"]} pixels: {_short(image)}')
  for key in ('id', 'file_name'):
    counts = collections.Counter(image[key] for image in images)
    if more := len(images) - len(counts):
      doubled = [value for value, count in counts.items() if count > 1]
      raise ValueError(f'{path}: {more} of {len(images)} images share their {key}: {doubled[:5]}')


def _check_categories(path: epath.PathLike, categories: list[dict]) -> None:
  for n, category in enumerate(categories):
    if not isinstance(category.get('id'), int) or not isinstance(category.get('name'), str):
      raise ValueError(f'{path}: categories[{n}] needs an integer id and a name, got {_short(category)}')
  try:
    CategoryTable.from_coco(categories)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from None


def _check_annotations(path: epath.PathLike, data: dict) -> None:
  known = {'image_id': {i['id'] for i in data['images']}, 'category_id': {c['id'] for c in data['categories']}}
  for key, ids in known.items():
    strangers = [n for n, annotation in enumerate(data['annotations']) if annotation.get(key) not in ids]
    if strangers:
      first = data['annotations'][strangers[0]]
      raise ValueError(
        f'{path}: {len(strangers)} of {len(data["annotations"])} annotations have an unknown {key}; the first is '
        f'annotations[{strangers[0]}] with {key} {first.get(key)}; known: {len(ids)} ids, {_short(sorted(ids))}. '
        f'Correct these, or list what they mean under `{"images" if key == "image_id" else "categories"}`'
      )
  for n, annotation in enumerate(data['annotations']):
    box = annotation.get('bbox')
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
      raise ValueError(f'{path}: annotations[{n}]: bbox must be 4 numbers (x, y, width, height), got {box}')
    if not all(map(math.isfinite, box)):
      raise ValueError(f'{path}: annotations[{n}]: bbox {box} is not finite')


def _repair(rows: list[dict]) -> dict[str, list[str]]:
  """Fills and renumbers in place; what was repaired -> where."""
  repaired = {}
  for key, usual in (('iscrowd', lambda row: 0), ('area', lambda row: row['bbox'][2] * row['bbox'][3])):
    lacking = [n for n, row in enumerate(rows) if row.get(key) is None]
    for n in lacking:
      rows[n][key] = usual(rows[n])
    repaired[f'filled_{key}'] = [f'annotations[{n}]' for n in lacking]
  ids = [row.get('id') for row in rows]
  # pycocotools marks an unmatched detection by annotation id 0 and indexes annotations by id.
  unsound = any(not isinstance(i, int) or i == 0 for i in ids) or len(set(ids)) < len(ids)
  if unsound:
    for n, row in enumerate(rows, start=1):
      row['id'] = n
  return dict(repaired, renumbered_ids=[f'annotations[{n}]' for n in range(len(rows) * unsound)])


def _short(value: object) -> str:
  text = str(value)
  return text if len(text) <= 120 else text[:117] + '...'
