"""A trained network as it is tested: norms folded, in the form that suits the devices, with a run's settings."""

from collections.abc import Callable, Collection, Mapping

import jax
from jax import lax

from triplet_det.detection import inference
from triplet_det.detection.settings import Settings
from triplet_det.models import layers
from triplet_det.models.detector import Detector
from triplet_det.structs import KeypointMaps


def make_detector(
  module: Detector,
  variables: Mapping,
  settings: Settings,
  *,
  batch_size: int,
  sharding: jax.sharding.NamedSharding | None = None,
) -> inference.Detector:
  """The network, its norms folded into its convolutions, as a function from images to detections."""
  check_canvases(module, settings)
  devices = sharding.device_set if sharding else jax.devices()[:1]
  apply_fn = suited(last_stack(module.clone(norm_folded=True)), devices)
  placement = dict(batch_size=batch_size, sharding=sharding)
  return inference.Detector(apply_fn, variables, settings, prepare=layers.fold_norms, **placement)


def check_canvases(module: Detector, settings: Settings) -> None:
  """Raises ValueError if the network cannot work on the canvases of the settings."""
  needed = module.config.size_multiple
  if settings.canvas_multiple % needed:
    raise ValueError(f'test.canvas_multiple is {settings.canvas_multiple}, the network needs a multiple of {needed}')


def folded(module: Detector, variables: Mapping) -> tuple[Detector, dict]:
  """The network that is tested: `module` and its variables (then NumPy) without norms of their own."""
  return module.clone(norm_folded=True), layers.fold_norms(jax.device_get(variables))


def last_stack(module: Detector) -> Callable[..., KeypointMaps]:
  """(variables, normalised images) -> the maps that are tested, those of the last stack."""
  return lambda variables, images: module.apply(variables, images)[-1]


def suited(apply_fn: Callable[..., KeypointMaps], devices: Collection[jax.Device]) -> Callable[..., KeypointMaps]:
  """`apply_fn` in the form that is fastest on these devices.

  One CPU takes image after image, whose maps then stay in its cache and need memory once; all others take the batch.
  """
  if len(devices) > 1 or next(iter(devices)).platform != 'cpu':
    return apply_fn

  def image_by_image(variables, images):
    if len(images) == 1:
      return apply_fn(variables, images)
    maps = lax.map(lambda image: apply_fn(variables, image[None]), images)
    return jax.tree.map(lambda a: a[:, 0], maps)

  return image_by_image
