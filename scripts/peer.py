"""The same photos, the same minutes of CPU, another detector: ultralytics' YOLO11n, trained from scratch.

  python scripts/peer.py --root FOLDER --out runs/peer --minutes 60

FOLDER is what `--config.data.root` takes; it is only read. YOLO11n lives in an environment of its own, --env, which the
first call makes (PyPI; with PyTorch, up to 6 GB). It is AGPL-3.0 and no dependency of this program. It starts without
weights and has its own defaults but for --size; two epochs tell how many there is time for, and then it is trained
anew for so many. It evaluates nothing on the way, so that all minutes go into training. What it finds in each split is
scored as our own results are, against the same boxes (`evaluate.measure`), at several epochs on the way and at the end:
OUT/peer.json. If only that is missing, the same command scores what is there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2

from triplet_det import evaluate
from triplet_det.categories import CategoryTable
from triplet_det.data.layouts import folder
from triplet_det.data.sources import JsonSource
from triplet_det.run import json_files, output_paths

CHILD = Path(__file__).resolve().with_name('peer_ultralytics.py')
TRAINING, SCORED = 'train', ('validation', 'test')


def open_splits(root: Path, out: Path) -> dict[str, JsonSource]:
  """The splits that `--config.data.root` has, checked and cleared as for our own training; says what they are."""
  data = folder.read(root)
  print(data)
  upright = 'stored' if data.layout == 'coco' else 'upright'
  found = {}
  for name, split in data.splits.items():
    path = out / f'{name}.json'
    output_paths.write_whole(path, json.dumps(split.content))
    found[name] = JsonSource(split.images, path, name, require_boxes=name == TRAINING, orientation=upright)
  return found


def write_yolo(sources: Mapping[str, JsonSource], out: Path) -> None:
  """Writes splits as YOLO has them, with data.yaml: an image <image id>.png and a text file of its boxes each.

  Images are decoded as for our training: of links to the originals that program would mend some in place. Boxes of
  crowds are left out, as photos' configs leave them out (`augment.train_on_crowd`).
  """
  for name, source in sources.items():
    images, labels = out / 'images' / name, out / 'labels' / name
    for made in (images, labels):
      made.mkdir(parents=True)
    for number in range(len(source)):
      record = source[number]
      cv2.imwrite(str(images / f'{record.image_id}.png'), record.decode()[..., ::-1])
      lines = []
      for place, (x1, y1, x2, y2) in zip(record.classes[~record.crowd], record.boxes[~record.crowd].tolist()):
        lines.append(f'{place} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n')
      (labels / f'{record.image_id}.txt').write_text(''.join(lines))
  lines = [f'path: {json.dumps(str(out.resolve()))}', f'train: images/{TRAINING}', f'val: images/{SCORED[0]}']
  lines += [f'names: {json.dumps(list(sources[TRAINING].categories.names))}']
  output_paths.write_whole(out / 'data.yaml', '\n'.join(lines) + '\n')


def results_rows(found: Mapping[str, list], categories: CategoryTable) -> list[dict]:
  """COCO results of {'<image id>.png': [[x1, y1, x2, y2, score, class], ...]}."""
  return [
    dict(
      image_id=int(Path(name).stem),
      category_id=categories.ids[int(place)],
      bbox=[x1, y1, x2 - x1, y2 - y1],
      score=float(score),
    )
    for name, rows in found.items()
    for x1, y1, x2, y2, score, place in rows
  ]


def python_of(env: Path) -> Path:
  """The Python of an environment with ultralytics, made if there is none; RuntimeError if it cannot be.

  Raises:
    ValueError: another environment or folder is there.
  """
  python = env / 'bin' / 'python'
  if env.exists():
    if subprocess.run([python, '-c', 'import ultralytics'], capture_output=True).returncode if python.exists() else 1:
      raise ValueError(f'{env} is there, and is no environment with ultralytics: give another one, or remove it')
    return python
  print(f'making the environment {env}: ultralytics and PyTorch', flush=True)
  new = output_paths.unfinished(env)  # also what a kill has left
  venv, pip = [sys.executable, '-m', 'venv', '--clear', new], [new / 'bin' / 'python', '-m', 'pip']
  for command in (venv, [*pip, 'install', '-q', 'ultralytics']):
    if subprocess.run(command).returncode:
      shutil.rmtree(new, ignore_errors=True)
      raise RuntimeError(f'{" ".join(map(str, command))} failed: it needs a network; or give --env with ultralytics')
  new.replace(env)
  return python


def score(sources: Mapping[str, JsonSource], out: Path) -> dict:
  """The answer of the other detector with the metrics of every point of its curve; tells the main ones."""
  answer = json.loads((out / 'answer.json').read_text())
  for row in answer['curve']:
    for name, file in row['found'].items():
      rows = results_rows(json.loads((out / file).read_text()), sources[TRAINING].categories)
      row[name], _ = evaluate.measure(sources[name].ground_truth, rows)
      told = f'AP {row[name]["AP"]:.3f}, AP50 {row[name]["AP50"]:.3f}' if row[name] else 'no object to find'
      print(f'epoch {row["epoch"]}, {row["cpu_minutes"]:.1f} CPU minutes: {name} {told}')
  return answer


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
  settings = {key: getattr(arguments, key) for key in ('minutes', 'size', 'batch', 'threads', 'seed', 'model')}
  try:
    root, out, env = map(output_paths.local, (arguments.root, arguments.out, arguments.env))
    if out.resolve().is_relative_to(root.resolve()):
      raise ValueError(f'{out} lies in {root}, which is only read: give another place')
    trained = (out / 'answer.json').exists() and not (out / 'peer.json').exists()
    if out.exists() and not trained:
      raise ValueError(f'{out} is there already: give another folder')
    output_paths.make_folder('OUT', out)
    try:
      sources = open_splits(root, out)
      python = python_of(env) if not trained else None
    except BaseException:  # Ctrl-C while packages come, too
      if not trained:
        shutil.rmtree(out)
      raise
  except (FileNotFoundError, ValueError, RuntimeError) as error:
    parser.error(str(error))
  if not trained:
    write_yolo(sources, out / 'data')
    scored = [name for name in SCORED if name in sources]
    json_files.write_json(out / 'request.json', dict(settings, data=str(out / 'data'), out=str(out), splits=scored))
    if subprocess.run([python, CHILD, out / 'request.json']).returncode:
      sys.exit('error: the training of the peer failed, see above')
  answer = score(sources, out)
  json_files.write_json(out / 'peer.json', dict(answer, request=json.loads((out / 'request.json').read_text())))


if __name__ == '__main__':
  main()
