"""Figures of `scripts/benchmark.py` as a table, where they come from, and whether they got worse."""

import dataclasses
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from scripts.paper.side_by_side import Row, Table, number
from scripts.paper.table_runs import flat
from scripts.timing import quiet_pairs
from scripts.timing.quiet_pairs import Turns
from triplet_det import evaluate
from triplet_det.detection.settings import Settings

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


def timed_row(
  title: str,
  turns: Turns,
  program: str = OURS,
  *,
  flops: int | None = None,
  images: int = 1,
  first: str | None = None,
  beside: Mapping[str, float] | None = None,
) -> Row:
  """The samples of a program: milliseconds, ratios, and the fraction of the GEMM's best rate.

  Args:
    title: of the row.
    turns: with GEMM, and TORCH or not.
    program: whose samples these are.
    flops: of the program; None leaves the fraction out.
    images: that a run of the program works on; times are per image.
    first: another program, a ratio to which is wanted.
    beside: what was measured once, by the title of its column.
  """
  milliseconds = {i: 1e3 * seconds / images for i, seconds in turns.seconds(program).items()}
  columns = {'images/s': {i: 1e3 / ms for i, ms in milliseconds.items()}} if images > 1 else {}
  columns['ms'] = milliseconds
  columns['ours / GEMM'] = {i: ratio / images for i, ratio in turns.ratios(program, GEMM).items()}
  if TORCH in next(iter(turns.rounds.values())):
    columns['torch ms'] = {i: 1e3 * seconds for i, seconds in turns.seconds(TORCH).items()}
    columns['ours / torch'] = turns.ratios(program, TORCH)
  if flops:
    columns['of GEMM peak'] = {i: flops / s / gemm_rate(turns) for i, s in turns.seconds(program).items()}
  if first:
    columns['to the first'] = turns.ratios(program, first)
  runs = {f'round {i}': {c: values[i] for c, values in columns.items()} | dict(beside or {}) for i in turns.rounds}
  return Row(title, runs, {}, median=True, spec='.4g')


def gemm_rate(turns: Turns) -> float:
  """Its best, FLOP/s."""
  return 2 * quiet_pairs.GEMM_SIDE**3 / min(turns.seconds(GEMM).values())


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


@dataclasses.dataclass(frozen=True)
class Change:
  """What a figure became."""

  row: str
  column: str
  before: float
  now: float

  @property
  def worse(self) -> bool:
    return self.now / self.before > SLOWER

  def __str__(self) -> str:
    factor = self.now / self.before
    words = ('larger', 'smaller') if self.column in SIZES else ('slower', 'faster')
    verdict = words[0] if self.worse else words[1] if factor < 1 / SLOWER else 'same'
    values = f'{number(self.before, ".4g")} -> {number(self.now, ".4g")}'
    return f'{verdict:7} {factor:.3f}  {self.row}: {self.column} {values}'


def compare(old: Mapping, new: Mapping) -> list[Change]:
  """What became of the figures of an earlier measurement.

  Args:
    old, new: of `side_by_side.as_json`.

  Raises:
    ValueError: they are of different commands or settings, or have no figure in common; says which.
  """
  there, here = ({'command': one['table'], **one['recipe']} for one in (old, new))
  differing = [
    f'{key} {there[key]} there, {here[key]} here'
    for key in there.keys() & here.keys()  # only one of them may have a twin
    if key.startswith(('command', 'settings.')) and there[key] != here[key]
  ]
  if differing:
    raise ValueError(f'not the same measurement: {"; ".join(differing)}')
  before, changes = {row['row']: row['here'] for row in old['rows']}, []
  for row in new['rows']:
    was, now = before.get(row['row'], {}), row['here']
    ratios, sizes = ([c for c in columns if was.get(c) and now.get(c)] for columns in (RATIOS, SIZES))
    changes += [Change(row['row'], column, was[column], now[column]) for column in (*ratios[:1], *sizes)]
  if not changes:
    raise ValueError('the two measurements have no figure in common')
  return changes
