"""The wish to stop a run, told by a signal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Gives a function that says after a step whether SIGTERM, SIGHUP or the first Ctrl-C has come.

  A second SIGTERM or Ctrl-C ends at once. A terminal that closes may send SIGHUP twice, so that one never does; a run
  under nohup is not told of it at all.

  With several hosts JAX listens for SIGTERM (a TPU's preemption notice is one) and has all stop after the same step.
  """
  several = jax.process_count() > 1
  came = []
  before = {}

  def note(number, frame):
    came.append(number)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    elif number != signal.SIGHUP:
      signal.signal(number, before[number])

  numbers = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
  for number in numbers if several else [signal.SIGTERM, signal.SIGINT, *numbers]:
    before[number] = signal.signal(number, note)
  try:
    yield multihost_utils.reached_preemption_sync_point if several else lambda step: bool(came)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
