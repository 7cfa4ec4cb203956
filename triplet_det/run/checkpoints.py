"""Checkpoints of a run: the newest states to continue from, and the weights with the best AP to use.

<workdir>/checkpoints/<step>/   the whole TrainState and what a restart needs to know (`RunRecord`)
<workdir>/best/<step>/          the variables alone, and the same record

Every record has a digest of its arrays and of itself, compared when they are read; one without, of an older version, is
taken with a warning. What is not finite is neither saved nor read.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from triplet_det.devices import sharding
from triplet_det.run import array_digest, run_record
from triplet_det.run.run_record import RunRecord

STATES, BEST = 'checkpoints', 'best'
_BEFORE = {'encoder': 'hourglass', 'pixels': 'coco'}  # of networks whose record is older than the key
_DIVERGED = 'diverged'  # a file in the folder of a state after which the loss was not finite


class Unreadable(ValueError):
  """There are checkpoints, and none can be read."""


class NonFinite(ValueError):
  """Arrays that are to be saved, or were, have numbers that are not finite; names the first."""


class Checkpoints:
  """Saves and restores the checkpoints below one run folder. Saves are asynchronous; `close` waits for them."""

  def __init__(self, workdir: epath.PathLike, *, keep: int = 2):
    """Args:
    workdir: the run folder.
    keep: how many of the newest states stay; with 2 there is one to go back to if the newest cannot be read.
    """
    self._root = epath.Path(workdir)
    self._states = _manager(self._root / STATES, keep)
    self._best = _manager(self._root / BEST, 1)

  def save(self, state: Any, record: RunRecord) -> None:
    """Saves the state of `record.step` unless that step is there already; NonFinite if it is not worth it."""
    self._save(self._states, state, record)

  def save_best(self, variables: Any, record: RunRecord) -> None:
    """Saves the variables as the best so far, and waits until they are on disk; the ones before go."""
    for step in self._best.all_steps():
      if step >= record.step:  # of a state that gave way to one before it, or measured on other data
        self._best.delete(step)
    self._save(self._best, variables, record)
    self._best.wait_until_finished()

  def mark_diverged(self, step: int) -> None:
    """Notes, if the state of this step is kept, that the loss of the next one was not finite: it is not good."""
    self._states.wait_until_finished()
    if jax.process_index() == 0 and step in self._states.all_steps():
      (self._states.directory / str(step) / _DIVERGED).touch()

  def _save(self, manager: ocp.CheckpointManager, tree: Any, record: RunRecord) -> None:
    if record.step in manager.all_steps():
      return
    digest, faulty = array_digest.measure(tree)
    if faulty:
      raise NonFinite(array_digest.told(faulty))
    sealed = dataclasses.replace(record, digest=digest).sealed()
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(sealed))
    if not manager.save(record.step, args=arguments):
      raise RuntimeError(f'the checkpoint of step {record.step} was not saved in {manager.directory}')

  def best_metric(self, name: str, evaluated_on: str = '') -> float:
    """The metric of the best checkpoint so far, -inf without one, if its record cannot be read or if it was measured on
    other data than `evaluated_on`. All hosts must call it.
    """
    found = sharding.found_by_first_host(lambda: self._best_on_disk(name, evaluated_on))
    self._best.reload()
    return found

  def _best_on_disk(self, name: str, evaluated_on: str) -> float:
    step = self._best.latest_step()
    if step is None:
      return float('-inf')
    directory = self._best.directory / str(step)
    try:
      best = run_record.read(directory)
      if evaluated_on in ('', best.evaluated_on) or not best.evaluated_on:
        return best.metrics[name]
      told = 'the best %s so far, %.3f of step %d, is of other evaluation data: it is not compared'
      logging.warning(told, name, best.metrics[name], step)
      return float('-inf')
    except Exception as error:  # whatever the file system and JSON raise for broken files
      kept = _put_aside(directory, self._root / f'{BEST}_broken')
      logging.warning('%s cannot be read (%s): it is now %s', directory, _one_line(error), kept)
      return float('-inf')

  def restore_newest(
    self, like: Any, *, model: Mapping[str, Any], check: Callable[[RunRecord], None] = lambda record: None
  ) -> tuple[Any, RunRecord] | None:
    """The newest state that is whole, or None if the folder has none.

    A state that cannot be read (the disk was full, a file is gone) gives way to the one before: it is moved to
    `checkpoints_broken/` with a message; one that diverged to `checkpoints_diverged/`. A save that was killed left no
    state, and is swept away by the next one.

    Args:
      like: a tree of ShapeDtypeStructs with shardings.
      model: the model config of this run.
      check: raises ValueError if a checkpoint of that record is none of this run.

    Raises:
      ValueError: of `check`; the checkpoint is of another network (names every key that differs) or another optimizer.
      Unreadable: there are states and none can be read; they stay where they are.
    """
    if jax.process_index() == 0:
      for directory in (self._states.directory / str(step) for step in self._states.all_steps()):
        if (directory / _DIVERGED).exists():
          kept = _put_aside(directory, self._root / f'{STATES}_{_DIVERGED}')
          logging.warning('the loss of the step after %s was not finite: it is now %s', directory, kept)
    sharding.first_host_says(True)  # the others wait for it
    self._states.reload()
    failures = {}
    for step in sorted(self._states.all_steps(), reverse=True):
      directory, reason = self._states.directory / str(step), ''
      try:
        state, record = self._restore(step, like, model, check)
      except _Misfit:
        raise
      except Exception as error:  # whatever orbax, tensorstore and JSON raise for broken files
        reason = _one_line(error)
      if reason := next(filter(None, sharding.from_all_hosts(reason)), ''):  # what one host cannot read, none takes
        failures[directory] = reason
        continue
      if jax.process_index() == 0:
        for broken, reason in failures.items():
          kept = _put_aside(broken, self._root / f'{STATES}_broken')
          logging.warning('%s cannot be read (%s): it is now %s, step %d is used', broken, reason, kept, step)
      sharding.first_host_says(True)  # the others wait for it
      self._states.reload()
      return state, record
    if failures:
      listed = '; '.join(f'{directory.name}: {reason}' for directory, reason in failures.items())
      raise Unreadable(
        f'none of the {len(failures)} checkpoints in {self._states.directory} can be read: {listed}. Copy them again, '
        'or give another --workdir'
      )
    return None

  def _restore(
    self, step: int, like: Any, model: Mapping[str, Any], check: Callable[[RunRecord], None]
  ) -> tuple[Any, RunRecord]:
    directory = self._states.directory / str(step)
    record = run_record.read(directory)
    try:
      check(record)
    except ValueError as error:
      raise _Misfit(str(error)) from error
    check_same_model(directory, record.model, model)
    _check_state(directory, like, record.digest)
    restored = self._states.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
    _check_arrays(restored.state, record.digest, directory)
    return restored.state, record

  def close(self) -> None:
    """Waits until everything is on disk."""
    with contextlib.ExitStack() as stack:  # one whose save has failed raises that, and the other is closed as well
      for manager in (self._best, self._states):
        stack.callback(manager.close)
        stack.callback(manager.wait_until_finished)

  def sweep(self) -> int | None:
    """The function `sweep`, once no save is running; that one has failed does not matter any more."""
    for manager in (self._states, self._best) if jax.process_count() == 1 else ():
      with contextlib.suppress(Exception):
        manager.wait_until_finished()
    return sweep(self._root)


class _Misfit(ValueError):
  """A whole checkpoint of another network, or of other data."""


def sweep(workdir: epath.PathLike) -> int | None:
  """The newest step whose state is on disk and good, or None; what failed saves left is removed (by one host alone)."""
  states = _absolute(epath.Path(workdir) / STATES)
  for folder in (states, states.parent / BEST) if jax.process_count() == 1 else ():
    for half_written in folder.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
      shutil.rmtree(half_written, ignore_errors=True)
  whole = ocp.utils.checkpoint_steps(states)
  return max((step for step in whole if not (states / str(step) / _DIVERGED).exists()), default=None)


def check_same_model(directory: epath.PathLike, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises ValueError naming every differing key of two model configs."""
  if differing := model_differences(saved, wanted):
    raise _Misfit(
      f'{directory} is of another network; {"; ".join(differing)}. Give another --workdir, or the config of that run'
    )


