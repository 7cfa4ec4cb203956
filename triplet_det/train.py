"""The training loop, read from top to bottom (Sec. 3.4)."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from triplet_det import evaluate, report
from triplet_det.data import doctor, doctor_report, from_data, pipeline
from triplet_det.detection import trained_network
from triplet_det.detection.settings import settings_for
from triplet_det.devices import compiler, sharding
from triplet_det.pictures import plots
from triplet_det.run import config_history, endings
from triplet_det.run.checkpoints import Checkpoints, NonFinite, RunRecord
from triplet_det.run.metric_writers import METRICS_FILE, MetricWriter, read_metrics
from triplet_det.run.own_commit import own_commit
from triplet_det.run.progress import ProgressLine, duration
from triplet_det.run.stop_signal import stop_signal
from triplet_det.structs import Batch
from triplet_det.training import built_step, finetune, optimizer


class Preempted(Exception):
  """The run was asked to stop (SIGTERM, SIGHUP, Ctrl-C); its state is saved."""


class NonFiniteLoss(Exception):
  """A term of the loss or of the state is not finite; the last good checkpoint is kept."""


def train(config: ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
  """Trains to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

  Or until AP has not risen in `config.patience` evaluations.

  Returns:
    The metrics of the last evaluation; empty in mode 'train'.

  Raises:
    Preempted: after such a signal, once the state is saved.
    NonFiniteLoss: names the step and the terms.
    ValueError: data, config or checkpoint do not fit, see the message.
    pipeline.BrokenInput, pipeline.WorkerLost, OSError: the input, or the disk; notes tell what is saved.
  """
  workdir = epath.Path(workdir).expanduser()

  # Mesh and data.
  mesh = sharding.make_mesh(state_shards=config.state_shards)
  source = pipeline.open_source(**config.data.train)
  config.image_side = from_data.settled_side(config.image_side, source)
  length = config.total_steps, config.eval_every, len(source), config.batch_size
  config.total_steps, config.eval_every = from_data.settled_length(*length)
  categories = source.categories
  evaluates = config.mode == 'train_and_eval'
  eval_source = pipeline.open_source(**config.data.eval) if evaluates else None
  if evaluates:
    advice = 'Give both annotations the same `categories`'
    evaluate.check_categories(eval_source, categories, 'data.eval does not fit data.train', advice)
    if jax.process_index() == 0:  # which measures: by the labels of now, whatever becomes of the file meanwhile
      _ = eval_source.ground_truth

  # Network, optimizer, step.
  built = built_step.build(config, mesh, len(categories))
  settings = settings_for(config.test.to_dict(), config.image_scale, config.image_side)

  # State: the newest checkpoint, or fresh parameters.
  checkpoints = Checkpoints(workdir)
  record = RunRecord(step=0, categories=categories, model=built.model, test=dataclasses.asdict(settings))
  if evaluates:
    record = dataclasses.replace(record, evaluated_on=eval_source.annotations.digest)

  def check_data(before: RunRecord) -> None:
    advice = f'Give another --workdir; --config.init_from={workdir} starts it with these weights'
    evaluate.check_categories(source, before.categories, f'the training data do not fit {workdir}', advice)

  restored = checkpoints.restore_newest(built.state, model=built.model, check=check_data)
  if restored:
    state, before = restored
    first_step, unlogged = before.step, list(before.unlogged)
    if first_step > config.total_steps:
      raise ValueError(
        f'{workdir} is already at step {first_step}, total_steps is {config.total_steps}: give more, or another '
        '--workdir'
      )
    if config.init_from:
      logging.info('init_from is ignored: the run continues from its own step %d', first_step)
  else:
    if built.model.get('encoder_norms') == 'fixed' and not config.init_from:
      raise ValueError(
        'model.encoder_norms=fixed keeps the statistics that an encoder brings along, and init_from is empty: give '
        '--config.model.encoder_norms=batch --config.freeze= as well'
      )
    report_data(config, source, eval_source)
    state, first_step, unlogged = built.fresh_state(), 0, []
    if config.init_from:
      state = finetune.initialise(state, config.init_from, categories=categories, model=built.model)
  if config.freeze:
    share = optimizer.frozen_share(state.params, config.freeze)
    logging.info('%.1f %% of the parameters are frozen: %s', 100 * share, config.freeze)

  # Log: what runs where, and the network.
  is_first_host = jax.process_index() == 0
  writer = MetricWriter(workdir if is_first_host else None, resume_step=first_step)
  writer.write_texts(0, {'config': f'```\n{config}```'})
  if is_first_host:
    text = config.to_json_best_effort(indent=1)
    sources = {'train': source, **({'eval': eval_source} if evaluates else {})}
    data = {f'data.{split}.contents': one.contents for split, one in sources.items()}
    for change in config_history.keep(workdir, text, first_step, data, own_commit()):
      logging.info('changed at step %d: %s', first_step, change)
  logging.info(
    '%s step %d of %d: %d images a step on %d %s device(s), %d training images, %d classes, %.2f M parameters',
    'continuing at' if restored else 'starting at',
    *(first_step, config.total_steps, config.batch_size, mesh.devices.size, mesh.devices.flat[0].platform),
    *(len(source), len(categories), parameter_overview.count_parameters(state.params) / 1e6),
  )

  # Evaluation: the detector's programs are compiled once for the run.
  tester = trained_network.make_detector(
    built.module,
    sharding.on_this_host(state.variables),
    settings,
    batch_size=config.eval_batch_size,
    sharding=sharding.over_own_devices(),
  )

  def evaluate_now() -> dict[str, float]:
    tester.use(sharding.on_this_host(state.variables))
    folder, told = evaluate.evaluation_folder(workdir, step), evaluation_settings(config, workdir, step, eval_source)
    found = stop.unless_it_comes(lambda: evaluate.evaluate(tester, eval_source, categories, folder, **told))
    if found is None:
      stop_here()
    if found:
      logging.info('step %d: AP %.3f, AP50 %.3f', step, found['AP'], found['AP50'])
      if sharding.first_host_says(found['AP'] > checkpoints.best_metric('AP', record.evaluated_on)):
        checkpoints.save_best(state.variables, dataclasses.replace(record, step=step, metrics=found))
    if is_first_host:
      writer.write_pictures(step, {f'eval/{path.stem}': path.read_bytes() for path in sorted(folder.glob('*.png'))})
    # Last: an evaluation that is in the log is complete.
    writer.write_scalars(step, {f'eval/{name}': value for name, value in found.items()})
    writer.flush()
    if is_first_host:
      try:
        report.write_report(workdir)
      except ValueError as error:  # a broken file of an earlier evaluation
        logging.warning('report.html is not renewed: %s', error)
    return found

  def is_over() -> bool:
    said = evaluate.stands_still(workdir, record.evaluated_on, config.patience) if is_first_host else ''
    if said:
      logging.info('%s', said)
    return sharding.first_host_says(bool(said))

  def is_evaluated(step: int) -> bool:
    return evaluates and step > 0 and (step % config.eval_every == 0 or step == config.total_steps)

  # Steps. Batch k is a function of (seed, k), so the input continues where the state does.
  batches = training_batches(config, source, start_step=first_step)
  progress = ProgressLine(config.total_steps, first_step, prefix='train', interval=None if is_first_host else math.inf)
  metrics, pending, step = {}, [], first_step

  def settle() -> None:
    """Waits for the steps so far; from here on their losses are known to be finite."""
    while pending:
      at, values = pending.pop(0)
      values = {name: float(value) for name, value in jax.device_get(values).items()}
      if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
        checkpoints.mark_diverged(at - 1)
        raise NonFiniteLoss(f'step {at}: {bad}; the checkpoints in {workdir} are of earlier steps')
      unlogged.append((at, values))

  def log_means() -> None:
    settle()
    means = {f'train/{name}': np.mean([v[name] for _, v in unlogged]) for name in unlogged[0][1]}
    writer.write_scalars(step, means | {'train/learning_rate': built.rate(step - 1)})
    unlogged.clear()

  def save() -> None:
    settle()
    writer.flush()  # what is behind a URL only then is there; a restart needs the log up to its checkpoint
    try:
      checkpoints.save(state, dataclasses.replace(record, step=step, unlogged=tuple(unlogged)))
    except NonFinite as error:
      raise NonFiniteLoss(f'step {step}: {error}; the checkpoints in {workdir} are of earlier steps') from error

  def stop_here() -> NoReturn:
    if step > first_step:
      save()
    raise Preempted(f'stopped by a signal after step {step}; the same command continues from there')

  def save_the_rest() -> None:
    """Saves the state as an error in the steps left it; its step is that of the last whole one."""
    nonlocal step
    step = int(state.step)
    if step > first_step:
      save()
    checkpoints.close()  # waits for the disk

  with contextlib.ExitStack() as end:
    for one in (writer, checkpoints, batches, progress):  # the last first
      end.callback(one.close)
    with stop_signal() as stop, endings.kept(save_the_rest, checkpoints.sweep, unless=(NonFiniteLoss, Preempted)):
      last_step = config.total_steps
      if is_evaluated(step):  # stopped between the checkpoint and the end of its evaluation, or already at the end
        known = sharding.found_by_first_host(lambda: evaluate.logged(workdir, record.evaluated_on).get(step))
        metrics = known or evaluate_now()
        last_step = step if step < last_step and is_over() else last_step
      if step < last_step:
        logging.info('compiling the training step ...')
      started = time.monotonic()
      for step in range(first_step + 1, last_step + 1):
        asked = time.monotonic()
        if (rows := stop.unless_it_comes(lambda: next(batches))) is None:
          step -= 1
          stop_here()
        batch = sharding.to_global(Batch(**rows), mesh)
        waited = time.monotonic() - asked
        state, step_metrics = built.train_step(state, batch)
        if step == first_step + 1:
          compiler.give_back()
        pending.append((step, step_metrics))
        progress.update(step, loss=step_metrics['loss'], images=config.batch_size, wait_seconds=waited)

        if step % config.log_every == 0 or step == config.total_steps:
          log_means()
        if stop.has_come(step):
          stop_here()
        if step % config.checkpoint_every == 0 or is_evaluated(step) or step == config.total_steps:
          save()
        if is_evaluated(step):
          progress.clear()
          metrics = evaluate_now()
          if step < last_step and is_over():
            if unlogged:
              log_means()
            break
      logging.info('%d steps in %s', step - first_step, duration(time.monotonic() - started))
  if is_first_host:
    plots.write_learning_curves(workdir, read_metrics(workdir / METRICS_FILE))
  return metrics


def evaluation_settings(
  config: ConfigDict, workdir: epath.PathLike, step: int, source: pipeline.Source
) -> dict[str, Any]:
  """What `evaluate.evaluate` takes from a config; the algorithm's name is that of the run folder."""
  return dict(
    split=config.data.eval.split,
    run_name=epath.Path(workdir).resolve().name,
    decimals=config.result_decimals,
    draw_threshold=config.draw_threshold,
    about=dict(step=step, annotations=source.annotations.digest, **numerics(config)),
  )


