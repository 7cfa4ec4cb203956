"""Times of programs that take turns (A B A B ...) in rounds during which the machine did nothing else.

What other processes did meanwhile is asked of the system, and rounds in which they did too much are left out; programs
of an accelerator, which hardly feel them, take all rounds. A ratio of two programs is formed within a round, so that
what slows a whole round cancels.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import psutil

MAX_LOAD = 0.1  # cores that others may keep busy during a sample
MIN_SECONDS = 1.0  # of a sample: the system counts hundredths of a second, and quick programs are run several times
ATTEMPTS = 3  # rounds that are tried for every one that is wanted
GEMM_SIDE = 2048

Program = Callable[[], object]  # returns when the work is done


def allowed_load() -> float:
  """Cores that others may keep busy while programs of the default device are timed."""
  return MAX_LOAD if jax.default_backend() == 'cpu' else math.inf


class CpuTime(NamedTuple):
  """Seconds of all cores together since some moment."""

  busy: float  # by whomever; what other virtual machines stole is in it
  ours: float  # by this process and all that it started


def cpu_time() -> CpuTime:
  every, us, ours = psutil.cpu_times(), psutil.Process(), 0.0
  for process in (us, *us.children(recursive=True)):
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
      spent = process.cpu_times()
      ours += spent.user + spent.system + spent.children_user + spent.children_system
  return CpuTime(every.user + every.nice + every.system + every.irq + every.softirq + every.steal, ours)


class Sample(NamedTuple):
  seconds: float  # per run
  others: float  # cores that other processes kept busy
  result: object  # of the last run


def sample(program: Program, runs: int = 1) -> Sample:
  """Runs a program so many times in a row."""
  before, start = cpu_time(), time.perf_counter()
  for _ in range(runs):
    result = program()
  wall, after = time.perf_counter() - start, cpu_time()
  # Neither count is exact to the hundredth, so that their difference can be just below zero.
  others = (after.busy - before.busy) - (after.ours - before.ours)
  return Sample(wall / runs, max(others / wall, 0.0), result)


@dataclasses.dataclass(frozen=True)
class Turns:
  """The samples of the quiet rounds."""

  rounds: Mapping[int, Mapping[str, Sample]]  # number of the round, from 1 -> program -> sample
  wanted: int
  left_out: Mapping[int, float]  # number of a round -> the cores that others kept busy in the sample that ended it
  max_load: float

  def seconds(self, name: str) -> list[float]:
    return [samples[name].seconds for samples in self.rounds.values()]

  def note(self) -> str:
    """How many rounds were quiet, as a sentence; a WARNING if fewer than wanted."""
    most = max(one.others for samples in self.rounds.values() for one in samples.values())
    told = f'{len(self.rounds)} rounds in which others kept at most {most:.2f} cores busy'
    if self.max_load == math.inf:
      return f'{told}; none is left out'
    if self.left_out:
      told += f'; {len(self.left_out)} with up to {max(self.left_out.values()):.2f} were left out'
    told += f' ({self.max_load:.2f} are allowed)'
    return told if len(self.rounds) >= self.wanted else f'WARNING: {self.wanted} rounds were wanted, {told}'


def take_turns(
  programs: Mapping[str, Program],
  *,
  pairs: int = 5,
  max_load: float = MAX_LOAD,
  min_seconds: float = MIN_SECONDS,
  opened: Mapping[str, Callable[[], contextlib.AbstractContextManager]] | None = None,
) -> Turns:
  """Measures until there are `pairs` quiet rounds, or three times as many rounds are over.

  Args:
    programs: by name, in the order of their turns. Each runs twice before, to warm up.
    pairs: rounds that are wanted.
    max_load: cores that others may keep busy during a sample; a round ends at a busier sample and is left out.
    min_seconds: of a sample; quick programs run several times in it.
    opened: what a program of this name needs around each of its samples; not timed.

  Raises:
    ValueError: no round was wanted, or none was quiet; says how busy others were.
  """
  if pairs < 1:
    raise ValueError(f'there must be at least one round, got {pairs}')

  def measured(name: str, runs: int = 1) -> Sample:
    with (opened or {}).get(name, contextlib.nullcontext)():
      return sample(programs[name], runs)

  runs = {}
  for name in programs:
    measured(name)
    runs[name] = max(1, math.ceil(min_seconds / measured(name).seconds))
  rounds, left_out = {}, {}
  for number in range(1, ATTEMPTS * pairs + 1):
    samples = {}
    for name in programs:
      samples[name] = measured(name, runs[name])
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


def gemm(side: int | None = None, dtype: str = 'float32', precision: str | None = None) -> Program:
  """The yardstick: a product of two matrices of side x side (default: GEMM_SIDE) through XLA on the whole device."""
  side = side or GEMM_SIDE
  a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
  multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
  return lambda: multiply(a, b).block_until_ready()
