"""Weights trained here as a state dict of the authors' PyTorch code: the way back of import_torch_checkpoint.py.

What came from mmdetection goes back to it.

  python scripts/export_torch_checkpoint.py runs/mine CenterNet-104_480000.pkl

Needs the extra `torch` to write the file.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triplet_det.models import torch_import
from triplet_det.run import checkpoints, output_paths


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('checkpoint', help='run folder or checkpoint folder')
  parser.add_argument('file', help='.pkl or .pth to write')
  arguments = parser.parse_args()
  try:
    file = output_paths.local(arguments.file)
    unfinished = output_paths.unfinished(file)
    output_paths.make_folder('the folder of the file', file.parent)
    output_paths.check_apart([file, unfinished], checkpoints.folders_of(arguments.checkpoint))
    variables, record = checkpoints.load_weights(arguments.checkpoint)
    arrays = torch_import.export_state_dict(variables, record.model)
    import torch
  except ImportError:
    parser.error('writing PyTorch files needs torch: pip install -e .[torch]')
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  prefix = torch_import.layout_of(record.model).prefix
  torch.save({f'{prefix}{key}': torch.from_numpy(array) for key, array in arrays.items()}, unfinished)
  unfinished.replace(file)
  print(f'{len(arrays)} arrays of step {record.step} -> {file}')


if __name__ == '__main__':
  main()
