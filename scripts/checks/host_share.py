"""How much of the time of training steps no program runs on the devices: what the host does between them.

  python scripts/checks/host_share.py --config configs/shapes.py --steps 60

Trains so many steps by a config in a folder that is removed, under jax.profiler, without evaluations, and prints the
share of the time in which the devices compute nothing, from the fourth step on. Nothing else should run meanwhile.
"""

import itertools
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from absl import app, flags
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triplet_det import train
from triplet_det.main import place_data
from triplet_det.run import config_flag, config_limits

FLAGS = flags.FLAGS
flags.DEFINE_integer('steps', 40, 'steps to train', lower_bound=10)
STEP = 'train_step'  # jitted function of the loop
SETTLED = 3  # steps at the start that are left out: programs are loaded, memory is fetched

Interval = tuple[float, float]


def covered(intervals: Iterable[Interval], start: float, end: float) -> float:
  """How much of the time from `start` to `end` lies in at least one of the intervals."""
  total, reached = 0.0, start
  for begin, stop in sorted(intervals):
    begin, stop = max(begin, reached), min(stop, end)
    if stop > begin:
      total, reached = total + stop - begin, stop
  return total


def read_trace(folder: Path) -> tuple[list[Interval], list[float]]:
  """When the devices computed, and when the host called each step; nanoseconds."""
  (path,) = folder.rglob('*.xplane.pb')
  computed, called = [], []
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for event in itertools.chain.from_iterable(line.events for line in plane.lines):
      if any(name == 'hlo_op' for name, _ in event.stats):
        computed.append((event.start_ns, event.start_ns + event.duration_ns))
      elif event.name == f'PjitFunction({STEP})':
        called.append((event.start_ns, event.start_ns + event.duration_ns))
  called.sort()
  outermost = [one for before, one in zip([(0, 0), *called], called) if one[0] >= before[1]]
  return computed, [start for start, _ in outermost]


def main(_: Sequence[str]) -> None:
  config = config_flag.CONFIG.value
  config.update(total_steps=FLAGS.steps, mode='train')
  if config.optimizer.schedule == 'step':
    config.optimizer.drop_step = FLAGS.steps
  config_limits.check(config.to_dict())
  with tempfile.TemporaryDirectory() as folder:
    place_data(config, epath.Path(folder) / 'run')
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would be in the way itself
    with jax.profiler.trace(folder, profiler_options=options):
      train.train(config, epath.Path(folder) / 'run')
    computed, called = read_trace(Path(folder))
  start, end = called[SETTLED], called[-1]
  idle = 1 - covered(computed, start, end) / (end - start)
  per_step = (end - start) / 1e6 / (len(called) - 1 - SETTLED)
  print(f'{len(called) - 1 - SETTLED} steps of {per_step:.0f} ms: nothing is computed in {idle:.2%} of the time')


if __name__ == '__main__':
  app.run(main, flags_parser=config_flag.parse)
