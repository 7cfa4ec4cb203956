"""What all tests share: JAX's settings, and what is told at the end: parity with the published programs, mistakes.

With pytest-xdist (`-n 2`) the processes that run the tests send it to the one that talks to the terminal.
"""

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

# Files that take longest, in this order: begun first, so that no process is left alone with one of them at the end.
_LONGEST = (
  *('test_encoder_run', 'test_two_hosts', 'test_train_step', 'test_docs', 'test_train', 'test_other_devices'),
  *('test_installed', 'test_encoder', 'test_imported_checkpoint', 'test_import_torch_checkpoint'),
)
_PARITY = pytest.StashKey[dict[str, tuple[float, float]]]()
_TEXTS = pytest.StashKey[list[str]]()


@pytest.fixture(scope='session')
def parity(request):
  """parity(part, error, bound): asserts error <= bound and puts the row into the table at the end of the run.

  A part that is measured several times keeps its largest error.
  """
  table = request.config.stash[_PARITY]

  def record(part: str, error: float, bound: float) -> None:
    _add_row(table, part, float(error), bound)
    assert error <= bound, f'{part}: largest error {error:.2e} is over the bound {bound:.0e}'

  return record


@pytest.fixture
def tell(request):
  """tell(text): prints it at the end of the run."""
  return request.config.stash[_TEXTS].append


def pytest_configure(config):
  config.stash[_PARITY], config.stash[_TEXTS] = {}, []


def pytest_collection_modifyitems(items):
  rank = {name: number for number, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_sessionfinish(session):
  if hasattr(session.config, 'workeroutput'):  # this process is one of several
    session.config.workeroutput.update(parity=session.config.stash[_PARITY], texts=session.config.stash[_TEXTS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  sent = getattr(node, 'workeroutput', {})  # none of one that crashed
  for part, row in sent.get('parity', {}).items():
    _add_row(node.config.stash[_PARITY], part, *row)
  node.config.stash[_TEXTS].extend(sent.get('texts', []))


def pytest_terminal_summary(terminalreporter, config):
  for text in config.stash[_TEXTS]:
    terminalreporter.write_line(text)
  table = config.stash[_PARITY]
  if not table:
    return
  width = max(len(part) for part in table)
  terminalreporter.section('parity with the published programs')
  terminalreporter.write_line(f'{"part":{width}}  largest error    bound')
  for part, (error, bound) in table.items():
    verdict = '' if error <= bound else '  exceeded'
    terminalreporter.write_line(f'{part:{width}}  {error:13.1e}  {bound:7.0e}{verdict}')


def _add_row(table: dict, part: str, error: float, bound: float) -> None:
  before, _ = table.get(part, (0.0, bound))
  table[part] = (float(np.maximum(before, error)), bound)  # NaN stays NaN
