"""Images to detections: canvas buckets, mirror image, scales, central regions, soft-NMS (Sec. 3.4, "Inference")."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct

from triplet_det.detection import decode, nms
from triplet_det.detection.batches import Canvases, Keyed, canvases_of, in_batches, place_batch
from triplet_det.detection.canvas import Placement, check_image
from triplet_det.detection.central_region import keep_triplets
from triplet_det.detection.launching import detect, rows_for
from triplet_det.detection.settings import Settings
from triplet_det.devices import compiler
from triplet_det.models import input_pixels
from triplet_det.structs import Detections, KeypointMaps, Pairs, Peaks


@struct.dataclass
class Proposals:
  """What the detector had to choose from, in pixels of the original images; [B, ...], or one image without the B."""

  pairs: Pairs  # [B, P] of all scales, with the scores of their two corners, before the centers are looked at
  centers: Peaks | None  # [B, K] of the center scale; None for CornerNet
  kept: jax.Array  # [B, P] bool, the valid pairs that have a center in their central region; CornerNet: all valid ones


def propose(
  apply_fn: Callable[..., KeypointMaps], settings: Settings, variables, canvases: jax.Array, placement: Placement
) -> tuple[Pairs, Peaks | None]:
  """Pairs and centers of one scale, in pixels of the original images; the program compiled once per canvas size.

  Args:
    apply_fn: (variables, images [., H, W, 3] float32 normalised) -> KeypointMaps, of any stride.
    canvases: [B, H, W, 3] uint8 RGB, with the images at `placement`.

  Returns:
    Pairs [B, P] and Peaks [B, K] (None for CornerNet), those of the mirror image behind those of the image. A center
    may lie outside its image; no central region does.
  """
  maps = apply_fn(variables, network_input(canvases, settings, placement))
  return locate(maps, settings, canvases.shape[1:3], placement)


def network_input(canvases: jax.Array, settings: Settings, placement: Placement) -> jax.Array:
  """uint8 canvases [B, H, W, 3] -> float32 images [2 B, H, W, 3], each followed by its mirror image if wanted."""
  images = input_pixels.normalise(canvases)
  if settings.canvas_colour != 'black':
    mean, _ = input_pixels.STATISTICS[settings.canvas_colour]
    around = input_pixels.normalise(mean.astype(np.float32))
    images = jnp.where(_shown(canvases.shape[1:3], settings, placement)[..., None], images, around)
  if settings.mirror:  # next to its image, not behind the whole batch, so that a sharded batch stays where it is
    images = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
  return images


def _shown(canvas: tuple[int, int], settings: Settings, placement: Placement) -> jax.Array:
  """[B, H, W] bool: where `canvas.place` has left pixels of the image on canvases of (height, width) `canvas`."""
  far = placement.border + placement.size
  if settings.cut_last_line:
    far -= (placement.size + 1) % settings.canvas_multiple == 0
  x, y = (
    (near[:, None] <= cells) & (cells < beyond[:, None])
    for near, beyond, cells in zip(placement.border.T, far.T, map(jnp.arange, canvas[::-1]))
  )
  return y[:, :, None] & x[:, None, :]


def locate(
  maps: KeypointMaps, settings: Settings, canvas: tuple[int, int], placement: Placement
) -> tuple[Pairs, Peaks | None]:
  """What `propose` returns, from the maps of `network_input` for canvases of (height, width) `canvas`."""
  height, width = canvas
  out_height, out_width = maps.tl_heat.shape[1:3]
  stride = width / out_width, height / out_height
  near = None
  if settings.near_edges:  # the published program takes the image's for the mirror image too, whose border is the other
    near = jnp.repeat(placement.border / jnp.array(stride), 2 if settings.mirror else 1, axis=0)
  pairs, centers = decode.decode(
    maps,
    top_k=settings.top_k,
    num_pairs=settings.num_pairs,
    window=settings.window,
    embedding_threshold=settings.embedding_threshold,
    near=near,
  )
  if settings.mirror:
    # Pixel 0 is mirrored to pixel width - 1; the published program subtracts from the width.
    last = out_width if settings.mirror_shift else out_width * (width - 1) / width
    if settings.mirror_in_image:
      last = (placement.size + 2 * placement.border)[:, :1] / stride[0]
    pairs, centers = _with_mirrored(pairs, centers, last)
  return _to_image(pairs, centers, stride, placement, settings)


def _with_mirrored(pairs: Pairs, centers: Peaks | None, last: float | jax.Array) -> tuple[Pairs, Peaks | None]:
  """Rows image, mirror image, image, ... [2 B, P] -> both together [B, 2 P], the mirror image's turned back.

  `last` is the place, in output cells, that x = 0 is mirrored to; [B, 1] if each image has its own.
  """
  (own, own_centers), (mirrored, mirrored_centers) = (
    jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:])[:, i], (pairs, centers))  # noqa: B023, used at once
    for i in range(2)
  )
  x1, y1, x2, y2 = jnp.moveaxis(mirrored.boxes, -1, 0)
  mirrored = mirrored.replace(boxes=jnp.stack([last - x2, y1, last - x1, y2], axis=-1))
  if centers is not None:
    mirrored_centers = mirrored_centers.replace(x=last - mirrored_centers.x)
  both = (own, own_centers), (mirrored, mirrored_centers)
  return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *both)


def _to_image(pairs, centers, stride, placement, settings):
  """Output cells -> canvas pixels -> resized image, where boxes are rejected or clipped -> original image."""
  border, size, scale = (a[:, None] for a in (placement.border, placement.size, placement.scale))
  corners = pairs.boxes.reshape(*pairs.boxes.shape[:2], 2, 2) * jnp.array(stride) - border[:, None]
  if (margin := settings.outside_margin) is not None:
    near, far = corners[:, :, 0], corners[:, :, 1]
    inside = ((near > -margin) & (far < size + margin)).all(axis=-1)
    valid = pairs.valid & inside
    pairs = pairs.replace(valid=valid, scores=jnp.where(valid, pairs.scores, -1.0))
  if not settings.near_edges:  # else `decode` has cut what is to be cut
    corners = jnp.clip(corners, 0, size[:, None])
  pairs = pairs.replace(boxes=(corners / scale[:, None]).reshape(pairs.boxes.shape))
  if centers is not None:
    centers = centers.replace(
      x=(centers.x * stride[0] - border[..., 0]) / scale[..., 0],
      y=(centers.y * stride[1] - border[..., 1]) / scale[..., 1],
    )
  return pairs, centers


def finish(found: Sequence[tuple[Pairs, Peaks | None]], settings: Settings) -> tuple[Detections | Pairs, Proposals]:
  """What follows the network and `locate`: pairs and centers of all scales -> the best boxes; compiled once.

  Returns:
    Detections [B, D], or with `stale_rows` the Pairs that `per_image` finishes on the host; and the Proposals.

  Raises:
    ValueError: `center_scale` is none of the scales.
  """
  every_pairs, every_centers = zip(*found)
  pairs = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *every_pairs)
  if every_centers[0] is None:
    centers, triplets = None, pairs
  else:
    if settings.center_scale not in settings.scales:
      raise ValueError(f'center_scale is {settings.center_scale}, which is not among the scales {settings.scales}')
    centers = every_centers[settings.scales.index(settings.center_scale)]
    triplets = keep_triplets(pairs, centers, center_rule=settings.center_rule, small_box=settings.small_box)
  proposals = Proposals(pairs, centers, triplets.valid)
  if not settings.stale_rows:
    return select(triplets, settings), proposals
  if centers is not None:  # CenterNet's program sorts before its soft-NMS, CornerNet's does not
    order = jnp.argsort(triplets.scores, axis=1, descending=True, stable=True)
    triplets = jax.vmap(lambda one, rows: jax.tree.map(lambda a: a[rows], one))(triplets, order)
  return triplets, proposals


def select(pairs: Pairs, settings: Settings) -> Detections:
  """The best boxes [B, D] of the pairs [B, P] of all scales, after soft-NMS."""
  suppress = jax.vmap(functools.partial(nms.soft_nms, **settings.nms_settings()))
  return suppress(pairs.boxes, pairs.scores, pairs.classes, pairs.tl_scores, pairs.br_scores)


class Detector:
  """Images in, detections out, in pixels of each image.

  Images whose canvases are equal at all scales share a batch. The network is compiled once per canvas size and
  batch size; everything after it once per batch size.

  Attributes:
    num_programs: how many times the network was compiled.
    apply_fn, variables: the network, see `__init__`; the variables are prepared and on the devices.
  """

  def __init__(
    self,
    apply_fn: Callable[..., KeypointMaps],
    variables,
    settings: Settings = Settings(),
    *,
    batch_size: int = 8,
    sharding: jax.sharding.NamedSharding | None = None,
    prepare: Callable[[Any], Any] = lambda variables: variables,
  ):
    """Args:
    apply_fn: (variables, images [., H, W, 3] float32 normalised) -> KeypointMaps of the last stack.
    batch_size: images per batch, not counting mirror images; rounded up to a multiple of the devices.
    sharding: of the batch axis over this process's devices; None is one device.
    prepare: what `variables`, as NumPy arrays, go through once, here and in `use`, to become those of `apply_fn`; or
      as `jax.eval_shape` gives them. If they are NumPy arrays now, it runs in a thread beside the compiler.
    """
    if not isinstance(batch_size, int):
      raise ValueError(f'batch_size must be a whole number, got {batch_size!r}')
    if batch_size < 1:
      raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    self.settings = settings
    self.batch_size = batch_size
    self.apply_fn = apply_fn
    self._sharding = sharding
    self._prepare = prepare
    self._everywhere = sharding and jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    self._shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._everywhere), jax.eval_shape(prepare, variables)
    )
    if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables)):
      thread = concurrent.futures.ThreadPoolExecutor(1)
      self._variables = thread.submit(self._on_devices, variables).result
      thread.shutdown(wait=False)
    else:
      self.use(variables)  # now: the caller may donate them
    device = next(iter(sharding.device_set)) if sharding else jax.devices()[0]
    self._propose = jax.jit(functools.partial(propose, apply_fn, settings), compiler_options=compiler.options(device))
    self._finish = jax.jit(functools.partial(finish, settings=settings))
    self._programs = {}

  @property
  def num_programs(self) -> int:
    return len(self._programs)

  def use(self, variables) -> None:
    """Other weights of the same network, from now on; nothing is compiled anew."""
    placed = self._on_devices(variables)
    self._variables = lambda: placed

  @property
  def variables(self) -> Any:
    return self._variables()

  def _on_devices(self, variables) -> Any:
    return jax.device_put(self._prepare(jax.device_get(variables)), self._everywhere)

  def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
    """Detections of each image, in order: NumPy arrays without the batch axis, valid rows only, best first.

    Args:
      images: uint8 RGB arrays [height, width, 3], of any sizes.

    Raises:
      ValueError: an image of another type or shape; says which.
    """
    images = _check_list(images)
    found = dict(self._detect(enumerate(images), len(images) + 1, padded=False))
    return [found[i] for i in range(len(images))]

  def stream(
    self,
    keyed_images: Iterable[Keyed],
    *,
    max_waiting: int | None = None,
    failed: Callable[[Hashable, str], None] | None = None,
  ) -> Iterator[tuple[Hashable, Detections]]:
    """Yields (key, Detections) for every (key, image) as batches fill, not in order; for data sets of any length.

    Incomplete batches are padded to `batch_size`, so every canvas size needs one program only. At most `max_waiting`
    images (default 16 batches) wait for others of their canvas; then the fullest batch goes as it is. `failed` is told
    of images that memory is too short for, see `launching.detect`.
    """
    return self._detect(keyed_images, max_waiting or 16 * self.batch_size, failed, padded=True)

  def canvases_for(self, image: np.ndarray, key: Hashable) -> Canvases:
    """The canvases that an image, whatever its key, goes onto."""
    return canvases_of(*image.shape[:2], self.settings)

  def proposals(self, images: Sequence[np.ndarray]) -> list[Proposals]:
    """What each image's detections were chosen from, in order: NumPy, valid pairs only, all centers.

    Runs the programs of `stream`: after it nothing is compiled for canvases that it has met. Arguments and errors as
    `__call__`.
    """
    images = _check_list(images)
    found = [None] * len(images)
    for _, batch in in_batches(enumerate(images), self.settings, self.batch_size, len(images) + 1):
      proposals = jax.device_get(self._launch([image for _, image in batch], padded=True)[1])
      for row, (key, _) in enumerate(batch):
        one = jax.tree.map(lambda a: a[row], proposals)  # noqa: B023, used at once
        valid = one.pairs.valid
        pairs = jax.tree.map(lambda a: a[valid], one.pairs)  # noqa: B023
        found[key] = Proposals(pairs, one.centers, one.kept[valid])
    return found

  def compile_ahead(self, sizes: Iterable[tuple[int, int]]) -> int:
    """Compiles what `stream` needs for images of these (height, width); returns the number of programs made."""
    before = self.num_programs
    canvases = {canvas for height, width in sizes for canvas in canvases_of(height, width, self.settings)}
    for done, canvas in enumerate(sorted(canvases)):
      self._program(canvas, rows_for(self.batch_size, self._sharding))
      logging.info('canvas %d of %d is ready', done + 1, len(canvases))
    return self.num_programs - before

  def _detect(self, keyed_images: Iterable[Keyed], max_waiting: int, failed=None, *, padded: bool):
    batches = in_batches(keyed_images, self.settings, self.batch_size, max_waiting)
    return detect(batches, lambda _, images: self._launch(images, padded=padded)[0], self.settings, failed)

  def _launch(self, images: Sequence[np.ndarray], *, padded: bool) -> tuple[Detections | Pairs, Proposals]:
    """Sends a batch of images of one group to the device, and returns without waiting for it.

    `padded` to a whole batch, or only to the next power of two.
    """
    count = self.batch_size if padded else min(self.batch_size, 1 << (len(images) - 1).bit_length())
    rows = rows_for(count, self._sharding)
    found = []
    for scale in self.settings.scales:
      canvases, placement = place_batch(images, scale, self.settings, rows)
      if self._sharding is not None:
        canvases, placement = jax.device_put((canvases, placement), self._sharding)
      found.append(self._program(canvases.shape[1:3], rows)(self.variables, canvases, placement))
    return self._finish(found)

  def _program(self, canvas: tuple[int, int], rows: int):
    """The compiled network program of a canvas size and batch size."""
    if (canvas, rows) not in self._programs:
      start = time.monotonic()
      shaped = functools.partial(jax.ShapeDtypeStruct, sharding=self._sharding)
      pair = shaped((rows, 2), np.float32)
      lowered = self._propose.lower(
        self._shapes, shaped((rows, *canvas, 3), np.uint8), Placement(border=pair, size=pair, scale=pair)
      )
      self._programs[canvas, rows] = lowered.compile()
      compiler.give_back()
      logging.info(
        'compiled canvas %d x %d, batch %d in %.1f s (program %d)',
        *(canvas[1], canvas[0], rows, time.monotonic() - start, self.num_programs),
      )
    compiler.check_room(self._programs[canvas, rows])
    return self._programs[canvas, rows]


def _check_list(images: Sequence[np.ndarray]) -> list[np.ndarray]:
  if isinstance(images, np.ndarray) and images.ndim == 3:
    raise ValueError(f'the detector takes a list of images, got one array of shape {images.shape}: pass [image]')
  return [check_image(image, i) for i, image in enumerate(images)]
