"""Is a killed run as good as one that nothing interrupted? Kills a tiny training again and again and compares its log.

  python scripts/checks/kill_test.py --out /tmp/kill_test            # 20 kills, about 10 minutes on 2 CPU cores

SIGKILL comes at random moments of the start, of the steps and of the saves (every third step is saved); then the same
command is started again. Every line of metrics.jsonl must be that of the uninterrupted run, to the bit. Prints a row
per kill, at the end how many were corrupted, and ends with exit code 1 if any was.
"""

import argparse
import atexit
import dataclasses
import itertools
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120
OVERRIDES = {
  'total_steps': STEPS,
  'log_every': 1,
  'checkpoint_every': 3,
  'eval_every': STEPS // 2,
  'batch_size': 4,
  'eval_batch_size': 4,
  'input_size': 31,
  'augment.border': 16,
  'last_crops.input_size': 31,
  'last_crops.border': 16,
  'model.dims': (8, 8),
  'model.blocks': (1, 1),
  'model.stem_width': 8,
  'model.head_width': 8,
  'model.pool_width': 8,
}
SECONDS, SECONDS_OF_A_SAVE = 8.0, 0.1  # in which a kill comes, after the start or the first step; and within a save


@dataclasses.dataclass(frozen=True)
class Life:
  """One process of a run, from its start to its death."""

  process: subprocess.Popen
  workdir: Path
  text: Path  # what it says
  born: float

  def said(self) -> str:
    return self.text.read_text(encoding='utf-8')

  def is_saving(self) -> bool:
    """Whether there is an unfinished save of this process; those of killed ones lie about until the next save."""
    for folder in (self.workdir / 'checkpoints').glob('*tmp*'):
      try:
        if folder.stat().st_mtime > self.born:
          return True
      except FileNotFoundError:  # finished in between
        continue
    return False

  def kill(self, part: str, draw: random.Random) -> bool:
    """SIGKILL at a random moment of the start, of the steps, or of a save; False if the process had ended before."""
    if part != 'start':
      self.wait_for(lambda: 'train  step' in self.said())
    time.sleep(draw.uniform(0, SECONDS))
    if part == 'save':
      self.wait_for(self.is_saving)
      time.sleep(draw.uniform(0, SECONDS_OF_A_SAVE))
    self.process.kill()
    return self.process.wait() < 0

  def wait_for(self, condition: Callable[[], bool]) -> None:
    """Returns when it holds, or the process has ended."""
    while not condition() and self.process.poll() is None:
      time.sleep(0.001)


def start(workdir: Path, life: int) -> Life:
  """The command that a user would type again and again."""
  out = workdir.parent
  data = {f'data.{split}.data_dir': out / 'data' for split in ('train', 'eval')}
  counts = {f'data.{s}.{n}_images': 8 for s in ('train', 'eval') for n in ('train', 'validation')}
  command = [sys.executable, '-m', 'triplet_det.main', '--config=configs/shapes.py', f'--workdir={workdir}']
  command += [f'--compilation_cache={out / "compiled"}']
  command += [f'--config.{name}={value}' for name, value in (OVERRIDES | data | counts).items()]
  text = out / f'{workdir.name}_{life}.txt'
  with open(text, 'w') as output:
    born = time.time()
    process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
  atexit.register(process.kill)
  return Life(process, workdir, text, born)


def log_lines(workdir: Path) -> list[str]:
  """Those that are complete, as they are."""
  path = workdir / 'metrics.jsonl'
  return path.read_text(encoding='utf-8').split('\n')[:-1] if path.exists() else []


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    '--out', type=lambda text: Path(text).expanduser(), required=True, help='folder for the runs; must not exist'
  )
  parser.add_argument('--kills', type=int, default=20, help='how many (default %(default)s)')
  parser.add_argument('--seed', type=int, default=0, help='of the moments (default %(default)s)')
  arguments = parser.parse_args()
  if arguments.kills < 1:
    parser.error(f'--kills is {arguments.kills}: give at least 1')
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without its child
  if arguments.out.exists():
    parser.error(f'{arguments.out} is there already: the runs must start from nothing')
  out = arguments.out.resolve()
  out.mkdir(parents=True)
  print(f'the uninterrupted run, {STEPS} steps ...', flush=True)
  reference = start(out / 'reference', 0)
  if code := reference.process.wait():
    sys.exit(f'error: it ended with {code}:\n{reference.said()}')
  expected = log_lines(out / 'reference')

  show_row('kill', 'step at death', 'in a save', 'resumed from', 'equal')
  draw, kills, in_saves, corrupted = random.Random(arguments.seed), 0, 0, 0
  for run in itertools.count(1):
    if kills == arguments.kills:
      break
    pending = []  # kills after which no start has come as far as its first step
    for number in itertools.count():
      life = start(out / f'run_{run}', number)
      part = draw.choice(('start', 'steps', 'steps', 'save', 'save'))
      was_killed = kills < arguments.kills and life.kill(part, draw)
      code, lines = life.process.wait(), log_lines(life.workdir)
      if code and not was_killed:
        sys.exit(f'error: after {kills} kills the run ended with {code}:\n{life.said()}')
      if continued := re.search(r'(?:starting|continuing) at step (\d+)', life.said()):
        equal = lines == (expected[: len(lines)] if was_killed else expected)
        for kill in pending:
          show_row(*kill, continued[1], 'yes' if equal else 'NO')
        corrupted += len(pending) * (not equal)
        pending = []
      if not was_killed:
        break
      kills, in_save = kills + 1, life.is_saving()
      in_saves += in_save
      step = re.match(r'{"step": (\d+)', lines[-1])[1] if lines else 0
      pending.append((kills, step, 'yes' if in_save else 'no'))
  print(f'{kills} kills, {corrupted} corrupted ({in_saves} in a save; {run - 1} runs of {len(expected)} lines)')
  sys.exit(bool(corrupted))


def show_row(*cells: object) -> None:
  print(''.join(f'{cell!s:>14}' for cell in cells), flush=True)


if __name__ == '__main__':
  main()
