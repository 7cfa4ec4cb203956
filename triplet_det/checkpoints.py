"""Checkpoints of a run: the newest states to continue from, and the weights with the best AP to use.

<workdir>/checkpoints/<step>/   the whole TrainState and what a restart needs to know (`RunRecord`)
<workdir>/best/<step>/          the variables alone, and the same record
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from triplet_det.categories import CategoryTable

STATES, BEST = 'checkpoints', 'best'


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What lies beside the weights, so that a checkpoint explains itself."""

  step: int
  categories: CategoryTable
  model: Mapping[str, Any]  # keys of `detector.DetectorConfig`
  test: Mapping[str, Any]  # keys of `inference.Settings`
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the evaluation that made it the best
  unlogged: tuple[tuple[int, Mapping[str, float]], ...] = ()  # (step, metrics) since the last line of the log

  def to_json(self) -> dict:
    return dict(dataclasses.asdict(self), categories=self.categories.to_coco())

  @classmethod
  def from_json(cls, record: Mapping) -> 'RunRecord':
    unlogged = tuple((step, metrics) for step, metrics in record['unlogged'])
    return cls(**{**record, 'categories': CategoryTable.from_coco(record['categories']), 'unlogged': unlogged})


class Checkpoints:
  """Saves and restores the checkpoints below one run folder. Saves are asynchronous; `close` waits for them."""

  def __init__(self, workdir: epath.PathLike, *, keep: int = 1):
    """Args:
    workdir: the run folder.
    keep: how many of the newest states stay.
    """
    self._root = epath.Path(workdir)
    self._states = _manager(self._root / STATES, keep)
    self._best = _manager(self._root / BEST, 1)

  def save(self, state: Any, record: RunRecord) -> None:
    """Saves the state of `record.step` unless that step is there already."""
    self._save(self._states, state, record)

  def save_best(self, variables: Any, record: RunRecord) -> None:
    """Saves the variables as the best so far; the ones before go."""
    self._save(self._best, variables, record)

  def _save(self, manager: ocp.CheckpointManager, tree: Any, record: RunRecord) -> None:
    if record.step in manager.all_steps():
      return
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record.to_json()))
    if not manager.save(record.step, args=arguments):
      raise RuntimeError(f'the checkpoint of step {record.step} was not saved in {manager.directory}')

  def best_metric(self, name: str) -> float:
    """The metric of the best checkpoint so far, -inf without one."""
    step = self._best.latest_step()
    return float('-inf') if step is None else _read_record(self._best.directory / str(step)).metrics[name]

  def restore_newest(self, like: Any, *, model: Mapping[str, Any]) -> tuple[Any, RunRecord] | None:
    """The newest state that is whole, or None if the folder has none.

    A state that cannot be read (the run was killed while it was written, the disk was full) is moved to
    `checkpoints_broken/` with a message, and the one before is tried.

    Args:
      like: a tree of ShapeDtypeStructs with shardings.
      model: the model config of this run.

    Raises:
      ValueError: the checkpoint is of another network; names every key that differs.
      RuntimeError: there are states and none can be read.
    """
    steps = sorted(self._states.all_steps(), reverse=True)
    for step in steps:
      directory = self._states.directory / str(step)
      try:
        record = _read_record(directory)
        check_same_model(directory, record.model, model)
        restored = self._states.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        return restored.state, record
      except _Misfit:
        raise
      except Exception as error:  # whatever orbax, tensorstore and JSON raise for broken files
        _put_aside(directory, self._root / f'{STATES}_broken', error)
        self._states.reload()
    if steps:
      raise RuntimeError(f'none of the {len(steps)} checkpoints in {self._states.directory} can be read: {steps}')
    return None

  def close(self) -> None:
    """Waits until everything is on disk."""
    for manager in (self._states, self._best):
      manager.wait_until_finished()
      manager.close()


class _Misfit(ValueError):
  """A whole checkpoint of another network."""


def check_same_model(directory: epath.PathLike, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises ValueError naming every differing key of two model configs."""
  saved, wanted = (json.loads(json.dumps(dict(m))) for m in (saved, wanted))
  differing = [
    f'{key}: {saved.get(key, "default")} there, {wanted.get(key, "default")} here'
    for key in sorted(set(saved) | set(wanted))
    if saved.get(key) != wanted.get(key) and key not in ('dtype', 'remat', 'norm_group', 'norm_running')
  ]
  if differing:
    raise _Misfit(
      f'{directory} is of another network; {"; ".join(differing)}. Give another --workdir, or the config of that run'
    )


def load_weights(path: epath.PathLike, *, which: str = BEST) -> tuple[dict[str, Any], RunRecord]:
  """Weights to use: ({'params', 'batch_stats'} of NumPy arrays, record).

  Args:
    path: a run folder, or one checkpoint folder (…/best/2000, …/checkpoints/2000).
    which: in a run folder, 'best' (the newest state if there was no evaluation yet) or 'checkpoints' (the newest).

  Raises:
    FileNotFoundError: no checkpoint there.
  """
  path = epath.Path(path).expanduser()
  directory = path if (path / 'record').exists() else _newest_below(path, which)
  record = _read_record(directory)
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(directory / 'state').tree
  wanted = {name: tree[name] for name in ('params', 'batch_stats')}
  on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
  arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=on_host, partial_restore=True)
  return handler.restore(_absolute(directory) / 'state', args=arguments), record


def _newest_below(path: epath.Path, which: str) -> epath.Path:
  for name in dict.fromkeys((which, STATES)):
    folder = path / name
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
    if steps:
      return folder / str(max(steps))
  raise FileNotFoundError(
    f'no checkpoint in {path}: expected a run folder with {BEST}/ or {STATES}/ in it, or one checkpoint folder'
  )


def _manager(directory: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
  return ocp.CheckpointManager(_absolute(directory), options=options)


def _absolute(path: epath.Path) -> epath.Path:
  return path if '://' in str(path) else epath.Path(path).resolve()


def _read_record(directory: epath.Path) -> RunRecord:
  return RunRecord.from_json(json.loads((directory / 'record' / 'metadata').read_text()))


def _put_aside(directory: epath.Path, to: epath.Path, error: Exception) -> None:
  to.mkdir(parents=True, exist_ok=True)
  target = to / directory.name
  if target.exists():
    target.rmtree()
  directory.rename(target)
  reason = str(error).strip().splitlines()[0] if str(error).strip() else ''
  logging.warning(
    'the checkpoint %s cannot be read (%s: %s); it is kept in %s and the one before is tried',
    directory,
    type(error).__name__,
    reason,
    target,
  )
