"""Detection cut at the borders of its parts, to be timed: network, decoding, post-processing, whole image.

They are the very programs of `inference`, with the norms folded into the convolutions. Weights are random unless a
checkpoint is given; random networks would find no triplets, so that objects can be added to the maps.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from triplet_det.detection import inference, trained_network
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CORNERNET, Settings
from triplet_det.devices import compiler, roofline
from triplet_det.models import detector
from triplet_det.run import checkpoints
from triplet_det.structs import Detections, KeypointMaps

PARTS = ('network', 'decoding', 'post-processing', 'whole image')
NETWORKS = {'cornernet': 'CornerNet', 'centernet': 'CenterNet'}
SIZES = {'tiny': 127, '52': 511, '104': 511}  # pixels
SOUND = Settings()
SETTINGS = {
  'published': {'cornernet': PUBLISHED_CORNERNET, 'centernet': PUBLISHED_CENTERNET},
  'sound': {'cornernet': dataclasses.replace(SOUND, top_k=100, outside_margin=None), 'centernet': SOUND},
}


@dataclasses.dataclass(frozen=True)
class CompiledParts:
  """One detector, compiled for one image, and what it found."""

  parts: Mapping[str, Callable[[], object]]  # each waits for its result
  pairs: int  # with a score; of CenterNet, with a center too
  boxes: int
  flops: float  # of the network, as XLA counts


def model_of(name: str, hg: str) -> dict:
  """The settings of a network of NETWORKS with an hourglass of SIZES."""
  centers = name == 'centernet'
  switches = dict(center_branch=centers, center_pooling=centers, cascade_corner_pooling=centers)
  return detector.VARIANTS['tiny' if hg == 'tiny' else f'hourglass-{hg}'] | switches


def random_weights(model: Mapping) -> tuple[detector.Detector, dict]:
  """A network and its variables as training draws them."""
  module = detector.build(model)
  side = module.config.size_multiple - 1
  # This generator's initial values compile in a fraction of the default one's time.
  made = jax.jit(module.init)(jax.random.key(0, impl='rbg'), np.zeros((1, side, side, 3), np.float32))
  return module, jax.block_until_ready(made)


def weights(name: str, folder: Path) -> tuple[detector.Detector, dict]:
  """Those of a run or an imported checkpoint."""
  variables, record = checkpoints.load_weights(folder)
  if record.model['center_branch'] != (name == 'centernet'):
    raise ValueError(f'{folder} is not {NETWORKS[name]}: center_branch is {record.model["center_branch"]}')
  return detector.build(record.model), variables


def folded(module: detector.Detector, variables: Mapping) -> tuple[detector.Detector, dict]:
  """The network that detection runs, and its variables on the device."""
  module, variables = trained_network.folded(module, variables)
  return module, jax.device_put(variables)


def last_stack(module: detector.Detector) -> Callable[..., KeypointMaps]:
  """As `trained_network.make_detector` runs it on the first device."""
  return trained_network.suited(trained_network.last_stack(module), jax.devices()[:1])


def noise(height: int, width: int) -> np.ndarray:
  """An image [height, width, 3] uint8."""
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def network(model: Mapping, side: int) -> Callable[[], object]:
  """The network on an image of `side` x `side` pixels and its mirror image, for a process of its own."""
  module, variables = folded(*random_weights(model))
  images = jax.device_put(inference.network_input(noise(side, side)[None], SOUND))
  apply = jax.jit(last_stack(module)).lower(variables, images).compile(compiler.options(jax.devices()[0]))
  compiler.give_back()  # as the detector does
  return lambda: jax.block_until_ready(apply(variables, images))


def network_flops(model: Mapping, height: int, width: int, *, images: int = 2, train: bool = False) -> int:
  """Of the convolutions, see `roofline.network_flops`; `images` counts mirror images too."""
  module = detector.build(model)
  shapes = jax.ShapeDtypeStruct((images, height, width, 3), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), shapes)

  def apply(variables, images):
    return module.apply(variables, images, train=train, mutable=['batch_stats'])

  return roofline.network_flops(apply, variables, shapes, train=train)


def compile_parts(
  module: detector.Detector, variables: Mapping, settings: Settings, image: np.ndarray, *, objects: bool
) -> CompiledParts:
  """The parts of detection on one image at the first scale of the settings.

  Args:
    module, variables: not folded.
    settings: of the test.
    image: [height, width, 3] uint8.
    objects: whether objects are added to the maps of the network.
  """
  module, variables = folded(module, variables)
  canvases, placement = inference.place_batch([image], settings.scales[0], settings, 1)
  images = inference.network_input(canvases, settings)
  cells = [(length + 1) // 4 for length in canvases.shape[1:3]]
  centers = module.config.center_branch
  added = objects_in_maps(*cells, module.config.num_classes, centers=centers) if objects else None
  network = last_stack(module)

  def apply(variables, images):
    weights, added = variables
    maps = network(weights, images)
    return maps if added is None else jax.tree.map(lambda a, b: 1e-3 * a + b, maps, added)

  variables = jax.device_put((variables, added))
  options = compiler.options(jax.devices()[0])
  compiled = jax.jit(apply).lower(variables, images).compile(options)
  maps = jax.block_until_ready(compiled(variables, images))

  @functools.partial(jax.jit, compiler_options=options)
  def decode(maps, placement):
    located = inference.locate(maps, settings, canvases.shape[1:3], placement)
    # With this setting `finish` stops before soft-NMS.
    return inference.finish([located], dataclasses.replace(settings, stale_rows=True))[0]

  pairs = jax.block_until_ready(decode(maps, placement))
  on_device = jax.jit(functools.partial(inference.select, settings=settings))

  def select():
    return list(inference.per_image([0], pairs if settings.stale_rows else on_device(pairs), settings))

  whole = inference.Detector(apply, variables, settings, batch_size=1)
  (found,) = whole([image])
  parts = {
    'network': lambda: jax.block_until_ready(compiled(variables, images)),
    'decoding': lambda: jax.block_until_ready(decode(maps, placement)),
    'post-processing': select,
    'whole image': lambda: whole([image]),
  }
  return CompiledParts(parts, int(pairs.valid.sum()), len(found.scores), compiled.cost_analysis()['flops'])


def compile_decoding(
  settings: Settings, height: int, width: int, num_classes: int, *, centers: bool
) -> Callable[[], Detections]:
  """All that follows the network on an image of this size, from maps on the device to boxes on the host."""
  canvases, placement = inference.place_batch([noise(height, width)], settings.scales[0], settings, 1)
  canvas = canvases.shape[1:3]
  maps = jax.device_put(decoding_maps(*canvas, num_classes, centers=centers))

  @functools.partial(jax.jit, compiler_options=compiler.options(jax.devices()[0]))
  def decode(maps, placement):
    return inference.finish([inference.locate(maps, settings, canvas, placement)], settings)[0]

  def run():
    ((_, found),) = inference.per_image([0], decode(maps, placement), settings)
    return found

  return run


def decoding_maps(height: int, width: int, num_classes: int, *, centers: bool) -> KeypointMaps:
  """Maps of a canvas of this size: objects, and a local maximum in every ninth cell or so between them."""
  rng = np.random.default_rng(2)
  maps = objects_in_maps((height + 1) // 4, (width + 1) // 4, num_classes, centers=centers)
  return jax.tree.map(lambda a: a + 1e-2 * rng.standard_normal(a.shape, np.float32), maps)


def objects_in_maps(height: int, width: int, num_classes: int, *, centers: bool, count: int = 20) -> KeypointMaps:
  """Maps [2, H, W, .] of an image of `height` x `width` cells and its mirror image in which `count` objects stand out.

  Scores: 0.95 at their keypoints, 0.0025 elsewhere. Embeddings: a number of its own for each object, else 0.
  """
  rng = np.random.default_rng(1)
  heats = {kind: np.full((2, height, width, num_classes), -6, np.float32) for kind in ('tl', 'br', 'center')}
  embeddings = {kind: np.zeros((2, height, width, 1), np.float32) for kind in ('tl', 'br')}
  for i in range(count):
    x1, y1 = rng.integers(0, width // 2), rng.integers(0, height // 2)
    x2, y2 = x1 + rng.integers(4, width // 2), y1 + rng.integers(4, height // 2)
    for row, (left, right) in enumerate(((x1, x2), (width - 1 - x2, width - 1 - x1))):
      for kind, y, x in (('tl', y1, left), ('br', y2, right), ('center', (y1 + y2) // 2, (left + right) // 2)):
        heats[kind][row, y, x, i % num_classes] = 3
        if kind in embeddings:
          embeddings[kind][row, y, x] = i + 1
  offset = np.full((2, height, width, 2), 0.5, np.float32)
  center = dict(center_heat=heats['center'], center_offset=offset) if centers else {}
  corners = {f'{kind}_heat': heats[kind] for kind in ('tl', 'br')} | {f'{k}_embed': e for k, e in embeddings.items()}
  return KeypointMaps(**corners, tl_offset=offset, br_offset=offset, **center)
