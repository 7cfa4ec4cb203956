"""Trains, evaluates, or both: `python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes`.

Any value of the config can be overridden: `--config.total_steps=500 --config.model.center_branch=false`.
The same command continues a run that was stopped. `--config.mode` is one of
  train_and_eval (default), train
  eval            metrics, curves and pictures of the checkpoint in the workdir on config.data.eval
  error_analysis  its metrics with each of its outputs replaced by ground truth (Table 5)
  report          the page of the run, report.html, which all modes write, once more
  check_data      what both splits hold, what was repaired and what is wrong, after reading every image
  show_data       what the network sees in training: images, boxes and target heatmaps, in <workdir>/data.png

`--config.dry_run=true` compiles the programs and says what they take of the devices at hand, and does nothing else.

On a TPU pod, under SLURM or MPI the same command is started on every host and they find each other; anywhere else
--coordinator, --num_hosts and --host_index tell them.

Exit codes: 0 done; 2 the command, data or checkpoint do not fit; 3 the loss is not a number; 66 an image cannot be read
any more; 71 a process of the input was killed; 74 the disk is full; 75 stopped by a signal (SIGTERM, SIGHUP, Ctrl-C)
with the state saved, run the same command again; 76 another host is gone, start all of them again; 130 interrupted with
nothing to save; 134 as 76, but JAX noticed it first. After 66, 71 and 74 the message of a training says which step is
saved.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from triplet_det import dry_run, evaluate, report, train
from triplet_det.data import doctor, doctor_report, from_data, pipeline
from triplet_det.data.layouts import folder as data_folder
from triplet_det.detection import trained_network
from triplet_det.detection.settings import Settings, settings_for
from triplet_det.devices import compiler, sharding
from triplet_det.evaluators import error_analysis
from triplet_det.models import detector
from triplet_det.run import checkpoints, command_line, config_flag, config_limits, json_files, output_paths
from triplet_det.run.endings import (
  EXIT_DISK,
  EXIT_INPUT,
  EXIT_INTERRUPTED,
  EXIT_MISFIT,
  EXIT_WORKER,
  disk_is_full,
  ending_in_time,
  note_what_is_kept,
  one_line,
)
from triplet_det.run.in_use import in_use
from triplet_det.run.progress import ProgressLine, show_messages
from triplet_det.training import built_step, show_data

MODES = ('train_and_eval', 'train', 'eval', 'error_analysis', 'report', 'check_data', 'show_data')
EXIT_NON_FINITE, EXIT_STOPPED, EXIT_ALONE = 3, 75, 76
_PATIENCE = 5.0  # seconds for the other hosts to say what is wrong with them too, which they cannot without the first

_CONFIG = config_flag.CONFIG
_WORKDIR = flags.DEFINE_string('workdir', None, 'run folder: checkpoints, metrics, pictures; local or gs://')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'several hosts: address:port of the first one')
_NUM_HOSTS = flags.DEFINE_integer('num_hosts', None, 'several hosts: how many processes there are')
_HOST_INDEX = flags.DEFINE_integer('host_index', None, 'several hosts: which one this is, from 0')
_CACHE = flags.DEFINE_string('compilation_cache', command_line.CACHE, command_line.CACHE_HELP)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A checkpoint, and how and on what it is to be tested."""

  module: detector.Detector
  variables: Mapping
  record: checkpoints.RunRecord
  settings: Settings
  source: pipeline.Source
  folder: epath.Path  # of the evaluation
  placement: Mapping  # batch_size and sharding


def open_trial(config: ConfigDict, workdir: epath.Path) -> Trial:
  """The checkpoint in `workdir` (config.eval_checkpoint), to be tested on the split config.data.eval."""
  variables, record = checkpoints.load_weights(workdir, which=config.eval_checkpoint)
  folder = evaluate.evaluation_folder(workdir, record.step, split=config.data.eval.split, name=config.eval_name)
  source = pipeline.open_source(**config.data.eval)
  evaluate.check_categories(source, record.categories)
  logging.info('testing step %d of %s on %d images', record.step, workdir, len(source))
  image_side = config.image_side
  if image_side == from_data.FROM_DATA:
    image_side = record.test.get('image_side', 0)  # of the training's data
  return Trial(
    module=detector.build(dict(record.model, dtype=config.model.dtype, precision=config.model.precision)),
    variables=variables,
    record=record,
    settings=settings_for(config.test.to_dict(), config.image_scale, image_side),
    source=source,
    folder=folder,
    placement=dict(batch_size=config.eval_batch_size, sharding=sharding.over_own_devices()),
  )


