"""Writes a tiny COCO download: folders of images and `annotations/instances_*.json`, for tests."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = [
  dict(id=3, name='disc', supercategory='shape'),
  dict(id=1, name='square', supercategory='shape'),
  dict(id=90, name='ring', supercategory='shape'),
]


@dataclasses.dataclass(frozen=True)
class TinyCoco:
  """Where the files are: `images(split)` and `annotations(split)` for 'train2017' and 'val2017'."""

  root: Path

  def images(self, split: str = 'train2017') -> Path:
    return self.root / split

  def annotations(self, split: str = 'train2017') -> Path:
    return self.root / 'annotations' / f'instances_{split}.json'


def write_tiny_coco(root: Path, *, train: int = 7, val: int = 3, seed: int = 0) -> TinyCoco:
  """Writes `train` and `val` images of about 60 to 120 pixels with 0 to 4 objects (the first image has none).

  Category ids are neither contiguous nor sorted; boxes are not whole pixels; one box of each split is a crowd.
  """
  root = Path(root)
  layout = TinyCoco(root)
  rng = np.random.default_rng(seed)
  for split, count in (('train2017', train), ('val2017', val)):
    layout.images(split).mkdir(parents=True)
    data = dict(info=dict(description='tiny'), licenses=[], images=[], annotations=[], categories=CATEGORIES)
    for i in range(count):
      height, width = (int(v) for v in rng.integers(60, 121, 2))
      image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
      name = f'{100 + 7 * i:012d}.jpg'
      data['images'].append(dict(id=100 + 7 * i, file_name=name, height=height, width=width))
      for _ in range(0 if i == 0 else 1 + i % 4):
        category = CATEGORIES[int(rng.integers(3))]
        w, h = (float(v) for v in np.round(rng.uniform(12, 40, 2), 2))
        x, y = round(float(rng.uniform(0, width - w)), 2), round(float(rng.uniform(0, height - h)), 2)
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), (30, 90 * (category['id'] % 3), 220), -1)
        data['annotations'].append(
          dict(
            id=1000 + len(data['annotations']),
            image_id=100 + 7 * i,
            category_id=category['id'],
            bbox=[x, y, w, h],
            area=round(w * h, 3),
            iscrowd=0,
            segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
          )
        )
      cv2.imwrite(str(layout.images(split) / name), image)
    if data['annotations']:
      data['annotations'][-1]['iscrowd'] = 1
    layout.annotations(split).parent.mkdir(exist_ok=True)
    layout.annotations(split).write_text(json.dumps(data))
  return layout
