"""A program in a process of its own, that runs when told to: its peak memory is its own, and so are its threads.

Free of JAX, which would count.
"""

import concurrent.futures
import importlib
import multiprocessing
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_program: Callable[[], object]  # in the process of its own


class OwnProcess:
  """Calling it runs the program once and waits for it; to be closed.

  Attributes:
    peak: the most bytes that were in memory at once since the end of the first run.
  """

  def __init__(self, maker: str, environment: Mapping[str, str] | None = None, **settings):
    """Args:
    maker: 'module:function', which returns the program as a function without arguments; what it raises is raised here.
    environment: variables on top of this process's own.
    settings: of the maker.
    """
    self._process = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
    self._process.submit(_make, maker, dict(environment or {}), settings).result()
    self.peak = 0

  def __call__(self) -> None:
    self.peak = self._process.submit(_run, is_first=not self.peak).result()

  def close(self) -> None:
    self._process.shutdown()


def _make(maker: str, environment: Mapping[str, str], settings: Mapping) -> None:
  global _program
  os.environ.update(environment)
  _program = made(maker, settings)


def made(maker: str, settings: Mapping) -> Callable[[], object]:
  """The program of a maker, 'module:function'."""
  module, _, function = maker.partition(':')
  return getattr(importlib.import_module(module), function)(**settings)


def _run(*, is_first: bool) -> int:
  _program()
  if is_first:
    Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here: not the compiler's, not the start's
  return memory('VmHWM')


def memory(field: str) -> int:
  """Bytes of this process: 'VmRSS' in memory now, 'VmHWM' the most so far."""
  return 1024 * int(re.search(rf'^{field}:\s+(\d+) kB$', Path('/proc/self/status').read_text(), re.MULTILINE)[1])
