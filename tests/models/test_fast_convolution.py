"""Winograd's minimal filtering against the convolution by definition, and where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.devices import roofline
from triplet_det.models import fast_convolution

DOUBLE = jnp.finfo(jnp.float64).eps


def arrays(shape=(2, 12, 7, 5), features=6, dtype=np.float64):
  """Input, kernel and gradient of the result."""
  rng = np.random.default_rng(0)
  shapes = shape, (3, 3, shape[-1], features), (*shape[:3], features)
  return [jnp.asarray(rng.normal(size=one), dtype) for one in shapes]


def by_hand(x, kernel):
  """The definition in NumPy: every tap of the kernel on the shifted input."""
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [(i, j) for i in range(3) for j in range(3)]
  return sum(padded[:, i : i + height, j : j + width] @ np.asarray(kernel[i, j]) for i, j in taps)


def largest(found, expected):
  return np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max()


@pytest.mark.parametrize('shape', [(2, 12, 7, 5), (1, 4, 1, 3), (3, 8, 16, 1)], ids=str)
def test_values_and_gradients_are_those_of_the_definition(shape):
  with jax.enable_x64(True):
    x, kernel, g = arrays(shape)
    # Sums of 3 * 3 * C products, of transformed numbers: their absolute weights, multiplied, sum up to 27.4.
    bound = 28 * 9 * shape[-1] * DOUBLE
    assert largest(fast_convolution.minimal_filtering(x, kernel), by_hand(x, kernel)) < bound
    dx, dkernel = fast_convolution.minimal_filtering_gradients(x, kernel, g)
    expected_dx = by_hand(g, np.asarray(kernel)[::-1, ::-1].swapaxes(2, 3))
    assert largest(dx, expected_dx) < bound
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected_dkernel = np.zeros(kernel.shape)
    for i, j in np.ndindex(3, 3):
      expected_dkernel[i, j] = np.einsum('bhwc,bhwd->cd', padded[:, i : i + shape[1], j : j + shape[2]], g)
    assert largest(dkernel, expected_dkernel) < 28 * 9 * shape[0] * shape[1] * shape[2] * DOUBLE


def test_a_convolution_of_one_cell_is_a_matrix_product():
  with jax.enable_x64(True):
    x, kernel, g = arrays()
    kernel = kernel[1:2, 1:2]
    y, pull_back = jax.vjp(fast_convolution.convolve, x, kernel)
    assert largest(y, np.einsum('bhwc,cd->bhwd', x, kernel[0, 0])) < 5 * DOUBLE
    dx, dkernel = pull_back(g)
    assert largest(dx, np.einsum('bhwd,cd->bhwc', g, kernel[0, 0])) < 6 * DOUBLE
    assert largest(dkernel[0, 0], np.einsum('bhwc,bhwd->cd', x, g)) < 2 * 12 * 7 * DOUBLE
  text = jax.jit(fast_convolution.convolve).lower(*arrays(dtype=np.float32)[:1], jnp.zeros((1, 1, 5, 6))).as_text()
  assert 'dot_general' in text.split('stablehlo.case')[-1]


def test_rounding_is_near_that_of_the_definition():
  x, kernel, _ = arrays((1, 32, 32, 256), 64, np.float32)
  x = jax.nn.relu(x)
  exact = by_hand(np.asarray(x, np.float64), np.asarray(kernel, np.float64))
  plain, fast = (
    largest(f(x, kernel), exact) for f in (fast_convolution._by_definition, fast_convolution.minimal_filtering)
  )
  assert 0 < fast < 4 * plain, (plain, fast)  # with the points 0, 1, -1, 2, -2 seven times as large


def test_used_on_large_maps_alone_and_gradients_too(monkeypatch):
  monkeypatch.setattr(fast_convolution, 'minimal_filtering', lambda x, kernel: jnp.full(x.shape, 7.0))
  monkeypatch.setattr(fast_convolution, 'minimal_filtering_gradients', lambda x, kernel, g: (0 * x + 5, 0 * kernel + 3))

  def fast(shape, features=64, stride=1, dtype=np.float32, size=3):
    x, kernel, _ = arrays(shape, features, dtype)
    y, pull_back = jax.vjp(lambda x, k: fast_convolution.convolve(x, k, stride), x, kernel[:size, :size])
    filtered = bool((y == 7).all())
    assert bool((pull_back(y)[1] == 3).all()) == filtered
    return filtered

  assert fast((1, 32, 8, 64)) and fast((1, 36, 8, 64))
  assert not fast((1, 28, 8, 64)) and not fast((1, 34, 8, 64)), 'rows'
  assert not fast((1, 32, 8, 63)) and not fast((1, 32, 8, 64), 63), 'channels'
  assert not fast((1, 32, 8, 64), stride=2) and not fast((1, 32, 8, 64), size=1)
  assert not fast((1, 32, 8, 64), dtype=jnp.bfloat16)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_get_the_definition(platform):
  x, kernel, g = arrays((1, 32, 8, 64), 64, np.float32)

  def lowered(conv):
    def step(x, kernel, g):
      y, pull_back = jax.vjp(conv, x, kernel)
      return y, *pull_back(g)

    text = jax.jit(step).trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()
    operations = [word for line in text.splitlines() for word in line.split() if word.startswith('stablehlo.')]
    return sorted(name for name in operations if name not in ('stablehlo.constant', 'stablehlo.return'))

  ours, plain = lowered(fast_convolution.convolve), lowered(fast_convolution._by_definition)
  assert ours == plain and len([name for name in ours if name.startswith('stablehlo.convolution')]) == 3


def test_arithmetic_is_counted_by_the_definition():
  x, kernel, _ = arrays((1, 32, 8, 64), 64, np.float32)
  count = functools.partial(roofline.network_flops, train=False)
  assert count(fast_convolution.convolve, x, kernel) == count(fast_convolution._by_definition, x, kernel) > 0


def test_gradients_make_their_copies_when_they_are_due(monkeypatch):
  kernels = [jax.ShapeDtypeStruct((3, 3, 256, 256), np.float32)] * 8
  x = jax.ShapeDtypeStruct((1, 16, 16, 256), np.float32)

  def loss(kernels, x):
    for kernel in kernels:
      x = jax.nn.relu(fast_convolution.convolve(x, kernel))
    return x.sum()

  def temporary():
    jax.clear_caches()
    return jax.jit(jax.grad(loss)).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes

  due = temporary()
  monkeypatch.setattr(fast_convolution, 'after', lambda _, arrays: arrays)
  at_once = temporary()
  assert 0 < due < 0.6 * at_once
