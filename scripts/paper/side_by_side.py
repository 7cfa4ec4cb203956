"""A table with our figures and the paper's side by side, as text, Markdown and JSON."""

import dataclasses
import json
import math
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence

WIDTH = 120  # of the lines of text


@dataclasses.dataclass(frozen=True)
class Row:
  """One thing that was measured, or the difference of two; columns without a value are absent or NaN."""

  title: str
  runs: Mapping[str, Mapping[str, float]]  # label -> column -> value; empty: not measured here
  paper: Mapping[str, Mapping[str, float]]  # whose -> column -> value
  median: bool = False  # of the runs, with the smallest and largest beside it; else the mean
  spec: str = '.1f'

  def here(self) -> dict[str, float]:
    """Column -> mean or median over the runs that have it; NaN if one of them has none."""
    middle = statistics.median if self.median else statistics.mean
    return self._over_runs(lambda values: math.nan if any(map(math.isnan, values)) else middle(values))

  def lines(self, first: str) -> list[tuple[str, Mapping[str, float]]]:
    """(whose, values) of every line; `first` is the column whose value is told of each run."""
    lines = []
    if self.runs and self.median:
      lines += [(f'here, median of {len(self.runs)}', self.here())]
      lines += [('smallest', self._over_runs(min)), ('largest', self._over_runs(max))]
    elif self.runs:
      by_run = ', '.join(f'{label} {number(values.get(first), self.spec)}' for label, values in self.runs.items())
      lines += [(f'here ({first} by run: {by_run})', self.here())]
    return lines + [(f'paper, {whose}', values) for whose, values in self.paper.items()]

  def minus(self, other: 'Row', title: str) -> 'Row':
    """This row minus the other: of the same runs (seeds) each, where both have the same; of the paper in its order."""
    if self.runs.keys() == other.runs.keys():
      runs = {label: _minus(values, other.runs[label]) for label, values in self.runs.items()}
    else:
      runs = {'means': _minus(self.here(), other.here())} if self.runs and other.runs else {}
    pairs = zip(self.paper.items(), other.paper.items())
    paper = {a if a == b else f'{a} - {b}': _minus(mine, theirs) for (a, mine), (b, theirs) in pairs}
    return Row(title, runs, paper, spec='+' + self.spec.lstrip('+'))

  def _over_runs(self, function) -> dict[str, float]:
    columns = dict.fromkeys(column for values in self.runs.values() for column in values)
    return {c: function([values[c] for values in self.runs.values() if c in values]) for c in columns}


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows, the differences that the paper argues with, and how our figures came about."""

  name: str  # on the command line
  title: str
  columns: Sequence[str]
  rows: Sequence[Row]
  differences: Sequence[Row]
  recipe: Mapping[str, object]  # flat, what is equal for all runs
  notes: Sequence[str]


def _lines(table: Table) -> Iterator[tuple[str, str, list[str]]]:
  """The title of a row at its first line, else ''; whose figures the line has; its cells."""
  for row in (*table.rows, *table.differences):
    for i, (whose, values) in enumerate(row.lines(table.columns[0])):
      yield '' if i else row.title, whose, [number(values.get(column), row.spec) for column in table.columns]


def as_text(table: Table) -> str:
  """For the terminal; columns under each other."""
  lines = list(_lines(table))
  label = max((len(whose) for _, whose, _ in lines), default=0) + 2
  width = max(len(text) for text in (*table.columns, *(cell for _, _, cells in lines for cell in cells))) + 2

  def line(whose: str, cells: Sequence[str]) -> str:
    return f'  {whose:<{label}}' + ''.join(f'{cell:>{width}}' for cell in cells)

  text = [*textwrap.wrap(table.title, WIDTH), '', line('', table.columns)]
  for title, whose, cells in lines:
    text += [title] if title else []
    text.append(line(whose, cells))
  wrapped = ['recipe: ' + _listed(table.recipe), *table.notes]
  text += ['', *(line for note in wrapped for line in textwrap.wrap(note, WIDTH, subsequent_indent='  '))]
  return '\n'.join(text)


def as_markdown(table: Table) -> str:
  """For a README: one table of all rows, then the recipe and the notes as a list."""
  text = [table.title, '', '| | | ' + ' | '.join(table.columns) + ' |', '|---|---|' + '---:|' * len(table.columns)]
  text += ['| ' + ' | '.join([title, whose, *cells]) + ' |' for title, whose, cells in _lines(table)]
  return '\n'.join([*text, '', f'- recipe: `{_listed(table.recipe)}`', *(f'- {note}' for note in table.notes)])


def as_json(table: Table) -> str:
  """All digits, each run by itself; null where there is no number."""

  def rows(of: Sequence[Row]) -> list[dict]:
    return [dict(row=row.title, here=row.here(), runs=row.runs, paper=row.paper) for row in of]

  content = dict(table=table.name, title=table.title, columns=list(table.columns), rows=rows(table.rows))
  content |= dict(differences=rows(table.differences), recipe=table.recipe, notes=list(table.notes))
  return json.dumps(_without_nan(content), indent=1)


FORMATS = {'text': (as_text, 'txt'), 'markdown': (as_markdown, 'md'), 'json': (as_json, 'json')}


def common_and_notes(recipes: Mapping[str, Mapping[str, object]], may_differ: Sequence[str]) -> tuple[dict, list[str]]:
  """What all recipes agree in, and one sentence for everything in which they do not.

  Args:
    recipes: name of the run -> its flat recipe.
    may_differ: beginnings of the names in which the rows of the table are meant to differ.
  """
  names = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
  common, notes = {}, []
  for name in names:
    who = {}
    for run, recipe in recipes.items():
      who.setdefault(json.dumps(recipe.get(name, 'not noted')), []).append(run)
    if len(who) == 1:
      common[name] = next(iter(recipes.values()))[name]
      continue
    told = '; '.join(f'{value} ({", ".join(runs)})' for value, runs in who.items())
    meant = name.startswith(tuple(may_differ))
    notes.append(f'{name} differs as it should: {told}' if meant else f'WARNING: {name} should be equal, but is {told}')
  return common, sorted(notes, key=lambda note: not note.startswith('WARNING'))


def number(value: float | None, spec: str) -> str:
  return '-' if value is None or math.isnan(value) else format(value, spec)


def _minus(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
  return {column: value - b[column] for column, value in a.items() if column in b}


def _listed(recipe: Mapping[str, object]) -> str:
  return ', '.join(f'{name}={json.dumps(value)}' for name, value in recipe.items())


def _without_nan(value):
  if isinstance(value, Mapping):
    return {key: _without_nan(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_without_nan(one) for one in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
