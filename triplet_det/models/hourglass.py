"""The hourglass of CornerNet (Sec. 4.1: "all modifications ... made by [20] are preserved"): strided residuals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from triplet_det.models.layers import ConvBlock, Numerics, Residual


def upsample(x: jax.Array) -> jax.Array:
  """Nearest neighbour, [B, H, W, C] -> [B, 2 H, 2 W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Stem(nn.Module):
  """7x7 block of stride 2, residual of stride 2: an image of 4 n - 1 pixels becomes n cells."""

  width: int
  features: int
  numerics: Numerics
  residual: Callable = Residual

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    x = ConvBlock(self.width, 7, self.numerics, stride=2, name='block')(images, train)
    return self.residual(self.features, self.numerics, stride=2, name='residual')(x, train)


class Hourglass(nn.Module):
  """One level with everything below it: [B, H, W, dims[0]] -> same; H and W multiples of 2**(len(dims) - 1)."""

  dims: tuple[int, ...]  # widths of this level and the ones below
  blocks: tuple[int, ...]  # residual blocks per level; the last entry is the bottom's
  numerics: Numerics
  residual: Callable = Residual  # possibly rematerialised

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    here, below = self.dims[:2]
    count = self.blocks[0]

    def residual(features, name, x, stride=1):
      return self.residual(features, self.numerics, stride=stride, name=name)(x, train)

    up = low = x
    for i in range(count):
      up = residual(here, f'up_{i}', up)
    for i in range(count):
      low = residual(below, f'down_{i}', low, stride=1 if i else 2)
    if len(self.dims) > 2:
      low = Hourglass(self.dims[1:], self.blocks[1:], self.numerics, self.residual, name='inner')(low, train)
    else:
      for i in range(self.blocks[1]):
        low = residual(below, f'bottom_{i}', low)
    for i in range(count):
      low = residual(here if i == count - 1 else below, f'back_{i}', low)
    return up + upsample(low)  # no activation after the sum
