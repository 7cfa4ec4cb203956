"""The runs behind a table: reads what is finished, lets `python -m triplet_det.main` make what is missing."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from triplet_det import configs, evaluate
from triplet_det.data import from_data
from triplet_det.detection.settings import settings_for
from triplet_det.report import run_folder
from triplet_det.run import checkpoints, config_flag, config_history
from triplet_det.run.config_history import flat

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ('stacks', 'center_branch', 'center_pooling', 'cascade_corner_pooling')  # that tell networks apart


@dataclasses.dataclass(frozen=True)
class Run:
  """One network to be trained or, if it is given, only tested."""

  label: str  # among the runs of its row: 'seed 0', or the name of the folder that was given
  folder: epath.Path
  page: str  # as for `load_config`
  changes: tuple[str, ...] = ()  # overrides of the page, '--config.x=y'
  tests: tuple[str, ...] = ()  # overrides for the evaluation alone
  seed: int | None = None  # None: the folder is given, nothing is trained

  def config(self, *, tested: bool = False) -> ConfigDict:
    config = load_config(self.page, *self.changes, *(self.tests if tested else ()))
    for name in ('total_steps', 'image_side'):
      if config[name] == from_data.FROM_DATA:
        raise ValueError(
          f'{self.page} leaves config.{name} to the data: runs that are compared need one, give --config.{name}=N'
        )
    return config

  def step(self) -> int:
    """The step whose weights are tested: the last one, or that of a given checkpoint.

    Raises:
      ValueError: the given folder has no checkpoint, or that of a network with other switches.
    """
    config = self.config()
    if self.seed is not None:
      return config.total_steps
    for name in dict.fromkeys((config.eval_checkpoint, checkpoints.STATES)):  # as `checkpoints.load_weights`
      if steps := _steps_in(self.folder / name):
        checkpoint = self.folder / name / str(max(steps))
        there = json.loads((checkpoint / 'record' / 'metadata').read_text(encoding='utf-8'))['model']
        wrong = [f'{s} is {there[s]} there, {config.model[s]} here' for s in SWITCHES if there[s] != config.model[s]]
        if wrong:  # a row must not show another network under its name
          raise ValueError(f'{checkpoint} is not the network of {self.page}: {"; ".join(wrong)}')
        return max(steps)
    raise ValueError(f'no checkpoint in {self.folder}: expected a run folder with best/ or checkpoints/ in it')

  def evaluation_folder(self) -> epath.Path:
    """Of the evaluation after training."""
    config = self.config(tested=True)
    about = dict(split=config.data.eval.split, name=config.eval_name)
    return evaluate.evaluation_folder(self.folder, self.step(), **about)


@dataclasses.dataclass(frozen=True)
class Result:
  """What an evaluation wrote, and how the run was trained."""

  content: Mapping  # of metrics.json or error_analysis.json
  training: Mapping  # flat, of the run's config.json; empty if it has none

  @property
  def recipe(self) -> dict:
    """Flat: all that the program noted of how the figures came about."""
    return dict(flat(self.content['fingerprint'])) | {f'training.{k}': v for k, v in self.training.items()}


def result(run: Run, mode: str, columns: Sequence[str]) -> Result:
  """What mode eval or error_analysis writes for a run, with today's settings; what is missing is executed first.

  Args:
    run: trained now, finished, or given.
    mode: 'eval' or 'error_analysis'.
    columns: the metrics that are needed, of mode eval.

  Raises:
    ValueError: as `Run.step`; a command failed; or there are no such metrics, as the split has no annotations.
  """
  found = find(run, mode, columns)
  if not found:
    for command in missing(run, mode):
      execute(command)
    found = find(run, mode, columns)
  if not found:
    raise ValueError(
      f'mode {mode} wrote no {", ".join(columns) or "error analysis"} into {run.evaluation_folder()}: if the split has '
      'no annotations, the results JSON there goes to the server; another one is chosen by --config.data.eval.split'
    )
  return found


def missing(run: Run, mode: str) -> list[list[str]]:
  """The commands that make what is not there yet, in order."""
  program = [sys.executable, '-m', 'triplet_det.main', f'--config={run.page}', f'--workdir={run.folder}']
  newest = [] if run.seed is None else [f'--config.eval_checkpoint={checkpoints.STATES}']
  testing = [*program, f'--config.mode={mode}', *newest, *run.changes, *run.tests]
  if run.seed is None or run.step() in _steps_in(run.folder / checkpoints.STATES):
    return [testing]
  training = [*program, f'--config.seed={run.seed}', *run.changes]
  return [training, testing] if run.tests or mode != 'eval' else [training]  # training ends with an evaluation


def execute(command: list[str]) -> None:
  """Runs the program; its progress goes to the terminal. ValueError if it fails, after it has said why."""
  print(' '.join(command), file=sys.stderr, flush=True)
  code = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode
  if code:
    raise ValueError(f'this ended with exit code {code}, see above: {" ".join(command)}')


def find(run: Run, mode: str, columns: Sequence[str]) -> Result | None:
  """Made after training, or for mode eval by training itself: whichever has the columns and is of these settings."""
  if mode != 'eval':
    return _read(run, run.evaluation_folder() / f'{mode}.json')
  for folder in (run.evaluation_folder(), evaluate.evaluation_folder(run.folder, run.step())):
    found = _read(run, folder / 'metrics.json')
    if found and set(columns) <= found.content['metrics'].keys():
      return found
  return None


def _read(run: Run, path: epath.Path) -> Result | None:
  """The file's content, unless it was made with other settings than are asked for now."""
  if not path.exists():
    return None
  content, config = json.loads(path.read_text(encoding='utf-8')), run.config(tested=True)
  try:
    run_folder.check_results(path.parent, content)
  except ValueError as error:
    raise ValueError(f'{path}: {error}: evaluate again, or move it') from error
  settings = dataclasses.asdict(settings_for(config.test.to_dict(), config.image_scale, config.image_side))
  wanted = dict(flat(dict(test=settings, split=config.data.eval.split)))
  if 'metrics' in content:  # the error analysis writes no boxes
    wanted['decimals'] = config.result_decimals
  made = dict(flat(content['fingerprint']))
  if other := [f'{name} {made.get(name)} instead of {v}' for name, v in wanted.items() if made.get(name) != v]:
    print(f'{path} is of another test and not used: {"; ".join(other)}', file=sys.stderr)
    return None
  told = run.folder / 'config.json'
  return Result(content, training_values(json.loads(told.read_text(encoding='utf-8'))) if told.exists() else {})


