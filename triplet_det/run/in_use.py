"""One folder, one job: the second is refused, with the name of the first."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import BinaryIO

from absl import logging
from etils import epath

_FILE = '.in_use'
_held = set()  # open files


def _let_go() -> None:
  for file in _held:
    file.close()


os.register_at_fork(after_in_child=_let_go)  # else a child that outlives this process would hold its folders


@contextlib.contextmanager
def in_use(
  path: epath.PathLike | None, advice: str = '', *, part: str = '', shared: bool = False, wait: bool = False
) -> Iterator[None]:
  """Holds a folder while the block runs; however the process ends, the system lets go of it.

  Args:
    path: the folder; None, one that is not there, and one behind a URL (gs://...), which knows no locks, is not held.
    advice: what to do instead, for the message.
    part: what of the folder is held, such as 'part_3_of_16'; '' is the folder.
    shared: not alone, but with others that share it too.
    wait: until another job lets go of it, instead of an error.

  Raises:
    ValueError: another job holds it; names its host, process and start.
  """
  if path is None or '://' in str(path) or not (folder := epath.Path(path).expanduser()).is_dir():
    yield
    return
  how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
  with _locked(folder / f'{_FILE}{part and "_"}{part}', how) as (file, is_ours):
    if not is_ours:
      holder = ' '.join(file.read(200).decode(errors='replace').split()) or 'another process'
      place = f'{folder}, {part},' if part else f'{folder}'
      raise ValueError(f'{place} is in use by {holder}: wait until that has ended, or {advice}')
    start = f'{datetime.datetime.now():%Y-%m-%d %H:%M:%S}'
    with contextlib.suppress(OSError):  # a full disk
      file.truncate(0)
      file.write(f'{socket.gethostname()}, process {os.getpid()}, since {start}\n'.encode())
    yield


@contextlib.contextmanager
def _locked(path: epath.Path, how: int) -> Iterator[tuple[BinaryIO, bool]]:
  """The open file at `path`, and whether it is locked for this process; it goes with the last that holds it.

  After a kill it stays: only the lock tells whether what is in it is still true.
  """
  while True:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), 'r+b', buffering=0)
    is_ours = True
    try:
      fcntl.flock(file, how)
    except BlockingIOError:
      is_ours = False
    except OSError as error:  # a file system without locks
      logging.info('%s cannot be locked (%s): start no second job in its folder', path, error.strerror)
    with contextlib.suppress(FileNotFoundError):
      if not is_ours or os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        break
    file.close()  # the one that held it has removed it meanwhile
  _held.add(file)
  process = os.getpid()
  try:
    yield file, is_ours
  finally:
    _held.discard(file)
    if is_ours and os.getpid() == process:
      with contextlib.suppress(OSError):  # others share it, or there are no locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    file.close()
