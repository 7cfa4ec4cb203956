"""Which rows a table has, and which runs stand behind a row."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from scripts.paper import published, table_runs
from triplet_det.configs import ablation
from triplet_det.detection.settings import PUBLISHED_CENTERNET_MULTI_SCALE, PUBLISHED_CORNERNET_MULTI_SCALE

ROW_TITLES = {'1': 'CornerNet', '2': 'CCP', '3': 'CRE', '4': 'CRE + CTP', '5': 'CRE + CTP + CCP'}
SWITCHES = ('center_branch', 'center_pooling', 'cascade_corner_pooling')
GIVEN_BY_US = ('--config.seed=', '--config.mode=', '--config.eval_name=')


@dataclasses.dataclass(frozen=True)
class Network:
  """What is trained once per seed, or given."""

  title: str
  page: str  # config file with its variant
  folder: str  # of its runs, before _seed_<s>
  paper: tuple[str, ...]  # its names in the tables of `paper`
  changes: tuple[str, ...] = ()  # overrides that make the page this network


@dataclasses.dataclass(frozen=True)
class Request:
  """What the user asked for."""

  table: str  # table1 .. table5
  networks: Mapping[str, Network]  # the rows that were chosen, by name
  folder: epath.Path
  seeds: Sequence[int]
  given: Mapping[str, Sequence[epath.Path]]  # name -> run folders to be tested, instead of training
  overrides: tuple[str, ...]
  where: str  # our figures are from
  full: bool

  def runs(self, name: str, tests: tuple[str, ...] = ()) -> list[table_runs.Run]:
    """The runs of a row; `tests` are overrides for its evaluation."""
    network = self.networks[name]
    changes = (*network.changes, *self.overrides)
    if name in self.given:
      return [table_runs.Run(folder.name, folder, network.page, changes, tests) for folder in self.given[name]]
    folders = {seed: self.folder / f'{network.folder}_seed_{seed}' for seed in self.seeds}
    return [table_runs.Run(f'seed {s}', folder, network.page, changes, tests, s) for s, folder in folders.items()]


def networks(table: str, *, full: bool = False, page: str = '') -> dict[str, Network]:
  """The rows that a table can have, by their names on the command line.

  Args:
    table: table1 .. table5.
    full: the paper's networks on COCO, instead of the small ones on the embedded data set.
    page: instead, a config of the user's own; the rows change its switches.
  """

  def row(number: str, title: str, names: tuple[str, ...]) -> Network:
    own = [f'--config.model.{switch}={on}' for switch, on in zip(SWITCHES, ablation.ROWS[number])] if page else []
    of_table_4 = f'configs/ablation.py:row={number}' + ('' if full else ',small=1')
    return Network(title, page or of_table_4, f'row_{number}', names, tuple(own))

  if table == 'table4':
    return {number: row(number, f'row {number}: {title}', (number,)) for number, title in ROW_TITLES.items()}
  kinds = dict(table1=['cornernet'], table5=['centernet']).get(table, ['cornernet', 'centernet'])
  number = {'cornernet': '1', 'centernet': '5'}
  if not full:
    title = {'cornernet': 'CornerNet', 'centernet': 'CenterNet'}
    return {kind: row(number[kind], title[kind], (f'{kind}-52', f'{kind}-104')) for kind in kinds}
  small = {f'{kind}-52': row(number[kind], published.NAMES[f'{kind}-52'], (f'{kind}-52',)) for kind in kinds}
  page_of = {'cornernet': 'configs/cornernet.py:hg=104', 'centernet': 'configs/triplet.py:hg=104'}
  large = {
    f'{kind}-104': Network(published.NAMES[f'{kind}-104'], page_of[kind], f'{kind}_104', (f'{kind}-104',))
    for kind in kinds
  }
  return large if table == 'table1' else small | large


def multi_scale(name: str) -> tuple[str, ...]:
  """The overrides for an evaluation at the five scales of each paper, kept beside that at one scale."""
  corners = name.startswith('cornernet')
  settings = PUBLISHED_CORNERNET_MULTI_SCALE if corners else PUBLISHED_CENTERNET_MULTI_SCALE
  return (
    '--config.eval_name=multi_scale',
    f'--config.test.scales={settings.scales}',
    f'--config.test.merge_exponent={settings.merge_exponent}',
  )


def request_of(arguments: argparse.Namespace, overrides: Sequence[str]) -> Request:
  """Checks the names.

  Raises:
    ValueError: an unknown row, a checkpoint without a row, an override that is none or that belongs to us.
  """
  if unknown := [o for o in overrides if not o.startswith('--config.') or '=' not in o]:
    raise ValueError(f'not understood: {" ".join(unknown)}; overrides of the config are --config.name=value')
  if ours := [o for o in overrides if o.startswith(GIVEN_BY_US)]:
    raise ValueError(f'{" ".join(ours)}: the seeds are given by --seeds, mode and eval_name by the table')
  if arguments.full and arguments.config:
    raise ValueError('--full and --config exclude each other')
  possible = networks(arguments.table, full=arguments.full, page=arguments.config)
  given = folders(arguments.checkpoint)
  rows = arguments.rows or list(possible)
  if unknown := [name for name in (*rows, *given) if name not in possible]:
    kind = ' with --full' if arguments.full else ''
    raise ValueError(f'{arguments.table}{kind} has no row {", ".join(unknown)}; possible: {", ".join(possible)}')
  if idle := [name for name in given if name not in rows]:
    raise ValueError(f'--checkpoint for {", ".join(idle)}, but --rows are {", ".join(rows)}')
  where = 'COCO' if arguments.full else arguments.config or 'small networks on the embedded data set'
  return Request(
    table=arguments.table,
    networks={name: possible[name] for name in rows},
    folder=absolute(arguments.runs),
    seeds=arguments.seeds,
    given=given,
    overrides=tuple(overrides),
    where=where,
    full=arguments.full,
  )


def folders(pairs: Sequence[str]) -> dict[str, list[epath.Path]]:
  """['name=folder', ...] -> name -> its folders. Raises ValueError for what is no such pair."""
  found = {}
  for pair in pairs:
    name, _, folder = pair.partition('=')
    if not name or not folder:
      raise ValueError(f'--checkpoint {pair}: expected ROW=FOLDER')
    found.setdefault(name, []).append(absolute(folder))
  return found


def absolute(folder: str) -> epath.Path:
  """The program runs in the root of the repository, wherever this script does."""
  return epath.Path(folder) if '://' in folder else epath.Path(Path(folder).expanduser().resolve())
