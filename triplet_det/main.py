"""Trains, evaluates, or both: `python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes`.

Any value of the config can be overridden: `--config.total_steps=500 --config.model.center_branch=false`.
`--config.mode` is train_and_eval (default), train or eval. The same command continues a run that was stopped.

Exit codes: 0 done; 2 the command, data or checkpoint do not fit; 3 the loss is not a number; 75 stopped by a signal
with the state saved, run the same command again.
"""

import difflib
import re
import sys

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from triplet_det import checkpoints, evaluate, sharding, train
from triplet_det.data import pipeline
from triplet_det.models import detector
from triplet_det.progress import show_messages

MODES = ('train_and_eval', 'train', 'eval')
EXIT_MISFIT, EXIT_NON_FINITE, EXIT_STOPPED = 2, 3, 75

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='config file, with its variant: configs/triplet.py:hg=104'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'run folder: checkpoints, metrics, pictures; local or gs://')
_CACHE = flags.DEFINE_string('compilation_cache', '~/.cache/triplet_det', 'folder of compiled programs; empty: none')


def evaluate_checkpoint(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
  """Mode eval: the metrics of the checkpoint in `workdir` (config.eval_checkpoint) on the split config.data.eval."""
  variables, record = checkpoints.load_weights(workdir, which=config.eval_checkpoint)
  source = pipeline.open_source(**config.data.eval)
  module = detector.build(dict(record.model, dtype=config.model.dtype))
  mesh = sharding.make_mesh()
  tester = evaluate.make_detector(
    module,
    variables,
    evaluate.settings_for(config.test.to_dict(), config.image_scale),
    batch_size=config.eval_batch_size,
    sharding=sharding.over_data(mesh) if mesh.devices.size > 1 else None,
  )
  logging.info('evaluating step %d of %s on %d images', record.step, workdir, len(source))
  return evaluate.evaluate(
    tester,
    source,
    record.categories,
    workdir / 'eval' / f'{config.data.eval.split}_step_{record.step:06d}',
    decimals=config.result_decimals,
    draw_threshold=config.draw_threshold,
    about=dict(step=record.step, split=config.data.eval.split),
  )


def run(config: ConfigDict, workdir: str) -> None:
  """Does what `config.mode` says and prints the metrics."""
  if config.mode not in MODES:
    raise ValueError(f'config.mode is {config.mode!r}; possible: {", ".join(MODES)}')
  folder = epath.Path(workdir).expanduser()
  metrics = evaluate_checkpoint(config, folder) if config.mode == 'eval' else train.train(config, folder)
  if metrics:
    print(f'COCO metrics on {config.data.eval.split}:\n{evaluate.format_metrics(metrics)}')
  print(f'everything is in {folder}')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'not understood: {argv[1:]}', exitcode=EXIT_MISFIT)
  show_messages()
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', str(epath.Path(_CACHE.value).expanduser()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  try:
    run(_CONFIG.value, _WORKDIR.value)
  except train.Preempted as stopped:
    logging.warning('%s', stopped)
    sys.exit(EXIT_STOPPED)
  except train.NonFiniteLoss as error:
    _fail(error, EXIT_NON_FINITE)
  except (ValueError, FileNotFoundError, KeyError, checkpoints.Unreadable) as error:
    _fail(error, EXIT_MISFIT)


def _fail(error: Exception, code: int) -> None:
  """One clear message; the stack only for those who ask for it."""
  logging.debug('where it happened:', exc_info=error)
  print(f'\nerror: {error.args[0] if isinstance(error, KeyError) else error}\n(--v=1 shows where)', file=sys.stderr)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  """Flags as absl parses them; a misspelled config key is answered with the nearest known one."""
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.keys()  # of a config file that could not be opened, the first use raises
    return rest
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
    print(f'error: {_explain(error, argv)}', file=sys.stderr)
    sys.exit(EXIT_MISFIT)


def _explain(error: Exception, argv: list[str]) -> str:
  """What is wrong with the command; for an unknown key of the config, what is known where it was looked for."""
  message, path = str(error), _config_path(argv)
  if isinstance(error, OSError):
    return f'the config file cannot be opened: {message.strip().splitlines()[-1].strip()}'
  if 'whilst parsing config file' in message:  # ml_collections puts the whole trace into the message
    lines = message.strip().splitlines()
    where = [line.strip() for line in lines if line.lstrip().startswith('File "')][-1]
    return f'--config={path}: {lines[-1]} ({where})'
  return (path and _unknown_key(path, argv)) or message


def _config_path(argv: list[str]) -> str:
  """What follows --config, '' if nothing does."""
  for argument, following in zip(argv, [*argv[1:], '']):
    if match := re.fullmatch(r'--?config(?:=(.*))?', argument):
      return following if match[1] is None else match[1]
  return ''


def _unknown_key(config_path: str, argv: list[str]) -> str:
  """Says which override names a key that the config does not have; '' if none does."""
  own = flags.FlagValues()  # the flag of the program is not set when its overrides are wrong
  config = config_flags.DEFINE_config_file('config', flag_values=own, sys_argv=[])
  own(['', f'--config={config_path}'])
  for argument in argv:
    match = re.match(r'--?(?:no)?config\.([\w.]+)', argument)
    if not match:
      continue
    place, path = config.value, []
    for key in match.group(1).split('.'):
      if not isinstance(place, ConfigDict):
        break
      if key not in place:
        near = difflib.get_close_matches(key, place.keys(), n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        where = '.'.join(['config', *path])
        return f'unknown key {key!r} in {where}{hint} Known keys: {", ".join(sorted(place.keys()))}'
      path.append(key)
      place = place[key]
  return ''


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=_parse)
