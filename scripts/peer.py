"""The same photos, the same minutes of CPU, another detector: ultralytics' YOLO11n, trained from scratch.

  python scripts/peer.py --root FOLDER --out runs/peer --minutes 60

FOLDER is what `--config.data.root` takes. YOLO11n lives in an environment of its own, --env, which the first call makes
(PyPI; with PyTorch, up to 6 GB). It is AGPL-3.0 and no dependency of this program. It starts without weights, has its
own defaults but for --size, and its learning rate falls to the end of the minutes; it evaluates nothing on the way, so
that all of them go into training. What it finds in each split is scored as our own results are (`evaluate.measure`), at
several epochs on the way and at the end: OUT/peer.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triplet_det import evaluate
from triplet_det.data.layouts import folder
from triplet_det.data.layouts.inventory import Split
from triplet_det.run import json_files, output_paths

CHILD = Path(__file__).resolve().with_name('peer_ultralytics.py')
TRAINING, SCORED = 'train', ('validation', 'test')


def write_yolo(data: folder.DataSet, out: Path) -> dict[str, dict[str, int]]:
  """Lays a data set out as YOLO has it: links to the images and a text file of boxes for each, and data.yaml.

  Boxes of crowds are left out, as they are of ours (`augment.train_on_crowd` is off for photos).

  Returns:
    {split: {name of the link: image id}}: names are numbers, as different folders may hold equal names.
  """
  names = [category['name'] for category in data.splits[TRAINING].content['categories']]
  place = {category['id']: i for i, category in enumerate(data.splits[TRAINING].content['categories'])}
  ids = {}
  for name, split in data.splits.items():
    ids[name] = _write_split(split, out, name, place)
  lines = [f'path: {json.dumps(str(out.resolve()))}', 'train: images/train', 'val: images/validation']
  lines += [f'names: {json.dumps(names)}']
  output_paths.write_whole(out / 'data.yaml', '\n'.join(lines) + '\n')
  return ids


def _write_split(split: Split, out: Path, name: str, place: Mapping[int, int]) -> dict[str, int]:
  links, texts = out / 'images' / name, out / 'labels' / name
  for made in (links, texts):
    made.mkdir(parents=True)
  boxes = {image['id']: [] for image in split.content['images']}
  for row in split.content['annotations']:
    if not row.get('iscrowd', 0):
      boxes[row['image_id']].append(row)
  ids = {}
  for number, image in enumerate(split.content['images']):
    link = links / f'{number:06}{Path(image["file_name"]).suffix.lower()}'
    link.symlink_to((split.images / image['file_name']).resolve())
    ids[link.name] = image['id']
    lines = []
    for row in boxes[image['id']]:
      x, y, width, height = row['bbox']
      numbers = (x + width / 2) / image['width'], (y + height / 2) / image['height']
      numbers += (width / image['width'], height / image['height'])
      lines.append(f'{place[row["category_id"]]} ' + ' '.join(f'{n:.6f}' for n in numbers) + '\n')
    (texts / f'{number:06}.txt').write_text(''.join(lines))
  return ids


def results_rows(found: Mapping[str, list], ids: Mapping[str, int], categories: list[Mapping]) -> list[dict]:
  """COCO results of {name of an image: [[x1, y1, x2, y2, score, place of the class], ...]}."""
  return [
    dict(
      image_id=ids[name], category_id=categories[int(place)]['id'], bbox=[x1, y1, x2 - x1, y2 - y1], score=float(score)
    )
    for name, rows in found.items()
    for x1, y1, x2, y2, score, place in rows
  ]


def python_of(env: Path) -> Path:
  """The Python of the environment, made if it is not there; RuntimeError if it cannot be."""
  python = env / 'bin' / 'python'
  if not (env / 'complete').exists():
    print(f'making the environment {env}: ultralytics and PyTorch', flush=True)
    for command in ([sys.executable, '-m', 'venv', env], [python, '-m', 'pip', 'install', '-q', 'ultralytics']):
      if subprocess.run(command).returncode:
        raise RuntimeError(f'{" ".join(map(str, command))} failed: needs a network, or give --env with ultralytics')
    (env / 'complete').touch()
  return python


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--root', required=True, help='images and labels: COCO JSON, YOLO or Pascal VOC')
  parser.add_argument('--out', required=True, help='folder that is not there yet')
  parser.add_argument('--minutes', type=float, default=60, help='of CPU, all threads together (default: %(default)s)')
  parser.add_argument('--size', type=int, default=320, help='pixels of the longer side (default: %(default)s)')
  parser.add_argument('--batch', type=int, default=16, help='images (default: %(default)s)')
  parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of PyTorch (default: all cores)')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--model', default='yolo11n.yaml', help='a description without weights (default: %(default)s)')
  parser.add_argument('--env', default='~/.cache/triplet_det/peer', help='its environment (default: %(default)s)')
  arguments = parser.parse_args()
  try:
    root, out, env = map(output_paths.local, (arguments.root, arguments.out, arguments.env))
    if out.resolve().is_relative_to(root.resolve()):
      raise ValueError(f'{out} lies in {root}, which is only read: give another place')
    if out.exists():
      raise ValueError(f'{out} is there already: give another folder')
    data = folder.read(root)
    python = python_of(env)
  except (FileNotFoundError, ValueError, RuntimeError) as error:
    parser.error(str(error))
  print(data)
  ids = write_yolo(data, out / 'data')
  scored = [name for name in SCORED if name in ids]
  request = {key: getattr(arguments, key) for key in ('minutes', 'size', 'batch', 'threads', 'seed', 'model')}
  request |= dict(data=str(out / 'data'), out=str(out), splits=scored)
  json_files.write_json(out / 'request.json', request)
  if subprocess.run([python, CHILD, out / 'request.json']).returncode:
    sys.exit('error: the training of the peer failed, see above')
  answer = json.loads((out / 'answer.json').read_text())
  categories = data.splits[TRAINING].content['categories']
  for row in answer['curve']:
    for name in scored:
      found = json.loads((out / row['found'][name]).read_text())
      row[name], _ = evaluate.measure(data.splits[name].content, results_rows(found, ids[name], categories))
      told = f'{name} AP {row[name]["AP"]:.3f}, AP50 {row[name]["AP50"]:.3f}'
      print(f'epoch {row["epoch"]}, {row["cpu_minutes"]:.1f} CPU minutes: {told}')
  json_files.write_json(out / 'peer.json', dict(answer, request=request))


if __name__ == '__main__':
  main()