def numerics(config: ConfigDict) -> dict[str, str]:
  """How the network computes, for fingerprints of results; the precision is JAX's own setting if not the config's."""
  dtype, precision = config.model.dtype, config.model.precision
  if precision == 'default':
    precision = jax.config.jax_default_matmul_precision or precision
  return dict(dtype=dtype, precision=precision)


def training_batches(
  config: ConfigDict, source: pipeline.Source, *, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
  """This host's rows of the batches that are trained on; `pipeline.train_batches` says what they hold.

  After the share of the steps that `config.last_crops` leaves, they are in its size.
  """
  augment = config.augment.to_dict()
  augment['scales'] = [scale / config.image_scale for scale in augment['scales']]

  def batches_of(input_size: int, border: int, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.train_batches(
      source,
      batch_size=config.batch_size,
      input_size=input_size,
      seed=config.seed,
      start_step=start_step,
      image_side=config.image_side,
      num_workers=config.data.num_workers,
      num_threads=config.data.num_threads,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
      **augment | dict(border=round(border / config.image_scale)),
    )

  last = config.last_crops
  switch = round((1 - last.share) * config.total_steps) if last.share else None
  if switch is None or start_step < switch:
    with contextlib.closing(batches_of(config.input_size, config.augment.border, start_step)) as batches:
      yield from itertools.islice(batches, None if switch is None else switch - start_step)
    start_step = switch
  logging.info('crops of %d pixels after step %d', last.input_size, start_step)
  with contextlib.closing(batches_of(last.input_size, last.border, start_step)) as batches:
    yield from batches


def diagnose_data(
  config: ConfigDict,
  source: pipeline.Source,
  eval_source: pipeline.Source | None,
  files: Sequence[doctor.Files] = (),
) -> doctor.Diagnosis:
  """What the data doctor says of the splits; `files` are those of both if they were read."""
  splits = [source, eval_source] if eval_source else [source]
  resolution = dict(scale=config.image_scale, image_side=config.image_side)
  return doctor.diagnose(
    doctor.examine(source, **resolution, crowds_are_objects=config.augment.train_on_crowd),
    doctor.examine(eval_source, **resolution) if eval_source else None,
    input_size=built_step.largest_crops(config),
    crop_scales=config.augment.scales,
    max_objects=config.augment.max_objects,
    files=files,
    turned=[one.turned for one in files] or [doctor.read_headers(split) for split in splits],
  )


def report_data(config: ConfigDict, source: pipeline.Source, eval_source: pipeline.Source | None) -> None:
  """Logs what the data hold and what is wrong with them; ValueError if nothing can be learnt from them."""
  try:
    doctor_report.log(diagnose_data(config, source, eval_source))
  except FileNotFoundError as error:  # a TFDS data set may come without its JSON
    logging.info('the data are not examined: %s', error)
