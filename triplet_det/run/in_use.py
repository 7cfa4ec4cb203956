"""One folder, one job: the second is refused, with the name of the first."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator

from absl import logging
from etils import epath

_FILE = '.in_use'
_held = set()  # open files


def _let_go() -> None:
  for file in _held:
    file.close()


os.register_at_fork(after_in_child=_let_go)  # else a child that outlives this process would hold its folders


@contextlib.contextmanager
def in_use(path: epath.PathLike | None, advice: str, *, part: str = '', shared: bool = False) -> Iterator[None]:
  """Holds a folder while the block runs; however the process ends, the system lets go of it.

  Args:
    path: the folder; None, one that is not there, and one behind a URL (gs://...), which knows no locks, is not held.
    advice: what to do instead, for the message.
    part: what of the folder is held, such as 'part_3_of_16'; '' is the folder.
    shared: not alone, but with others that share it too.

  Raises:
    ValueError: another job holds it; names its host, process and start.
  """
  if path is None or '://' in str(path) or not (folder := epath.Path(path).expanduser()).is_dir():
    yield
    return
  number = os.open(
    folder / f'{_FILE}{part and "_"}{part}', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
  )
  with os.fdopen(number, 'r+b', buffering=0) as file:
    try:
      fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = ' '.join(file.read(200).decode(errors='replace').split()) or 'another process'
      place = f'{folder}, {part},' if part else f'{folder}'
      raise ValueError(f'{place} is in use by {holder}: wait until that has ended, or {advice}') from None
    except OSError as error:  # a file system without locks
      logging.info('%s cannot be locked (%s): start no second job in it', folder, error.strerror)
    # Stays when the process ends: only the lock tells whether it still is true.
    start = f'{datetime.datetime.now():%Y-%m-%d %H:%M:%S}'
    with contextlib.suppress(OSError):  # a full disk
      file.truncate(0)
      file.write(f'{socket.gethostname()}, process {os.getpid()}, since {start}\n'.encode())
    _held.add(file)
    try:
      yield
    finally:
      _held.discard(file)
