"""The paper's tables and speed comparison, our figures and the paper's side by side, with how ours came about.

  python scripts/paper/tables.py table4 --runs runs/tables           # the embedded data set, 5 rows x 2 seeds
  python scripts/paper/tables.py table3 --runs runs/tables           # of rows 1 and 5 of these; so table1, 2 and 5
  python scripts/paper/tables.py table2 --runs runs/coco --full --config.data.eval.data_dir=TFDS ...
  python scripts/paper/tables.py table5 --runs runs/coco --full --rows centernet-104 --checkpoint centernet-104=IMPORTED
  python scripts/paper/tables.py table4 --runs runs/mine --config configs/photos.py --config.data...
  python scripts/paper/tables.py speed --hg 104 --rounds 5

Runs that are finished are read, what is missing is trained or evaluated by `python -m triplet_det.main`. table1: false
discovery rates (FD) of CornerNet. table2: AP and AR of CornerNet and CenterNet at one and at five scales. table3: FD of
both. table4: what each component adds. table5: AP with the ground truth in place of the centers and, beyond the paper,
of each other output. speed: network, decoding, post-processing and whole image apart.

Row R and seed S of Table 4 is the folder row_R_seed_S below --runs. In the other tables row 1 is CornerNet and row 5
CenterNet, also with Hourglass-52 on COCO: in the paper, FD50 of Table 3 is 100 - AP50 of Table 4 for both.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.paper import published, speed, table_runs
from scripts.paper.side_by_side import FORMATS, Row, Table, common_and_notes
from scripts.paper.table_rows import Request, folders, multi_scale, request_of
from triplet_det.run import output_paths

# What rows are there to compare, and how the two detectors were published; all else should be equal in a table.
MEANT = ('training.model.center_', 'training.model.cascade_')
MEANT_MULTI_SCALE = ('test.scales', 'test.merge_exponent')
MEANT_FULL = ('training.', 'test.top_k', 'test.outside_margin', 'step')


class Figures:
  """Rows as they are measured, and the recipes of all runs behind them.

  Raises ValueError before anything is executed if a run of the request cannot be.
  """

  def __init__(self, request: Request, columns: Sequence[str]):
    self._request, self._columns = request, columns
    self._recipes, self._notes = {}, []
    for name in request.networks:
      for run in request.runs(name):
        run.step()  # whatever is wrong with the command is said before hours of training

  def rows(self, paper: Mapping[str, Sequence[float]], *, title: str = '', multi: bool = False) -> dict[str, Row]:
    """Network -> the metrics of its runs in percent, and the paper's; `multi` tests them at several scales."""
    rows = {}
    for name in self._request.networks:
      results = self._results(name, title, 'eval', self._columns, multi_scale(name) if multi else ())
      metrics = {label: _percent(found.content['metrics'], self._columns) for label, found in results.items()}
      rows[name] = self._with_paper(name, title, metrics, paper)
    return rows

  def rows_by_output(self, name: str, paper: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Row]:
    """Output of a network that was replaced by the ground truth -> row."""
    metrics = {}
    for label, found in self._results(name, '', 'error_analysis').items():
      for row in found.content['rows']:
        metrics.setdefault(row['replaced'], {})[label] = _percent(row['metrics'], self._columns)
    return {
      replaced: self._with_paper(name, f', {replaced} replaced', by_run, paper.get(replaced, {}))
      for replaced, by_run in metrics.items()
    }

  def table(self, title: str, rows: Sequence[Row], differences: Sequence[Row] = (), meant=(), notes=()) -> Table:
    name = self._request.table
    published = MEANT_FULL if self._request.full and name != 'table4' else ()
    recipe, found = common_and_notes(self._recipes, (*MEANT, *meant, *published))
    title = f'{title}, percent; here {self._request.where}'
    return Table(name, title, self._columns, rows, differences, recipe, [*self._notes, *found, *notes])

  def _results(
    self, name: str, title: str, mode: str, columns: Sequence[str] = (), tests: tuple[str, ...] = ()
  ) -> dict[str, table_runs.Result]:
    results = {}
    for run in self._request.runs(name, tests):
      found = results[run.label] = table_runs.result(run, mode, columns)
      who = f'{self._request.networks[name].title}{title}, {run.label}'
      self._recipes[who] = found.recipe
      for key, (there, asked) in table_runs.other_training(run, found).items():
        self._notes.append(f'WARNING: {who} was trained with {key} {there}, now {asked} is asked for: {run.folder}')
    return results

  def _with_paper(self, name: str, title: str, metrics: Mapping, paper: Mapping[str, Sequence[float]]) -> Row:
    network = self._request.networks[name]
    told = {published.NAMES.get(n, 'COCO'): dict(zip(self._columns, paper[n])) for n in network.paper if n in paper}
    return Row(network.title + title, metrics, told)


def table1(request: Request) -> Table:
  """How much of what pairs of corners detect is false (Sec. 3.1)."""
  figures = Figures(request, published.FD)
  rows = figures.rows({'cornernet-104': published.TABLE_3['cornernet-104']})
  return figures.table('Table 1: false discovery rates of CornerNet, in the paper on COCO validation', [*rows.values()])


