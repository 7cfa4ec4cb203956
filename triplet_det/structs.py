"""Everything that crosses a module boundary, with shapes and units.

The letters, defined once for the whole program:
  B images, N object slots per image (at most 128 used), C classes,
  H x W cells of an output map (a cell is 4 input pixels wide),
  K peaks per heatmap, P pairs of corners per image, D detections per image.
Boxes are x1 y1 x2 y2. Coordinates are (x, y). Class indices are contiguous from 0.
"""

import jax
from flax import struct

from triplet_det.categories import CategoryTable

__all__ = ['Batch', 'CategoryTable', 'Cells', 'Detections', 'KeypointMaps', 'Pairs', 'Peaks', 'Targets']


@struct.dataclass
class Batch:
  """What the host sends to the devices for one training step (about 0.8 MB per 511 x 511 image)."""

  images: jax.Array  # [B, S, S, 3] uint8, RGB, after crop, resize and flip
  boxes: jax.Array  # [B, N, 4] float32, input pixels, clipped to [0, S - 1]
  classes: jax.Array  # [B, N] int32
  valid: jax.Array  # [B, N] bool, False for padding


@struct.dataclass
class KeypointMaps:
  """The output of one supervised stack; the center fields are None for CornerNet.

  Offsets and embeddings that were computed at `Cells` alone are [B, N P, 2] and [B, N P, 1], P cells each, see
  `losses.around`.
  """

  tl_heat: jax.Array  # [B, H, W, C] float32 logits, top-left corners
  br_heat: jax.Array  # [B, H, W, C] float32 logits, bottom-right corners
  tl_embed: jax.Array  # [B, H, W, 1] float32 associative embedding
  br_embed: jax.Array  # [B, H, W, 1] float32
  tl_offset: jax.Array  # [B, H, W, 2] float32 (x, y), cells
  br_offset: jax.Array  # [B, H, W, 2] float32 (x, y), cells
  center_heat: jax.Array | None = None  # [B, H, W, C] float32 logits, centers
  center_offset: jax.Array | None = None  # [B, H, W, 2] float32 (x, y), cells


@struct.dataclass
class Targets:
  """What the maps are trained towards (Sec. 3.4); cells are flat indices y * W + x."""

  tl_heat: jax.Array  # [B, H, W, C] float32 in [0, 1], 1 at an object's cell
  br_heat: jax.Array  # [B, H, W, C] float32
  center_heat: jax.Array  # [B, H, W, C] float32
  tl_cell: jax.Array  # [B, N] int32
  br_cell: jax.Array  # [B, N] int32
  center_cell: jax.Array  # [B, N] int32
  tl_offset: jax.Array  # [B, N, 2] float32 (x, y) in [0, 1), cells
  br_offset: jax.Array  # [B, N, 2] float32
  center_offset: jax.Array  # [B, N, 2] float32
  valid: jax.Array  # [B, N] bool, one mask for the three kinds


@struct.dataclass
class Cells:
  """Where the training loss reads offsets and embeddings; flat indices y * W + x."""

  tl: jax.Array  # [B, N] int32
  br: jax.Array  # [B, N] int32
  center: jax.Array  # [B, N] int32
  reach: int = struct.field(pytree_node=False, default=0)  # the cells up to so far away, to all sides, are read, too


@struct.dataclass
class Peaks:
  """The K best keypoints of one heatmap, best first."""

  x: jax.Array  # [B, K] float32, output cells, offset added
  y: jax.Array  # [B, K] float32
  scores: jax.Array  # [B, K] float32 in [0, 1]
  classes: jax.Array  # [B, K] int32


@struct.dataclass
class Pairs:
  """Pairs of corners that passed the tests on class, embedding and geometry, best first."""

  boxes: jax.Array  # [B, P, 4] float32, output cells (after `inference`: image pixels)
  scores: jax.Array  # [B, P] float32, mean of the two corners; -1 where not valid
  tl_scores: jax.Array  # [B, P] float32
  br_scores: jax.Array  # [B, P] float32
  classes: jax.Array  # [B, P] int32
  valid: jax.Array  # [B, P] bool


@struct.dataclass
class Detections:
  """The final boxes of each image, best first."""

  boxes: jax.Array  # [B, D, 4] float32, pixels of the original image
  scores: jax.Array  # [B, D] float32
  classes: jax.Array  # [B, D] int32
  valid: jax.Array  # [B, D] bool, False for padding
