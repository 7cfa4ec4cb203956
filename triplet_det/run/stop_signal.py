"""The wish to stop a run, told by a signal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

_T = TypeVar('_T')


class _Asked(BaseException):
  """Ends a wait; as it is no Exception, no library takes it for an error of its own."""


class StopSignal:
  """Whether SIGTERM, SIGHUP or the first Ctrl-C has come."""

  def __init__(self, *, several: bool):
    self._several, self._came, self._waits = several, False, False

  def has_come(self, step: int) -> bool:
    """Asked after each step; with several hosts all stop after the same one."""
    return multihost_utils.reached_preemption_sync_point(step) if self._several else self._came

  def unless_it_comes(self, wait: Callable[[], _T]) -> _T | None:
    """What `wait()` gives, which is not None; or None as soon as the signal comes: what is waited for may never come.

    Several hosts wait for each other, so there it is waited for.
    """
    try:
      try:
        self._waits = not self._several
        return None if self._came else wait()
      finally:
        self._waits = False
    except _Asked:
      return None

  def note(self) -> None:
    """In the handler of the signal."""
    self._came = True
    if self._waits:
      self._waits = False
      raise _Asked


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
  """Listens while the block runs.

  A second SIGTERM or Ctrl-C ends at once. A terminal that closes may send SIGHUP twice, so that one never does; a run
  under nohup is not told of it at all.

  With several hosts JAX listens for SIGTERM (a TPU's preemption notice is one) and has all stop after the same step.
  """
  several = jax.process_count() > 1
  stop = StopSignal(several=several)
  before = {}

  def note(number, frame):
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    elif number != signal.SIGHUP:
      signal.signal(number, before[number])
    stop.note()

  numbers = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
  for number in numbers if several else [signal.SIGTERM, signal.SIGINT, *numbers]:
    before[number] = signal.signal(number, note)
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
