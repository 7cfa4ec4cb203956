"""The training loss, Eq. (2): L = L_det(corners) + L_det(centers) + 0.1 pull + 0.1 push + offsets.

Every loss is computed per group of images, then averaged over groups: the published run has 8 GPUs with 6 images
each, a loss per GPU, and their mean. Within a group, focal and offset losses are divided by the group's objects.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from triplet_det.structs import KeypointMaps, Targets

# The published pull and push are summed over the 6 images of a GPU with weight 0.1, so in units of a per-image mean
# they weigh 0.6; written so, other group sizes keep the balance.
PULL_WEIGHT = 0.6
PUSH_WEIGHT = 0.6
OFFSET_WEIGHT = 1.0
# The published probabilities are clipped to [this, 1 - this], so no gradient flows from outside.
PROBABILITY_CLIP = 1e-4
_EPSILON = 1e-4  # added to object counts, as published


def _at_least_float32(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _grouped(x: jax.Array, group: int) -> jax.Array:
  return x.reshape(x.shape[0] // group, group, *x.shape[1:])


def focal_loss(logits: jax.Array, target: jax.Array, *, group: int) -> jax.Array:
  """Focal loss of heatmaps, variant of CornerNet [20] with alpha 2 and beta 4.

  Args:
    logits, target: [B, H, W, C]; the cells whose target is 1 are the positive ones.
    group: images that share a normalisation; B is a multiple.

  Returns:
    Scalar: per group the sum over cells divided by the number of positive cells (undivided if there are none).
  """
  p = jnp.clip(jax.nn.sigmoid(_at_least_float32(logits)), PROBABILITY_CLIP, 1 - PROBABILITY_CLIP)
  positive = target == 1
  at_positive = jnp.log(p) * jnp.square(1 - p)
  elsewhere = jnp.log1p(-p) * jnp.square(p) * jnp.square(jnp.square(1 - target))
  cells = _grouped(jnp.where(positive, at_positive, elsewhere), group)
  count = _grouped(positive, group).sum((1, 2, 3, 4), dtype=jnp.float32)
  return (-cells.sum((1, 2, 3, 4)) / jnp.maximum(count, 1)).mean()


def _at_cells(field: jax.Array, cells: jax.Array) -> jax.Array:
  """field [B, H, W, D], cells [B, N] flat indices -> [B, N, D], at least float32."""
  flat = _at_least_float32(field.reshape(field.shape[0], -1, field.shape[-1]))
  return jnp.take_along_axis(flat, cells[..., None], axis=1)


def around(cells: jax.Array, size: tuple[int, int], reach: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The cells up to `reach` away from each keypoint, to all sides.

  Args:
    cells: [B, N] flat indices in a map of `size`, height and width.

  Returns:
    [B, N, P] flat indices, P = (2 reach + 1)^2, which of them are inside the map, and [P, 2] where they lie, x and y.
  """
  height, width = size
  steps = np.arange(-reach, reach + 1)
  away = np.stack([a.ravel() for a in np.meshgrid(steps, steps)], axis=-1)
  x, y = cells[..., None] % width + away[:, 0], cells[..., None] // width + away[:, 1]
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  return jnp.where(inside, y * width + x, 0), inside, jnp.asarray(away, jnp.float32)


def pull_push_loss(
  tl_embed: jax.Array, br_embed: jax.Array, valid: jax.Array, near: Sequence[tuple[jax.Array, jax.Array]] = ()
) -> tuple[jax.Array, jax.Array]:
  """Associative embedding of the corners, as means over the images.

  Args:
    tl_embed, br_embed: [B, N] the embeddings at the objects' corners.
    valid: [B, N] bool.
    near: embeddings of cells around each kind of corner, [B, N, P], and which of them count. They are drawn to the
      mean of their object as well.

  Returns:
    pull: squared distances of both corners to their mean, per object.
    push: max(0, 1 - distance) of the means, over ordered pairs of different objects. As published the diagonal is
      in the sum and its share is subtracted, which leaves 0.9999 for an image of one object and no gradient.
  """
  mask = valid.astype(jnp.promote_types(tl_embed.dtype, jnp.float32))
  count = mask.sum(1)
  mean = (tl_embed + br_embed) / 2
  spread = jnp.square(tl_embed - mean) + jnp.square(br_embed - mean)
  for embed, counts in near:
    distances = jnp.where(counts, jnp.square(embed - mean[..., None]), 0)
    spread += distances.sum(-1) / jnp.maximum(counts.sum(-1), 1)
  pull = (spread * mask).sum(1) / (count + _EPSILON)

  distance = jnp.abs(mean[:, :, None] - mean[:, None, :])
  pairs = mask[:, :, None] * mask[:, None, :]
  diagonal_share = (1 / (count + _EPSILON))[:, None, None]
  hinge = (jax.nn.relu(1 - distance) - diagonal_share) * pairs
  push = hinge.sum((1, 2)) / ((count - 1) * count + _EPSILON)
  return pull.mean(), push.mean()


