"""A program in a process of its own, that runs when told to: its peak memory is its own, and so are its threads.

  python -m scripts.timing.own_process scripts.timing.torch_twin:network '{"side": 127, ...}'

The function named makes the program from the settings and returns it. The process says on its standard output, a JSON
per line, when it has done what a line of its standard input asked for: run, peak. Free of JAX, which would count.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class OwnProcess:
  """The near end. Calling it runs the program once and waits for it; to be closed."""

  def __init__(self, maker: str, environment: Mapping[str, str] | None = None, **settings):
    """Args:
    maker: 'module:function', which returns the program as a function without arguments.
    environment: variables on top of this process's own.
    settings: of the maker, to be told as JSON.

    Raises:
      RuntimeError: the process ended before the program was made; what it said is on standard error.
    """
    self._maker = maker
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'scripts.timing.own_process', maker, json.dumps(settings)],
      cwd=ROOT,
      env=os.environ | dict(environment or {}),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._answer()

  def __call__(self) -> None:
    self._ask('run')

  def peak_memory(self) -> int:
    """The most bytes that were in memory at once since the end of the first run."""
    return self._ask('peak')

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def __enter__(self) -> 'OwnProcess':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _ask(self, what: str):
    self._process.stdin.write(what + '\n')
    self._process.stdin.flush()
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self._maker} ended with exit code {self._process.wait()}; its own message is above')
    return json.loads(line)


def memory(field: str) -> int:
  """Bytes of this process: 'VmRSS' in memory now, 'VmHWM' the most so far."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field + ':'):
      return 1024 * int(line.split()[1])
  raise KeyError(f'/proc/self/status has no {field}')


def _serve(maker: str, settings: str) -> None:
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  module, _, function = maker.partition(':')
  program = getattr(importlib.import_module(module), function)(**json.loads(settings))
  print(json.dumps('ready'), file=answers, flush=True)
  first = True
  for line in sys.stdin:
    answer = None
    if line.strip() == 'peak':
      answer = memory('VmHWM')
    else:
      program()
      if first:
        Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here: not the compiler's, not the start's
        first = False
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  _serve(*sys.argv[1:])
