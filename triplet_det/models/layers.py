"""Convolutions and the residual block, padded and initialised as the published network (PyTorch's rules of 2018)."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from triplet_det.models.batch_norm import EPSILON, BatchNorm
from triplet_det.models.fast_convolution import convolve


@dataclasses.dataclass(frozen=True)
class Numerics:
  """How every layer computes: the compute dtype and the groups of the norm statistics (see `batch_norm.BatchNorm`)."""

  dtype: jnp.dtype = jnp.float32
  norm_group: int | None = None
  norm_running: str = 'all'
  norm_folded: bool = False

  def norm(self, name: str) -> BatchNorm:
    return BatchNorm(
      group=self.norm_group, running=self.norm_running, dtype=self.dtype, folded=self.norm_folded, name=name
    )


def uniform_fan_in(fan_in: int):
  """PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def inside_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, H, W, C] by [k, k, C, D] -> [B, H - k + 1, W - k + 1, D], not padded; for many images of few cells."""
  side, height, width = kernel.shape[0], x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1
  shifted = [x[:, row : row + height, column : column + width] for row in range(side) for column in range(side)]
  return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[3])


class Conv(nn.Module):
  """k x k convolution of [B, H, W, C] with padding (k - 1) // 2; parameters float32, computed in `dtype`."""

  features: int
  kernel: int
  stride: int = 1
  bias: str | float = 'none'  # or 'uniform' (PyTorch's default), or a number, the constant initial value
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, padded: bool = True) -> jax.Array:
    """Not padded: a cell for each window that lies inside x, [B, H - k + 1, W - k + 1, features]."""
    fan_in = self.kernel * self.kernel * x.shape[-1]
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = self.param('kernel', uniform_fan_in(fan_in), shape)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = convolve(x, kernel, self.stride) if padded else inside_windows(x, kernel)
    if self.bias == 'none':
      return y
    init = uniform_fan_in(fan_in) if self.bias == 'uniform' else nn.initializers.constant(self.bias)
    return y + self.param('bias', init, (self.features,)).astype(self.dtype)


class ConvBlock(nn.Module):
  """Convolution without bias, norm, ReLU; `relu=False` for what is summed with something before its ReLU."""

  features: int
  kernel: int
  numerics: Numerics
  stride: int = 1
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, self.kernel, self.stride, dtype=self.numerics.dtype, name='conv')(x)
    x = self.numerics.norm('norm')(x, train)
    return nn.relu(x) if self.relu else x


class Residual(nn.Module):
  """3x3 block, 3x3 convolution and norm, plus the skip; ReLU after the sum.

  The skip is the identity unless the stride or the width changes; then a 1x1 convolution and norm.
  """

  features: int
  numerics: Numerics
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = ConvBlock(self.features, 3, self.numerics, self.stride, name='block')(x, train)
    y = ConvBlock(self.features, 3, self.numerics, relu=False, name='out')(y, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = ConvBlock(self.features, 1, self.numerics, self.stride, relu=False, name='skip')(x, train)
    return nn.relu(y + x)


def fold_norms(variables: Mapping) -> dict:
  """The variables of a trained network for the same network with folded norms, which does not compute them.

  A norm in testing is x * factor + shift, so the convolution before it takes the factor into its kernel, and the
  shift alone is left of the norm.

  Args:
    variables: `params` and `batch_stats`, in which every norm lies beside its convolution, as in `ConvBlock`. NumPy
      arrays; those of JAX would be computed with one by one, each shape compiled.

  Returns:
    `params` alone, arrays of the same kind, for `Numerics(norm_folded=True)`.

  Raises:
    ValueError: a norm without a convolution beside it.
  """

  def fold(params, stats, path):
    if 'norm' in stats:
      if 'conv' not in params:
        raise ValueError(f'no convolution takes the norm of {path}: only {", ".join(params)} beside it')
      norm = {**params['norm'], **stats['norm']}
      factor = norm['scale'] / (norm['var'] + EPSILON) ** 0.5
      bias = norm['bias'] - norm['mean'] * factor
      return {**params, 'conv': dict(kernel=params['conv']['kernel'] * factor), 'norm': dict(bias=bias)}
    below = {name: fold(params[name], part, f'{path}/{name}') for name, part in stats.items()}
    return {**params, **below}

  return {'params': fold(variables['params'], variables['batch_stats'], 'params')}
