"""How much of the time of training steps no program runs on the devices: what the host does between them.

  python scripts/checks/host_share.py --config configs/shapes.py --steps 60

Trains so many steps by a config in a folder that is removed, under jax.profiler, without evaluations, and prints the
share of the time in which no program runs on the devices, in the second half: in the first, programs are loaded and the
log is opened. Nothing else should run meanwhile. Tried on a CPU alone.
"""

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
ON_CPU = 'ThunkExecutor::Execute (wait for completion)'  # event of a program's run; on accelerators they have a line
MODULES = 'XLA Modules'

Interval = tuple[float, float]


def covered(intervals: Iterable[Interval], start: float, end: float) -> float:
  """How much of the time from `start` to `end` lies in at least one of the intervals."""
  total, reached = 0.0, start
  for begin, stop in sorted(intervals):
    begin, stop = max(begin, reached), min(stop, end)
    if stop > begin:
      total, reached = total + stop - begin, stop
  return total


def runs_of_programs(folder: Path) -> list[Interval]:
  """When programs ran on the devices, in order; nanoseconds."""
  (path,) = folder.rglob('*.xplane.pb')
  found = []
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      found += [e for e in line.events if e.name == ON_CPU or (line.name == MODULES and '/device:' in plane.name)]
  return sorted((event.start_ns, event.start_ns + event.duration_ns) for event in found)


def main(_: Sequence[str]) -> None:
  config = config_flag.CONFIG.value
  config.update(total_steps=FLAGS.steps, mode='train')
  config.last_crops.share = 0.0  # another program, in whose compiling time none runs
  if config.optimizer.schedule == 'step':
    config.optimizer.drop_step = FLAGS.steps
  config_limits.check(config.to_dict())
  with tempfile.TemporaryDirectory() as folder:
    place_data(config, epath.Path(folder) / 'run')
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would be in the way itself
    with jax.profiler.trace(folder, profiler_options=options):
      train.train(config, epath.Path(folder) / 'run')
    runs = runs_of_programs(Path(folder))
  runs = runs[len(runs) // 2 :]
  longest = max(end - start for start, end in runs)
  steps = [one for one in runs if one[1] - one[0] > longest / 2]  # there are small programs between them
  start, end = steps[0][0], steps[-1][1]
  idle = 1 - covered(runs, start, end) / (end - start)
  print(f'{len(steps)} steps of {(end - start) / 1e6 / len(steps):.0f} ms: no program runs in {idle:.2%} of the time')


if __name__ == '__main__':
  app.run(main, flags_parser=config_flag.parse)
