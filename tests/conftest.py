"""What all tests share: JAX's settings, and the table of parity with the published programs."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

# Convolutions in TF32 or bf16, the default of accelerators, cannot hold the bounds.
jax.config.update('jax_default_matmul_precision', 'highest')

# Compiled programs outlive the run, so that only the first one waits for the compiler.
_CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'triplet_det_tests'
if jax.config.jax_compilation_cache_dir is None:  # the environment variable goes first
  jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

_TABLE = pytest.StashKey[dict[str, tuple[float, float]]]()


@pytest.fixture(scope='session')
def parity(request):
  """parity(part, error, bound): asserts error <= bound and puts the row into the table at the end of the run.

  A part that is measured several times keeps its largest error.
  """
  table = request.config.stash.setdefault(_TABLE, {})

  def record(part: str, error: float, bound: float) -> None:
    error = float(error)
    before, _ = table.get(part, (0.0, bound))
    table[part] = (float(np.maximum(before, error)), bound)  # NaN stays NaN
    assert error <= bound, f'{part}: largest error {error:.2e} is over the bound {bound:.0e}'

  return record


def pytest_terminal_summary(terminalreporter, config):
  table = config.stash.get(_TABLE, {})
  if not table:
    return
  width = max(len(part) for part in table)
  terminalreporter.section('parity with the published programs')
  terminalreporter.write_line(f'{"part":{width}}  largest error    bound')
  for part, (error, bound) in table.items():
    verdict = '' if error <= bound else '  exceeded'
    terminalreporter.write_line(f'{part:{width}}  {error:13.1e}  {bound:7.0e}{verdict}')
