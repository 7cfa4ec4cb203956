"""How a job ends before its end: what is kept, what is said, and the exit code."""

import contextlib
import errno
import functools
import logging
import sys
from collections.abc import Callable, Iterator

import jax

EXIT_MISFIT = 2  # the command, data or checkpoint do not fit
EXIT_INPUT, EXIT_WORKER, EXIT_DISK, EXIT_INTERRUPTED = 66, 71, 74, 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ('No space left', 'ENOSPC', 'File too large', 'EFBIG', 'Disk quota exceeded', 'EDQUOT')  # of C++


@contextlib.contextmanager
def kept(save: Callable[[], int], *, unless: type[Exception]) -> Iterator[None]:
  """After an error in the block `save` keeps what there is and gives its step; the error has a note of that.

  Args:
    save: may fail in its turn; with several hosts it is not called, because all are needed to save.
    unless: after this error nothing is worth keeping.
  """
  try:
    yield
  except unless:
    raise
  except Exception as error:
    if jax.process_count() == 1:
      try:
        error.add_note(f'the state of step {save()} is kept: the same command continues from there')
      except Exception as failed:
        error.add_note(f'the same command continues from the newest checkpoint, the rest was not saved: {failed}')
    raise


def say_it_once() -> None:
  """Keeps quiet what a failed read or save of a checkpoint leaves behind in other threads; its error is raised."""
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
