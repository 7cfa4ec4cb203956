"""Corner pooling, cascade corner pooling and center pooling (Sec. 3.3, Figs. 4 and 5).

The four pools are running maxima over [B, H, W, C]:
  top[i] = max x[i:], bottom[i] = max x[:i+1] along the height; left[j] = max x[j:], right[j] = max x[:j+1] along
  the width.
Their gradient follows the published rule for ties: all of it goes to the tied cell that the scan meets first
(top and left scan from the last index down), because a new maximum must be strictly greater.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from triplet_det.models.layers import Conv, ConvBlock, Numerics

HEIGHT, WIDTH = 1, 2  # axes of [B, H, W, C]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def running_max(x: jax.Array, axis: int, from_last: bool, form: str | None = None) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cells met so far when scanning `axis`.

  Args:
    x: the map.
    axis: HEIGHT or WIDTH.
    from_last: whether the scan goes from the last index down, not from the first up.
    form: one of FORMS, which give the same of finite numbers; None is the platform's own.

  Raises:
    KeyError: no such form.
  """
  return _in_form('maximum', form, axis, from_last)(x)


def _running_max_forward(x, axis, from_last, form):
  return _in_form('forward', form, axis, from_last)(x)


def _running_max_backward(axis, from_last, form, kept, g):
  return (_in_form('gradient', form, axis, from_last)(*kept, g),)


running_max.defvjp(_running_max_forward, _running_max_backward)


def _in_form(part, form, axis, from_last):
  def pick(name):
    return partial(getattr(FORMS[name], part), axis=axis, from_last=from_last)

  if form:
    return pick(form)
  return partial(lax.platform_dependent, **{platform: pick(name) for platform, name in FORM_ON.items()})


def _max_by_walking(x, axis, from_last):
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


def _max_by_leaping(x, axis, from_last):
  """Without a loop, for GPUs: of a cell and the 11 met before it, then of every twelfth of those (128 cells)."""
  for leaps in _leaps(x.shape[axis]):
    x = functools.reduce(jnp.maximum, [_met_before(x, leap, axis, from_last, -jnp.inf) for leap in leaps])
  return x


def _located_by_leaping(x, axis, from_last):
  """The maxima, and where along the axis the first of equal ones lies.

  The gradient compares these places, not maxima: a compiler may compute x in several kernels, rounded in several ways,
  and one cell's maximum would not be equal to another's that it is.
  """
  near, far = _leaps(x.shape[axis])
  places = here = lax.broadcasted_iota(_place_type(x.shape[axis]), x.shape, axis)
  met = x
  for leap in near[1:]:
    there = _met_before(met, leap, axis, from_last, -jnp.inf)
    places = jnp.where(there >= x, here + leap if from_last else here - leap, places)
    x = jnp.maximum(x, there)
  met, places_met = x, places
  for leap in far[1:]:
    there = _met_before(met, leap, axis, from_last, -jnp.inf)
    places = jnp.where(there >= x, _met_before(places_met, leap, axis, from_last, 0), places)
    x = jnp.maximum(x, there)
  return x, (x, places)


def _gather_by_leaping(places, g, axis, from_last):
  """Without a loop: gradients of cells with one maximum, which lie side by side, are added up where it is."""
  gathered = _wide(g)
  for leaps in _leaps(g.shape[axis]):
    terms = []
    for leap in leaps:  # what is met after a cell is what comes before it in the opposite scan
      there, sums = (_met_before(a, leap, axis, not from_last, 0) for a in (places, gathered))
      terms.append(jnp.where(there == places, sums, 0))
    gathered = sum(terms)
  here = lax.broadcasted_iota(places.dtype, places.shape, axis)
  return jnp.where(here == places, gathered, 0).astype(g.dtype)


def _place_type(length):
  return jnp.uint8 if length <= 256 else jnp.int32


def _leaps(length):
  """Two sets of distances: every one from 0 to length - 1 is a sum of one of the first and one of the second."""
  near = math.isqrt(length - 1) + 1 if length > 1 else 1
  return range(near), range(0, length, near)


