"""Depthwise convolutions; on a CPU as sums of shifted products, since XLA's own take 10 to 80 times as long there.

The gradient of the kernel is a loop over rows of the map, whose sums for every tap and column stay in the cache: as k^2
reductions of whole maps it takes 4 to 10 times as long (docs/performance.md has the figures).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """[B, H, W, C] by [k, k, 1, C] -> [B, ceil(H / stride), ceil(W / stride), C], padded as TensorFlow's 'SAME'."""
  plain = functools.partial(_by_definition, stride=stride)
  return lax.platform_dependent(x, kernel, cpu=functools.partial(shifted_products, stride=stride), default=plain)


def _depthwise_forward(x, kernel, stride):
  return depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, saved, g):
  x, kernel = saved

  def plain(x, kernel, g):
    return jax.vjp(functools.partial(_by_definition, stride=stride), x, kernel)[1](g)

  return lax.platform_dependent(x, kernel, g, cpu=functools.partial(_gradients, stride=stride), default=plain)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _by_definition(x, kernel, stride):
  return lax.conv_general_dilated(
    *(x, kernel, (stride, stride), 'SAME'),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def shifted_products(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """`depthwise`, whatever the platform."""
  before, after = _padding(x.shape, kernel.shape[0], stride)
  return _sum_of_taps(
    jnp.pad(x, ((0, 0), *zip(before, after), (0, 0))), kernel[:, :, 0], _sides(x.shape, stride), stride
  )


def _sides(shape, stride):
  return [-(-side // stride) for side in shape[1:3]]


def _padding(shape, size, stride):
  """(above, left), (below, right): more at the end."""
  both = [max((out - 1) * stride + size - side, 0) for out, side in zip(_sides(shape, stride), shape[1:3])]
  return [total // 2 for total in both], [total - total // 2 for total in both]


def _sum_of_taps(padded, kernel, sides, stride):
  """Image by image in a loop, so that XLA does not compute the sum again wherever it is used."""
  reach = [(side - 1) * stride + 1 for side in sides]

  def of_image(image):
    y = 0
    for row in range(kernel.shape[0]):
      for column in range(kernel.shape[1]):
        part = image[row : row + reach[0] : stride, column : column + reach[1] : stride]
        y = y + part * kernel[row, column]
    return y

  return lax.map(of_image, padded)


def _gradients(x, kernel, g, stride):
  size, sides = kernel.shape[0], x.shape[1:3]
  before, after = _padding(x.shape, size, stride)
  # With respect to x: g, spread out by the stride, meets the kernel turned by 180 degrees.
  spread = [
    (size - 1 - low, side + low - (out - 1) * stride - 1, stride - 1)
    for low, side, out in zip(before, sides, g.shape[1:3])
  ]
  dx = _sum_of_taps(
    lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *spread, (0, 0, 0))), kernel[::-1, ::-1, 0], sides, 1
  )
  padded = jnp.pad(x, ((0, 0), *zip(before, after), (0, 0)))
  return dx, _kernel_gradient(padded, g, size, stride)[:, :, None].astype(kernel.dtype)


def _kernel_gradient(padded, g, size, stride):
  """[k, k, C] from the padded input [B, H, W, C] and g [B, h, w, C], row by row of g."""
  batch, height, width, channels = g.shape
  taps = [(row, column) for row in range(size) for column in range(size)]

  def add_row(number, sums):
    image, row = number // height, number % height
    of_g = lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, width, channels))[0, 0]
    rows = lax.dynamic_slice(padded, (image, row * stride, 0, 0), (1, size, *padded.shape[2:]))[0]
    reach = (width - 1) * stride + 1
    products = [rows[i, j : j + reach : stride] * of_g for i, j in taps]
    return sums + jnp.stack(products)

  start = jnp.zeros((len(taps), width, channels), jnp.promote_types(g.dtype, jnp.float32))
  return lax.fori_loop(0, batch * height, add_row, start).sum(1).reshape(size, size, channels)