def model_differences(
  saved: Mapping[str, Any], wanted: Mapping[str, Any], *, apart_from: Sequence[str] = ()
) -> list[str]:
  """Both values of every key in which two model configs differ, if it changes the parameters."""
  saved, wanted = (_BEFORE | json.loads(json.dumps(dict(m))) for m in (saved, wanted))
  return [
    f'{key}: {saved.get(key, "default")} there, {wanted.get(key, "default")} here'
    for key in sorted(set(saved) | set(wanted))
    if saved.get(key) != wanted.get(key)
    and key not in ('dtype', 'precision', 'remat', 'norm_group', 'norm_running', 'encoder_norms', *apart_from)
  ]


def _check_arrays(tree: Any, digest: Mapping[str, str], directory: epath.Path) -> None:
  """Raises ValueError if the arrays are not those of the digest, and NonFinite."""
  found, faulty = array_digest.measure(tree)
  wrong = [branch for branch in found if branch != array_digest.NAMES and found[branch] != digest.get(branch)]
  if not digest:
    logging.warning('%s is of an older version, without a digest: not checked for flipped bits', directory)
  elif wrong:
    raise ValueError(f'{", ".join(wrong)}: not the numbers that were saved, by their digest')
  if faulty:
    raise NonFinite(array_digest.told(faulty))


