"""Prepares an unzipped COCO download for training: array_record files and the original JSON, without TensorFlow.

  python scripts/prepare_coco.py --coco /data/coco --data_dir /data/tfds

`--coco` holds `annotations/` and the folders of images (`train2017/`, `val2017/`, ...). It needs as much
space again as the images. After a kill the same command goes on from the files of records that were finished. Run again
after that, it says that the data set is there, or that another one is.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triplet_det.data import prepare_tfds, sources
from triplet_det.run import output_paths


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--coco', required=True, metavar='DIR', help='the unzipped COCO download')
  parser.add_argument('--data_dir', required=True, metavar='OUT', help='where prepared data sets live')
  possible = 'folders of the download (default: train2017 val2017; test2017 and test-dev2017 are possible)'
  parser.add_argument('--splits', nargs='+', default=['train2017', 'val2017'], help=possible)
  arguments = parser.parse_args()
  try:
    data_dir = os.path.expanduser(arguments.data_dir)
    splits = prepare_tfds.official_splits(os.path.expanduser(arguments.coco), arguments.splits)
    output_paths.make_folder('--data_dir', data_dir)
    year = arguments.splits[0][-4:]
    wanted = prepare_tfds.prepared_directory(data_dir, year)
    output_paths.check_apart([wanted], [path for split in splits for path in (split.images, split.annotations)])
    was_there = (wanted / 'dataset_info.json').exists()
    directory = prepare_tfds.prepare(splits, data_dir, year)
  except (FileNotFoundError, ValueError) as e:
    parser.error(f'{e}. --coco must hold annotations/ and the folders of images {", ".join(arguments.splits)}')
  print(f'{"already prepared" if was_there else "prepared"}: {directory}')
  for left in directory.parent.glob('incomplete.*'):
    print(f'  {left} is of a preparation that was killed, or that still runs: remove it if none does')
  for split in splits:
    source = sources.TfdsSource(data_dir=directory, split=split.name)
    print(f'  {split.name}: {len(source)} images, {len(source.categories)} categories')
  print(
    'next:\n  python -m triplet_det.main --config configs/triplet.py --workdir WORKDIR '
    f'--config.data.train.data_dir={data_dir} --config.data.eval.data_dir={data_dir}'
    + (f' --config.data.train.name=coco/{year} --config.data.eval.name=coco/{year}' if year != '2017' else '')
  )


if __name__ == '__main__':
  main()
