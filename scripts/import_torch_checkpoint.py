"""The authors' or mmdetection's PyTorch weights as a checkpoint of this program: same boxes, no torch needed.

  python scripts/import_torch_checkpoint.py CenterNet-104_480000.pkl runs/centernet_104
  python -m triplet_det.predict --checkpoint runs/centernet_104 --out boxes photo.jpg
  python -m triplet_det.main --config configs/triplet.py:hg=104 --workdir runs/centernet_104 --config.mode=eval ...

Needs no PyTorch, and nothing in the file is executed. CenterNet-52, -104 and CornerNet, of the authors or, CornerNet,
of mmdetection, are told apart by their keys; each is tested as its program tests it.
`--annotations` gives the categories if they are not COCO's.
"""

import argparse
import collections
import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triplet_det.categories import COCO, CategoryTable
from triplet_det.data.layouts.coco_json import read_annotations
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CORNERNET, PUBLISHED_MMDETECTION, Settings
from triplet_det.models import torch_file, torch_import
from triplet_det.run import checkpoints, download, output_paths


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a .pkl or .pth file, old pickled or new zip format.

  Raises:
    ValueError: it holds something else; see `torch_file.read`.
  """
  loaded = torch_file.read(path)
  loaded = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else loaded
  named = isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)
  if not named or not all(isinstance(value, np.ndarray) for value in loaded.values()):
    raise ValueError(f'holds a {type(loaded).__name__}, not a state dict of tensors: save model.state_dict()')
  return loaded


def checksum(path: Path, expected: str | None = None) -> str:
  """The SHA-256 of a file.

  Raises:
    FileNotFoundError, ValueError: there is none, or another one was `expected`.
  """
  if not path.is_file():
    raise FileNotFoundError('no file there: give a .pkl or .pth')
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if expected is not None and found != expected.lower():
    said = expected or 'nothing'
    raise ValueError(f'has SHA-256 {found}, --sha256 says {said}: not the file that was meant, fetch it again')
  return found


def check_new(out: Path, inputs: Sequence[str | Path]) -> None:
  """Raises ValueError if the run folder would be written over a file that is read, or over the weights of a run."""
  output_paths.check_apart(checkpoints.folders_of(out), inputs)
  if present := [folder for folder in checkpoints.folders_of(out) if folder.is_dir() and any(folder.iterdir())]:
    raise ValueError(f'{present[0]} holds weights already, and they would go: give a new run folder')


def format_table(state_dict: dict[str, np.ndarray], model: dict) -> str:
  """What went where, module by module: released name, our name, arrays, numbers."""
  rows = collections.defaultdict(lambda: [0, 0, ''])
  for path, key, shape in torch_import.key_table(model):
    row = rows[path[1]]
    row[0] += 1
    row[1] += int(np.prod(shape))
    row[2] = row[2] or re.match(r'((backbone|bbox_head)\.)?[a-z_0-9]+(\.\d+)?', key)[0]
  lines = [f'  {"here":<18}{"released":<30}{"arrays":>7}{"numbers":>14}']
  lines += [f'  {here:<18}{there:<30}{arrays:>7}{numbers:>14,}' for here, (arrays, numbers, there) in rows.items()]
  skipped = sum(key.endswith('num_batches_tracked') for key in state_dict)
  return '\n'.join(lines) + (f'\n  left out: {skipped} counters num_batches_tracked' if skipped else '')


def kind_of(model: dict) -> tuple[str, Settings]:
  """What such a network is called, and the settings that its program tests it with."""
  if torch_import.layout_of(model) is torch_import.MMDETECTION:
    return "mmdetection's CornerNet", PUBLISHED_MMDETECTION
  return ('CenterNet', PUBLISHED_CENTERNET) if model['center_branch'] else ('CornerNet', PUBLISHED_CORNERNET)


def write_run(
  state_dict: dict[str, np.ndarray], out: Path, annotations: str | None, step: int
) -> checkpoints.RunRecord:
  """A run folder with the weights, the network's config read off the keys, the categories and the published settings.

  Raises:
    ValueError: keys or shapes are not those of a released network (all listed), or the number of classes differs.
  """
  model = torch_import.infer_model_config(state_dict)
  variables = torch_import.import_state_dict(state_dict, model)
  categories = _categories(annotations, model['num_classes'])
  _, settings = kind_of(model)
  record = checkpoints.RunRecord(step=step, categories=categories, model=model, test=dataclasses.asdict(settings))
  output_paths.make_folder('the run folder', out)
  saved = checkpoints.Checkpoints(out)
  saved.save_best(variables, record)
  saved.close()
  return record


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    'file', help='.pkl or .pth of the authors, mmdetection, or of a network trained with their code; or a link to one'
  )
  parser.add_argument('out', help='run folder to write')
  parser.add_argument('--annotations', help='COCO JSON with the categories, in order (default: COCO itself)')
  parser.add_argument('--step', type=int, help='training steps (default: the number at the end of the file name)')
  parser.add_argument('--sha256', help='refuse the file if this is not its checksum')
  arguments = parser.parse_args()
  if arguments.step is not None and arguments.step < 0:
    parser.error(f'--step is {arguments.step}: give how many steps these weights were trained, from 0')
  stem = Path(arguments.file.partition('#')[0]).stem
  digits = None if re.search(r'-[0-9a-f]{8}$', stem) else re.search(r'(\d+)$', stem)  # not those of a digest
  step = arguments.step if arguments.step is not None else int(digits[1]) if digits else 0
  try:
    out = output_paths.local(arguments.out)
    is_link = download.is_link(arguments.file)
    file = download.fetch(arguments.file) if is_link else output_paths.local(arguments.file)
    digest = checksum(file, arguments.sha256)
    check_new(out, [file, os.path.expanduser(arguments.annotations or '')])
    state_dict = read_state_dict(file)
    record = write_run(state_dict, out, arguments.annotations, step)
  except (ValueError, OSError, ImportError) as error:
    parser.error(f'{arguments.file}: {error}')
  kind, _ = kind_of(record.model)
  stacks, classes = record.model['stacks'], len(record.categories)
  print(f'{kind}, {stacks} stack(s), {classes} classes, step {step} -> {out}')
  print(f'SHA-256 of {file.name}: {digest}')
  print(format_table(state_dict, record.model))


def _categories(annotations: str | None, num_classes: int) -> CategoryTable:
  table = read_annotations(annotations, require_boxes=False).categories if annotations else COCO
  if len(table) != num_classes:
    source = annotations or 'COCO'
    raise ValueError(f'the network has {num_classes} classes, {source} has {len(table)}; give --annotations')
  return table


if __name__ == '__main__':
  main()
