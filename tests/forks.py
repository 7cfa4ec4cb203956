"""Commands in forks of one process that has the program imported: each costs what it does, and not the imports.

  ended = forks.run([forks.Command('-m', 'triplet_det.predict', '--out', 'boxes')], tmp_path)

The process that forks must not have used a device, so it is one of its own: `python -m tests.forks COMMANDS`.
"""

import contextlib
import dataclasses
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# PYTHONPATH of processes that tests start: this program, then what the tests themselves find packages by.
IMPORTS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


@dataclasses.dataclass(frozen=True)
class Command:
  """What a user types behind `python`.

  Attributes:
    words: `-m`, a module and its arguments; `-c` and code; or a script's path from the root, and its arguments.
    devices: how many the CPU pretends to be.
    folder: where it is typed; the root if none.
  """

  words: tuple[str, ...]
  devices: int = 1
  folder: str = ''


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a command ended, what it said where, and how long it took."""

  code: int
  out: str
  err: str
  seconds: float


def run(commands: Sequence[Command], folder: Path, *, timeout: float = 300, **variables: str) -> list[Ended]:
  """Executes one after the other; `folder` takes what they say, `variables` are of the environment."""
  asked, answered = folder / 'commands.json', folder / 'ended.json'
  asked.write_text(json.dumps([dataclasses.asdict(command) for command in commands]))
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': IMPORTS, **variables}
  server = [sys.executable, '-m', 'tests.forks', str(asked), str(answered)]
  done = subprocess.run(server, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
  assert done.returncode == 0, done.stderr
  ended = [Ended(**one) for one in json.loads(answered.read_text())]
  assert len(ended) == len(commands)
  return ended


def main(asked: Path, answered: Path) -> None:
  import scripts.paper.tables  # noqa: F401  what takes long to import
  from triplet_det.training import show_data  # noqa: F401

  ended = []
  for number, command in enumerate(json.loads(asked.read_text())):
    said = [asked.with_name(f'{number}_{stream}.txt') for stream in ('out', 'err')]
    start = time.monotonic()
    child = os.fork()
    if child == 0:
      os._exit(_execute(Command(**command), *said))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (path.read_text(errors='replace') for path in said)
    ended.append(dataclasses.asdict(Ended(code, out, err, time.monotonic() - start)))
  answered.write_text(json.dumps(ended))


def _execute(command: Command, out: Path, err: Path) -> int:
  """In the child: the exit code that Python would have ended with."""
  for stream, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
  os.environ.update(XLA_FLAGS=f'--xla_force_host_platform_device_count={command.devices}')
  warnings.filterwarnings('ignore', '.*found in sys.modules after import of package')
  if command.folder:
    os.chdir(command.folder)
  first, *rest = command.words
  code = 0
  try:
    if first == '-m':
      sys.argv = rest
      runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    elif first == '-c':
      sys.argv = ['-c', *rest[1:]]
      exec(rest[0], {'__name__': '__main__'})
    else:
      sys.argv = [first, *rest]
      runpy.run_path(first, run_name='__main__')
  except SystemExit as stopped:
    code = stopped.code
    if isinstance(code, str):
      print(code, file=sys.stderr)
      code = 1
  except BaseException:
    traceback.print_exc()
    code = 1
  with contextlib.suppress(OSError):
    sys.stdout.flush()
    sys.stderr.flush()
  return code or 0


if __name__ == '__main__':
  main(*map(Path, sys.argv[1:]))
