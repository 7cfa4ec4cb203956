"""Detection cut at the borders of its parts, to be timed: network, decoding, post-processing, whole image.

They are the very programs of `inference`, with the norms folded into the convolutions. Weights are random unless others
are given; random networks would find no triplets, so that objects can be added to the maps.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax

from scripts.timing.quiet_pairs import Program
from triplet_det.detection import batches, inference, launching, trained_network
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CORNERNET, Settings
from triplet_det.devices import compiler, roofline
from triplet_det.models import detector
from triplet_det.structs import KeypointMaps
from triplet_det.training import train_step

PARTS = ('network', 'decoding', 'post-processing', 'whole image')
NETWORKS = {'cornernet': 'CornerNet', 'centernet': 'CenterNet'}
SIZES = {'tiny': 127, '52': 511, '104': 511}  # hourglass -> pixels
SOUND = Settings()
SETTINGS = {
  'published': {'cornernet': PUBLISHED_CORNERNET, 'centernet': PUBLISHED_CENTERNET},
  'sound': {'cornernet': dataclasses.replace(SOUND, top_k=100, outside_margin=None), 'centernet': SOUND},
}


def model_of(name: str, hg: str) -> dict:
  """The settings of a network of NETWORKS with an hourglass of SIZES."""
  centers = name == 'centernet'
  switches = dict(center_branch=centers, center_pooling=centers, cascade_corner_pooling=centers)
  return detector.VARIANTS['tiny' if hg == 'tiny' else f'hourglass-{hg}'] | switches


def random_weights(model: Mapping) -> tuple[detector.Detector, dict]:
  """A network and its variables as training draws them."""
  module = detector.build(model)
  state = jax.jit(lambda: train_step.init_state(module, optax.identity(), seed=0))()
  return module, jax.block_until_ready(state.variables)


def noise(height: int, width: int) -> np.ndarray:
  """An image [height, width, 3] uint8."""
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def network_flops(model: Mapping, height: int, width: int) -> int:
  """Of the convolutions for an image and its mirror image, see `roofline.network_flops`."""
  module = detector.build(model)
  shapes = jax.ShapeDtypeStruct((2, height, width, 3), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), shapes)
  return roofline.network_flops(module.apply, variables, shapes, train=False)


def compile_network(
  module: detector.Detector, variables: Mapping, images: jax.Array, added: KeypointMaps | None = None
):
  """The network as detection runs it on the first device.

  Args:
    module, variables: not folded.
    images: as `inference.network_input` gives them.
    added: to its maps, which are made small.

  Returns:
    The function (variables, images) -> KeypointMaps, the same compiled, and its variables on the device.
  """
  module, weights = trained_network.folded(module, variables)
  last_stack = trained_network.suited(trained_network.last_stack(module), jax.devices()[:1])

  def apply(variables, images):
    weights, added = variables
    maps = last_stack(weights, images)
    return maps if added is None else jax.tree.map(lambda a, b: 1e-3 * a + b, maps, added)

  variables = jax.device_put((weights, added))
  compiled = jax.jit(apply).lower(variables, images).compile(compiler.options(jax.devices()[0]))
  return apply, compiled, variables


def network(model: Mapping, side: int) -> Program:
  """The network on an image of `side` x `side` pixels and its mirror image, for a process of its own."""
  placed = batches.place_batch([noise(side, side)], 1.0, SOUND, 1)
  images = jax.device_put(inference.network_input(placed[0], SOUND, placed[1]))
  _, compiled, variables = compile_network(*random_weights(model), images)
  compiler.give_back()  # as the detector does

  def run():
    jax.block_until_ready(compiled(variables, images))

  return run


@dataclasses.dataclass(frozen=True)
class CompiledParts:
  """One detector, compiled for one image or a batch of it, and what it found in an image."""

  parts: Mapping[str, Program]  # of PARTS, each from inputs that are ready
  pairs: int  # with a score; of CenterNet, with a center too
  boxes: int
  flops: float  # of the network, as XLA counts


def compile_parts(
  module: detector.Detector,
  variables: Mapping,
  settings: Settings,
  image: np.ndarray,
  *,
  objects: bool,
  batch_size: int = 1,
) -> CompiledParts:
  """The parts of detection on a batch of one image so many times, at the first scale of the settings.

  Args:
    module, variables: not folded.
    settings: of the test.
    image: [height, width, 3] uint8.
    objects: whether objects are added to the maps of the network.
  """
  pictures = [image] * batch_size
  canvases, placement = batches.place_batch(pictures, settings.scales[0], settings, batch_size)
  images, canvas = inference.network_input(canvases, settings, placement), canvases.shape[1:3]
  config = module.config
  added = objects_in_maps(*canvas, config.num_classes, centers=config.center_branch) if objects else None
  added = jax.tree.map(lambda a: np.concatenate([a] * batch_size), added)
  apply, compiled, variables = compile_network(module, variables, images, added)
  maps = jax.block_until_ready(compiled(variables, images))
  # With this setting what follows the network stops before soft-NMS.
  decode = after_network(dataclasses.replace(settings, stale_rows=True), canvas)
  pairs = jax.block_until_ready(decode(maps, placement))
  on_device = jax.jit(functools.partial(inference.select, settings=settings))
  whole = inference.Detector(apply, variables, settings, batch_size=batch_size)
  found, *_ = whole(pictures)
  flops = (compiled.cost_analysis() or {}).get('flops', math.nan)  # not every device's compiler counts
  parts = {
    'network': lambda: jax.block_until_ready(compiled(variables, images)),
    'decoding': lambda: jax.block_until_ready(decode(maps, placement)),
    'post-processing': lambda: list(
      launching.per_image(range(batch_size), pairs if settings.stale_rows else on_device(pairs), settings)
    ),
    'whole image': lambda: whole(pictures),
  }
  return CompiledParts(parts, int(pairs.valid[0].sum()), len(found.scores), flops)


def after_network(settings: Settings, canvas: tuple[int, int]) -> Callable:
  """(maps, placement) -> the result of `inference.finish`, for one scale; jitted."""

  @functools.partial(jax.jit, compiler_options=compiler.options(jax.devices()[0]))
  def decode(maps, placement):
    return inference.finish([inference.locate(maps, settings, canvas, placement)], settings)[0]

  return decode


def decoding(settings: Settings, height: int, width: int, num_classes: int, *, centers: bool) -> Program:
  """All that follows the network on an image of this size, from maps on the device to Detections on the host."""
  canvases, placement = batches.place_batch([noise(height, width)], settings.scales[0], settings, 1)
  canvas = canvases.shape[1:3]
  maps = jax.device_put(decoding_maps(*canvas, num_classes, centers=centers))
  decode = after_network(settings, canvas)

  def run():
    ((_, found),) = launching.per_image([0], decode(maps, placement), settings)
    return found

  return run


def decoding_maps(height: int, width: int, num_classes: int, *, centers: bool) -> KeypointMaps:
  """Maps of a canvas of this size: objects, and a local maximum in every ninth cell or so between them."""
  rng = np.random.default_rng(2)
  maps = objects_in_maps(height, width, num_classes, centers=centers)
  return jax.tree.map(lambda a: a + 1e-2 * rng.standard_normal(a.shape, np.float32), maps)


def objects_in_maps(height: int, width: int, num_classes: int, *, centers: bool, count: int = 20) -> KeypointMaps:
  """Maps [2, H, W, .] of a canvas of this size and its mirror image in which `count` objects stand out.

  Scores: 0.95 at their keypoints, 0.0025 elsewhere. Embeddings: a number of its own for each object, else 0.
  """
  height, width = (height + 1) // 4, (width + 1) // 4  # cells
  rng, number, boxes = np.random.default_rng(1), np.arange(count), []
  for _ in number:
    x1, y1 = rng.integers(0, width // 2), rng.integers(0, height // 2)
    boxes.append((x1, y1, x1 + rng.integers(4, width // 2), y1 + rng.integers(4, height // 2)))
  x1, y1, x2, y2 = np.transpose(boxes)
  left, right = width - 1 - x2, width - 1 - x1  # in the mirror image

  def keypoints(x, mirrored, y):
    heat, embed = np.full((2, height, width, num_classes), -6, np.float32), np.zeros((2, height, width, 1), np.float32)
    for image, column in enumerate((x, mirrored)):
      heat[image, y, column, number % num_classes] = 3
      embed[image, y, column, 0] = number + 1
    return heat, embed

  (tl_heat, tl_embed), (br_heat, br_embed) = keypoints(x1, left, y1), keypoints(x2, right, y2)
  offset = np.full((2, height, width, 2), 0.5, np.float32)
  maps = KeypointMaps(tl_heat, br_heat, tl_embed, br_embed, offset, offset)
  if not centers:
    return maps
  center_heat, _ = keypoints((x1 + x2) // 2, (left + right) // 2, (y1 + y2) // 2)
  return maps.replace(center_heat=center_heat, center_offset=offset)
