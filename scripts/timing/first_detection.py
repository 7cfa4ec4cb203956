"""What a fresh process does until its first detection, for `scripts/benchmark.py startup` to time.

  python -m scripts.timing.first_detection RUN_OR_FILE SIDE $(date +%s.%N)

Prints the seconds of each part, and of all since the moment given, as JSON.
"""

import json
import sys
import time


def main() -> None:
  checkpoint, side, started = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
  import numpy as np

  import triplet_det
  from triplet_det.detection import loading

  if not loading.is_exported(checkpoint):  # `load` would import the network's code later
    from triplet_det.detection import trained_network  # noqa: F401
  ends = {'imports': time.time()}
  try:
    loaded = triplet_det.load(checkpoint, batch_size=1)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'error: {error}')
  ends['weights'] = time.time()
  if not loading.is_exported(checkpoint):  # whose program is compiled when an image needs it
    loaded.tester.compile_ahead([(side, side)])
    ends['network: cache or compiler'] = time.time()
  loaded([np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)])
  ends['first image'] = time.time()
  starts = [started, *ends.values()]
  seconds = {part: end - start for (part, end), start in zip(ends.items(), starts)}
  print(json.dumps(seconds | {'start to first boxes': starts[-1] - started}))


if __name__ == '__main__':
  main()
