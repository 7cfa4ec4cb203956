"""Standard streams that end no job: they may be closed, a broken pipe, a lost terminal, a full disk, or ASCII; and
names of files in any locale.
"""

import contextlib
import io
import os
import sys


def read_names_as_utf8() -> None:
  """Starts this command once more if Python would read and write names of files in another encoding: then a name in a
  JSON is not that of its file. In the C locale Python has chosen UTF-8 already, unless PYTHONUTF8=0 forbids it.
  """
  if sys.getfilesystemencoding() != 'utf-8':
    command, *words = sys.orig_argv
    os.execv(sys.executable, [command, '-X', 'utf8', *words])


def make_lasting() -> None:
  """From here on what cannot be said is lost, and nothing else is.

  A closed stream is opened on the null device: else the next file, metrics.jsonl perhaps, would take its number, and
  receive what the compiler says. Characters that a stream does not have are written as backslash and number.
  """
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(number, True)
  os.close(number)
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = getattr(sys, name)
    if stream is not getattr(sys, f'__{name}__'):  # a test or a notebook listens
      continue
    how = dict(encoding='utf-8')
    if stream is not None:
      with contextlib.suppress(OSError):
        stream.flush()
      how = dict(encoding=stream.encoding, line_buffering=stream.line_buffering, write_through=stream.write_through)
    buffer = io.BufferedWriter(_Lasting(number, 'w', closefd=False))
    setattr(sys, name, io.TextIOWrapper(buffer, errors='backslashreplace', **how))


class _Lasting(io.FileIO):
  """Takes everything, whether it arrives or not."""

  def write(self, data) -> int:
    try:
      written = super().write(data)
    except OSError:
      written = None
    return len(data) if written is None else written
