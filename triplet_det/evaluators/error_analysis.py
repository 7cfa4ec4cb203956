"""Which output limits the detector: outputs replaced by ground truth before decoding (Sec. 4.6, Table 5).

  analyse(module, variables, settings, source, *, batch_size, sharding=None) -> list[dict]

The row 'centers' is the paper's Table 5. What replaces a prediction:

* heat: logits of +inf at the objects' cells and -inf elsewhere. The decoder gives the plateaus of -inf the score 0,
  and a corner or center of score 0 neither makes a pair nor keeps one.
* center offsets: those of the objects, at their cells; nothing else is read once the heat is replaced.
* corner embeddings and offsets: a predicted corner may lie some cells off, so an object owns every cell to which its
  corner can be moved with the box still overlapping by IoU `REACH`, unless the corner of another object is nearer.
  Owned cells have the object's offset, and as embedding a number of the object's own, beyond all predicted ones: the
  corners of one object always pair, and with no other corner. Cells that nobody owns keep what was predicted.

The truth is put where the image shows it, whatever the settings: a quirk that moves boxes costs AP in every row.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct

from triplet_det.data import pipeline
from triplet_det.detection import batches, coco_results, inference, launching
from triplet_det.detection.canvas import Placement
from triplet_det.detection.settings import Settings
from triplet_det.evaluators import coco_ap
from triplet_det.run.progress import ProgressLine
from triplet_det.structs import Detections, KeypointMaps, Pairs

OUTPUTS = {  # of the network: the fields of KeypointMaps
  'centers': ('center_heat', 'center_offset'),
  'corners': ('tl_heat', 'br_heat'),
  'embeddings': ('tl_embed', 'br_embed'),
  'offsets': ('tl_offset', 'br_offset'),
}
REPLACED = {'nothing': (), **{output: (output,) for output in OUTPUTS}, 'everything': tuple(OUTPUTS)}
METRICS = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')  # the columns of Table 5
REACH = 0.5  # the lowest IoU at which COCO's AP counts a box as found

Objects = tuple[np.ndarray, np.ndarray]  # of one image: boxes [n, 4] float64 x1 y1 x2 y2 pixels, classes [n] int32


@struct.dataclass
class Truth:
  """The objects of a batch of images on their canvases; N is the same for the whole split."""

  boxes: jax.Array  # [B, N, 4] float32, canvas pixels
  classes: jax.Array  # [B, N] int32
  valid: jax.Array  # [B, N] bool, False for padding


def analyse(
  module,
  variables: Mapping,
  settings: Settings,
  source: pipeline.Source,
  *,
  batch_size: int,
  sharding: jax.sharding.NamedSharding | None = None,
) -> list[dict]:
  """The AP with each output replaced by ground truth, and with all; the network sees every image only once per scale.

  Args:
    module: `module.apply(variables, images)` gives the KeypointMaps of every stack.
    variables: of the network.
    settings: how images are tested.
    source: the split; its crowd boxes are no objects to find and left out.
    batch_size: images per batch, not counting mirror images; rounded up to a multiple of the devices.
    sharding: of the batch axis over this process's devices; None is one device.

  Returns:
    Rows dict(replaced, metrics): `replaced` is a key of `REPLACED` (no 'centers' for CornerNet), `metrics` has
    `METRICS`, fractions; NaN where the split has no object of that size.

  Raises:
    ValueError: the split has no object to find.
  """
  objects = objects_to_find(source)
  counts = np.array([len(classes) for _, classes in objects.values()])
  if not counts.sum():
    raise ValueError(f'no ground truth to replace predictions by: no object to find on the {len(source)} images')
  if crowded := int((counts > settings.top_k).sum()):
    logging.warning(
      'top_k bounds the AP with ground truth: it keeps %d keypoints, %d of %d images have more objects, up to %d',
      *(settings.top_k, crowded, len(counts), counts.max()),
    )
  programs = _Programs(module, variables, settings, sharding, slots=-(-int(counts.max()) // 8) * 8)
  rows = launching.rows_for(batch_size, sharding)
  sizes = source.image_sizes
  order = sorted(range(len(source)), key=lambda i: batches.canvases_of(*sizes[i], settings))
  images = ((record.image_id, image) for _, record, image in pipeline.load_images(source, order))
  progress = ProgressLine(len(source), prefix='error analysis', unit='image')
  found = {name: {} for name in REPLACED}
  for _, batch in batches.in_batches(images, settings, batch_size, max_waiting=16 * batch_size):
    image_ids, batch_images = zip(*batch)
    for name, result in programs(batch_images, [objects[i] for i in image_ids], rows).items():
      found[name].update(launching.per_image(image_ids, result, settings))
    progress.update(len(found['nothing']))
  progress.close()
  for scale, hidden in zip(settings.scales, programs.hidden):
    if int(hidden):
      logging.info(
        'scale %g: %d of %d objects share the cell of a corner or center with another object, and a cell has one '
        'offset and one embedding: the row "everything" may miss them',
        *(scale, hidden, counts.sum()),
      )
  return [dict(replaced=name, metrics=_metrics(source, detections)) for name, detections in found.items() if detections]


def objects_to_find(source: pipeline.Source) -> dict[int, Objects]:
  """Image id -> boxes and classes of the JSON, without crowds, for every image of the split."""
  class_of = {category_id: i for i, category_id in enumerate(source.categories.ids)}
  rows = {image_id: [] for image_id in source.image_ids}
  for annotation in source.ground_truth['annotations']:
    if not annotation.get('iscrowd', 0):
      x, y, w, h = annotation['bbox']
      rows[annotation['image_id']].append((x, y, x + w, y + h, class_of[annotation['category_id']]))
  tables = {image_id: np.array(table, np.float64).reshape(-1, 5) for image_id, table in rows.items()}
  return {image_id: (table[:, :4], table[:, 4].astype(np.int32)) for image_id, table in tables.items()}


def _metrics(source: pipeline.Source, detections: Mapping[int, Detections]) -> dict[str, float]:
  rows = coco_results.results_rows(detections.items(), source.categories)
  metrics = coco_ap.evaluate(source.ground_truth, rows)
  return {name: metrics[name] for name in METRICS}


class _Programs:
  """A batch of images of one bucket -> what is found in them with each output replaced.

  Compiled once per canvas size: the network, and the way from its maps to pairs; which outputs are replaced is an
  argument of the latter.
  """

  def __init__(self, module, variables, settings: Settings, sharding, *, slots: int):
    mesh_wide = sharding and jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    self._variables = jax.device_put(variables, mesh_wide)
    self._settings, self._sharding, self._slots = settings, sharding, slots
    self.hidden = [0] * len(settings.scales)  # objects without a cell of their own, so far

    def look(variables, canvases, placement, truth):
      maps = module.apply(variables, inference.network_input(canvases, settings, placement))[-1]
      return maps, *true_maps(truth, maps, settings, canvases.shape[1:3])

    def locate(maps, true, chosen, placement, canvas):
      return inference.locate(replace(maps, true, chosen), settings, canvas, placement)

    self._look = jax.jit(look)
    self._locate = jax.jit(locate, static_argnames='canvas')
    self._finish = jax.jit(lambda found: inference.finish(found, settings)[0])

  def __call__(
    self, images: Sequence[np.ndarray], objects: Sequence[Objects], rows: int
  ) -> dict[str, Detections | Pairs]:
    """Results of `inference.finish` by the name of the row."""
    found = {name: [] for name in REPLACED}
    for k, scale in enumerate(self._settings.scales):
      canvases, placement = batches.place_batch(images, scale, self._settings, rows)
      truth = truth_on_canvases(images, objects, placement, self._slots)
      canvas = canvases.shape[1:3]
      canvases, placement, truth = jax.device_put((canvases, placement, truth), self._sharding)
      maps, true, hidden = self._look(self._variables, canvases, placement, truth)
      self.hidden[k] += hidden
      for name, outputs in REPLACED.items():
        if name != 'centers' or maps.center_heat is not None:
          chosen = {output: np.bool_(output in outputs) for output in OUTPUTS}
          found[name].append(self._locate(maps, true, chosen, placement, canvas))
    return {name: self._finish(scales) for name, scales in found.items() if scales}


def truth_on_canvases(
  images: Sequence[np.ndarray], objects: Sequence[Objects], placement: Placement, slots: int
) -> Truth:
  """The objects of images placed by `batches.place_batch`; the rows after the last image have none."""
  rows = len(placement.border)
  boxes = np.zeros((rows, slots, 2, 2), np.float32)
  classes, valid = np.zeros((rows, slots), np.int32), np.zeros((rows, slots), bool)
  for row, (image, (corners, labels)) in enumerate(zip(images, objects)):
    scale = placement.size[row] / image.shape[1::-1]  # not placement.scale, which need not be the true one
    boxes[row, : len(labels)] = corners.reshape(-1, 2, 2) * scale + placement.border[row]
    classes[row, : len(labels)] = labels
    valid[row, : len(labels)] = True
  return Truth(boxes.reshape(rows, slots, 4), classes, valid)


def true_maps(
  truth: Truth, maps: KeypointMaps, settings: Settings, canvas: tuple[int, int]
) -> tuple[KeypointMaps, jax.Array]:
  """Maps that would have been right, in the order of `inference.network_input`, NaN where there is no truth.

  Args:
    truth: of the B images on their canvases.
    maps: predicted, of which the shapes count.
    settings: whether there are mirror images, and what keeps embeddings apart.
    canvas: height and width, pixels.

  Returns:
    The maps; an object's embedding lies farther than pairs may differ from any other object's, and from 0.
    How many of the objects (not counting mirror images) have to share a cell with one before them.
  """
  boxes, classes, valid = truth.boxes, truth.classes, truth.valid
  if settings.mirror:  # pixel 0 is shown at pixel width - 1
    last, (x1, y1, x2, y2) = canvas[1] - 1, jnp.moveaxis(boxes, -1, 0)
    mirrored = jnp.stack([last - x2, y1, last - x1, y2], axis=-1)
    boxes = jnp.stack([boxes, mirrored], axis=1).reshape(-1, *boxes.shape[1:])
    classes, valid = jnp.repeat(classes, 2, axis=0), jnp.repeat(valid, 2, axis=0)
  shape = maps.tl_heat.shape[1:]
  boxes = boxes * jnp.array([shape[1] / canvas[1], shape[0] / canvas[0]] * 2)  # cells from here on
  render = jax.vmap(functools.partial(_keypoints, shape=shape), in_axes=(0, 0, 0, 0, None))
  size = boxes[..., 2:] - boxes[..., :2]
  tl_heat, tl_owner, tl_offset, tl_hidden = render(boxes[..., :2], size, classes, valid, -1)
  br_heat, br_owner, br_offset, br_hidden = render(boxes[..., 2:], size, classes, valid, 1)
  apart = 1 + 2 * settings.embedding_threshold
  tl_embed, br_embed = (tl_owner + 1) * apart, (br_owner + 1) * apart
  true = KeypointMaps(tl_heat, br_heat, tl_embed, br_embed, tl_offset, br_offset)
  hidden = tl_hidden | br_hidden
  if maps.center_heat is not None:
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    center_heat, _, center_offset, center_hidden = render(middle, jnp.zeros_like(size), classes, valid, 0)
    true, hidden = true.replace(center_heat=center_heat, center_offset=center_offset), hidden | center_hidden
  return true, hidden[:: 1 + settings.mirror].sum()


def _keypoints(points, size, classes, valid, sign, *, shape):
  """One image, one kind of keypoint.

  Args:
    points: [N, 2] (x, y), cells.
    size: [N, 2] of the boxes, cells; 0 lets an object own nothing but its keypoint's cell.
    classes, valid: [N].
    sign: by how much a step of the keypoint to the right makes the box wider: 1 or -1.
    shape: (H, W, C).

  Returns:
    heat [H, W, C] logits; owner [H, W, 1], an index of N; its offset [H, W, 2]; hidden [N], the objects that do not
    own even the cell of their keypoint. NaN where there is no owner.
  """
  height, width, num_classes = shape
  # A box that ends at the canvas's border, or one pixel outside in the mirror image, has its keypoint in the last cell.
  cell = jnp.clip(jnp.floor(points), 0, jnp.array([width - 1, height - 1])).astype(jnp.int32)
  heat = jnp.full(shape, -jnp.inf)
  heat = heat.at[cell[:, 1], cell[:, 0], jnp.where(valid, classes, num_classes)].set(jnp.inf, mode='drop')

  step_x = jnp.arange(width)[None, None, :] - cell[:, 0, None, None]
  step_y = jnp.arange(height)[None, :, None] - cell[:, 1, None, None]
  w, h = size[:, 0, None, None], size[:, 1, None, None]
  moved_w, moved_h = w + sign * step_x, h + sign * step_y  # the opposite corner stays
  shared = jnp.minimum(w, moved_w) * jnp.minimum(h, moved_h)
  reached = (moved_w > 0) & (moved_h > 0) & (shared >= REACH * (w * h + moved_w * moved_h - shared)) & (w * h > 0)
  distance = step_x**2 + step_y**2
  distance = jnp.where(valid[:, None, None] & (reached | (distance == 0)), distance, jnp.inf)
  nobody = jnp.isinf(distance.min(axis=0))[..., None]
  index = distance.argmin(axis=0)  # of equally near ones the first
  owner = jnp.where(nobody, jnp.nan, index[..., None])
  offset = jnp.where(nobody, jnp.nan, (points - cell)[index])
  return heat, owner, offset, valid & (index[cell[:, 1], cell[:, 0]] != jnp.arange(len(cell)))


def replace(maps: KeypointMaps, true: KeypointMaps, chosen: Mapping[str, jax.Array]) -> KeypointMaps:
  """The predicted maps with those of the true ones that are chosen; NaN there keeps the prediction.

  Args:
    maps: predicted.
    true: of `true_maps`.
    chosen: output -> whether it is replaced, for each of `OUTPUTS`.
  """
  # The true embeddings keep away from 0 as from each other; here from the largest predicted one.
  largest = jnp.maximum(jnp.abs(maps.tl_embed).max(), jnp.abs(maps.br_embed).max())
  true = true.replace(tl_embed=true.tl_embed + largest, br_embed=true.br_embed + largest)
  replaced = {}
  for output, fields in OUTPUTS.items():
    for field in fields:
      predicted, truth = getattr(maps, field), getattr(true, field)
      if predicted is not None:
        replaced[field] = jnp.where(chosen[output] & ~jnp.isnan(truth), truth, predicted)
  return maps.replace(**replaced)