def _check_state(directory: epath.Path, like: Any, digest: Mapping[str, str]) -> None:
  """Raises ValueError when the saved and the wanted state have other parts, or only one keeps moving averages."""
  there = _saved_names(directory / 'state', digest)
  here = {array_digest.name_of(at) for at, _ in jax.tree_util.tree_leaves_with_path(like)}
  saved, wanted = _has_averages(there), _has_averages(here)
  if saved != wanted:
    kept = {True: 'keeps moving averages', False: 'keeps none'}
    raise _Misfit(
      f'{directory} {kept[saved]}, this run {kept[wanted]}: give the average_decay of that run, or another --workdir'
    )
  if there != here:
    only = [
      f'{len(a - b)} arrays are only {where} ({min(a - b)}, ...)'
      for a, b, where in ((there, here, 'there'), (here, there, 'here'))
      if a - b
    ]
    raise _Misfit(
      f'{directory} is the state of another program or optimizer: {"; ".join(only)}. Give another --workdir; '
      f'--config.init_from={directory} starts it with the weights alone'
    )


def _saved_names(directory: epath.Path, digest: Mapping[str, str]) -> set[str]:
  """'params/stem/conv/kernel', ...: of the arrays below `directory`; ValueError if they are not those of the digest.

  Read from the list that Orbax keeps. Its own `metadata` opens every array for its shape: of the 2,397 of a state of
  Hourglass-104, a fifth of the time in which they are read whole.
  """
  listed = json.loads((directory / '_METADATA').read_text())['tree_metadata'].values()
  names = {
    '/'.join(key['key'] for key in entry['key_metadata'])
    for entry in listed
    if not entry['value_metadata']['skip_deserialize']  # no array: an empty branch
  }
  if digest and array_digest.of_texts(sorted(names)) != digest.get(array_digest.NAMES):
    raise ValueError('not the names of arrays that were saved, by their digest')
  return names


def _has_averages(names: Set[str]) -> bool:
  return any(name.startswith('average/') for name in names)


def load_weights(path: epath.PathLike, *, which: str = BEST) -> tuple[dict[str, Any], RunRecord]:
  """Weights to use: ({'params', 'batch_stats'} of NumPy arrays, record).

  Args:
    path: a run folder, or one checkpoint folder (…/best/2000, …/checkpoints/2000).
    which: in a run folder, 'best' (the newest state if there was no evaluation yet) or 'checkpoints' (the newest).

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: `which` is neither.
    Unreadable: a file of the checkpoint is broken or gone.
    NonFinite: the weights have numbers that are not finite.
  """
  if which not in (BEST, STATES):
    raise ValueError(f'which checkpoint? {which!r} is not known; possible: {BEST}, {STATES}')
  path = epath.Path(path).expanduser()
  directory = path if (path / 'record').exists() else _newest_below(path, which)
  try:
    record = run_record.read(directory)
    return _read_variables(_absolute(directory), record.digest), record
  except NonFinite as error:
    raise NonFinite(f'the checkpoint {directory} is of a run that diverged: {error}. Give another one') from error
  except Exception as error:  # whatever orbax, tensorstore and JSON raise for broken files
    raise Unreadable(
      f'the checkpoint {directory} cannot be read: {_one_line(error)}. Copy it again, or give another one'
    ) from error


def folders_of(checkpoint: epath.PathLike) -> list[epath.Path]:
  """What holds the weights of a run folder, or of a checkpoint folder: nothing else is to be written there."""
  return [epath.Path(os.path.expanduser(checkpoint)) / name for name in (BEST, STATES, 'state', 'record')]


def _read_variables(directory: epath.Path, digest: Mapping[str, str]) -> dict[str, Any]:
  """Parameters and statistics; of a state that keeps moving averages, those."""
  names = _saved_names(directory / 'state', digest)
  wanted = 'average/' if _has_averages(names) else ('params/', 'batch_stats/')
  item = traverse_util.unflatten_dict({name: 0 for name in names if name.startswith(wanted)}, sep='/')
  on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
  arguments = ocp.args.PyTreeRestore(item=item, restore_args=on_host, partial_restore=True)
  restored = ocp.PyTreeCheckpointHandler().restore(directory / 'state', args=arguments)
  _check_arrays(restored, digest, directory)
  return restored.get('average', restored)


def _newest_below(path: epath.Path, which: str) -> epath.Path:
  for name in dict.fromkeys((which, STATES)):
    folder = path / name
    there = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    if steps := [int(path.name) for path in there if not (path / _DIVERGED).exists()]:
      return folder / str(max(steps))
    if there:
      raise FileNotFoundError(f'the loss after each state in {folder} was not finite: give another one, or train again')
  raise FileNotFoundError(
    f'no checkpoint in {path}: expected a run folder with {BEST}/ or {STATES}/ in it, or one checkpoint folder: give '
    'one, or train first'
  )


def _manager(directory: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
  return ocp.CheckpointManager(_absolute(directory), options=options)


def _absolute(path: epath.Path) -> epath.Path:
  return path if '://' in str(path) else epath.Path(path).resolve()


def _one_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__


def _put_aside(directory: epath.Path, to: epath.Path) -> epath.Path:
  """Where a checkpoint is now; one host alone may call it."""
  target = to / directory.name
  to.mkdir(parents=True, exist_ok=True)
  if target.exists():
    target.rmtree()
  directory.rename(target)
  return target
