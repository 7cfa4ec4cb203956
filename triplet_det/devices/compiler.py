"""What XLA's compiler is told about every network, and its memory, which goes back to the system."""

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path

import jax
from absl import logging
from etils import epath


def options(device: jax.Device) -> dict[str, str]:
  """`compiler_options` of `jax.jit` for networks, trained or tested, on devices like this one.

  CPU: XLA hands sums and products of matrices over to a library of kernels, each of which is prepared, one after the
  other, when it runs first: with hundreds of layers that takes seconds at every start and a quarter of the memory of a
  training step, and is no faster then.
  """
  return {'xla_cpu_experimental_ynn_fusion_type': ''} if device.platform == 'cpu' else {}


def keep_programs(folder: str) -> None:
  """Keeps what takes a second or more to compile in `folder`, for later processes too; '' keeps nothing.

  Nor does a folder that cannot be made or written: that costs time alone, and is said once.
  """
  if not folder:
    return
  path = epath.Path(folder).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
    usable = '://' in folder or os.access(path, os.W_OK | os.X_OK)
  except OSError:
    usable = False
  if not usable:
    logging.warning('%s cannot be written: each start compiles anew; --compilation_cache=DIR is kept elsewhere', path)
    return
  warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')  # one for each program
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def check_room(program: jax.stages.Compiled) -> None:
  """Raises MemoryError if a program for the CPU takes more than the machine, or the container, has.

  Other devices say so themselves, by RESOURCE_EXHAUSTED; here the system would end the process without a word.
  """
  if jax.default_backend() != 'cpu':
    return
  needed = program.memory_analysis().temp_size_in_bytes
  there = _memory_here()
  if needed > there:
    raise MemoryError(f'the program takes {needed / 2**30:.1f} GiB, there are {there / 2**30:.1f} GiB')


@functools.cache
def _memory_here() -> float:
  there = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  container = Path('/sys/fs/cgroup/memory.max')
  limit = container.read_text().strip() if container.is_file() else 'max'
  return min(there, int(limit)) if limit.isdigit() else there


def give_back() -> None:
  """What the process has freed; on Linux its C library (glibc) keeps it otherwise, a GB and more after compiling."""
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
  if trim:
    trim(ctypes.c_size_t(0))
