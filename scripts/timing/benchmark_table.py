"""Figures of `scripts/benchmark.py` as a table, where they come from, and whether they got worse."""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from scripts.paper.side_by_side import Row, Table, number
from scripts.timing import quiet_pairs
from scripts.timing.quiet_pairs import Turns
from triplet_det import evaluate
from triplet_det.detection.settings import Settings
from triplet_det.run.config_history import flat

OURS, TORCH, GEMM = 'ours', 'torch', 'GEMM'
SLOWER = 1.03
# In all of them less is better. A ratio of two programs in one round says more than a time: it is compared, the better
# of the two that a row has; and what is measured in bytes.
RATIOS = ('ours / torch', 'ours / GEMM')
SIZES = ('peak MB', 'KB per image', 'MB at the end')


class Figures(NamedTuple):
  """What a command has measured."""

  rows: Sequence[Row]
  turns: Turns | None = None  # with GEMM
  notes: Sequence[str] = ()


def timed_row(title: str, turns: Turns, program: str = OURS, *, flops=0, images=1, first='', beside=None) -> Row:
  """The samples of a program: milliseconds, ratios within each round, and the fraction of the GEMM's best rate.

  Args:
    title: of the row.
    turns: with GEMM, and TORCH or not.
    program: whose samples these are.
    flops: of the program; 0 leaves the fraction out.
    images: that a run of the program works on; times are per image.
    first: another program, a ratio to which is wanted.
    beside: title of a column -> what was measured once.
  """
  runs = {}
  for number_of_round, samples in turns.rounds.items():
    seconds = samples[program].seconds
    values = {'images/s': images / seconds} if images > 1 else {}
    values |= {'ms': 1e3 * seconds / images, 'ours / GEMM': seconds / images / samples[GEMM].seconds}
    if TORCH in samples:
      values |= {'torch ms': 1e3 * samples[TORCH].seconds, 'ours / torch': seconds / samples[TORCH].seconds}
    if flops:
      values['of GEMM peak'] = flops / seconds / gemm_rate(turns)
    if first:
      values['to the first'] = seconds / samples[first].seconds
    runs[f'round {number_of_round}'] = values | (beside or {})
  return Row(title, runs, {}, median=True, spec='.4g')


def gemm_rate(turns: Turns) -> float:
  """Its best, FLOP/s."""
  return 2 * quiet_pairs.GEMM_SIDE**3 / min(turns.seconds(GEMM))


def table_of(command: str, title: str, figures: Figures, settings: Mapping) -> Table:
  """The rows with the columns that they have, how they came about, and how quiet it was."""
  rows, turns, notes = figures
  columns = list(dict.fromkeys(column for row in rows for values in row.runs.values() for column in values))
  if turns:
    rate = f'GEMM: side {quiet_pairs.GEMM_SIDE}, at best {gemm_rate(turns) / 1e9:.1f} GFLOP/s'
    notes = [turns.note(), rate, *notes]
  return Table(command, title, columns, rows, [], origin(settings), notes)


def origin(settings: Mapping) -> dict[str, object]:
  """Flat: machine, versions, commit and settings of a measurement."""
  model = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
  memory = round(psutil.virtual_memory().total / 2**30, 1)
  cores = len(psutil.Process().cpu_affinity())
  machine = dict(cpu=model[1] if model else platform.machine(), cores=cores, memory_gib=memory)
  about = evaluate.fingerprint(Settings(), machine=machine)
  del about['test']  # what of it matters is among the settings
  about['versions'] |= {'python': platform.python_version()}
  if settings.get('against') == TORCH:
    about['versions'] |= {'torch': metadata.version('torch')}
  return dict(flat(about | dict(settings=settings)))


class Change(NamedTuple):
  """What a figure became."""

  row: str
  column: str
  before: float
  now: float

  @property
  def factor(self) -> float:
    return self.now / self.before

  def __str__(self) -> str:
    more, less = ('larger', 'smaller') if self.column in SIZES else ('slower', 'faster')
    verdict = more if self.factor > SLOWER else less if self.factor < 1 / SLOWER else 'same'
    values = f'{number(self.before, ".4g")} -> {number(self.now, ".4g")}'
    return f'{verdict:7} {self.factor:.3f}  {self.row}: {self.column} {values}'


def compare(old: Mapping, new: Mapping) -> list[Change]:
  """What became of the figures of an earlier measurement.

  Args:
    old, new: of `side_by_side.as_json`.

  Raises:
    ValueError: they are of different commands or settings, or have no figure in common; says which.
  """
  there, here = ({'settings.command': one['table'], **one['recipe']} for one in (old, new))
  both = [key for key in there if key.startswith('settings.') and key in here]  # only one of them may have a twin
  if differing := [f'{key} {there[key]} there, {here[key]} here' for key in both if there[key] != here[key]]:
    raise ValueError(f'not the same measurement: {"; ".join(differing)}')
  before, changes = {row['row']: row['here'] for row in old['rows']}, []
  for row in new['rows']:
    was, now = before.get(row['row'], {}), row['here']
    ratios, sizes = ([c for c in columns if was.get(c) and now.get(c)] for columns in (RATIOS, SIZES))
    changes += [Change(row['row'], column, was[column], now[column]) for column in (*ratios[:1], *sizes)]
  if not changes:
    raise ValueError('the two measurements have no figure in common')
  return changes
