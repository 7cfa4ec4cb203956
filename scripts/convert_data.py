"""Converts the labels of a folder of images, whatever tool made them, to a COCO JSON per split; images stay in place.

  python scripts/convert_data.py FOLDER OUT

COCO JSON, YOLO and Pascal VOC are told apart by looking, as by `--config.data.root=FOLDER`, which needs no conversion.
Without a validation split a fifth of the images is held out. Nothing is written into FOLDER or over a file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triplet_det.data.layouts import folder
from triplet_det.run import output_paths


def convert(root: Path, out: Path, layout: str = 'auto') -> tuple[folder.DataSet, dict[str, Path]]:
  """Reads a folder and writes OUT/train.json and so on; returns what was read, and the file of each split.

  Raises:
    FileNotFoundError, ValueError: of `layouts.folder.read`; OUT lies in the folder, or has such a file.
  """
  if out.resolve().is_relative_to(root.resolve()):
    raise ValueError(f'{out} lies in {root}, which is only read: give another place')
  data = folder.read(root, layout)
  files = {name: out / f'{name}.json' for name in data.splits}
  if present := [path for path in files.values() if path.exists() or path.is_symlink()]:
    raise ValueError(f'{present[0]} is there already, and nothing is written over: give another folder')
  output_paths.make_folder('OUT', out)
  for name, path in files.items():
    output_paths.write_whole(path, json.dumps(data.splits[name].content))
  return data, files


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder', metavar='FOLDER', help='images and labels: COCO JSON, YOLO or Pascal VOC')
  parser.add_argument('out', metavar='OUT', help='folder for a COCO JSON per split')
  layouts = 'of a folder that has several (default: the one that it has)'
  parser.add_argument('--layout', default='auto', choices=['auto', *folder.LAYOUTS], help=layouts)
  arguments = parser.parse_args()
  try:
    root, out = output_paths.local(arguments.folder), output_paths.local(arguments.out)
    data, files = convert(root, out, arguments.layout)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  print(data)
  for name, path in files.items():
    split = data.splits[name]
    counts = f'{len(split.content["images"]):,} images, {len(split.content["annotations"]):,} boxes'
    print(f'  {name}: {counts} -> {path}; images: {split.images}')
  if data.layout != 'coco':
    print('  boxes and sizes are those of upright photos: --config.data.train.orientation=upright, and of data.eval')


if __name__ == '__main__':
  main()