def offset_loss(offset: jax.Array, target: jax.Array, valid: jax.Array, *, group: int) -> jax.Array:
  """Smooth l1 (beta 1; the paper says l1) of offsets [B, N, 2], summed, over the objects of each group."""
  mask = valid.astype(jnp.promote_types(offset.dtype, jnp.float32))
  distance = jnp.abs(offset - target)
  smooth = jnp.where(distance < 1, 0.5 * jnp.square(distance), distance - 0.5)
  total = _grouped(smooth * mask[..., None], group).sum((1, 2, 3))
  return (total / (_grouped(mask, group).sum((1, 2)) + _EPSILON)).mean()


def detection_loss(
  maps: list[KeypointMaps],
  targets: Targets,
  *,
  group: int | None = None,
  pull_weight: float = PULL_WEIGHT,
  push_weight: float = PUSH_WEIGHT,
  reach: int = 0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Eq. (2), averaged over the supervised stacks.

  Args:
    maps: one KeypointMaps per stack, whole or read at the cells of `targets` and `reach` around them.
    targets: of `targets.render`.
    group: images per group (6 as published; None: the whole batch). B must be a multiple.
    reach: cells around a keypoint, to each side, whose offset leads to it and whose embedding is drawn to that of its
      object. Published: 0, the keypoint's own cell alone, though a peak next to it is read at the peak.

  Returns:
    The scalar loss and its weighted terms, which add up to it: focal_corner, focal_center, pull, push, offset.
  """
  batch = targets.valid.shape[0]
  group = group or batch
  if batch % group:
    raise ValueError(f'a batch of {batch} images is not a multiple of the loss group of {group} images')

  def focal(heat, target):
    return focal_loss(heat, target, group=group)

  def read(field, cells):
    """[B, N, P, D] around each keypoint, [B, N, P] whether that is inside the map, [P, 2] where it is."""
    near, inside, away = around(cells, targets.tl_heat.shape[1:3], reach)
    there = _at_least_float32(field) if field.ndim == 3 else _at_cells(field, near.reshape(batch, -1))
    return there.reshape(*near.shape, -1), inside, away

  def offset(field, cells, target):
    there, inside, away = read(field, cells)
    target = target[:, :, None] - away
    valid = (inside & targets.valid[..., None]).reshape(batch, -1)
    return offset_loss(there.reshape(batch, -1, 2), target.reshape(batch, -1, 2), valid, group=group)

  def embeddings(field, cells):
    """[B, N] of the keypoints themselves, then what `pull_push_loss` wants of those near them."""
    there, inside, away = read(field, cells)
    return there[:, :, len(away) // 2, 0], (there[..., 0], inside & (away != 0).any(-1))

  def stack_terms(m: KeypointMaps) -> dict[str, jax.Array]:
    tl_embed, tl_near = embeddings(m.tl_embed, targets.tl_cell)
    br_embed, br_near = embeddings(m.br_embed, targets.br_cell)
    pull, push = pull_push_loss(tl_embed, br_embed, targets.valid, [tl_near, br_near] if reach else ())
    focal_corner = focal(m.tl_heat, targets.tl_heat) + focal(m.br_heat, targets.br_heat)
    terms = dict(focal_corner=focal_corner, pull=pull_weight * pull, push=push_weight * push)
    top_left = offset(m.tl_offset, targets.tl_cell, targets.tl_offset)
    bottom_right = offset(m.br_offset, targets.br_cell, targets.br_offset)
    terms['offset'] = OFFSET_WEIGHT * (top_left + bottom_right)
    if m.center_heat is not None:
      terms['focal_center'] = focal(m.center_heat, targets.center_heat)
      terms['offset'] += OFFSET_WEIGHT * offset(m.center_offset, targets.center_cell, targets.center_offset)
    return terms

  per_stack = [stack_terms(m) for m in maps]
  terms = {name: sum(t[name] for t in per_stack) / len(maps) for name in per_stack[0]}
  return sum(terms.values()), terms
