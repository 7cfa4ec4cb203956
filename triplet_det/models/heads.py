"""The three branches of Fig. 2: a pooling module, then heatmap, offset and (corners only) embedding."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from triplet_det.models.layers import Conv, Numerics

# Initial bias of a heatmap: every cell starts at probability 0.1, so that the first focal losses are tame.
HEAT_BIAS = -2.19


class Output(nn.Module):
  """3x3 convolution with bias, ReLU, 1x1 convolution with bias: [B, H, W, C] -> [B, H, W, features] float32."""

  features: int
  hidden: int
  numerics: Numerics
  bias: str | float = 'uniform'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(Conv(self.hidden, 3, bias='uniform', dtype=self.numerics.dtype, name='hidden')(x))
    # The last layer is at least float32 under mixed precision: sigmoids near 0 and sub-cell offsets need it.
    dtype = jnp.promote_types(self.numerics.dtype, jnp.float32)
    return Conv(self.features, 1, bias=self.bias, dtype=dtype, name='out')(x)


class Branch(nn.Module):
  """Pooling module and outputs of one kind of keypoint."""

  pooling: nn.Module
  num_classes: int
  hidden: int  # width of the outputs' hidden layer
  embedding: bool  # whether the keypoints carry one: corners do, centers do not
  numerics: Numerics

  @nn.compact
  def __call__(self, feature: jax.Array, train: bool) -> dict[str, jax.Array]:
    """[B, H, W, head_width] -> heat [B, H, W, C], offset [B, H, W, 2] and, if asked for, embed [B, H, W, 1]."""
    x = self.pooling(feature, train)
    outputs = dict(
      heat=Output(self.num_classes, self.hidden, self.numerics, HEAT_BIAS, name='heat')(x),
      offset=Output(2, self.hidden, self.numerics, name='offset')(x),
    )
    if self.embedding:
      outputs['embed'] = Output(1, self.hidden, self.numerics, name='embed')(x)
    return outputs
