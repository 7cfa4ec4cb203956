"""Corner pooling, cascade corner pooling and center pooling (Sec. 3.3, Figs. 4 and 5).

The four pools are running maxima over [B, H, W, C]:
  top[i] = max x[i:], bottom[i] = max x[:i+1] along the height; left[j] = max x[j:], right[j] = max x[:j+1] along
  the width.
Their gradient follows the published rule for ties: all of it goes to the tied cell that the scan meets first
(top and left scan from the last index down), because a new maximum must be strictly greater.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from triplet_det.models.layers import Conv, ConvBlock, Numerics

HEIGHT, WIDTH = 1, 2  # axes of [B, H, W, C]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _running_max(x: jax.Array, axis: int, from_last: bool) -> jax.Array:
  """Maximum of the cells met so far when scanning `axis`, from the last index down or from the first up."""
  walk = partial(max_by_walking, axis=axis, from_last=from_last)
  return lax.platform_dependent(x, cpu=walk, default=partial(lax.cummax, axis=axis, reverse=from_last))


def max_by_walking(x, axis, from_last):
  """`lax.cummax` line by line: on a CPU a tenth of its time, on a TPU two to four times (docs/performance.md)."""
  length = x.shape[axis]
  wide = _wide(x)

  def step(i, carry):
    met, y = carry
    cell = length - 1 - i if from_last else i
    met = jnp.maximum(met, lax.dynamic_index_in_dim(wide, cell, axis))
    return met, lax.dynamic_update_slice_in_dim(y, met, cell, axis)

  first = lax.index_in_dim(wide, length - 1 if from_last else 0, axis)
  return lax.fori_loop(0, length, step, (first, jnp.zeros_like(wide)))[1].astype(x.dtype)


def _running_max_forward(x, axis, from_last):
  y = _running_max(x, axis, from_last)
  return y, y


def _running_max_backward(axis, from_last, y, g):
  walk = partial(_gather_by_walking, axis=axis, from_last=from_last)
  return (lax.platform_dependent(y, g, cpu=lambda y, g: walk(_wide(y), _wide(g)).astype(g.dtype), default=walk),)


def _gather_by_walking(y, g, axis, from_last):
  """Walks the scan backwards: gradient gathers until the cell that set the maximum, and lands there."""
  length = y.shape[axis]

  def step(i, carry):
    gathered, dx = carry
    cell = i if from_last else length - 1 - i
    before = jnp.clip(cell + 1 if from_last else cell - 1, 0, length - 1)  # met just before `cell`
    here = lax.dynamic_index_in_dim(y, cell, axis)
    set_here = (here > lax.dynamic_index_in_dim(y, before, axis)) | (i == length - 1)
    gathered = gathered + _wide(lax.dynamic_index_in_dim(g, cell, axis))
    landed = jnp.where(set_here, gathered, 0).astype(g.dtype)
    return jnp.where(set_here, 0, gathered), lax.dynamic_update_slice_in_dim(dx, landed, cell, axis)

  start = jnp.zeros_like(_wide(lax.index_in_dim(g, 0, axis))), jnp.zeros_like(g)
  return lax.fori_loop(0, length, step, start)[1]


def _wide(x):
  """At least float32: long sums need it, and XLA's CPU backend converts a whole bfloat16 array at each loop's turn."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


_running_max.defvjp(_running_max_forward, _running_max_backward)


def top_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything below it."""
  return _running_max(x, HEIGHT, True)


def bottom_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything above it."""
  return _running_max(x, HEIGHT, False)


def left_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything to its right."""
  return _running_max(x, WIDTH, True)


def right_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything to its left."""
  return _running_max(x, WIDTH, False)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _line_max(x: jax.Array, axis: int) -> jax.Array:
  """Maximum along `axis`, kept with length 1: what two opposite pools in series leave at every cell of the line."""
  return x.max(axis, keepdims=True)


