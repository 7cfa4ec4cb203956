"""Can the program learn your data at all? Trains on a few images until it knows them by heart, and says the AP50.

  python scripts/overfit.py --images DIR --annotations FILE --out runs/overfit

Takes the first 8 images (by id) with 3 to 15 objects, trains the small network of configs/photos.py on them without
augmentation but flips and evaluates on the same images. An AP50 far below 1 points at the data: look at the pictures in
the run folder.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = 'configs/photos.py:encoder=hourglass'
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from triplet_det.data.layouts.coco_json import read_ground_truth
from triplet_det.run import output_paths


def subset(annotations: str, count: int, least: int, most: int) -> dict:
  """The COCO dict of the first `count` images by id with `least` to `most` objects that are not crowds.

  Raises:
    FileNotFoundError, ValueError: no sound COCO JSON, or too few such images.
  """
  data = read_ground_truth(annotations)
  objects = collections.Counter(a['image_id'] for a in data['annotations'] if not a.get('iscrowd', 0))
  images = sorted((i for i in data['images'] if least <= objects[i['id']] <= most), key=lambda i: i['id'])[:count]
  if len(images) < count:
    raise ValueError(
      f'{annotations} has {len(images)} images with {least} to {most} objects, {count} are needed: give --count'
    )
  kept = {image['id'] for image in images}
  annotations = [a for a in data['annotations'] if a['image_id'] in kept and not a.get('iscrowd', 0)]
  used = {a['category_id'] for a in annotations}
  categories = [c for c in data['categories'] if c['id'] in used]
  return dict(images=images, annotations=annotations, categories=categories)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=os.path.expanduser, required=True, help='folder of the images')
  parser.add_argument('--annotations', type=os.path.expanduser, required=True, help='COCO JSON')
  parser.add_argument('--out', required=True, help='run folder')
  parser.add_argument('--count', type=int, default=8, help='images (default %(default)s)')
  parser.add_argument('--steps', type=int, default=700, help='training steps (default %(default)s)')
  arguments, overrides = parser.parse_known_args()
  try:
    chosen = subset(arguments.annotations, arguments.count, 3, 15)
    out = output_paths.local(arguments.out)
    output_paths.make_folder('--out', out)
    written = out.resolve() / 'subset.json'
    output_paths.check_apart([written], [arguments.annotations])
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  output_paths.write_whole(written, json.dumps(chosen))
  command = [sys.executable, '-m', 'triplet_det.main', f'--config={PAGE}', f'--workdir={written.parent}']
  for split in ('train', 'eval'):
    command.append(f'--config.data.{split}.images={Path(arguments.images).resolve()}')
    command.append(f'--config.data.{split}.annotations={written}')
  command += [
    f'--config.total_steps={arguments.steps}',
    f'--config.eval_every={arguments.steps}',
    '--config.augment.scales=(0.9,1.0,1.1)',
    '--config.optimizer.base=0.002',
    '--config.colour_jitter=0.1',
    '--config.lighting=0.0',
  ]
  sys.exit(subprocess.run(command + overrides, cwd=ROOT, check=False).returncode)


if __name__ == '__main__':
  main()
