"""The convolution of all layers; on a CPU with fewer multiplications where the map is large.

XLA's convolution on a CPU multiplies about as fast as the processor can, so only fewer multiplications are faster. What
runs there instead is Winograd's minimal filtering F(4, 3) along the height (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016): 4 rows of the result come from 6 rows of the input by 6 products where the
definition takes 12. Along the width it is an ordinary convolution, since a second transformation would cost accuracy.
Its kernel gradient is a matrix product for each product and column of the kernel. GPUs and TPUs never see any of this.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS = 4  # of the result, made together
# Where the polynomials behind it are evaluated, besides infinity: half the rounding error of 0, 1, -1, 2, -2.
POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """INPUT [6, 6], KERNEL [6, 3], RESULT [4, 6]: result = RESULT @ ((KERNEL @ kernel) * (INPUT @ input))."""
  others = [[q for q in POINTS if q != p] for p in POINTS]
  inputs = [np.append(np.poly(roots)[::-1], 0) for roots in others] + [np.poly(POINTS)[::-1]]
  kernel = [np.power(p, range(3)) / np.prod(np.subtract(p, roots)) for p, roots in zip(POINTS, others)] + [[0, 0, 1]]
  result = [np.power(p, range(ROWS)) for p in POINTS] + [[0, 0, 0, 1]]
  return np.stack(inputs), np.stack(kernel), np.stack(result, axis=1)


INPUT, KERNEL, RESULT = _matrices()
# Smaller layers gain too, alone, but every one takes about 20 loops to compile: 16 x 16 cells are 1 % of Hourglass-52,
# and whole networks below 64 channels gain 4 to 7 % (docs/performance.md).
MIN_HEIGHT, MIN_CHANNELS = 32, 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """[B, H, W, C] by [k, k, C, D] -> [B, ceil(H / stride), ceil(W / stride), D], padded with (k - 1) // 2 zeros."""
  plain = functools.partial(_by_definition, stride=stride)
  return lax.platform_dependent(x, kernel, cpu=_form_for_cpu(x, kernel, stride), default=plain)


def _convolve_forward(x, kernel, stride):
  return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, g):
  x, kernel = saved
  plain = functools.partial(_gradients, functools.partial(_by_definition, stride=stride))
  form = _form_for_cpu(x, kernel, stride)
  gradients = minimal_filtering_gradients if form is minimal_filtering else functools.partial(_gradients, form)

  def in_turn(x, kernel, g):
    return gradients(*after(g, (x, kernel)), g)

  return lax.platform_dependent(x, kernel, g, cpu=in_turn, default=plain)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _form_for_cpu(x, kernel, stride):
  if _is_large(x, kernel, stride):
    return minimal_filtering
  if kernel.shape[:2] == (1, 1) and stride == 1:
    return _matrix_product
  return functools.partial(_by_definition, stride=stride)


def _is_large(x, kernel, stride):
  fits = kernel.shape[:2] == (3, 3) and stride == 1 and x.shape[1] % ROWS == 0
  large = x.shape[1] >= MIN_HEIGHT and min(kernel.shape[2:]) >= MIN_CHANNELS
  return fits and large and jnp.finfo(x.dtype).bits >= 32  # the sums of half precision are not accurate


def after(first: jax.Array, arrays: Any) -> Any:
  """The same arrays, but on a single device they depend on `first`, an array of numbers.

  XLA for CPU orders a program by what depends on what. It would make copies of x and kernel for their gradients,
  transposed or transformed, as early as in the forward pass and keep them; an optimization barrier does not last until
  it looks for an order.
  """
  if jax.device_count() > 1:
    return arrays  # the number would have to travel between the devices
  # Not known to be zero: it may be NaN. A maximum is not computed over and over again by all that adds it.
  nothing = jnp.max(0 * jnp.clip(first.ravel()[:2], -1, 1))
  return jax.tree.map(lambda x: x + nothing.astype(x.dtype), arrays)


def _by_definition(x, kernel, stride=1):
  height, width = ((side - 1) // 2 for side in kernel.shape[:2])
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((height, height), (width, width)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _matrix_product(x, kernel):
  """A 1x1 convolution: its gradients by XLA's own convolutions take up to 30 times as long."""
  return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _gradients(form, x, kernel, g):
  return jax.vjp(form, x, kernel)[1](g)


@jax.jit  # traced and lowered once per shape, not once per layer
def minimal_filtering(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`convolve` of [B, H, W, C] by [3, 3, C, D] for H a multiple of 4, whatever the size and platform."""
  kernels = _sums(KERNEL, [kernel[row : row + 1] for row in range(3)])
  products = [_by_definition(part, one) for part, one in zip(_input_parts(x), kernels)]
  return jnp.stack(_sums(RESULT, products), axis=2).reshape(*x.shape[:3], kernel.shape[3])


@jax.jit
def minimal_filtering_gradients(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
  """dL/dx and dL/dkernel from g = dL/dy [B, H, W, D]."""
  dx = minimal_filtering(g, kernel[::-1, ::-1].swapaxes(2, 3))
  products = _sums(RESULT.T, _rows(g))
  kernels = [_kernel_row_gradient(part, product) for part, product in zip(_input_parts(x), products)]
  return dx, jnp.stack(_sums(KERNEL.T, kernels))


def _kernel_row_gradient(x, g):
  """[3, C, D] of a convolution along the width: XLA's own runs at a third of the speed of these products."""
  width = x.shape[2]
  x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
  g = g.reshape(-1, g.shape[3])
  return jnp.stack([x[:, :, tap : tap + width].reshape(-1, x.shape[3]).T @ g for tap in range(3)])


def _input_parts(x):
  """INPUT @ (4 rows with one more above and below), each [B, H / 4, W, C]."""
  rows = _rows(x)
  above = jnp.pad(rows[-1][:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
  below = jnp.pad(rows[0][:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
  return _sums(INPUT, [above, *rows, below])


def _rows(x):
  """Rows 0, 4, 8, ..., then 1, 5, 9, ..., and so on: four of [B, H / 4, W, C]."""
  batch, height, width, channels = x.shape
  blocks = x.reshape(batch, height // ROWS, ROWS, width, channels)
  return [blocks[:, :, row] for row in range(ROWS)]


def _sums(weights: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
  """`weights` @ `parts`, term by term: the zeros and ones among the weights cost nothing."""
  rows = [[part if w == 1 else float(w) * part for w, part in zip(row, parts) if w] for row in weights]
  return [functools.reduce(operator.add, terms) for terms in rows]