def _steps_in(folder: epath.Path) -> list[int]:
  return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def other_training(run: Run, result: Result) -> dict[str, tuple]:
  """Name of a value -> (in the run's config.json, asked for now), of all that training depends on and that differ."""
  asked = training_values(run.config().to_dict()) if result.training and run.seed is not None else {}
  there = {k: result.training.get(k, 'not noted') for k in asked}
  return {k: (there[k], v) for k, v in asked.items() if there[k] != v}


@functools.cache
def load_config(page: str, *overrides: str) -> ConfigDict:
  """The config as the program reads it; not to be modified.

  Args:
    page: by its name, or the path of a file from the root of the repository, with its variant.
    overrides: '--config.x=y'.

  Raises:
    ValueError: no such page, an unknown variant, key or value; says which.
  """
  argv = ['', f'--config={ROOT / configs.find(page)}', *overrides]
  own = flags.FlagValues()
  try:
    config = config_flags.DEFINE_config_file('config', flag_values=own, sys_argv=argv)
    own(argv)
    config.value.keys()  # of a file that could not be opened, the first use raises
    return config.value
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    if overrides:
      config_flag.check_keys(load_config(page), overrides)
    reason = str(error.args[0] if error.args else error).strip().splitlines()
    where = ' '.join([page, *overrides])
    long = 'whilst parsing' in reason[0] or isinstance(error, OSError)  # ml_collections tells all that it tried
    raise ValueError(f'{where}: {reason[-1].strip() if long else " ".join(reason)}') from error


def training_values(config: Mapping) -> dict[str, object]:
  """The flat values of a config that the network of a row depends on; not the seed, which is meant to differ."""
  values = config_history.of_training(config) | {'init_from': config.get('init_from', '')}
  return {name: value for name, value in values.items() if name != 'seed' and not name.startswith('data.eval.')}
