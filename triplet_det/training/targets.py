"""Gaussian heatmaps, cells and offsets from boxes, rendered on the device (Sec. 3.4; CornerNet [20])."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from triplet_det.structs import Batch, Targets

# Window radius over standard deviation: sigma = (2 r + 1) / this.
CORNER_DIAMETERS_PER_SIGMA = 6.0
CENTER_DIAMETERS_PER_SIGMA = 5.0


def gaussian_radius(
  height: np.ndarray, width: np.ndarray, min_overlap: float, *, published: bool = False
) -> np.ndarray:
  """How far a corner pair may be off (cells) and still overlap its box by IoU `min_overlap`.

  The smallest over three placements: both corners inside, both outside, one of each. Each is the root of a quadratic.
  `published=True` repeats CenterNet's release, which divides every root by 2 instead of 2 a; the third case is then
  always the smallest, and the radius larger. Any shapes that broadcast; float64, because the result is floored.
  """
  height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
  total = height + width
  # a r^2 - b r + c = 0 for the first two, a r^2 + b r + c = 0 for the third. The factors are in the published order:
  # some radii are whole numbers, and rounding decides what their floor is.
  b1, c1 = total, width * height * (1 - min_overlap) / (1 + min_overlap)
  a2, b2, c2 = 4.0, 2 * total, (1 - min_overlap) * width * height
  a3, b3, c3 = 4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * width * height
  if published:
    return (b3 + np.sqrt(b3**2 - 4 * a3 * c3)) / 2
  r1 = (b1 - np.sqrt(b1**2 - 4 * c1)) / 2
  r2 = (b2 - np.sqrt(b2**2 - 4 * a2 * c2)) / (2 * a2)
  r3 = (b3 + np.sqrt(b3**2 - 4 * a3 * c3)) / (2 * a3)
  return np.minimum(np.minimum(r1, r2), r3)


def _radius_table(output_size: tuple[int, int], min_overlap: float, published: bool) -> np.ndarray:
  """Floored radius of every extent in cells, [H + 2, W + 2] float32: extents are integers, so float64 costs nothing."""
  height, width = np.ogrid[: output_size[0] + 2, : output_size[1] + 2]
  radius = gaussian_radius(height, width, min_overlap, published=published)
  return np.maximum(np.floor(radius), 0).astype(np.float32)


def _to_cells(points: jax.Array, cells: np.ndarray, pixels: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Floor and fraction of points * cells / pixels; a point on a cell's border must not fall to rounding's side."""
  scaled = points * cells
  whole = jnp.floor(scaled / pixels)
  rest = scaled - whole * pixels
  whole = whole + jnp.where(rest < 0, -1, 0) + jnp.where(rest >= pixels, 1, 0)
  return whole, (scaled - whole * pixels) / pixels


def _heatmap(cells, radius, classes, valid, *, num_classes, output_size, diameters_per_sigma):
  """One image, one kind of keypoint: cells [N, 2] (x, y), radius, classes, valid [N] -> [H, W, C] by maximum."""
  height, width = output_size
  sigma = (2 * radius + 1) / diameters_per_sigma

  def profile(length, at):  # [N, length]: the Gaussian is a product of its profiles along x and y
    distance = jnp.arange(length, dtype=jnp.float32) - at[:, None].astype(jnp.float32)
    value = jnp.exp(-jnp.square(distance) / (2 * jnp.square(sigma))[:, None])
    return jnp.where(jnp.abs(distance) <= radius[:, None], value, 0.0)

  blobs = profile(height, cells[:, 1])[:, :, None] * profile(width, cells[:, 0])[:, None, :]
  # Padding goes to an extra class, which is cut off; empty classes come out of segment_max as -inf.
  heat = jax.ops.segment_max(blobs, jnp.where(valid, classes, num_classes), num_classes + 1)[:num_classes]
  return jnp.maximum(heat, 0.0).transpose(1, 2, 0)


def render(
  boxes: jax.Array,
  classes: jax.Array,
  valid: jax.Array,
  *,
  num_classes: int,
  input_size: int | tuple[int, int],
  output_size: int | tuple[int, int],
  min_overlap: float = 0.3,
  published_radius: bool = False,
) -> Targets:
  """Targets of a batch.

  Args:
    boxes: [B, N, 4] float32, input pixels, inside the image.
    classes: [B, N] int32.
    valid: [B, N] bool; slots that are not valid leave no trace.
    num_classes: C.
    input_size: pixels, a side or (height, width); 511 in the paper.
    output_size: cells, a side or (height, width); 128 in the paper.
    min_overlap: IoU that corners within the Gaussian's radius still reach; CornerNet 0.3, CenterNet's release 0.7.
    published_radius: see `gaussian_radius`.
  """
  input_size = (input_size, input_size) if isinstance(input_size, int) else input_size
  output_size = (output_size, output_size) if isinstance(output_size, int) else output_size
  cells = np.asarray(output_size[::-1], np.float32)  # x, y
  pixels = np.asarray(input_size[::-1], np.float32)

  extent, beyond = _to_cells(boxes[..., 2:] - boxes[..., :2], cells, pixels)
  extent = (extent + (beyond > 0)).astype(jnp.int32)
  table = _radius_table(output_size, min_overlap, published_radius)
  radius = jnp.asarray(table)[extent[..., 1], extent[..., 0]]

  def keypoints(points, diameters_per_sigma):
    cell, offset = _to_cells(points, cells, pixels)
    cell = cell.astype(jnp.int32)
    draw = partial(_heatmap, num_classes=num_classes, output_size=output_size, diameters_per_sigma=diameters_per_sigma)
    heat = jax.vmap(draw)(cell, radius, classes, valid)
    flat = jnp.where(valid, cell[..., 1] * output_size[1] + cell[..., 0], 0)
    return heat, flat, jnp.where(valid[..., None], offset, 0.0)

  tl_heat, tl_cell, tl_offset = keypoints(boxes[..., :2], CORNER_DIAMETERS_PER_SIGMA)
  br_heat, br_cell, br_offset = keypoints(boxes[..., 2:], CORNER_DIAMETERS_PER_SIGMA)
  center_heat, center_cell, center_offset = keypoints((boxes[..., :2] + boxes[..., 2:]) / 2, CENTER_DIAMETERS_PER_SIGMA)
  return Targets(
    tl_heat=tl_heat,
    br_heat=br_heat,
    center_heat=center_heat,
    tl_cell=tl_cell,
    br_cell=br_cell,
    center_cell=center_cell,
    tl_offset=tl_offset,
    br_offset=br_offset,
    center_offset=center_offset,
    valid=valid,
  )


def of_batch(batch: Batch, **settings) -> Targets:
  """`render` with these settings for the square images of a training batch, and maps with a cell for 4 pixels."""
  side = batch.images.shape[1]
  return render(batch.boxes, batch.classes, batch.valid, input_size=side, output_size=(side + 1) // 4, **settings)
