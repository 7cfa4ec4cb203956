"""The flag --config, and what is wrong with a command that has it, or with the config file, in one message."""

import functools
import operator
import re
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from triplet_det import configs
from triplet_det.run import config_limits
from triplet_det.run.command_line import EXIT_MISFIT

CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='page of configs/ by its name, or a config file, with its variant: triplet:hg=104, mine.py'
)


def parse(argv: list[str]) -> list[str]:
  """All flags as absl parses them; ends the process if something is wrong."""
  path = ''
  try:
    argv, path = _with_path(argv)
    rest = flags.FLAGS(argv)
    CONFIG.value.keys()  # of a config file that could not be opened, the first use raises
    return rest
  except Exception as error:  # absl's and ml_collections', and whatever a config of the user's own raises
    print(f'error: {_explain(error, argv, path)}', file=sys.stderr)
    sys.exit(EXIT_MISFIT)


def _with_path(argv: list[str]) -> tuple[list[str], str]:
  """The command with the path of the config's page in place of its name; and that path, '' without one."""
  argv, path = list(argv), ''
  for at, argument in enumerate(argv):
    if re.fullmatch('--?config', argument) and at + 1 < len(argv):
      argv[at + 1] = path = configs.find(argv[at + 1])
    elif match := re.fullmatch('(--?config=)(.*)', argument):
      path = configs.find(match[2])
      argv[at] = match[1] + path
  return argv, path


def _explain(error: Exception, argv: list[str], path: str) -> str:
  """What is wrong with the command; for an unknown key of the config, what is known where it was looked for."""
  message = str(error)
  if missing := re.findall(r'Flag --(\w+) must have a value', message):
    return '; '.join(f'--{name} is not given: give the {flags.FLAGS[name].help}' for name in missing)
  if not path:
    return message
  page = Path(path.partition(':')[0])
  if isinstance(error, OSError):
    if (configs.FOLDER / page.name).exists():
      return f'there is no config file {page} in this folder: give --config={path.replace(str(page), page.stem)}'
    there = ', '.join(sorted(map(str, page.parent.glob('*.py')))) or f'none in {page.parent}'
    return f'the config file cannot be opened: {message.strip().splitlines()[-1].strip()}; possible: {there}'
  if 'whilst parsing config file' in message:  # ml_collections puts the whole trace into the message
    lines = message.strip().splitlines()
    where = [line.strip() for line in lines if line.lstrip().startswith('File "')][-1]
    if lines[-1].startswith('TypeError: get_config() takes 0'):
      return f'--config={path}: this config has no variants: give --config={page}'
    return f'--config={path}: {lines[-1]} ({where})'
  if isinstance(error, AttributeError) and 'get_config' in message:
    return f'--config={path}: a config file has a function get_config() that returns a ConfigDict, as those of configs/'
  inside = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == page.resolve()]
  if inside:
    return f'--config={path}: {type(error).__name__}: {message} (File "{page}", line {inside[-1].lineno})'

  own = flags.FlagValues()  # the config without overrides: the program's flag has no value when they are wrong
  config = config_flags.DEFINE_config_file('config', flag_values=own, sys_argv=[])
  own(['', f'--config={path}'])
  try:
    check_keys(config.value, argv)
  except ValueError as unknown:
    return str(unknown)
  # absl on a value that is missing or of another type.
  if match := re.match(r'(?:flag|Missing value for flag) --config\.([\w.]+)(?:=([^:]*): )?', message):
    usual = functools.reduce(operator.getitem, match[1].split('.'), config.value)
    what = 'no value' if match[2] is None else f'{match[2]!r} cannot be its value'
    return f'--config.{match[1]}: {what}: give a {type(usual).__name__}, as its usual {usual!r}'
  return message


def check_keys(config: ConfigDict, argv: list[str]) -> None:
  """Raises ValueError for an override of a key that the config does not have."""
  for argument in argv:
    if match := re.match(r'--?(?:no)?config\.([\w.]+)', argument):
      place, path = config, 'config'
      for key in match[1].split('.'):
        if isinstance(place, ConfigDict):
          config_limits.check_names('key', [key], sorted(place.keys()), where=f' in {path}')
          place, path = place[key], f'{path}.{key}'
