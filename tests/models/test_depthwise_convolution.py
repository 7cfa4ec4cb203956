"""Depthwise convolutions as sums of shifted products, against XLA's own and a loop over their taps in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.models import depthwise_convolution


def by_definition(x, kernel, stride):
  """[B, H, W, C] by [k, k, 1, C]: every product of a cell of the result, padded as TensorFlow's 'SAME'."""
  size = kernel.shape[0]
  sides = [-(-side // stride) for side in x.shape[1:3]]
  total = [max((out - 1) * stride + size - side, 0) for out, side in zip(sides, x.shape[1:3])]
  padded = np.pad(x, ((0, 0), *((one // 2, one - one // 2) for one in total), (0, 0)))
  y = np.zeros((x.shape[0], *sides, x.shape[3]))
  for row, column in np.ndindex(*sides):
    window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
    y[:, row, column] = (window * kernel[:, :, 0]).sum((1, 2))
  return y


@pytest.mark.parametrize('sides', [(8, 10), (7, 9), (2, 3)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [3, 5])
def test_values_and_gradients(size, stride, sides):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *sides, 6)), rng.standard_normal((size, size, 1, 6))
    ours, pull_back = jax.vjp(lambda x, k: depthwise_convolution.depthwise(x, k, stride), x, kernel)
    np.testing.assert_allclose(ours, by_definition(x, kernel, stride), atol=1e-13)
    g = rng.standard_normal(ours.shape)
    theirs = jax.vjp(lambda x, k: depthwise_convolution._by_definition(x, k, stride), x, kernel)[1](jnp.asarray(g))
    for one, other in zip(pull_back(jnp.asarray(g)), theirs):
      np.testing.assert_allclose(one, other, atol=1e-13)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_take_their_own(platform):
  x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
  step = jax.jit(jax.grad(lambda x, k: depthwise_convolution.depthwise(x, k, 2).sum(), argnums=(0, 1)))
  text = jax.export.export(step, platforms=[platform])(x, kernel).mlir_module()
  assert 'stablehlo.convolution' in text and 'stablehlo.while' not in text