def _met_before(x, distance, axis, from_last, fill):
  """At each cell what the scan met `distance` cells before it."""
  padding = [(0, 0, 0)] * x.ndim
  padding[axis] = (-distance, distance, 0) if from_last else (distance, -distance, 0)
  return lax.pad(x, jnp.asarray(fill, x.dtype), padding)


def _wide(x):
  """At least float32: long sums need it, and XLA's CPU backend converts a whole bfloat16 array at each loop's turn."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Form(NamedTuple):
  """One way to scan; of finite numbers all give the same, but for the order of sums."""

  maximum: Callable  # x -> y
  forward: Callable  # x -> y, and what the gradient needs: (y, places), of which a compiler drops what it does not
  gradient: Callable  # y, places, dL/dy -> dL/dx


def _from_maxima(maximum, gather):
  """The gradient from the maxima alone."""

  def forward(x, axis, from_last):
    y = maximum(x, axis, from_last)
    return y, (y, jnp.zeros(y.shape, _place_type(y.shape[axis])))

  return Form(maximum, forward, lambda y, _, g, axis, from_last: gather(y, g, axis, from_last))


FORMS = dict(
  walking=_from_maxima(
    _max_by_walking,
    lambda y, g, axis, from_last: _gather_by_walking(_wide(y), _wide(g), axis, from_last).astype(g.dtype),
  ),
  cummax=_from_maxima(
    lambda x, axis, from_last: lax.cummax(x, axis=axis, reverse=from_last),
    _gather_by_walking,
  ),
  leaping=Form(
    _max_by_leaping,
    _located_by_leaping,
    lambda _, places, g, axis, from_last: _gather_by_leaping(places, g, axis, from_last),
  ),
)
# What is fastest by compilers and, on a CPU, by the clock: docs/accelerators.md, docs/performance.md.
FORM_ON = dict(cpu='walking', cuda='leaping', rocm='leaping', default='cummax')


def top_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything below it."""
  return running_max(x, HEIGHT, True)


def bottom_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything above it."""
  return running_max(x, HEIGHT, False)


def left_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything to its right."""
  return running_max(x, WIDTH, True)


def right_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> same: the maximum of the cell and everything to its left."""
  return running_max(x, WIDTH, False)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _line_max(x: jax.Array, axis: int, length: int) -> jax.Array:
  """Maximum along `axis` of `length`, kept with length 1: what two opposite pools leave at every cell of the line."""
  return x.max(axis, keepdims=True)


def _line_max_forward(x, axis, length):
  """Keeps where the maximum lies, in one reduction, for the reason that `_located_by_leaping` has."""

  def better(one, other):
    # Top then bottom (left then right): the first scan starts at the last index and keeps the tie it meets first.
    (x, place), (there, its_place) = one, other
    is_other = (there > x) | ((there == x) & (its_place > place)) | jnp.isnan(there)
    return jnp.where(is_other, there, x), jnp.where(is_other, its_place, place)

  places = lax.broadcasted_iota(jnp.int32, x.shape, axis)
  y, last = lax.reduce((x, places), (jnp.asarray(-jnp.inf, x.dtype), jnp.int32(-1)), better, (axis,))
  return jnp.expand_dims(y, axis), jnp.expand_dims(last.astype(_place_type(length)), axis)


def _line_max_backward(axis, length, last, g):
  shape = (*g.shape[:axis], length, *g.shape[axis + 1 :])
  return (jnp.where(lax.broadcasted_iota(last.dtype, shape, axis) == last, g, 0),)


_line_max.defvjp(_line_max_forward, _line_max_backward)


def column_max(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 1, W, C]: `bottom_pool(top_pool(x))`, whose rows are all equal."""
  return _line_max(x, HEIGHT, x.shape[HEIGHT])


def row_max(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, H, 1, C]: `right_pool(left_pool(x))`, whose columns are all equal."""
  return _line_max(x, WIDTH, x.shape[WIDTH])


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
