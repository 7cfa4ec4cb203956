"""PyTorch's weight files without PyTorch: a pickle of which nothing is executed but the rebuilding of arrays.

Two formats: a zip of a pickle and a file per storage (since PyTorch 1.6), and before that several pickles and then all
storages in one file.
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the old format
_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


def read(path: Path) -> Any:
  """What `torch.save` wrote, tensors as arrays; of containers there can be dicts, lists and tuples.

  Raises:
    ValueError: it is no such file, is cut short, or its pickle asks for anything else than tensors; says for what.
  """
  try:
    with path.open('rb') as file:
      if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
          return _read_zip(archive)
      file.seek(0)
      return _read_old(file)
  except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
    raise ValueError(f'refused, it is not a PyTorch file of weights alone ({error}): give one') from None
  # A damaged pickle can raise almost anything from inside the reader.
  except (EOFError, struct.error, KeyError, IndexError, TypeError, AttributeError, ImportError, MemoryError) as error:
    reason = f'{type(error).__name__} {error}'.strip()
    raise ValueError(f'refused, it is not a whole PyTorch file ({reason}): give one') from None


@dataclasses.dataclass
class _Storage:
  """The numbers behind one or several tensors."""

  key: str
  dtype: np.dtype
  size: int
  numbers: np.ndarray | None = None  # once they are read

  def read(self, content: bytes) -> None:
    if len(content) < self.size * self.dtype.itemsize:
      raise pickle.UnpicklingError(f'cut short: storage {self.key} needs {self.size} numbers')
    self.numbers = np.frombuffer(content, self.dtype, self.size)


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage, which in the old format is not read yet when the view is made."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    numbers, end = self.storage.numbers, self.offset
    if math.prod(self.shape):
      end += sum((side - 1) * stride for side, stride in zip(self.shape, self.strides)) + 1
    sound = all(isinstance(v, int) and v >= 0 for v in (self.offset, *self.shape, *self.strides))
    if not sound or len(self.shape) != len(self.strides) or end > self.storage.size:
      raise pickle.UnpicklingError(f'a tensor {self.shape} reaches beyond its storage of {self.storage.size} numbers')
    strides = [stride * numbers.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
  """Knows tensors, their storages and ordered dicts; whatever else a pickle names is refused before it is looked up."""

  def __init__(self, file: BinaryIO, storage_of: Callable[[str, np.dtype, int], _Storage]):
    super().__init__(file)
    self._storage_of = storage_of

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return _ordered_dict
    if module == 'torch._utils' and name in ('_rebuild_tensor_v2', '_rebuild_tensor'):
      return _rebuild_tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda tensor, requires_grad, hooks: tensor
    if module == 'torch' and name in _DTYPES:
      return np.dtype(_DTYPES[name])
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')

  def persistent_load(self, pid: tuple) -> _Storage:
    kind, dtype, key, _, size = pid[:5]
    if kind != 'storage' or not isinstance(dtype, np.dtype) or not isinstance(size, int) or size < 0:
      raise pickle.UnpicklingError(f'it names {kind!r} where a storage belongs')
    if len(pid) > 5 and pid[5] is not None:
      raise pickle.UnpicklingError('it has a storage inside a storage')
    return self._storage_of(str(key), dtype, size)


class _Dict(collections.OrderedDict):
  """A state dict carries attributes, such as `_metadata`: they are not kept."""

  def __setstate__(self, state) -> None:
    pass


def _ordered_dict(*arguments) -> _Dict:
  return _Dict(*arguments)


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError('it makes a tensor of something that is no storage')
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _read_zip(archive: zipfile.ZipFile) -> Any:
  (pickled,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
  root = pickled.removesuffix('data.pkl')
  if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
    raise pickle.UnpicklingError('its numbers are big endian')
  storages: dict[str, _Storage] = {}

  def storage_of(key: str, dtype: np.dtype, size: int) -> _Storage:
    if key not in storages:
      storages[key] = _Storage(key, dtype, size)
      if archive.getinfo(f'{root}data/{key}').file_size != size * dtype.itemsize:
        raise pickle.UnpicklingError(f'storage {key} has not {size} numbers')
      storages[key].read(archive.read(f'{root}data/{key}'))
    return storages[key]

  return _arrays(_Unpickler(io.BytesIO(archive.read(pickled)), storage_of).load())


def _read_old(file: BinaryIO) -> Any:
  storages: dict[str, _Storage] = {}

  def storage_of(key: str, dtype: np.dtype, size: int) -> _Storage:
    return storages.setdefault(key, _Storage(key, dtype, size))

  def load() -> Any:
    return _Unpickler(file, storage_of).load()

  if load() != _MAGIC or load() != _VERSION:
    raise pickle.UnpicklingError('it does not begin as one')
  about = load()
  if not isinstance(about, dict) or about.get('little_endian') is not True:
    raise pickle.UnpicklingError('its numbers are big endian')
  found = load()
  for key in load():
    storage = storages[str(key)]
    (size,) = struct.unpack('<q', file.read(8))
    if size != storage.size:
      raise pickle.UnpicklingError(f'storage {key} has {size} numbers, its tensors need {storage.size}')
    storage.read(file.read(size * storage.dtype.itemsize))
  return _arrays(found)


def _arrays(found: Any) -> Any:
  """Tensors as arrays, in whatever they lie."""
  if isinstance(found, _Tensor):
    return found.array()
  if isinstance(found, dict):
    return {key: _arrays(value) for key, value in found.items()}
  if isinstance(found, list | tuple):
    return type(found)(map(_arrays, found))
  return found
