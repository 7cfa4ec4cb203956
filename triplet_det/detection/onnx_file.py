"""Runs a detector that `export` wrote as ONNX, by onnxruntime; needs neither JAX nor the code of the network.

Besides its graph the file has the text of `sidecar.Sidecar` in its metadata, as detector.json.
"""

import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from triplet_det.detection.batches import Canvases, Keyed, in_batches, place_batch
from triplet_det.detection.result import ImageDetections
from triplet_det.detection.sidecar import SIDECAR, FileDetector, read_sidecar

RESULTS = ('boxes', 'scores', 'classes', 'valid')
_QUIET = 3  # errors alone: of warnings onnxruntime has one for each number that its optimiser makes superfluous


def arguments(scales: int) -> list[str]:
  """The names of the graph's inputs, for so many scales: canvas, border, size, scale; or canvas_0, border_0, ..."""
  names = ('canvas', 'border', 'size', 'scale')
  return list(names) if scales == 1 else [f'{name}_{i}' for i in range(scales) for name in names]


class OnnxDetector(FileDetector):
  """Images in, detections out, in pixels of each image: `exported_file.ExportedDetector` for an ONNX file.

  Attributes:
    weights_digest: of the whole file.
    num_programs: 1, the graph.
  """

  num_programs = 1

  def __init__(self, path: epath.PathLike):
    """Args:
    path: an .onnx file of `export`.

    Raises:
      FileNotFoundError: no file there.
      ImportError: onnxruntime is not installed.
      ValueError: not such a file, damaged, or of a newer format.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
      raise FileNotFoundError(f'no exported detector {path}: give a file of triplet_det.export, or a run folder')
    try:
      import onnxruntime
    except ImportError as error:
      raise ImportError(f"{path} needs the package onnxruntime ({error}): pip install 'triplet_det[onnx]'") from error
    start = time.monotonic()
    content = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    try:
      self._session = onnxruntime.InferenceSession(content, options, providers=_providers(onnxruntime))
      sidecar = read_sidecar(self._session.get_modelmeta().custom_metadata_map[SIDECAR], path)
    except (KeyError, TypeError) as error:
      raise ValueError(
        f'{path} is ONNX, but not of triplet_det.export: it has no {error}: export a run folder'
      ) from error
    except ValueError:
      raise
    except Exception as error:  # onnxruntime has errors of its own, which have no other class in common
      reason = str(error).partition('\n')[0][:300]
      raise ValueError(
        f'{path} is not a whole ONNX file, or newer than this onnxruntime reads ({reason}): export it again'
      ) from error
    super().__init__(sidecar, path)
    self.weights_digest = f'{zlib.crc32(content):08x}'
    self._check_interface()
    logging.info('%s: ready in %.1f s', path, time.monotonic() - start)

  def _check_interface(self) -> None:
    wanted = arguments(len(self.settings.scales)), list(RESULTS)
    found = [[one.name for one in side] for side in (self._session.get_inputs(), self._session.get_outputs())]
    if tuple(found) != wanted:
      raise ValueError(
        f'{self._path} takes {", ".join(found[0])} and gives {", ".join(found[1])}, a detector of these settings takes '
        f'{", ".join(wanted[0])} and gives {", ".join(wanted[1])}: export it again'
      )

  def stream(
    self,
    keyed_images: Iterable[Keyed],
    *,
    max_waiting: int | None = None,
    failed: Callable[[Hashable, str], None] | None = None,
  ) -> Iterator[tuple[Hashable, ImageDetections]]:
    """Yields (key, detections) for every (key, image) as batches fill, not in order, as `inference.Detector`."""
    max_waiting = max_waiting or 16 * self.batch_size
    for canvases, batch in in_batches(keyed_images, self.settings, self.batch_size, max_waiting, self.canvases_for):
      try:
        results = self._run(canvases, [image for _, image in batch])
      except MemoryError as error:
        if failed is None:
          raise
        for key, _ in batch:
          failed(key, str(error) or 'MemoryError')
        continue
      for row, (key, _) in enumerate(batch):
        yield key, self._detections(*(array[row] for array in results))

  def _run(self, canvases: Canvases, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    given = []
    for scale, size in zip(self.settings.scales, canvases):
      pixels, where = place_batch(images, scale, self.settings, self.batch_size, size)
      given += [pixels, *where]
    try:
      return self._session.run(list(RESULTS), dict(zip(arguments(len(canvases)), given)))
    except Exception as error:  # as in `__init__`
      reason = str(error).partition('\n')[0][:300]
      if 'allocate memory' in str(error) or 'bad allocation' in str(error):
        raise MemoryError(reason) from error
      raise ValueError(f'{self._path} cannot be run: {reason}: export it again') from error

  def _detections(self, boxes, scores, classes, valid) -> ImageDetections:
    return self.checked(ImageDetections(boxes[valid], scores[valid], classes[valid], self.categories))


def _providers(onnxruntime) -> list[str]:
  """What onnxruntime is to run on: an NVIDIA GPU if this package of it knows one, and the CPU."""
  there = onnxruntime.get_available_providers()
  return [name for name in ('CUDAExecutionProvider', 'CPUExecutionProvider') if name in there]
