"""What an exported detector says about itself, in a zip and in an ONNX file alike; free of JAX."""

import dataclasses
import json
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.detection.batches import Canvases, canvases_of
from triplet_det.detection.settings import Settings, settings_for

FORMAT = 1
SIDECAR = 'detector.json'
ZIP, ONNX = SUFFIXES = '.zip', '.onnx'
MAX_CANVASES = 2**29  # bytes of the images of one call
MAX_SIDE = 2**15 - 1
MAX_CATEGORIES = 10_000
_Found = TypeVar('_Found')  # the detections of an image: `structs.Detections` or `result.ImageDetections`


@dataclasses.dataclass(frozen=True)
class Program:
  """One of the programs of a file, for the images of one canvas size."""

  file: str  # in the zip
  canvases: Canvases

  def __str__(self) -> str:
    return ' + '.join(f'{width} x {height}' for height, width in self.canvases)


@dataclasses.dataclass(frozen=True)
class Sidecar:
  """What a program of another kind needs to know as well to run the file; detector.json has these names."""

  format: int
  programs: tuple[Program, ...]
  platforms: tuple[str, ...]
  batch_size: int
  arguments: Mapping[str, str]  # of the programs, in order, with shapes and units
  results: Mapping[str, str]
  preprocessing: Mapping[str, Any]
  settings: Mapping[str, Any]  # `Settings`
  categories: tuple[Mapping[str, Any], ...]  # as a COCO JSON lists them; their order is the class index
  checkpoint: Mapping[str, Any]
  versions: Mapping[str, str]

  @classmethod
  def from_json(cls, content: Mapping) -> 'Sidecar':
    programs = tuple(Program(one['file'], tuple(map(tuple, one['canvases']))) for one in content['programs'])
    return cls(**{**content, 'programs': programs})


class FileDetector:
  """What the detectors of a zip and of an ONNX file have in common; `stream` is their own.

  Attributes:
    sidecar: of the file.
    settings, batch_size, categories: in it.
  """

  def __init__(self, sidecar: Sidecar, path: epath.Path):
    """Raises ValueError for settings that this version does not know."""
    self.sidecar, self._path = sidecar, path
    self.settings = settings_for(sidecar.settings)
    self.batch_size = sidecar.batch_size
    self.categories = CategoryTable.from_coco(sidecar.categories)

  def __call__(self, images: Sequence[np.ndarray]) -> list[_Found]:
    """Detections of each image, in order, as `inference.Detector`; ValueError if one is too large."""
    found = dict(self.stream(enumerate(images), max_waiting=len(images) + 1))
    return [found[i] for i in range(len(images))]

  def canvases_for(self, image: np.ndarray, key: Hashable) -> Canvases:
    """The smallest canvases of the file that hold the image; ValueError says what there is if it is too large."""
    height, width = image.shape[:2]
    needed = canvases_of(height, width, self.settings)
    fitting = [one.canvases for one in self.sidecar.programs if (np.array(one.canvases) >= needed).all()]
    if not fitting:
      sizes = ', '.join(map(str, self.sidecar.programs))
      other = ', or make the image smaller'  # which changes nothing where all get one size
      raise ValueError(
        f'image {key!r} of {width} x {height} pixels needs a canvas of {Program("", needed)}; {self._path.name} has '
        f'{sizes}: export it again with --sizes {width}x{height}{"" if self.settings.image_side else other}'
      )
    return min(fitting, key=lambda there: sum(height * width for height, width in there))

  def checked(self, found: _Found) -> _Found:
    """The same; ValueError if its boxes are not finite or its classes none of the file's."""
    if not (np.isin(found.classes, range(len(self.categories))).all() and np.isfinite(found.boxes).all()):
      raise ValueError(
        f'{self._path}: its program gives boxes that are not finite, or classes beyond its {len(self.categories)} '
        'categories: export the detector again'
      )
    return found


