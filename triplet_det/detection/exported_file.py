"""Runs a detector that `export` packed into one file; knows nothing of the network.

The file is a zip:
  detector.json   how to prepare images and read the results: `Sidecar`
  weights.npz     the weights, once for all programs
  programs/*      a program per canvas size: StableHLO, serialised by `jax.export`
A zip keeps a CRC-32 of each, which is compared when it is read.
"""

import io
import time
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import IO

import jax
import numpy as np
from absl import logging
from etils import epath
from jax import export as jax_export

from triplet_det.detection import exported_contents
from triplet_det.detection.batches import Canvases, Keyed, in_batches, place_batch
from triplet_det.detection.launching import detect
from triplet_det.detection.sidecar import SIDECAR, FileDetector, Program, Sidecar, read_sidecar
from triplet_det.devices import compiler
from triplet_det.run import array_digest
from triplet_det.structs import Detections

WEIGHTS = 'weights.npz'
_BROKEN = zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError  # what a zip can raise


class ExportedDetector(FileDetector):
  """Images in, detections out, in pixels of each image: `inference.Detector` for an exported file.

  An image goes onto the smallest canvas of the file that holds it.

  Attributes:
    weights_digest: of the weights' bytes.
    num_programs: how many programs were compiled.
  """

  def __init__(self, path: epath.PathLike):
    """Args:
    path: a file of `export`.

    Raises:
      FileNotFoundError: no file there.
      ValueError: not such a file, damaged, with what `export` does not write or weights that are not finite, of a newer
        format, or exported for other devices than this process has.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
      raise FileNotFoundError(f'no exported detector {path}: give a file of triplet_det.export, or a run folder')
    try:
      with path.open('rb') as file, zipfile.ZipFile(file) as archive:
        packed = file.seek(0, io.SEEK_END)
        exported_contents.check_sizes(archive, packed)
        super().__init__(read_sidecar(exported_contents.read(archive, SIDECAR), path), path)
        _check_platforms(self.sidecar, path)
        self._serialised = {one.canvases: exported_contents.read(archive, one.file) for one in self.sidecar.programs}
        self.weights_digest = f'{archive.getinfo(WEIGHTS).CRC:08x}'
        content = exported_contents.read(archive, WEIGHTS)  # wholly: only then its CRC is compared
        weights = _read_weights(io.BytesIO(content), packed, path)
    except (*_BROKEN, KeyError, TypeError) as error:
      raise ValueError(
        f'{path} is not a whole file of triplet_det.export ({error}): give one that is, or a run folder'
      ) from error
    if faulty := array_digest.measure(weights)[1]:
      raise ValueError(f'{path} cannot detect: {array_digest.told(faulty)}. Give another one, or export a sound run')
    self._weights = jax.device_put(weights)
    self._programs = {}

  @property
  def num_programs(self) -> int:
    return len(self._programs)

  def stream(
    self,
    keyed_images: Iterable[Keyed],
    *,
    max_waiting: int | None = None,
    failed: Callable[[Hashable, str], None] | None = None,
  ) -> Iterator[tuple[Hashable, Detections]]:
    """Yields (key, Detections) for every (key, image) as batches fill, not in order, as `inference.Detector`."""
    max_waiting = max_waiting or 16 * self.batch_size
    batches = in_batches(keyed_images, self.settings, self.batch_size, max_waiting, self.canvases_for)
    for key, found in detect(batches, self._launch, self.settings, failed):
      yield key, self.checked(found)

  def _launch(self, canvases: Canvases, images: Sequence[np.ndarray]) -> Detections:
    """Sends a batch to the device; returns without waiting for it."""
    placed = [
      place_batch(images, scale, self.settings, self.batch_size, size)
      for scale, size in zip(self.settings.scales, canvases)
    ]
    pixels, where = map(list, zip(*placed))
    arguments = self._weights, pixels, *([getattr(one, name) for one in where] for name in ('border', 'size', 'scale'))
    return Detections(**self._program(canvases, arguments)(*arguments))

  def _program(self, canvases: Canvases, arguments):
    if canvases not in self._programs:
      start = time.monotonic()
      exported = _deserialise(self._serialised[canvases], self._path, self.sidecar)
      name = Program('', canvases)
      what = f'{self._path}: the program for {name}'
      limit = exported_contents.check_program(exported, arguments, self.settings.max_detections, what)
      try:
        lowered = jax.jit(exported.call).lower(*arguments)
      except (ValueError, LookupError) as error:  # it is not for these devices, or not what it says of itself
        raise ValueError(f'{what} cannot be run here: {str(error).splitlines()[0]}') from error
      compiled = lowered.compile(compiler.options(jax.devices()[0]))
      needed = getattr(compiled.memory_analysis(), 'temp_size_in_bytes', 0)  # None where a backend does not say it
      if needed > limit:
        raise ValueError(
          f'{what} needs {needed} bytes beside its arguments, at most {limit} are sensible: export again'
        )
      self._programs[canvases] = compiled
      logging.info('compiled canvas %s in %.1f s (program %d)', name, time.monotonic() - start, self.num_programs)
    compiler.check_room(self._programs[canvases])
    return self._programs[canvases]


def _check_platforms(sidecar: Sidecar, path: epath.Path) -> None:
  backend = jax.default_backend()
  names = ('cuda', 'rocm') if backend == 'gpu' else (backend,)
  if not set(names) & set(sidecar.platforms):
    raise ValueError(
      f'{path} was exported for {", ".join(sidecar.platforms)}, this process runs on {backend}: export it again with '
      f'--platforms {names[0]}, or choose another device, JAX_PLATFORMS={sidecar.platforms[0]}'
    )


def _read_weights(file: IO[bytes], packed: int, path: epath.Path) -> dict[str, np.ndarray]:
  try:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError('one array instead of many with names')
    exported_contents.check_sizes(archive.zip, packed)
    weights = dict(archive)
  except (ValueError, MemoryError) as error:  # what NumPy says of an array that is not what its header claims
    raise ValueError(f'{path}: {WEIGHTS} in it is not as triplet_det.export writes it: {error}') from error
  if foreign := [f'{name} of {array.dtype}' for name, array in weights.items() if array.dtype.kind != 'f']:
    raise ValueError(f'{path}: {WEIGHTS} has {foreign[0]}, weights are floating-point numbers: export it again')
  return weights


def _deserialise(serialised: bytes, path: epath.Path, sidecar: Sidecar) -> jax_export.Exported:
  try:
    return jax_export.deserialize(bytearray(serialised))
  except ImportError as error:
    raise ImportError(f"{path} needs the package flatbuffers: pip install 'triplet_det[export]'") from error
  except Exception as error:  # whatever flatbuffers and MLIR raise for bytes of a version that they do not know
    raise ValueError(
      f'{path} was exported with jax {sidecar.versions["jax"]} and cannot be read by jax {jax.__version__}: {error}'
    ) from error
