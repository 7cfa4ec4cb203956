"""A COCO JSON, checked and packed: what is wrong is an error or a counted repair.

Two views of one file: `read_annotations` packs the boxes into arrays that are cheap to send to workers, and
`read_ground_truth` gives pycocotools the dictionary as it was written, with the repairs that pycocotools needs.
"""

import json
import math
from collections.abc import Mapping

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.data.annotations import Annotations

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
  data, repairs, examples = _read_checked(path, require_boxes)
  categories = CategoryTable.from_coco(data['categories'])
  class_of = {category_id: index for index, category_id in enumerate(categories.ids)}
  of_image = {image['id']: [] for image in data['images']}
  for annotation in data['annotations']:
    of_image[annotation['image_id']].append(annotation)

  boxes, kept, starts = [], [], [0]
  clipped = 0
  for image in data['images']:
    for annotation in of_image[image['id']]:
      box = _fractions(annotation['bbox'], image['height'], image['width'])
      inside = [min(max(v, 0.0), 1.0) for v in box]
      x1, y1, x2, y2 = np.float32(inside)
      empty = not (x2 > x1 and y2 > y1)
      if inside != box or empty:
        clipped += inside != box
        _note(examples, 'degenerate' if empty else 'clipped', f'{image["file_name"]} {annotation["bbox"]}')
      if not empty:
        boxes.append((x1, y1, x2, y2))
        kept.append(annotation)
    starts.append(len(boxes))

  counts = np.diff(starts)
  report = dict(
    images=len(data['images']),
    images_without_boxes=int((counts == 0).sum()),
    boxes=len(boxes),
    most_boxes_in_an_image=int(counts.max()),
    crowd=sum(bool(annotation['iscrowd']) for annotation in kept),
    clipped=clipped,
    degenerate=len(data['annotations']) - len(boxes),
    **repairs,
  )
  if require_boxes and not boxes:
    raise ValueError(f'{path}: all {report["degenerate"]} boxes are degenerate (no width or height inside the image)')
  return Annotations(
    path=str(path),
    categories=categories,
    image_ids=np.array([image['id'] for image in data['images']], np.int64),
    image_sizes=np.array([(image['height'], image['width']) for image in data['images']], np.int32),
    file_names=tuple(image['file_name'] for image in data['images']),
    starts=np.array(starts, np.int64),
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    classes=np.array([class_of[annotation['category_id']] for annotation in kept], np.int32),
    crowd=np.array([annotation['iscrowd'] for annotation in kept], bool),
    ids=np.array([annotation['id'] for annotation in kept], np.int64),
    areas=np.array([annotation['area'] for annotation in kept], np.float64),
    report=report,
    examples={key: tuple(first) for key, first in examples.items()},
  )


def read_ground_truth(path: epath.PathLike, *, require_boxes: bool = True) -> dict:
  """The COCO dictionary for pycocotools, checked; boxes as written, only what pycocotools stumbles over is repaired.

  Raises: as `read_annotations`.
  """
  return _read_checked(path, require_boxes)[0]


def _fractions(bbox: list[float], height: int, width: int) -> list[float]:
  # The order of operations is TFDS's, so that the float32 values agree to the bit.
  x, y, w, h = bbox
  return [x / width, y / height, (x + w) / width, (y + h) / height]


def _read_checked(path: epath.PathLike, require_boxes: bool) -> tuple[dict, dict[str, int], dict[str, list[str]]]:
  """The JSON after checks and repairs, counts of the repairs, and the first examples of them."""
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
  return data, *_repair(data['annotations'])


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
    if doubled := _doubled([image[key] for image in images]):
      raise ValueError(f'{path}: {len(doubled)} of {len(images)} images share their {key}: {doubled[:5]}')


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


def _repair(annotations: list[dict]) -> tuple[dict[str, int], dict[str, list[str]]]:
  """Fills and renumbers in place; counts, and the first examples."""
  counts, examples = dict(filled_iscrowd=0, filled_area=0, renumbered_ids=0), {}
  for n, annotation in enumerate(annotations):
    if annotation.get('iscrowd') is None:
      annotation['iscrowd'] = 0
      counts['filled_iscrowd'] += 1
      _note(examples, 'filled_iscrowd', f'annotations[{n}]')
    if annotation.get('area') is None:
      annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
      counts['filled_area'] += 1
      _note(examples, 'filled_area', f'annotations[{n}]')
  ids = [annotation.get('id') for annotation in annotations]
  # pycocotools marks an unmatched detection by annotation id 0 and indexes annotations by id.
  if any(not isinstance(i, int) or i == 0 for i in ids) or _doubled(ids):
    for n, annotation in enumerate(annotations, start=1):
      annotation['id'] = n
    counts['renumbered_ids'] = len(annotations)
  return counts, examples


def _note(examples: dict[str, list[str]], key: str, example: str) -> None:
  first = examples.setdefault(key, [])
  if len(first) < 3:
    first.append(example)


def _doubled(values: list) -> list:
  seen, doubled = set(), []
  for value in values:
    if value in seen:
      doubled.append(value)
    seen.add(value)
  return doubled


def _short(value: object) -> str:
  text = str(value)
  return text if len(text) <= 120 else text[:117] + '...'
