"""One training step and one detection of the paper's networks at 511 x 511, on whatever this machine has.

  python scripts/checks/full_size.py hourglass-52 hourglass-104

Prints parameters, seconds and the loss; about 2 minutes and 8 GiB per network on 2 CPU cores.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triplet_det.detection import trained_network
from triplet_det.detection.settings import PUBLISHED_CENTERNET
from triplet_det.models import detector
from triplet_det.structs import Batch
from triplet_det.training import optimizer, train_step

PARAMETERS = {'hourglass-52': 104_844_152, 'hourglass-104': 210_062_960}  # of the published networks


def check(name: str) -> None:
  start = time.monotonic()
  module = detector.build(detector.VARIANTS[name])
  adam = optimizer.adam(lambda step: 2.5e-4)
  state = jax.block_until_ready(jax.jit(lambda: train_step.init_state(module, adam, seed=0))())
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  print(f'{name}: {parameters:,} parameters (published {PARAMETERS[name]:,}), made in {since(start)}', flush=True)

  rng = np.random.default_rng(0)
  boxes = np.zeros((1, 128, 4), np.float32)
  boxes[0, :3] = [[40, 50, 200, 260], [100, 300, 180, 390], [10, 10, 500, 500]]
  valid = np.arange(128)[None] < 3
  images = rng.integers(0, 256, (1, 511, 511, 3), np.uint8)
  batch = Batch(images, boxes, np.zeros((1, 128), np.int32), valid)

  start = time.monotonic()
  step = jax.jit(train_step.make_train_step(module, adam, seed=0), donate_argnums=0).lower(state, batch).compile()
  print(f'  training step compiled in {since(start)}', flush=True)
  start = time.monotonic()
  state, metrics = jax.block_until_ready(step(state, batch))
  values = {key: round(float(value), 4) for key, value in metrics.items()}
  print(f'  training step of 1 image in {since(start)}: {values}', flush=True)

  tester = trained_network.make_detector(module, state.variables, PUBLISHED_CENTERNET, batch_size=1)
  start = time.monotonic()
  tester.compile_ahead([(511, 511)])
  print(f'  detection compiled in {since(start)}', flush=True)
  start = time.monotonic()
  (found,) = tester([images[0]])
  finite = all(math.isfinite(v) for v in values.values()) and np.isfinite(found.boxes).all()
  print(
    f'  image and mirror image in {since(start)}: {len(found.scores)} boxes; all numbers finite: {finite}', flush=True
  )
  if parameters != PARAMETERS[name] or not finite:
    sys.exit(1)


def since(start: float) -> str:
  return f'{time.monotonic() - start:.1f} s'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('networks', nargs='*', default=list(PARAMETERS), help='default: both')
  networks = parser.parse_args().networks
  if unknown := [name for name in networks if name not in PARAMETERS]:
    parser.error(f'no network {", ".join(unknown)}; possible: {", ".join(PARAMETERS)}')
  for name in networks:
    check(name)


if __name__ == '__main__':
  main()
