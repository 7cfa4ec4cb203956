"""The least time that a program can take on a chip, from its arithmetic and its traffic with the memory.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", 2009.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What JAX calls a device."""

  name: str
  kinds: tuple[str, ...]  # values of jax.Device.device_kind
  flops: float  # per second, bfloat16 with float32 sums, without sparsity
  bandwidth: float  # bytes per second, to its own memory
  memory: float  # bytes, that a program may use
  tf32: float | None = None  # per second, of float32 as GPUs multiply it by default; TPUs take bfloat16 for it

  def peak(self, dtype: str) -> float:
    """FLOP/s of a network whose `dtype` is float32 or bfloat16, at JAX's default precision."""
    return self.tf32 or self.flops if dtype == 'float32' else self.flops


# Speeds: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (2026); NVIDIA's data sheets of A100, L4, H100 and H200, its
# white papers of GA102 (RTX 3090) and Ada (RTX 4090), half of what they say with sparsity. Memory of TPUs: what their
# compiler says is available when a program is too large (libtpu 0.0.42), nominally 32, 16, 95, 32 GB. A v4 counts as
# one device with both of its cores ("megacore").
CHIPS = (
  Chip('v4', ('TPU v4',), 275e12, 1200e9, 30.75 * GIB),
  Chip('v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 819e9, 15.75 * GIB),
  Chip('v5p', ('TPU v5', 'TPU v5p'), 459e12, 2765e9, 95.74 * GIB),
  Chip('v6e', ('TPU v6 lite', 'TPU v6e'), 918e12, 1638e9, 31.25 * GIB),
  Chip('H100', ('NVIDIA H100 80GB HBM3',), 989e12, 3350e9, 80e9, tf32=494e12),
  Chip('H100 PCIe', ('NVIDIA H100 PCIe',), 756e12, 2000e9, 80e9, tf32=378e12),
  Chip('H200', ('NVIDIA H200',), 989e12, 4800e9, 141e9, tf32=494e12),
  Chip('A100 40 GB', ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'), 312e12, 1555e9, 40e9, tf32=156e12),
  Chip('A100 80 GB', ('NVIDIA A100-SXM4-80GB',), 312e12, 2039e9, 80e9, tf32=156e12),
  Chip('A100 80 GB PCIe', ('NVIDIA A100 80GB PCIe',), 312e12, 1935e9, 80e9, tf32=156e12),
  Chip('L4', ('NVIDIA L4',), 121e12, 300e9, 24e9, tf32=60e12),
  Chip('RTX 3090', ('NVIDIA GeForce RTX 3090',), 71e12, 936e9, 24e9, tf32=35.6e12),
  Chip('RTX 4090', ('NVIDIA GeForce RTX 4090',), 165e12, 1008e9, 24e9, tf32=82.6e12),
)


@dataclasses.dataclass(frozen=True)
class Bound:
  """The least time."""

  seconds: float
  by: str  # 'arithmetic' or 'memory', whichever takes longer
  peak_share: float  # useful FLOPs / (seconds x the chip's FLOPs per second)


def chip_of(device: jax.Device) -> Chip | None:
  """The chip of the table; None if it is not in it."""
  return next((chip for chip in CHIPS if device.device_kind in chip.kinds), None)


def bound(chip: Chip, *, flops: float, bytes_accessed: float, useful_flops: float) -> Bound:
  """max(flops / peak, bytes / bandwidth), of one device; the time of collectives is not in it.

  Args:
    flops: of the program, with what it computes again to save memory.
    bytes_accessed: to and from the chip's memory.
    useful_flops: of the network, see `network_flops`.
  """
  arithmetic, memory = flops / chip.flops, bytes_accessed / chip.bandwidth
  seconds = max(arithmetic, memory)
  return Bound(seconds, 'arithmetic' if arithmetic >= memory else 'memory', useful_flops / (seconds * chip.flops))


def network_flops(apply_fn: Callable, *arguments: Any, train: bool) -> int:
  """The arithmetic of convolutions and matrix products, a multiplication and an addition counting 2, from shapes alone.

  Products with the zeros of the padding are left out, as in XLA's count. The backward pass costs the forward pass once
  for the inputs' gradient and once for the kernels'; only the images need no gradient. What rematerialisation
  computes again is not in it, neither are norms, pools, losses and depthwise convolutions (sums of shifted products).

  Args:
    apply_fn: the network's forward pass; its first convolution must be the one that reads the images.
    arguments: of `apply_fn`: arrays or jax.ShapeDtypeStruct.
    train: count the backward pass too.
  """
  forward = list(_products(jax.make_jaxpr(apply_fn)(*arguments).jaxpr))
  return 3 * sum(forward) - forward[0] if train else sum(forward)


def _products(jaxpr: core.Jaxpr) -> Iterator[int]:
  """FLOPs of each convolution and matrix product in program order, those in called functions included.

  Of what differs by platform the default counts, the last branch: it computes by the definition.
  """
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'conv_general_dilated':
      yield _convolution_flops(equation)
      continue
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      (left, _), (result,) = equation.invars, equation.outvars
      yield 2 * result.aval.size * math.prod(left.aval.shape[axis] for axis in contracted)
      continue
    called = equation.params
    if equation.primitive.name == 'cond':
      called = {'default': called['branches'][-1]}
    for value in called.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
          yield from _products(part.jaxpr if isinstance(part, core.ClosedJaxpr) else part)


def _convolution_flops(equation) -> int:
  values = equation.params
  images, kernel = (variable.aval.shape for variable in equation.invars)
  result = equation.outvars[0].aval.shape
  images_axes, kernel_axes, result_axes = values['dimension_numbers']
  products = result[result_axes[0]] * result[result_axes[1]] * kernel[kernel_axes[1]]  # rows, channels out and in
  steps = (values[name] for name in ('padding', 'window_strides', 'lhs_dilation', 'rhs_dilation'))
  spatial = (axes[2:] for axes in (images_axes, kernel_axes, result_axes))
  for (before, _), stride, input_step, kernel_step, *axes in zip(*steps, *spatial):
    length, taps, cells = (shape[axis] for shape, axis in zip((images, kernel, result), axes))
    position = stride * np.arange(cells)[:, None] + kernel_step * np.arange(taps) - before
    # Pairs of a cell of the result and a tap of the kernel, along one axis, that meet a number of the input.
    met = (position >= 0) & (position <= (length - 1) * input_step) & (position % input_step == 0)
    products *= int(met.sum())
  return 2 * products
