"""Figures of `scripts/benchmark.py` as a table, where they come from, and whether they got worse."""

import dataclasses
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from scripts.paper.side_by_side import Row, Table, number
from scripts.paper.table_runs import flat
from scripts.timing.quiet_pairs import Turns
from triplet_det import evaluate
from triplet_det.detection.settings import Settings

OURS, TORCH, GEMM = 'ours', 'torch', 'GEMM'
SLOWER = 1.03
# In all of them less is better. A ratio of two programs in one round says more than a time: it is compared, the better
# of the two that a row has; and what is measured in bytes.
RATIOS = ('ours / torch', 'ours / GEMM')
NOT_COMPARED = ('settings.against', 'settings.pools')  # without the twin there is still the GEMM
SIZES = ('peak MB', 'KB per image', 'MB at the end')


def timed_row(
  title: str,
  turns: Turns,
  gemm_flops: int,
  *,
  arm: str = OURS,
  against: str | None = None,
  flops: int | None = None,
  items: int = 1,
  beside: Mapping[str, float] | None = None,
) -> Row:
  """The samples of an arm: milliseconds, ratios, and the fraction of the GEMM's best rate in these rounds.

  Args:
    title: of the row.
    turns: with an arm GEMM.
    gemm_flops: of the GEMM.
    arm: whose samples these are.
    against: the arm that it is compared with.
    flops: of the arm; None leaves the fraction out.
    items: that a run of the arm works on; times are per item.
    beside: values that were measured once.
  """
  columns = {'ms': {i: 1e3 * seconds / items for i, seconds in turns.seconds(arm).items()}}
  columns['ours / GEMM'] = {i: ratio / items for i, ratio in turns.ratios(arm, GEMM).items()}
  if against:
    columns[f'{against} ms'] = {i: 1e3 * seconds / items for i, seconds in turns.seconds(against).items()}
    columns[f'ours / {against}'] = turns.ratios(arm, against)
  if flops:
    peak = gemm_flops / min(turns.seconds(GEMM).values())
    columns['of GEMM peak'] = {i: flops / seconds / peak for i, seconds in turns.seconds(arm).items()}
  runs = {
    f'round {i}': {column: values[i] for column, values in columns.items()} | dict(beside or {}) for i in turns.rounds
  }
  return Row(title, runs, {}, median=True, spec='.4g')


def timed_table(
  name: str,
  title: str,
  rows: Sequence[Row],
  turns: Turns,
  gemm_flops: int,
  settings: Mapping,
  notes: Sequence[str] = (),
) -> Table:
  """The rows with the columns that they have, how they came about, and how quiet it was."""
  best = gemm_flops / min(turns.seconds(GEMM).values())
  told = [turns.note(), f'GEMM: {gemm_flops / 1e9:.3g} GFLOP, at best {best / 1e9:.1f} GFLOP/s', *notes]
  return plain_table(name, title, rows, settings, told)


def plain_table(name: str, title: str, rows: Sequence[Row], settings: Mapping, notes: Sequence[str]) -> Table:
  columns = list(dict.fromkeys(column for row in rows for values in row.runs.values() for column in values))
  return Table(name, title, columns, rows, [], origin(settings), notes)


def origin(settings: Mapping) -> dict[str, object]:
  """Flat: machine, versions, commit and settings of a measurement."""
  about = evaluate.fingerprint(Settings(), machine=_machine())
  about['settings'] = dict(settings)
  del about['test']  # what of it matters is among the settings
  about['versions'] |= {'python': platform.python_version()}
  if settings.get('against') == TORCH:
    about['versions'] |= {'torch': metadata.version('torch')}
  return dict(flat(about))


def _machine() -> dict[str, object]:
  info = Path('/proc/cpuinfo')
  models = [line.partition(':')[2].strip() for line in info.read_text().splitlines() if line.startswith('model name')]
  gib = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return dict(cpu=models[0] if models else platform.machine(), cores=cores(), memory_gib=round(gib, 1))


def cores() -> int:
  """How many cores this process may use."""
  return len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Change:
  """What a figure became."""

  row: str
  column: str
  before: float
  now: float

  @property
  def factor(self) -> float:
    return self.now / self.before

  @property
  def verdict(self) -> str:
    return 'slower' if self.factor > SLOWER else 'faster' if self.factor < 1 / SLOWER else 'same'

  def __str__(self) -> str:
    values = f'{number(self.before, ".4g")} -> {number(self.now, ".4g")}'
    verdict = {'slower': 'larger', 'faster': 'smaller'}.get(self.verdict) if self.column in SIZES else None
    return f'{verdict or self.verdict:7} {self.factor:.3f}  {self.row}: {self.column} {values}'


def compare(old: Mapping, new: Mapping) -> list[Change]:
  """What became of the figures of an earlier measurement.

  Args:
    old, new: of `side_by_side.as_json`.

  Raises:
    ValueError: they are of different commands or settings, or have no figure in common; says which.
  """
  given = [
    {'command': one['table']} | {key: value for key, value in one['recipe'].items() if key.startswith('settings.')}
    for one in (old, new)
  ]
  differing = [
    f'{key} {given[0].get(key)} there, {given[1].get(key)} here'
    for key in dict.fromkeys([*given[0], *given[1]])
    if given[0].get(key) != given[1].get(key) and key not in NOT_COMPARED
  ]
  if differing:
    raise ValueError(f'not the same measurement: {"; ".join(differing)}')
  before = {row['row']: row['here'] for row in old['rows']}
  changes = []
  for row in new['rows']:
    was, now = before.get(row['row'], {}), row['here']
    both = [column for column in (*RATIOS, *SIZES) if _usable(was.get(column)) and _usable(now.get(column))]
    ratio = [column for column in both if column in RATIOS][:1]
    changes += [
      Change(row['row'], column, was[column], now[column])
      for column in (*ratio, *(column for column in both if column in SIZES))
    ]
  if not changes:
    raise ValueError('the two measurements have no figure in common')
  return changes


def _usable(value: float | None) -> bool:
  return value is not None and math.isfinite(value) and value > 0
