"""The three branches of Fig. 2: a pooling module, then heatmap, offset and (corners only) embedding."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from triplet_det.models.layers import Conv, Numerics

# Initial bias of a heatmap: every cell starts at probability 0.1, so that the first focal losses are tame.
HEAT_BIAS = -2.19


class Output(nn.Module):
  """3x3 convolution with bias, ReLU, 1x1 convolution with bias: [B, H, W, C] -> [B, H, W, features] float32.

  Without padding [B, H - 2, W - 2, features].
  """

  features: int
  hidden: int
  numerics: Numerics
  bias: str | float = 'uniform'

  @nn.compact
  def __call__(self, x: jax.Array, *, padded: bool = True) -> jax.Array:
    x = nn.relu(Conv(self.hidden, 3, bias='uniform', dtype=self.numerics.dtype, name='hidden')(x, padded=padded))
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
  def __call__(
    self, feature: jax.Array, train: bool, cells: jax.Array | None = None, reach: int = 0
  ) -> dict[str, jax.Array]:
    """[B, H, W, head_width] -> heat [B, H, W, C], offset [B, H, W, 2] and, if asked for, embed [B, H, W, 1].

    With `cells` [B, N], flat indices, offset and embed may be [B, N (2 reach + 1)^2, ...], there and `reach` around
    alone, in the order of `losses.around`: the same numbers with less arithmetic (docs/scaling.md).
    """
    x = self.pooling(feature, train)
    heat = Output(self.num_classes, self.hidden, self.numerics, HEAT_BIAS, name='heat')
    others = dict(offset=Output(2, self.hidden, self.numerics, name='offset'))
    if self.embedding:
      others['embed'] = Output(1, self.hidden, self.numerics, name='embed')

    if cells is None or not _worth_cutting(cells, reach, x):
      return dict(heat=heat(x)) | {name: output(x) for name, output in others.items()}
    around = _windows(x, cells, reach + 1)
    at_cells = {
      name: output(around, padded=False).reshape(len(x), -1, output.features) for name, output in others.items()
    }
    return dict(heat=heat(x)) | at_cells


def _worth_cutting(cells: jax.Array, reach: int, x: jax.Array) -> bool:
  """Whether windows of all cells, which overlap and take time to cut out, are at most half as large as the map."""
  return cells.shape[1] * (2 * reach + 3) ** 2 <= x.shape[1] * x.shape[2] // 2


def _windows(x: jax.Array, cells: jax.Array, reach: int) -> jax.Array:
  """[B, H, W, C] around cells [B, N] -> [B N, 2 reach + 1, 2 reach + 1, C], zeros outside the map."""
  batch, height, width, channels = x.shape
  steps = jnp.arange(-reach, reach + 1)
  rows, columns = cells[..., None, None] // width + steps[:, None], cells[..., None, None] % width + steps
  inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  read = rows.clip(0, height - 1) * width + columns.clip(0, width - 1)
  found = jnp.take_along_axis(x.reshape(batch, -1, channels), read.reshape(batch, -1, 1), axis=1, mode='clip')
  found = jnp.where(inside.reshape(batch, -1, 1), found, 0)
  return found.reshape(-1, len(steps), len(steps), channels)
