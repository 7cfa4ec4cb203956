"""Weights of another run to start from: what fits is taken over, classes by their names, the rest stays as drawn."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from triplet_det.categories import CategoryTable
from triplet_det.detection import loading
from triplet_det.devices import sharding
from triplet_det.models import encoder
from triplet_det.run import checkpoints
from triplet_det.training.train_step import TrainState

IMAGENET = 'imagenet'
LEAST_SHARE = 0.5  # of the parameters, below which a start is hardly better than a fresh one
_SHOWN = 5  # class names and arrays in one line


@dataclasses.dataclass(frozen=True)
class Transfer:
  """What became of the parameters; counts are of numbers, by the module they are in."""

  restored: Counter[str]  # taken from the other run
  fresh: Counter[str]  # of this network, not in the other run: they stay as initialised
  ignored: Counter[str]  # of the other run, without a place in this network
  classes: tuple[str, ...]  # names that both know; the rows of the heatmaps' last layers are theirs
  fresh_classes: tuple[str, ...]  # that only this network knows
  ignored_classes: tuple[str, ...]  # that only the other network knows
  misfits: tuple[str, ...]  # arrays that both networks have in different shapes

  @property
  def share(self) -> float:
    """Of this network's parameters that are restored."""
    return self.restored.total() / (self.restored.total() + self.fresh.total())


def initialise(
  state: TrainState, checkpoint: epath.PathLike, *, categories: CategoryTable, model: Mapping[str, Any]
) -> TrainState:
  """A fresh state with the weights of `checkpoint` where they fit; logs a table. All hosts must call it.

  Args:
    state: fresh, with its shardings, which the result has too.
    checkpoint: a run folder, trained or imported (its best weights are taken), one checkpoint folder in it, 'demo', a
      link (`run.download`), or 'imagenet' for an encoder that has learnt from it.
    categories, model: of this run.

  Raises:
    FileNotFoundError, checkpoints.Unreadable: there is no checkpoint, or a broken one.
    ValueError: less than half of the parameters come along, names what differs between the networks; or their pixels
      are normalised otherwise.
  """
  if str(checkpoint) == IMAGENET:
    weights, there, theirs = encoder.imagenet_weights(), categories, {**model, 'encoder': encoder.LITE0_NAME}
    origin = IMAGENET
  else:
    weights, record = loading.read_weights(checkpoint)
    there, theirs, origin = record.categories, record.model, f'step {record.step} of {checkpoint}'
  fresh = sharding.on_this_host({'params': state.params, 'batch_stats': state.batch_stats})
  merged, transfer = merge(jax.device_get(fresh), weights, categories, there)
  if transfer.share < LEAST_SHARE:
    differing = checkpoints.model_differences(theirs, model, apart_from=('num_classes',))
    raise ValueError(
      f'init_from={checkpoint}: only {transfer.share:.0%} of the parameters of this network are in it, '
      f'{LEAST_SHARE:.0%} are needed; {"; ".join(differing) or "the settings of both networks agree"}. Give '
      '--config.model the sizes of that run, or another checkpoint'
    )
  pixels_there, pixels_here = (one.get('pixels', 'coco') for one in (theirs, model))
  if pixels_there != pixels_here:
    raise ValueError(
      f'init_from={checkpoint}: its weights know pixels normalised by the statistics of {pixels_there}, '
      f'config.model.pixels is {pixels_here}: give --config.model.pixels={pixels_there}'
    )
  logging.info('weights of %s:\n%s', origin, table(transfer))

  def placed(new: dict, old: dict) -> dict:
    # A copy each: on a CPU the device's array may be the NumPy array, and a step reuses the memory of its state.
    return jax.tree.map(
      lambda x, at: jax.make_array_from_callback(x.shape, at.sharding, lambda i: np.array(x[i])), new, old
    )

  variables = placed(merged, {'params': state.params, 'batch_stats': state.batch_stats})
  return dataclasses.replace(state, **variables, average=state.average and placed(merged, state.average))


def merge(
  ours: Mapping[str, Any], theirs: Mapping[str, Any], classes_here: CategoryTable, classes_there: CategoryTable
) -> tuple[dict[str, Any], Transfer]:
  """Variables as `ours` with the values of `theirs`, array by array where path and shape agree.

  The last layers of the heatmaps have a row per class: those go class by class, by name.

  Args:
    ours, theirs: {'params', 'batch_stats'} of NumPy arrays.
    classes_here, classes_there: what the rows mean.
  """
  shared = [name for name in classes_here.names if name in classes_there.names]
  rows_here = [classes_here.names.index(name) for name in shared]
  rows_there = [classes_there.names.index(name) for name in shared]
  here, there = (traverse_util.flatten_dict(dict(variables)) for variables in (ours, theirs))
  merged = {path: array.copy() for path, array in here.items()}
  restored, fresh, ignored, misfits = Counter(), Counter(), Counter(), []
  for path in {**here, **there}:
    collection, module = path[:2]
    own, other = here.get(path, np.zeros(0)), there.get(path, np.zeros(0))
    taken = 0
    if path in here and path in there:
      has_class_rows = path[-3:-1] == ('heat', 'out')  # kernel [1, 1, hidden, C] and bias [C]
      if has_class_rows and own.shape[:-1] == other.shape[:-1]:
        merged[path][..., rows_here] = other[..., rows_there]
        taken = other[..., rows_there].size
      elif not has_class_rows and own.shape == other.shape:
        merged[path] = np.asarray(other, own.dtype)
        taken = own.size
      elif collection == 'params':
        misfits.append(f'{"/".join(path[1:])} {other.shape} there, {own.shape} here')
    if collection == 'params':  # running statistics go with them and are not counted
      restored[module] += taken
      fresh[module] += own.size - taken
      ignored[module] += other.size - taken
  return traverse_util.unflatten_dict(merged), Transfer(
    restored=restored,
    fresh=fresh,
    ignored=ignored,
    classes=tuple(shared),
    fresh_classes=tuple(name for name in classes_here.names if name not in shared),
    ignored_classes=tuple(name for name in classes_there.names if name not in shared),
    misfits=tuple(sorted(misfits)),
  )


def table(transfer: Transfer) -> str:
  """Restored, re-initialised and ignored parameters per module, and the classes, for the log."""
  columns = transfer.restored, transfer.fresh, transfer.ignored
  rows = {name: [column[name] for column in columns] for name in transfer.restored}
  rows['all'] = [column.total() for column in columns]
  lines = [f'  {"module":<18}{"restored":>13}{"re-initialised":>16}{"ignored":>13}{"share restored":>16}']
  for name, (restored, fresh, ignored) in rows.items():
    share = f'{restored / (restored + fresh):.1%}' if restored + fresh else '-'
    lines.append(f'  {name:<18}{restored:>13,}{fresh:>16,}{ignored:>13,}{share:>16}')
  for what, names in (
    ('classes restored by name', transfer.classes),
    ('classes re-initialised', transfer.fresh_classes),
    ('classes ignored', transfer.ignored_classes),
    ('arrays of other shapes, re-initialised', transfer.misfits),
  ):
    more = f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    lines.append(f'  {what}: {len(names)}' + (f' ({", ".join(names[:_SHOWN])}{more})' if names else ''))
  return '\n'.join(lines)
