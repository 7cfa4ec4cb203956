"""What the steps of a run are trained with: config.json has the values of today, config_history.jsonl those before it.

A line of the history holds from its step on: {"step": 6, "date": ..., "commit": ..., "changed": {name: [before, now]},
"values": {name: value}}. Values that no step depends on are left out.
"""

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from triplet_det.run import output_paths

CONFIG_FILE, HISTORY_FILE = 'config.json', 'config_history.jsonl'
# Beginnings of the names, each with a dot behind it, of values that no step depends on.
_NOT_OF_TRAINING = ('mode.', 'dry_run.', 'data.num_', 'state_shards.', 'model.remat.', 'init_from.', 'test.')
_NOT_OF_TRAINING += ('log_', 'checkpoint_', 'eval_', 'result_', 'draw_')


def keep(workdir: epath.PathLike, config: str, step: int, data: Mapping[str, str], commit: str | None) -> list[str]:
  """Writes both files for a run that starts, or continues from the state of `step`.

  Lines of this step and later ones are of runs that left no state, and go.

  Args:
    config: as JSON.
    data: name of a value -> what the data are, beside their paths in the config.

  Returns:
    'name: before -> now' of each value that the run continues with and did not have before.

  Raises:
    ValueError: a file of a run before cannot be read.
  """
  folder = epath.Path(workdir)
  lines = [line for line in read(folder) if line['step'] < step]
  before, now = lines[-1]['values'] if lines else {}, of_training(json.loads(config)) | data
  changed = {name: [before[name], now[name]] for name in sorted(now) if name in before and before[name] != now[name]}
  if changed or not lines:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    lines.append(dict(step=step, date=date, commit=commit, changed=changed, values=before | now))
  for path, text in (
    (folder / HISTORY_FILE, ''.join(json.dumps(line) + '\n' for line in lines)),
    (folder / CONFIG_FILE, config + '\n'),
  ):
    output_paths.write_whole(path, text)
  return [f'{name}: {old!r} -> {new!r}' for name, (old, new) in changed.items()]


def read(folder: epath.Path) -> list[dict[str, Any]]:
  """The lines of the history; of a run without one, begun by an older version, one of its config.

  Raises:
    ValueError: names the file that cannot be read.
  """
  path = folder / HISTORY_FILE
  try:
    if path.exists():
      lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
      return [
        dict(one, changed=dict(one['changed']), values=dict(one['values']), step=int(one['step'])) for one in lines
      ]
    path = folder / CONFIG_FILE
    values = of_training(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else {}
    return [dict(step=0, date=None, commit=None, changed={}, values=values)] if values else []
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is broken ({type(error).__name__}: {error}): move it, and it is made anew') from error


def of_training(config: Mapping[str, Any]) -> dict[str, Any]:
  """The flat values of a config that a step depends on, given the state before it."""
  return {name: value for name, value in flat(config) if not f'{name}.'.startswith(_NOT_OF_TRAINING)}


def flat(tree: Mapping[str, Any], path: str = '') -> Iterator[tuple[str, Any]]:
  """{'test': {'top_k': 70}} -> ('test.top_k', 70); tuples become lists, as in JSON."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flat(value, f'{path}{key}.')
    else:
      yield path + key, list(value) if isinstance(value, tuple) else value
