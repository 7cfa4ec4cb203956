"""A trained detector as a function: `detector = triplet_det.load('runs/shapes')`, `detector([image, 'photo.jpg'])`.

An exported file is run without the code of the network, and an ONNX file without JAX; what only one kind of detector
needs is imported when one is loaded.
"""

import concurrent.futures
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.data import image_files
from triplet_det.data.augmentation import scale_to
from triplet_det.detection import sidecar
from triplet_det.detection.canvas import check_image
from triplet_det.detection.result import ImageDetections
from triplet_det.detection.settings import Settings, change, settings_for
from triplet_det.run import download

if TYPE_CHECKING:
  from triplet_det.detection import exported_file, inference, onnx_file, paper_figures
  from triplet_det.structs import Detections

DEMO = 'demo'  # the detector of the embedded data set that comes with the package


class LoadedDetector:
  """A trained detector: list in, list out, same order.

  Attributes:
    categories: the table that turns class indices into names and data set ids.
    about: where the weights come from: checkpoint, step and a digest.
    tester: what runs on the device.
    max_pixels: larger images are not decoded, and `check` refuses them and larger canvases.
  """

  def __init__(
    self,
    tester: 'inference.Detector | exported_file.ExportedDetector | onnx_file.OnnxDetector',
    categories: CategoryTable,
    about: Mapping[str, Any],
    max_pixels: int = image_files.MAX_PIXELS,
  ):
    self.tester, self.categories, self.about, self.max_pixels = tester, categories, dict(about), max_pixels

  def __call__(self, images: Sequence[Any]) -> list[ImageDetections]:
    """Detections of each image, in order, in its own pixels, best first.

    Args:
      images: uint8 RGB arrays [height, width, 3], paths of image files, or PIL images, of any sizes. What is a file
        or a PIL image is turned upright by its EXIF orientation, and so are the boxes.

    Raises:
      ValueError: an image of another type or shape, a file that cannot be decoded, or an image larger than all
        canvases of an exported file; says which.
      FileNotFoundError: a path that is not there.
    """
    if isinstance(images, str | Path):
      raise ValueError(f'the detector takes a list of images, got the path {images}: pass [path]')
    if getattr(images, 'ndim', None) in (2, 3) or image_files.is_pillow(images):
      raise ValueError(f'the detector takes a list of images, got one {type(images).__name__}: pass [image]')
    arrays = [check_image(self._as_array(image), i) for i, image in enumerate(images)]
    return [self.wrap(found) for found in self.tester(arrays)]

  def wrap(self, found: 'Detections | ImageDetections') -> ImageDetections:
    """The rows of one image, as the user gets them."""
    return ImageDetections(found.boxes, found.scores, found.classes, self.categories)

  def read(self, path: epath.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """`read_image` within the detector's limit."""
    return read_image(path, size, max_pixels=self.max_pixels)

  def _as_array(self, image) -> np.ndarray:
    if image_files.is_pillow(image):
      return image_files.from_pillow(image)
    return image if hasattr(image, '__array__') else self.read(image)

  def check(self, image: np.ndarray, name: str) -> None:
    """Raises ValueError for an image that needs too large a canvas, or one that an exported file does not have."""
    canvases = self.tester.canvases_for(image, name)
    largest = max(canvases, key=math.prod)
    image_files.check_pixels(largest, name, self.max_pixels, ' of the largest canvas')

  def heatmaps(self, image: np.ndarray) -> 'paper_figures.Heatmaps':
    """The corner and center heatmaps of an image at the scale of the centers, in its own pixels.

    ValueError for an exported file, which gives boxes only.
    """
    from triplet_det.detection import paper_figures

    tester = self.tester
    if not hasattr(tester, 'apply_fn'):
      raise ValueError(f'{self.about["checkpoint"]} is an exported file and gives boxes only: load the run folder')
    settings = tester.settings
    scale = settings.center_scale * scale_to(settings.image_side, *image.shape[:2])
    where = dict(canvas_multiple=settings.canvas_multiple, canvas_colour=settings.canvas_colour)
    return paper_figures.heatmaps(tester.apply_fn, tester.variables, image, scale=scale, **where)


def load(
  checkpoint: epath.PathLike,
  *,
  settings: Settings | None = None,
  batch_size: int = 8,
  max_pixels: int = image_files.MAX_PIXELS,
  **changes,
) -> LoadedDetector:
  """The detector of a run folder, a checkpoint folder or an exported file.

  Args:
    checkpoint: a run folder (its best weights are taken), one checkpoint folder in it, a file of `export`, 'demo',
      the small detector of the embedded data set that comes with the package, or a link, as `run.download` takes them,
      to a file of `export` or an archive of a run folder.
    settings: how to test; None takes the run's own.
    batch_size: images of one size that go through the network together. An exported file brings its own.
    max_pixels: an image file of more pixels is refused before it is decoded.
    changes: of single settings, such as mirror=False or scales=(1.0, 1.5).

  Raises:
    FileNotFoundError: no checkpoint there.
    ConnectionError: a link without a network.
    ValueError: not a checkpoint, an unknown setting, or other settings for an exported file.
  """
  given, checkpoint = checkpoint, _on_this_machine(checkpoint)
  if is_exported(checkpoint):
    if settings is not None or changes:
      raise ValueError(f'{checkpoint} is exported, and its settings with it: give others to triplet_det.export')
    tester = _exported(checkpoint)
    about = dict(checkpoint=str(given), step=tester.sidecar.checkpoint['step'], weights=tester.weights_digest)
    return LoadedDetector(tester, tester.categories, about, max_pixels)

  if settings is not None and not isinstance(settings, Settings):
    raise ValueError(
      f'settings are those of triplet_det.detection.settings.Settings, got {type(settings).__name__}: give single ones '
      'by their names, load(..., mirror=False)'
    )
  from triplet_det.detection import trained_network
  from triplet_det.models import detector

  variables, record = read_weights(checkpoint)
  module = detector.build(record.model)
  settings = change(settings or settings_for(record.test), changes)
  with concurrent.futures.ThreadPoolExecutor(1) as beside:
    digest = beside.submit(_digest, variables)
    tester = trained_network.make_detector(module, variables, settings, batch_size=batch_size)
  about = dict(checkpoint=str(given), step=record.step, weights=digest.result())
  return LoadedDetector(tester, record.categories, about, max_pixels)


def is_exported(checkpoint: epath.PathLike) -> bool:
  """By its name; what is behind a link shows once it is here."""
  return str(checkpoint).endswith(sidecar.SUFFIXES) and not download.is_link(checkpoint)


def _exported(path: epath.PathLike) -> 'exported_file.ExportedDetector | onnx_file.OnnxDetector':
  if str(path).endswith(sidecar.ONNX):
    from triplet_det.detection import onnx_file

    return onnx_file.OnnxDetector(path)
  from triplet_det.detection import exported_file

  return exported_file.ExportedDetector(path)


def read_weights(checkpoint: epath.PathLike) -> tuple[dict, Any]:
  """(variables of NumPy arrays, `checkpoints.RunRecord`) of what `load` takes but exported files; errors as there."""
  from triplet_det.detection import demo
  from triplet_det.run import checkpoints

  if str(checkpoint) == DEMO:
    return demo.load_weights()
  return checkpoints.load_weights(_on_this_machine(checkpoint))


def _on_this_machine(checkpoint: epath.PathLike) -> epath.PathLike:
  """What is behind a link, an archive unpacked; all else as it is. ValueError for a PyTorch file."""
  if not str(checkpoint):
    raise ValueError('the checkpoint is an empty text: give a run folder, a file of triplet_det.export, or demo')
  is_link = download.is_link(checkpoint)
  name = str(checkpoint).partition('#')[0] if is_link else str(checkpoint)
  if name.endswith(('.pkl', '.pth', '.pt')):
    raise ValueError(
      f'{checkpoint} is a PyTorch file: make a run folder of it first, '
      f'python scripts/import_torch_checkpoint.py {checkpoint} RUN_FOLDER'
    )
  return download.fetch_run(str(checkpoint)) if is_link else checkpoint


def read_image(
  path: epath.PathLike, size: tuple[int, int] | None = None, *, max_pixels: int | None = image_files.MAX_PIXELS
) -> np.ndarray:
  """An image file as uint8 RGB [height, width, 3], upright as people see it.

  Args:
    path: of the file.
    size: (height, width) that annotations claim: as it is stored, if it has this size then, and upright otherwise.
    max_pixels: a larger image is refused before it is decoded; None: as OpenCV likes.

  Raises:
    FileNotFoundError: no file there.
    ValueError: no regular file, not an image, too large, or not of that size.
  """
  if not isinstance(path, str | os.PathLike):
    raise ValueError(f'an image is an array, a path or a PIL image, got {type(path).__name__}')
  path = os.path.expanduser(os.fspath(path))
  if re.match('(https?|file|hf)://', path):
    raise ValueError(f'{path} is a link, and images are read from disk: download it first')
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no image {path}: give a file that is there')
  image_files.check_regular(path)
  if max_pixels is not None and path.stat().length > (most := 1_000_000 + 16 * max_pixels):  # 4 channels of 32 bits
    raise ValueError(
      f'{path}: {path.stat().length:,} bytes are more than an image has of {max_pixels:,} pixels, the limit, which is '
      f'{most:,}: make it smaller, or raise the limit (predict --max_pixels N, load(..., max_pixels=N))'
    )
  upright = True if size is None else None
  return image_files.decode_image(path.read_bytes(), str(path), size=size, upright=upright, max_pixels=max_pixels)


def _digest(variables) -> str:
  """Tells other weights from these."""
  import jax

  digest = 0
  for leaf in jax.tree.leaves(variables):
    digest = zlib.crc32(np.ascontiguousarray(leaf).data, digest)
  return f'{digest:08x}'
