"""The wish to stop a run, told by a signal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Gives a function that says after a step whether SIGTERM or the first Ctrl-C has come; a second ends at once.

  With several hosts JAX listens for SIGTERM (a TPU's preemption notice is one) and has all stop after the same step.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  came = []
  before = {}

  def note(number, frame):
    came.append(number)
    signal.signal(number, before[number])

  for number in (signal.SIGTERM, signal.SIGINT):
    before[number] = signal.signal(number, note)
  try:
    yield lambda step: bool(came)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