def evaluate_checkpoint(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
  """Mode eval: the metrics of a checkpoint; `evaluate.evaluate` lists the files."""
  trial = open_trial(config, workdir)
  with _alone(trial):
    return evaluate.evaluate(
      trained_network.make_detector(trial.module, trial.variables, trial.settings, **trial.placement),
      trial.source,
      trial.record.categories,
      trial.folder,
      **train.evaluation_settings(config, workdir, trial.record.step, trial.source),
    )


def _alone(trial: Trial) -> contextlib.AbstractContextManager[None]:
  """One evaluation in the folder of its results; beside a training, which has folders of its own, it may be."""
  trial.folder.mkdir(parents=True, exist_ok=True)
  return in_use(trial.folder if jax.process_index() == 0 else None, 'give another --config.eval_name')


def analyse_errors(config: ConfigDict, workdir: epath.Path) -> list[dict]:
  """Mode error_analysis: writes error_analysis.json into the evaluation's folder and returns its rows."""
  trial = open_trial(config, workdir)
  with _alone(trial):
    rows = error_analysis.analyse(trial.module, trial.variables, trial.settings, trial.source, **trial.placement)
  numerics = train.numerics(config)
  about = dict(step=trial.record.step, split=config.data.eval.split, images=len(trial.source), **numerics)
  recipe = evaluate.fingerprint(trial.settings, **about)
  json_files.write_json(trial.folder / 'error_analysis.json', dict(rows=rows, fingerprint=recipe))
  return rows


def check_data(config: ConfigDict) -> None:
  """Mode check_data: prints what the data doctor finds after reading every image of both splits.

  Raises:
    ValueError: something makes training impossible.
  """
  sources = {'train': pipeline.open_source(**config.data.train), 'evaluation': pipeline.open_source(**config.data.eval)}
  files = []
  for name, source in sources.items():
    progress = ProgressLine(len(source), prefix=f'reading {name}', unit='image')
    files.append(doctor.read_every_image(source, progress.update))
    progress.close()
  config.image_side = from_data.settled_side(config.image_side, sources['train'])
  diagnosis = train.diagnose_data(config, *sources.values(), files=files)
  print(doctor_report.full(diagnosis))
  if diagnosis.fatal:
    count = '1 thing makes' if len(diagnosis.fatal) == 1 else f'{len(diagnosis.fatal)} things make'
    raise ValueError(f'{count} training impossible, see above; the first: {diagnosis.fatal[0]}')


def show_training_data(config: ConfigDict, workdir: epath.Path) -> epath.Path:
  """Mode show_data: the pictures of `show_data.write`, and the path of their sheet."""
  source = pipeline.open_source(**config.data.train)
  config.image_side = from_data.settled_side(config.image_side, source)
  length = config.total_steps, config.eval_every, len(source), config.batch_size
  config.total_steps, _ = from_data.settled_length(*length)
  batches = train.training_batches(config, source)
  try:
    centers = config.model.center_branch
    return show_data.write(source, batches, workdir, centers=centers, **built_step.image_settings(config))
  finally:
    batches.close()


def place_data(config: ConfigDict, workdir: epath.Path) -> None:
  """Finds out what lies in `config.data.root` and points config.data.train and .eval at it; other configs stay.

  What is no COCO JSON per split is written as one into <workdir>/data, where it can be looked at. All hosts call it.

  Raises:
    FileNotFoundError, ValueError: of `layouts.folder.read`; the run folder lies in the data, or a run that is going on
      in it has read other data; there is no such split.
  """
  if not config.data.get('root'):
    return
  root = Path(os.path.expanduser(config.data.root))
  if '://' not in str(workdir) and Path(workdir).resolve().is_relative_to(root.resolve()):
    raise ValueError(f'--workdir={workdir} lies in data.root={root}, which is only read: give another place')
  data = data_folder.read(root, config.data.layout)
  if (split := config.data.eval.split) not in data.splits:
    raise ValueError(f'data.eval.split is {split!r}, {root} has {", ".join(data.splits)}: give one of them')
  if jax.process_index() == 0:
    logging.info('%s', data)
    jsons = {workdir / 'data' / f'{name}.json': part for name, part in data.splits.items() if part.path is None}
    contents = {path: json.dumps(part.content).encode() for path, part in jsons.items()}
    new = {path: now for path, now in contents.items() if not path.exists() or path.read_bytes() != now}
    if new:
      output_paths.make_folder('--workdir', workdir)
      with in_use(workdir, 'give another --workdir: the data are others now'):  # a training reads them
        (workdir / 'data').mkdir(parents=True, exist_ok=True)
        for path, now in new.items():
          output_paths.write_whole(path, now)
  sharding.first_host_says(True)  # nobody reads before it is there
  for name, settings in (('train', config.data.train), (split, config.data.eval)):
    part = data.splits[name]
    settings.update(images=str(part.images), annotations=str(part.path or workdir / 'data' / f'{name}.json'))
    if data.layout != 'coco':  # their tools show, and their labels count on, photos that stand upright
      settings.orientation = 'upright'


def check_apart(config: ConfigDict, folder: epath.Path) -> None:
  """Raises ValueError if a file that a run writes into its folder is one of the data."""
  written = [
    folder / name for name in ('config.json', 'metrics.jsonl', 'loss.png', 'ap.png', 'report.html', 'data.png')
  ]
  data = [os.path.expanduser(split.get('annotations', '')) for split in (config.data.train, config.data.eval)]
  if not written[0].exists():  # later they are the run's own
    places = [os.path.expanduser(split.get('images', '')) for split in (config.data.train, config.data.eval)]
    data += [epath.Path(place) / path.name for place in places if place for path in written]
  output_paths.check_apart(written, data)


def run(config: ConfigDict, workdir: str) -> None:
  """Does what `config.mode` says, prints the metrics and writes the report."""
  if config.mode not in MODES:
    raise ValueError(f'config.mode is {config.mode!r}; possible: {", ".join(MODES)}')
  config_limits.check(config.to_dict())
  if str(workdir).startswith('file:'):
    raise ValueError(f'--workdir={workdir}: give the path alone, without file://')
  if config.mode in ('error_analysis', 'show_data') and jax.process_count() > 1:
    raise ValueError(f'config.mode={config.mode} is work for one host, here are {jax.process_count()}: start it on one')
  folder = epath.Path(workdir).expanduser()
  if config.mode in ('eval', 'error_analysis') and not config.dry_run and not folder.is_dir():
    raise FileNotFoundError(f'no run folder at --workdir={workdir}: give one that was trained')
  if config.mode != 'report':
    place_data(config, folder)
  if config.dry_run:
    found = dry_run.plan_here(config)
    if jax.process_index() == 0:
      print(dry_run.as_text(found))
    return
  if config.mode == 'check_data':
    check_data(config)
    return
  if config.mode in ('train_and_eval', 'train', 'show_data') or folder.is_dir():
    output_paths.make_folder('--workdir', workdir)
    check_apart(config, folder)
  if config.mode == 'show_data':
    print(f'to look at: {show_training_data(config, folder)}')
    return
  if not config.mode.startswith('train'):
    _work(config, folder)
    return
  with in_use(folder if jax.process_index() == 0 else None, 'give another --workdir'):
    try:
      _work(config, folder)
    except Exception as error:
      if disk_is_full(error):  # before and after the steps too, and in the last save
        note_what_is_kept(error, checkpoints.sweep(folder))
      raise


def _work(config: ConfigDict, folder: epath.Path) -> None:
  """What prints metrics and writes the report."""
  if config.mode == 'error_analysis':
    rows = analyse_errors(config, folder)
    print(f'outputs replaced by ground truth, {config.data.eval.split}:\n{evaluate.format_error_analysis(rows)}')
  elif config.mode != 'report':
    metrics = evaluate_checkpoint(config, folder) if config.mode == 'eval' else train.train(config, folder)
    if metrics:
      print(f'COCO metrics on {config.data.eval.split}:\n{evaluate.format_metrics(metrics)}')
  if jax.process_index() == 0:
    print(f'to look at: {report.write_report(folder)}')
  print(f'everything is in {folder}')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(ValueError(f'not understood: {argv[1:]}; all is said by flags, such as --config.mode=eval'), EXIT_MISFIT)
  show_messages()
  compiler.keep_programs(_CACHE.value)
  try:
    sharding.join_hosts(_COORDINATOR.value, _NUM_HOSTS.value, _HOST_INDEX.value)
    run(_CONFIG.value, _WORKDIR.value)
  except train.Preempted as stopped:
    logging.warning('%s', stopped)
    sys.exit(EXIT_STOPPED)
  except train.NonFiniteLoss as error:
    _fail(error, EXIT_NON_FINITE)
  except pipeline.BrokenInput as error:
    _fail(error, EXIT_INPUT)
  except pipeline.WorkerLost as error:
    _fail(error, EXIT_WORKER)
  except KeyboardInterrupt:
    _fail(RuntimeError('interrupted'), EXIT_INTERRUPTED)
  except jax.errors.JaxRuntimeError as error:
    if not _is_one_of_several():
      raise
    reason = str(error).strip().splitlines()[0]
    print(f'\nerror: another host is gone or failed ({reason}): start all of them again', file=sys.stderr, flush=True)
    os._exit(EXIT_ALONE)  # a proper end would wait for the other host
  except Exception as error:
    if disk_is_full(error):
      _fail(OSError(f'the disk is full: {one_line(error)}'), EXIT_DISK)
    if isinstance(error, (ValueError, OSError, KeyError, sharding.HostsMissing)):
      _fail(error, EXIT_MISFIT)
    if not _is_one_of_several():
      raise
    traceback.print_exc()
    _leave(1)


def _fail(error: Exception, code: int) -> None:
  """One clear message; the stack only for those who ask for it."""
  logging.debug('where it happened:', exc_info=error)
  message = '; '.join([str(error.args[0] if isinstance(error, KeyError) else error), *getattr(error, '__notes__', ())])
  print(f'\nerror: {message}\n(--v=1 shows where)', file=sys.stderr)
  if _is_one_of_several() and not isinstance(error, sharding.HostsMissing):
    _leave(code)
  sys.exit(code)


def _is_one_of_several() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1


def _leave(code: int) -> None:
  """Ends the process without the farewell for which it would wait for the other hosts, which wait for this one."""
  sys.stderr.flush()
  time.sleep(_PATIENCE)
  os._exit(code)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  with ending_in_time():
    app.run(main, flags_parser=config_flag.parse)
