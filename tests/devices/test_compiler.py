"""What the compiler is told; freed memory is given back to the system."""

import ctypes
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from scripts.timing.own_process import memory
from triplet_det.devices import compiler

MB = 2**20


def test_no_kernels_that_are_prepared_at_the_first_run():
  def layer(x, kernel):
    return jax.nn.relu(x @ kernel).sum(0)

  def text(options):
    shapes = jax.ShapeDtypeStruct((64, 64), np.float32), jax.ShapeDtypeStruct((64, 64), np.float32)
    return jax.jit(layer, compiler_options=options).lower(*shapes).compile().as_text()

  assert compiler.options(SimpleNamespace(platform='tpu')) == {}
  if 'ynn_fusion' not in text({}):
    pytest.skip('XLA has no such kernels for this processor')
  assert 'ynn_fusion' not in text(compiler.options(jax.devices('cpu')[0]))


@pytest.mark.skipif(
  sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='the C library is not glibc'
)
def test_freed_blocks_below_one_that_is_used():
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  blocks = [libc.malloc(ctypes.c_size_t(16_000)) for _ in range(10_000)]
  for block in blocks:
    ctypes.memset(block, 1, 16_000)
  for block in blocks[:-1]:  # the last one lies on top and keeps glibc from giving anything back by itself
    libc.free(ctypes.c_void_p(block))
  before = memory('VmRSS')
  compiler.give_back()
  freed = before - memory('VmRSS')
  libc.free(ctypes.c_void_p(blocks[-1]))
  assert freed > 100 * MB


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, caplog):
  """Programs are compiled anew, which is said; the folder that JAX has stays."""
  (tmp_path / 'file').touch()
  monkeypatch.setattr(jax.config, 'update', lambda *told: pytest.fail(f'{told}'))
  monkeypatch.setattr(compiler.os, 'access', lambda *_: False)  # root may everything
  for folder in (f'{tmp_path}/file/cache', f'{tmp_path}/home'):
    caplog.clear()
    with caplog.at_level('WARNING', 'absl'):
      compiler.keep_programs(folder)
    [told] = caplog.messages
    assert told == f'{folder} cannot be written: each start compiles anew; --compilation_cache=DIR is kept elsewhere'


def test_other_systems_have_nothing_to_do(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'darwin')
  monkeypatch.setattr(ctypes, 'CDLL', lambda name: pytest.fail('asked for a C library'))
  compiler.give_back()
