"""Batch normalisation with statistics per group of images.

The published run normalises on each of 8 GPUs over that GPU's 6 images. Groups make those semantics a
property of the program instead of the machine: batch 48 in groups of 6 gives the same numbers on 1, 2 or 8
devices, and needs no communication where a group lives on one device.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

EPSILON = 1e-5
MOMENTUM = 0.9  # PyTorch writes the same as momentum 0.1


class BatchNorm(nn.Module):
  """Normalises [B, H, W, C] over each group of `group` images."""

  group: int | None = None  # images per group of statistics; None takes the whole batch. B must be a multiple
  running: str = 'all'  # groups that update the running statistics: 'all' (their mean) or, as published, the 'first'
  dtype: jnp.dtype = jnp.float32  # of the result; parameters and statistics stay at least float32
  # For testing, with the variables of `layers.fold_norms`: the factor is in the convolution's kernel already, and what
  # is left to add is the parameter `bias`.
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels = x.shape[-1]
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    if self.folded:
      if train:
        raise ValueError('a network whose norms are folded into its convolutions has no statistics to train with')
      return (x + bias).astype(self.dtype)
    scale = self.param('scale', nn.initializers.ones, (channels,))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
    running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
    if not train:
      return self._normalised(x, running_mean.value, running_var.value, scale, bias)

    batch = x.shape[0]
    size = self.group or batch
    if batch % size:
      raise ValueError(f'a batch of {batch} images is not a multiple of the norm group of {size} images')
    groups = x.reshape(batch // size, size, *x.shape[1:]).astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = _moments_of_rounded(groups) if x.dtype == jnp.bfloat16 else _moments(groups)
    if not self.is_initializing():
      count = size * x.shape[1] * x.shape[2]
      unbiased = var * (count / max(count - 1, 1))  # PyTorch keeps the unbiased variance, normalises by the biased
      running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * self._over_groups(mean)
      running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * self._over_groups(unbiased)
    return self._normalised(groups, mean, var, scale, bias).reshape(x.shape)

  def _normalised(self, x, mean, var, scale, bias) -> jax.Array:
    """One multiplication and one addition per number, as the published kernels have it."""
    factor = scale * lax.rsqrt(var + EPSILON)
    return (x * factor + (bias - mean * factor)).astype(self.dtype)

  def _over_groups(self, statistics: jax.Array) -> jax.Array:
    """[G, 1, 1, 1, C] -> [C]; a weighted sum, so that the reduction over devices joins that of the gradients."""
    groups, channels = statistics.shape[0], statistics.shape[-1]
    rows = lax.stop_gradient(statistics.reshape(groups, channels))
    if self.running == 'first':
      return jnp.where(jnp.arange(groups)[:, None] == 0, rows, 0.0).sum(0)
    return rows.mean(0)


def _moments(groups: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance of [G, S, H, W, C] as [G, 1, 1, 1, C]."""
  mean = _mean(groups)
  return mean, _mean(jnp.square(groups - mean))


def _moments_of_rounded(groups: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`_moments` in one pass over numbers that were bfloat16 (float32 sums), so that it joins the convolution before it.

  The difference of squares loses mean^2 / variance times float32's rounding, far less than bfloat16's 8 bits lost.
  """
  mean, square = (values.mean((1, 2, 3), keepdims=True) for values in (groups, jnp.square(groups)))
  return mean, jnp.maximum(square - jnp.square(mean), 0)


def _mean(groups: jax.Array) -> jax.Array:
  """[G, S, H, W, C] -> [G, 1, 1, 1, C], axis by axis: the error of a sum grows with its length, and these are short."""
  return groups.mean(3, keepdims=True).mean(2, keepdims=True).mean(1, keepdims=True)
