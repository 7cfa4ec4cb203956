"""Times of programs that take turns (A B A B ...) in rounds during which the machine did nothing else.

What other processes did meanwhile is read from /proc (Linux), and rounds in which they did too much are left out. A
ratio of two programs is formed within a round, so that what slows a whole round cancels.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

MAX_LOAD = 0.1  # cores that others may keep busy during a sample
MIN_SECONDS = 1.0  # of a sample: /proc counts hundredths of a second, and quick programs are run several times in it
ATTEMPTS = 3  # rounds that are tried for every one that is wanted
GEMM_SIDE = 2048


@dataclasses.dataclass(frozen=True)
class CpuTime:
  """Seconds of all cores together since some moment; NaN where there is no /proc."""

  busy: float  # by whomever; what other virtual machines stole is in it
  ours: float  # by this process and all that it started


def cpu_time() -> CpuTime:
  if not Path('/proc/stat').exists():
    return CpuTime(math.nan, math.nan)
  return CpuTime(_busy_ticks() / _TICKS, _ticks_of_family(os.getpid()) / _TICKS)


@dataclasses.dataclass(frozen=True)
class Clocks:
  """What a sample is measured with."""

  wall: Callable[[], float] = time.perf_counter
  cpu: Callable[[], CpuTime] = cpu_time


_TICKS = os.sysconf('SC_CLK_TCK')  # per second


def _busy_ticks() -> int:
  user, nice, system, _, _, irq, softirq, steal = map(int, Path('/proc/stat').read_text().split()[1:9])
  return user + nice + system + irq + softirq + steal


def _ticks_of_family(root: int) -> int:
  """Of a process, its ended children, and all their descendants."""
  children, ticks = {}, {}
  for stat in Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
      continue  # it ended while we looked
    process = int(stat.parent.name)
    children.setdefault(int(fields[1]), []).append(process)
    ticks[process] = sum(map(int, fields[11:15]))
  family = [root]
  for process in family:
    family += children.get(process, [])
  return sum(ticks.get(process, 0) for process in family)


def _nothing() -> None:
  pass


@dataclasses.dataclass(frozen=True)
class Arm:
  """One of the programs that take turns; `before` and `after` each of its samples are not timed."""

  run: Callable[[], object]  # returns when the work is done
  before: Callable[[], None] = _nothing
  after: Callable[[], None] = _nothing
  warm: bool = False  # True: it needs no warming up, and one run is a sample


@dataclasses.dataclass(frozen=True)
class Sample:
  seconds: float  # per run
  others: float  # cores that other processes kept busy
  result: object  # of the last run


def sample(arm: Arm, runs: int = 1, clocks: Clocks = Clocks()) -> Sample:
  """Runs an arm so many times in a row."""
  arm.before()
  try:
    before, start = clocks.cpu(), clocks.wall()
    for _ in range(runs):
      result = arm.run()
    wall, after = clocks.wall() - start, clocks.cpu()
  finally:
    arm.after()
  # Neither count is exact to the hundredth, so that their difference can be just below zero.
  others = (after.busy - before.busy) - (after.ours - before.ours)
  return Sample(wall / runs, max(others / wall, 0.0) if wall else 0.0, result)


@dataclasses.dataclass(frozen=True)
class Turns:
  """The samples of the quiet rounds."""

  rounds: Mapping[int, Mapping[str, Sample]]  # number of the round, from 1 -> arm -> sample
  wanted: int
  left_out: Mapping[int, float]  # number of a round -> the cores that others kept busy in the sample that ended it
  max_load: float

  def seconds(self, name: str) -> dict[int, float]:
    return {number: samples[name].seconds for number, samples in self.rounds.items()}

  def ratios(self, name: str, other: str) -> dict[int, float]:
    """Time of `name` over that of `other`, round by round."""
    return {number: samples[name].seconds / samples[other].seconds for number, samples in self.rounds.items()}

  def note(self) -> str:
    """How many rounds were quiet, as a sentence; a WARNING if fewer than wanted."""
    others = [one.others for samples in self.rounds.values() for one in samples.values()]
    if any(map(math.isnan, others)):
      return f'{len(self.rounds)} rounds; what other processes did meanwhile is not known here: there is no /proc'
    told = f'{len(self.rounds)} rounds in which others kept at most {max(others):.2f} cores busy'
    if self.left_out:
      told += f'; {len(self.left_out)} with up to {max(self.left_out.values()):.2f} were left out'
    told += f' ({self.max_load:.2f} are allowed)'
    return told if len(self.rounds) >= self.wanted else f'WARNING: {self.wanted} rounds were wanted, {told}'


def take_turns(
  arms: Mapping[str, Arm],
  *,
  pairs: int = 5,
  max_load: float = MAX_LOAD,
  min_seconds: float = MIN_SECONDS,
  clocks: Clocks = Clocks(),
) -> Turns:
  """Measures until there are `pairs` quiet rounds, or three times as many rounds are over.

  Args:
    arms: by name, in the order of their turns. Each runs twice before, to warm up.
    pairs: rounds that are wanted.
    max_load: cores that others may keep busy during a sample; a round ends at a busier sample and is left out.
    min_seconds: of a sample; quick arms run several times in it.
    clocks: what is measured with.

  Raises:
    ValueError: no round was wanted, or none was quiet; says how busy others were.
  """
  if pairs < 1:
    raise ValueError(f'there must be at least one round, got {pairs}')
  runs = {name: _runs_for(arm, min_seconds, clocks) for name, arm in arms.items()}
  rounds, left_out = {}, {}
  for number in range(1, ATTEMPTS * pairs + 1):
    samples = {}
    for name, arm in arms.items():
      samples[name] = sample(arm, runs[name], clocks)
      if samples[name].others > max_load:
        left_out[number] = samples[name].others
        break
    else:
      rounds[number] = samples
    if len(rounds) == pairs:
      break
  if not rounds:
    raise ValueError(
      f'none of {len(left_out)} rounds was quiet: others kept {min(left_out.values()):.2f} to '
      f'{max(left_out.values()):.2f} cores busy, {max_load:.2f} are allowed; stop what else runs, or raise --max_load'
    )
  return Turns(rounds, pairs, left_out, max_load)


def _runs_for(arm: Arm, min_seconds: float, clocks: Clocks) -> int:
  """Warms up, and says how many runs make a sample long enough."""
  if arm.warm:
    return 1
  sample(arm, clocks=clocks)
  warm = sample(arm, clocks=clocks).seconds
  return max(1, math.ceil(min_seconds / warm)) if warm else 1


def gemm() -> tuple[Arm, int]:
  """The yardstick: a product of two float32 matrices through XLA with all cores, and its FLOPs."""
  side = GEMM_SIDE
  a, b = (jax.random.normal(jax.random.key(i), (side, side)) for i in range(2))
  multiply = jax.jit(jnp.matmul)
  return Arm(lambda: multiply(a, b).block_until_ready()), 2 * side**3
