"""Memory that XLA's compiler has used goes back to the system."""

import ctypes
import sys


def give_back() -> None:
  """What the process has freed; on Linux its C library (glibc) keeps it otherwise, a GB and more after compiling."""
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
  if trim:
    trim(ctypes.c_size_t(0))