def _line_max_forward(x, axis):
  y = x.max(axis, keepdims=True)
  return y, (x, y)


def _line_max_backward(axis, saved, g):
  # Top then bottom (left then right): the first scan starts at the last index and keeps the tie it meets first.
  x, y = saved
  index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
  last = jnp.where(x == y, index, -1).max(axis, keepdims=True)
  return (jnp.where(index == last, g, 0),)


_line_max.defvjp(_line_max_forward, _line_max_backward)


def column_max(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 1, W, C]: `bottom_pool(top_pool(x))`, whose rows are all equal."""
  return _line_max(x, HEIGHT)


def row_max(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, H, 1, C]: `right_pool(left_pool(x))`, whose columns are all equal."""
  return _line_max(x, WIDTH)


CORNER_POOLS = {'top_left': (top_pool, left_pool), 'bottom_right': (bottom_pool, right_pool)}


class PoolingTail(nn.Module):
  """What follows every pooling: ReLU(norm(conv3x3(pooled)) + norm(conv1x1(x))), then a 3x3 block (Fig. 5a)."""

  numerics: Numerics

  @nn.compact
  def __call__(self, pooled: jax.Array, x: jax.Array, train: bool) -> jax.Array:
    width = x.shape[-1]
    pooled = ConvBlock(width, 3, self.numerics, relu=False, name='merge')(pooled, train)
    skip = ConvBlock(width, 1, self.numerics, relu=False, name='skip')(x, train)
    return ConvBlock(width, 3, self.numerics, name='out')(nn.relu(pooled + skip), train)


class CornerPooling(nn.Module):
  """Corner pooling of CornerNet [20] (Fig. 4b): [B, H, W, C] -> same."""

  corner: str  # 'top_left' or 'bottom_right'
  width: int  # channels of the pooled maps
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    vertical_pool, horizontal_pool = CORNER_POOLS[self.corner]
    vertical = vertical_pool(ConvBlock(self.width, 3, self.numerics, name='vertical')(x, train))
    horizontal = horizontal_pool(ConvBlock(self.width, 3, self.numerics, name='horizontal')(x, train))
    return PoolingTail(self.numerics, name='tail')(vertical + horizontal, x, train)


class CascadeCornerPooling(nn.Module):
  """Looks along the boundary, then inside from there (Fig. 4c, 5b): [B, H, W, C] -> same; as CornerPooling."""

  corner: str
  width: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    vertical_pool, horizontal_pool = CORNER_POOLS[self.corner]

    def direction(name, boundary_pool, inside_pool):
      boundary = ConvBlock(self.width, 3, self.numerics, name=name)(x, train)
      inside = inside_pool(ConvBlock(self.width, 3, self.numerics, name=f'{name}_look')(x, train))
      # Neither norm nor ReLU: what the boundary pool sees may be negative.
      joined = Conv(self.width, 3, dtype=self.numerics.dtype, name=f'{name}_join')(boundary + inside)
      return boundary_pool(joined)

    vertical = direction('vertical', vertical_pool, horizontal_pool)
    horizontal = direction('horizontal', horizontal_pool, vertical_pool)
    return PoolingTail(self.numerics, name='tail')(vertical + horizontal, x, train)


class CenterPooling(nn.Module):
  """Maximum of the row plus maximum of the column (Fig. 4a, 5a): [B, H, W, C] -> same."""

  width: int  # channels of the pooled maps
  pool: bool = True  # False leaves the maxima out: the "conventional convolutions" of Table 4's third row
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    vertical = ConvBlock(self.width, 3, self.numerics, name='vertical')(x, train)
    horizontal = ConvBlock(self.width, 3, self.numerics, name='horizontal')(x, train)
    if self.pool:
      vertical, horizontal = column_max(vertical), row_max(horizontal)
    return PoolingTail(self.numerics, name='tail')(vertical + horizontal, x, train)
