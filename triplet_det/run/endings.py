"""How a job ends before its end: what is kept, what is said, and the exit code."""

import contextlib
import errno
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax

EXIT_MISFIT = 2  # the command, data or checkpoint do not fit
EXIT_INPUT, EXIT_WORKER, EXIT_DISK, EXIT_INTERRUPTED = 66, 71, 74, 130
_KEPT = 'is kept'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ('No space left', 'ENOSPC', 'File too large', 'EFBIG', 'Disk quota exceeded', 'EDQUOT')  # of C++


@contextlib.contextmanager
def kept(
  save: Callable[[], None], sweep: Callable[[], int | None], *, unless: tuple[type[Exception], ...]
) -> Iterator[None]:
  """After an error in the block `save` keeps what there is; the error has a note of what that is.

  Args:
    save: may fail in its turn; with several hosts it is not called, because all are needed to save.
    sweep: removes what failed saves left, and gives the step of the newest state on disk, None if there is none.
    unless: after these errors there is nothing to keep.
  """
  try:
    yield
  except unless:
    raise
  except Exception as error:
    lost = ''
    if jax.process_count() == 1:
      try:
        sweep()  # the room that a failed save took may be what the next one lacks
        save()
      except Exception as failed:
        told = '' if disk_is_full(failed) and disk_is_full(error) else f': {one_line(failed)}'
        lost = f'what came after it is not saved{told}'
    note_what_is_kept(error, sweep(), lost)
    raise


def note_what_is_kept(error: Exception, step: int | None, lost: str = '') -> None:
  """Notes it for the message, unless that is done; `step` is None if no state is on disk."""
  if any(_KEPT in note for one in _chain(error) for note in getattr(one, '__notes__', ())):
    return
  error.add_note(
    f'no state {_KEPT}: the same command starts anew'
    if step is None
    else f'the state of step {step} {_KEPT}: the same command continues from there'
  )
  if lost:
    error.add_note(lost)


@contextlib.contextmanager
def ending_in_time(seconds: float = 10) -> Iterator[None]:
  """After an exit in the block the process ends within so many seconds: Python waits for all threads, and one may hang
  in a read that never ends. Other hosts are waited for as long as JAX does.
  """
  try:
    yield
  except SystemExit as end:
    if not (jax.distributed.is_initialized() and jax.process_count() > 1):
      for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
        with contextlib.suppress(OSError, ValueError):
          stream.flush()
      code = end.code if isinstance(end.code, int) else int(end.code is not None)
      timer = threading.Timer(seconds, os._exit, (code,))
      timer.daemon = True
      timer.start()
    raise


def say_it_once() -> None:
  """Keeps quiet what a failed read or save of a checkpoint leaves behind in other threads, whose error is raised, and
  what the process says that removes the shared memory of killed ones.
  """
  sys.warnoptions.append('ignore:resource_tracker')
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  for name in ('excepthook', 'unraisablehook'):
    setattr(sys, name, functools.partial(_hook, getattr(sys, name)))


def _hook(usual: Callable, *told) -> None:
  value = told[1] if len(told) == 3 else told[0].exc_value
  if not (isinstance(value, RuntimeError) and 'Event loop is closed' in str(value)):
    usual(*told)


def one_line(error: BaseException) -> str:
  """The first line of the message, or the name of the error, and what is noted of it and of what it came from."""
  first = str(error).strip().partition('\n')[0][:500] or type(error).__name__
  return '; '.join([first, *(note for one in _chain(error) for note in getattr(one, '__notes__', ()))])


def disk_is_full(error: BaseException) -> bool:
  """Whether that is the reason, or the reason of the reason; libraries in C++ only say it in their text."""
  return any(
    getattr(one, 'errno', None) in _FULL or any(word in str(one) for word in _FULL_WORDS) for one in _chain(error)
  )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
