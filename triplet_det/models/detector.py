"""CenterNet and CornerNet as one network whose switches are the columns of Table 4 (Fig. 2)."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from triplet_det.models import input_pixels
from triplet_det.models.encoder import LITE0_NAME, TAPS, Ascent, EfficientNetLite0, InvertedResidual
from triplet_det.models.heads import Branch
from triplet_det.models.hourglass import Hourglass, Stem
from triplet_det.models.layers import ConvBlock, Numerics, Residual
from triplet_det.models.pooling import CascadeCornerPooling, CenterPooling, CornerPooling
from triplet_det.run import config_limits
from triplet_det.structs import Cells, KeypointMaps

# What the backward pass computes again instead of reading it from memory: all of every residual block but its input is
# least memory and a third more arithmetic. XLA computes norms and ReLUs again by itself (docs/scaling.md).
REMAT = ('none', 'blocks')
ENCODERS = ('hourglass', LITE0_NAME)  # the paper's, and one that can start with the weights of ImageNet
# What the norms of an encoder that comes with weights normalise with in training: the statistics of the batch, as all
# other norms, or its running statistics, fixed at those that it brings; a few images at a time know less than ImageNet.
ENCODER_NORMS = ('batch', 'fixed')
# How accelerators multiply float32: as JAX is set, by default in TF32 (GPUs) or bfloat16 (TPUs), or as float32.
PRECISIONS = ('default', 'highest')
CORNERS = {'top_left': 'tl', 'bottom_right': 'br'}  # and how `KeypointMaps` call them


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
  """The sizes and switches of a network; `build` makes one from any mapping with these keys."""

  stacks: int  # hourglasses in series: 1 is Hourglass-52, 2 is Hourglass-104; another encoder stands alone
  dims: tuple[int, ...]  # widths of the levels; len(dims) - 1 halvings below the stem's stride of 4
  blocks: tuple[int, ...]  # residual blocks per level
  stem_width: int  # channels after the 7x7 convolution; another encoder has its own
  head_width: int  # channels of the feature and of the pooling modules' result
  pool_width: int  # channels of the maps that are pooled
  num_classes: int
  center_branch: bool = True  # CRE of Table 4: triplets; False is CornerNet
  center_pooling: bool = True  # CTP; needs center_branch
  cascade_corner_pooling: bool = True  # CCP; False is corner pooling
  dtype: str = 'float32'  # of the computation; parameters, statistics and last layers stay float32
  precision: str = 'default'  # one of PRECISIONS
  norm_group: int | None = None  # images per group of norm statistics; None: the whole batch
  norm_running: str = 'all'  # groups that update the running statistics; published: 'first'
  remat: str = 'none'  # one of REMAT
  encoder: str = 'hourglass'  # one of ENCODERS
  encoder_norms: str = 'batch'  # one of ENCODER_NORMS
  pixels: str = 'coco'  # whose statistics an hourglass's pixels are normalised by, one of `input_pixels.STATISTICS`

  def __post_init__(self):
    if len(self.dims) != len(self.blocks) or len(self.dims) < 2:
      raise ValueError(
        f'dims and blocks need one entry per level and at least 2 levels: {len(self.dims)} dims {self.dims}, '
        f'{len(self.blocks)} blocks {self.blocks}'
      )
    for key, possible in (
      *(('norm_running', ('all', 'first')), ('remat', REMAT), ('precision', PRECISIONS)),
      *(('encoder', ENCODERS), ('encoder_norms', ENCODER_NORMS), ('pixels', tuple(input_pixels.STATISTICS))),
    ):
      if getattr(self, key) not in possible:
        raise ValueError(f'model.{key} is {getattr(self, key)!r}; possible: {", ".join(possible)}')
    if self.encoder != 'hourglass' and (self.stacks, len(self.dims)) != (1, len(TAPS)):
      raise ValueError(
        f'model.encoder={self.encoder} needs stacks 1 and {len(TAPS)} dims, for strides 4 to 32: {self.stacks} stacks, '
        f'dims {self.dims}'
      )
    if self.encoder != 'hourglass' and self.pixels != 'coco':
      raise ValueError(f'model.pixels={self.pixels} is for an hourglass; {self.encoder} has its own: give coco')

  @property
  def size_multiple(self) -> int:
    """Input sides must be a multiple of this minus 1 (128 for the published sizes: 511, 639, ...)."""
    return 4 * 2 ** (len(self.dims) - 1)

  def check_side(self, name: str, side: int) -> None:
    """Raises ValueError for a side that the levels cannot halve."""
    if (side + 1) % self.size_multiple:
      below = max(side // self.size_multiple, 1) * self.size_multiple - 1
      raise ValueError(
        f'{name} {side} does not fit the network: sides must be a multiple of {self.size_multiple} minus 1, '
        f'for example {below} or {below + self.size_multiple}'
      )


_PUBLISHED = dict(
  dims=(256, 256, 384, 384, 384, 512),
  blocks=(2, 2, 2, 2, 2, 4),
  stem_width=128,
  head_width=256,
  pool_width=128,
  num_classes=80,
)

# Sizes are data. Parameters: 104,844,152 (hourglass-52), 210,062,960 (hourglass-104).
VARIANTS: dict[str, dict[str, Any]] = {
  'hourglass-52': dict(stacks=1, **_PUBLISHED),
  'hourglass-104': dict(stacks=2, **_PUBLISHED),
  'tiny': dict(
    stacks=1, dims=(32, 48, 64), blocks=(1, 1, 2), stem_width=16, head_width=32, pool_width=32, num_classes=8
  ),
  'photos': dict(
    encoder=LITE0_NAME,
    encoder_norms='fixed',
    stacks=1,
    dims=(32, 48, 64, 96),
    blocks=(1, 1, 1, 0),
    stem_width=0,
    head_width=48,
    pool_width=32,
    num_classes=80,
  ),
}


class Detector(nn.Module):
  """images [B, H, W, 3] normalised -> one KeypointMaps per supervised stack, (H + 1) / 4 by (W + 1) / 4 cells."""

  config: DetectorConfig
  norm_folded: bool = False  # with the variables of `layers.fold_norms`, for testing

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False, read: Cells | None = None) -> list[KeypointMaps]:
    """All stacks in training, the last alone in testing.

    Args:
      read: where offsets and embeddings are needed; elsewhere they may be left out, if that saves time.

    Raises:
      ValueError: a side the levels cannot halve.
    """
    with multiplying(self.config.precision):
      return self._maps(images, train, read)

  def _maps(self, images: jax.Array, train: bool, read: Cells | None) -> list[KeypointMaps]:
    c = self.config
    c.check_side('image height', images.shape[1])
    c.check_side('image width', images.shape[2])
    numerics = Numerics(jnp.dtype(c.dtype), c.norm_group, c.norm_running, self.norm_folded)
    residual, inverted = (
      nn.remat(block, static_argnums=(2,)) if c.remat == 'blocks' else block for block in (Residual, InvertedResidual)
    )

    if c.encoder == LITE0_NAME:
      x = EfficientNetLite0(numerics, inverted, name='encoder')(images, train and c.encoder_norms == 'batch')
      x = Ascent(c.dims, c.blocks, numerics, residual, name='ascent')(x, train)
      feature = ConvBlock(c.head_width, 3, numerics, name='feature_0')(x, train)
      return [self._branches(feature, 0, numerics, train, read)]

    maps = []
    if c.pixels != 'coco':
      images = input_pixels.renormalise(images, *input_pixels.STATISTICS[c.pixels])
    x = Stem(c.stem_width, c.dims[0], numerics, residual, name='stem')(images, train)
    for stack in range(c.stacks):
      y = Hourglass(c.dims, c.blocks, numerics, residual, name=f'hourglass_{stack}')(x, train)
      feature = ConvBlock(c.head_width, 3, numerics, name=f'feature_{stack}')(y, train)
      last = stack == c.stacks - 1
      if train or last or self.is_initializing():
        maps.append(self._branches(feature, stack, numerics, train, read))
      if not last:
        previous = ConvBlock(c.dims[0], 1, numerics, relu=False, name=f'previous_{stack}')(x, train)
        carried = ConvBlock(c.dims[0], 1, numerics, relu=False, name=f'carried_{stack}')(feature, train)
        x = residual(c.dims[0], numerics, name=f'between_{stack}')(nn.relu(previous + carried), train)
    return maps

  def _branches(
    self, feature: jax.Array, stack: int, numerics: Numerics, train: bool, read: Cells | None
  ) -> KeypointMaps:
    c = self.config
    corner_pooling = CascadeCornerPooling if c.cascade_corner_pooling else CornerPooling
    poolings = {corner: corner_pooling(corner, c.pool_width, numerics, parent=None) for corner in CORNERS}
    if c.center_branch:
      poolings['center'] = CenterPooling(c.pool_width, c.center_pooling, numerics, parent=None)
    maps = {}
    for kind, pooling in poolings.items():
      branch = Branch(pooling, c.num_classes, c.dims[0], kind in CORNERS, numerics, name=f'{kind}_{stack}')
      short = CORNERS.get(kind, kind)
      outputs = branch(feature, train, getattr(read, short), read.reach) if read else branch(feature, train)
      maps |= {f'{short}_{output}': value for output, value in outputs.items()}
    return KeypointMaps(**maps)


def multiplying(precision: str) -> contextlib.AbstractContextManager:
  """What is traced inside multiplies so; for a step as a whole, since gradients are traced after the network."""
  return contextlib.nullcontext() if precision == 'default' else jax.default_matmul_precision(precision)


def build(model_config: Mapping[str, Any]) -> Detector:
  """The network of a mapping with DetectorConfig's keys (a VARIANTS entry, a config's `model`, a checkpoint's).

  Raises:
    ValueError: an unknown or missing key (the nearest known one is named), or values that do not fit together.
  """
  fields = {f.name: f for f in dataclasses.fields(DetectorConfig)}
  config_limits.check_names('model key', model_config, fields)
  missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in model_config]
  if missing:
    raise ValueError(f'the model config lacks {", ".join(missing)}')
  values = {k: tuple(v) if k in ('dims', 'blocks') else v for k, v in model_config.items()}
  return Detector(DetectorConfig(**values))