def read_sidecar(text: str | bytes, path: epath.PathLike) -> Sidecar:
  """The sidecar of the exported file at `path`.

  Raises:
    ValueError: no JSON, of a newer format, or `check_sidecar` refuses it.
    KeyError, TypeError: it lacks fields, or is none at all.
  """
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path}: {SIDECAR} in it is no JSON ({error}): export the detector again') from error
  if type(content['format']) is not int:
    raise TypeError(f'its format is {content["format"]!r}')
  if content['format'] > FORMAT:
    raise ValueError(
      f'{path} is of format {content["format"]} (triplet_det {content["versions"]["triplet_det"]}), this triplet_det '
      f'reads formats up to {FORMAT}: update it'
    )
  check_sidecar(content, path)
  return Sidecar.from_json(content)


def check_sidecar(content: Mapping[str, Any], path: object) -> None:
  """Raises ValueError that names the first field of detector.json whose type or size is not as `export` writes it."""

  def need(name: str, value: Any, fits: bool, wanted: str) -> None:
    if not fits:
      raise ValueError(
        f'{path}: {name} of detector.json is {reprlib.repr(value)}, it must be {wanted}: export the detector again'
      )

  def whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high

  for name in ('arguments', 'results', 'preprocessing', 'checkpoint', 'settings', 'versions'):
    need(name, content[name], isinstance(content[name], dict), 'an object')
  for name in ('programs', 'platforms', 'categories'):
    need(name, content[name], isinstance(content[name], list) and content[name], 'a list with something in it')
  need('platforms', content['platforms'], all(isinstance(one, str) for one in content['platforms']), 'a list of texts')
  need('batch_size', content['batch_size'], whole(content['batch_size'], 1, 2**16), 'a whole number of 1 to 65536')
  for name in ('jax', 'triplet_det'):
    need(f'versions.{name}', content['versions'][name], isinstance(content['versions'][name], str), 'a text')
  step = content['checkpoint']['step']
  need('checkpoint.step', step, whole(step, 0, 2**62), 'a number of steps')

  known = {field.name: (field.type, field.default) for field in dataclasses.fields(Settings)}
  for name, value in content['settings'].items():
    if name in known:  # others are refused by `settings_for`
      need(f'settings.{name}', value, _is_setting(value, *known[name]), f'as {known[name][1]!r} is')
  scales, stale_rows = content['settings']['scales'], content['settings'].get('stale_rows')
  need('settings.center_scale', content['settings'].get('center_scale'), 'center_scale' in content['settings'], 'given')
  need('settings.stale_rows', stale_rows, not stale_rows, 'false, because no program can do it')

  table = content['categories']
  need('the number of categories', len(table), len(table) <= MAX_CATEGORIES, f'at most {MAX_CATEGORIES}')
  for one in table:
    fits = isinstance(one, dict) and whole(one.get('id'), -(2**62), 2**62) and isinstance(one.get('name'), str)
    need('a category', one, fits, 'an object with id, a whole number, and name, a text')

  for one in content['programs']:
    fits = isinstance(one, dict) and isinstance(one.get('file'), str) and isinstance(one.get('canvases'), list)
    need('a program', one, fits, 'an object with file, a name, and canvases, a list')
    name, canvases = one['file'], one['canvases']
    need('file', name, name.startswith('programs/') and '..' not in name, 'in programs/ of the zip')
    fits = all(isinstance(c, list) and len(c) == 2 and all(whole(side, 1, MAX_SIDE) for side in c) for c in canvases)
    fits = fits and len(canvases) == len(scales)
    need('canvases', canvases, fits, f'{len(scales)} times [height, width], each of 1 to {MAX_SIDE}, one a scale')
    size = 3 * content['batch_size'] * sum(height * width for height, width in canvases)
    fits = size <= MAX_CANVASES
    need(f'the size of {content["batch_size"]} images on {canvases}', size, fits, f'at most {MAX_CANVASES} bytes')


def _is_setting(value: Any, kind: Any, default: Any) -> bool:
  if isinstance(default, tuple):
    return isinstance(value, list) and 1 <= len(value) <= 100 and all(_is_setting(one, float, 1.0) for one in value)
  if kind in (bool, int, str):
    return type(value) is kind
  return (value is None and kind is not float) or (type(value) in (int, float) and -1e9 < value < 1e9)