def table2(request: Request) -> Table:
  """AP and AR at one and at five scales (Sec. 4.2)."""
  figures = Figures(request, published.AP + published.AR)
  every, gains = [], []
  for scales, paper in published.TABLE_2.items():
    rows = figures.rows(paper, title=f', {scales}-scale', multi=scales == 'multi')
    every += rows.values()
    gains += differences(request, rows, 'gain of {}, ' + f'{scales}-scale')
  title = 'Table 2: CornerNet and CenterNet, in the paper on COCO test-dev'
  return figures.table(title, every, gains, MEANT_MULTI_SCALE)


def table3(request: Request) -> Table:
  """How many false boxes the centers take away, by IoU and size (Sec. 4.3)."""
  figures = Figures(request, published.FD)
  rows = figures.rows(published.TABLE_3)
  decreases = differences(request, rows, 'decrease by {}', falls=True)
  return figures.table('Table 3: false discovery rates, in the paper on COCO validation', [*rows.values()], decreases)


def differences(request: Request, rows: Mapping[str, Row], title: str, *, falls: bool = False) -> list[Row]:
  """CenterNet's rows minus CornerNet's with the same network, or the other way round."""
  found = []
  for corner in rows:
    center = corner.replace('corner', 'center')
    if corner != center and center in rows:
      more, less = (corner, center) if falls else (center, corner)
      found.append(rows[more].minus(rows[less], title.format(request.networks[center].title)))
  return found


def table4(request: Request) -> Table:
  """What each of the three components adds (Sec. 4.5)."""
  figures = Figures(request, published.AP + published.AR)
  rows = figures.rows(published.TABLE_4)
  steps = {
    ('5', '1'): 'row 5 - row 1, triplets instead of pairs',
    ('3', '1'): 'row 3 - row 1, central region exploration',
    ('4', '3'): 'row 4 - row 3, center pooling',
    ('2', '1'): 'row 2 - row 1, cascade corner pooling of pairs',
    ('5', '4'): 'row 5 - row 4, cascade corner pooling of triplets',
  }
  gains = [rows[a].minus(rows[b], title) for (a, b), title in steps.items() if a in rows and b in rows]
  title = 'Table 4: central region exploration (CRE), center pooling (CTP), cascade corner pooling (CCP), in the paper'
  note = "the paper's row 2 is ticked under CTP; its text says that it is CCP"
  return figures.table(f'{title} Hourglass-52 on COCO validation', [*rows.values()], gains, notes=[note])


def table5(request: Request) -> Table:
  """AP with the truth in place of an output: which one limits the detector (Sec. 4.6)."""
  figures = Figures(request, published.AP)
  rows, gains = [], []
  for name, network in request.networks.items():
    found = figures.rows_by_output(name, published.TABLE_5)
    rows += found.values()
    nothing = found.pop('nothing')
    gains += [row.minus(nothing, f'gain of {network.title}, {replaced}') for replaced, row in found.items()]
  title = 'Table 5: outputs replaced by the ground truth, in the paper the centers, on COCO validation'
  return figures.table(title, rows, gains)


TABLES = {'table1': table1, 'table2': table2, 'table3': table3, 'table4': table4, 'table5': table5}


def _percent(metrics: Mapping[str, float | str], columns: Sequence[str]) -> dict[str, float]:
  """NaN, in JSON a string, where the split has no object of that size or class."""
  return {column: 100 * float(metrics[column]) for column in columns}


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
  """The parser (for its errors), what it understood, and the rest: overrides of the config."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  chosen = parser.add_subparsers(dest='table', required=True, metavar='TABLE', help=', '.join([*TABLES, 'speed']))
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument('--format', choices=list(FORMATS), default='text', help='what is printed')
  shared.add_argument('--out', type=lambda text: Path(text).expanduser(), help='folder for the table in all formats')
  tested = 'finished or imported: tested only'
  page = 'config of your own, a page by its name or a path from the root; the rows change its switches'
  for table, function in TABLES.items():
    one = chosen.add_parser(table, parents=[shared], allow_abbrev=False, help=function.__doc__)
    one.add_argument('--runs', required=True, help='folder of the runs, one below it per row and seed')
    one.add_argument('--rows', nargs='+', help='default: all')
    one.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    one.add_argument('--checkpoint', nargs='+', default=[], metavar='ROW=FOLDER', help=tested)
    one.add_argument('--full', action='store_true', help="the paper's networks on COCO, not the embedded data set")
    one.add_argument('--config', default='', metavar='PAGE', help=page)
  timed = chosen.add_parser('speed', parents=[shared], allow_abbrev=False, help='milliseconds per image')
  speed.add_arguments(timed)
  return parser, *parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  parser, arguments, overrides = parse(argv)
  try:
    if arguments.out:
      output_paths.make_folder('--out', arguments.out)
    if arguments.table != 'speed':
      table = TABLES[arguments.table](request_of(arguments, overrides))
    elif overrides:
      raise ValueError(f'not understood: {" ".join(overrides)}')
    else:
      table = speed.measure(arguments, {name: given[-1] for name, given in folders(arguments.checkpoint).items()})
  except (ValueError, FileNotFoundError) as error:
    parser.error(str(error))
  if arguments.out:
    for write, ending in FORMATS.values():
      output_paths.write_whole(arguments.out / f'{table.name}.{ending}', write(table) + '\n')
  print(FORMATS[arguments.format][0](table))


if __name__ == '__main__':
  main()
