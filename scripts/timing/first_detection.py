"""What a fresh process does until its first detection, for `scripts/benchmark.py startup` to time.

  python -m scripts.timing.first_detection RUN_FOLDER HEIGHT WIDTH $(date +%s.%N)

Prints the seconds of each part, and of all since the moment given, as JSON.
"""

import json
import sys
import time


def main() -> None:
  folder, height, width, started = sys.argv[1:]
  size = int(height), int(width)
  import numpy as np
  from absl import flags

  from triplet_det.detection import loading, trained_network  # noqa: F401, `load` would import the network's code later
  from triplet_det.models import detector  # noqa: F401

  flags.FLAGS.mark_as_parsed()
  ends = {'imports': time.time()}
  loaded = loading.load(folder, batch_size=1)
  ends['weights'] = time.time()
  loaded.tester.compile_ahead([size])
  ends['network: cache or compiler'] = time.time()
  (found,) = loaded([np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)])
  ends['first image'] = time.time()
  starts = [float(started), *ends.values()]
  seconds = {part: end - start for (part, end), start in zip(ends.items(), starts)}
  seconds['start to first boxes'] = starts[-1] - starts[0]
  print(json.dumps(dict(seconds=seconds, boxes=len(found.scores))))


if __name__ == '__main__':
  main()
