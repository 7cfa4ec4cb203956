"""PyTorch's weight files without PyTorch: a pickle of which nothing is executed but the rebuilding of arrays.

Two formats: a zip of a pickle and a file per storage (since PyTorch 1.6), and before that several pickles and then all
storages in one file. A stranger's file can be anything: what is read of it takes memory in proportion to its bytes.
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
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the old format
_MOST_SIDES = 16
# Packages whose objects may lie beside the weights, as in `meta` and `message_hub` of OpenMMLab's checkpoints, and what
# pickles write for their bytes and methods: all are passed over, each as a `Foreign`.
_PASSED_OVER = ('numpy', 'mmengine', 'mmcv', 'mmdet')
_PASSED_OVER_TOO = (('_codecs', 'encode'), ('__builtin__', 'getattr'), ('builtins', 'getattr'))
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
  """What `torch.save` wrote, tensors as read-only arrays; of containers there can be dicts, lists and tuples.

  Objects of `_PASSED_OVER`'s packages are `Foreign`, empty.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no such file, is cut short, claims more numbers than it has, or its pickle asks for anything else
      than tensors; says for what.
  """
  content = path.read_bytes()
  try:
    if content.startswith(b'PK'):
      with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return _read_zip(archive, len(content))
    return _read_old(content)
  except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
    raise ValueError(f'refused, it is not a PyTorch file of weights alone ({error}): give one') from None
  except Exception as error:  # a damaged or malicious pickle raises almost anything from inside the reader
    reason = f'{type(error).__name__} {error}'.strip()
    raise ValueError(f'refused, it is not a whole PyTorch file ({reason}): give one') from None


class Foreign:
  """Stands for a class, a function or an object of another package, none of which is looked up, called or built."""

  def __call__(self, *_) -> 'Foreign':
    return Foreign()

  def __setitem__(self, *_) -> None:
    """One of dictionaries."""

  def append(self, _) -> None:
    """One of lists."""


@dataclasses.dataclass
class _Storage:
  """The numbers behind one or several tensors."""

  key: str
  dtype: np.dtype
  size: int
  numbers: np.ndarray | None = None  # once they are read

  def read(self, content: bytes, offset: int) -> int:
    """Takes its numbers from `offset` on; returns where the next one begins."""
    end = offset + self.size * self.dtype.itemsize
    if end > len(content):
      there = (len(content) - offset) // self.dtype.itemsize
      raise pickle.UnpicklingError(f'cut short: storage {self.key} needs {self.size} numbers, {there} are left')
    self.numbers = np.frombuffer(content, self.dtype, self.size, offset)
    return end


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage, which in the old format is not read yet when the view is made."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    """The view. UnpicklingError if it reaches beyond its storage, or has a number more than once."""
    numbers, end = self.storage.numbers, self.offset
    if numbers is None:
      raise pickle.UnpicklingError(f'it has no numbers of storage {self.storage.key}')
    sides = self.offset, *self.shape, *self.strides
    if len(self.shape) != len(self.strides) or not all(type(side) is int and 0 <= side < 2**62 for side in sides):
      raise pickle.UnpicklingError(f'a tensor {self.shape} with strides {self.strides}')
    count = math.prod(self.shape)
    if count:
      end += sum((side - 1) * stride for side, stride in zip(self.shape, self.strides)) + 1
    if max(end, count) > numbers.size:
      raise pickle.UnpicklingError(f'a tensor {self.shape} reaches beyond its storage of {numbers.size} numbers')
    strides = [stride * numbers.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


# The unpickler of the C library can be told by a few bytes to allocate 64 GiB for its memo.
class _Unpickler(pickle._Unpickler):
  """Knows tensors, their storages and containers; whatever else a pickle names is refused before it is looked up."""

  dispatch: ClassVar[dict] = {**pickle._Unpickler.dispatch}

  def __init__(self, file: io.BytesIO, storage_of: Callable[[str, np.dtype, int], _Storage]):
    super().__init__(file)
    self._storage_of = storage_of
    self._copies_left = len(file.getbuffer())

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return self._ordered_dict
    if module == 'torch._utils' and name in ('_rebuild_tensor_v2', '_rebuild_tensor'):
      return _rebuild_tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return _rebuild_parameter
    if module == 'torch' and name in _DTYPES:
      return np.dtype(_DTYPES[name])
    if module.partition('.')[0] in _PASSED_OVER or (module, name) in _PASSED_OVER_TOO:
      return Foreign()
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')

  def persistent_load(self, pid: tuple) -> _Storage:
    kind, dtype, key, _, size = pid[:5]
    if kind != 'storage' or not isinstance(dtype, np.dtype) or type(size) is not int or size < 0:
      raise pickle.UnpicklingError(f'it names {kind!r} where a storage belongs')
    if len(pid) > 5 and pid[5] is not None:
      raise pickle.UnpicklingError('it has a storage inside a storage')
    storage = self._storage_of(str(key), dtype, size)
    if (storage.dtype, storage.size) != (dtype, size):
      raise pickle.UnpicklingError(f'storage {key} has {storage.size} {storage.dtype} and {size} {dtype}')
    return storage

  def _ordered_dict(self, *items: Any) -> '_Dict':
    self._copies_left -= sum(map(len, items))
    if self._copies_left < 0:
      raise pickle.UnpicklingError('it has more copies of its items than bytes')
    return _Dict(*items)

  def load_build(self) -> None:
    """A state dict carries attributes, such as `_metadata`, and so do foreign objects: they are not kept."""
    self.stack.pop()
    if not isinstance(self.stack[-1], _Dict | Foreign):
      raise pickle.UnpicklingError(f'it sets the attributes of a {type(self.stack[-1]).__name__}')

  def load_newobj(self) -> None:
    """An object of a class, without a call of it: foreign ones alone."""
    self.stack.pop()
    if not isinstance(self.stack[-1], Foreign):
      raise pickle.UnpicklingError(f'it makes a {type(self.stack[-1]).__name__}')
    self.stack[-1] = self.stack[-1]()

  dispatch[pickle.BUILD[0]] = load_build
  dispatch[pickle.NEWOBJ[0]] = load_newobj


class _Dict(collections.OrderedDict):
  """The dictionaries of a pickle."""


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> _Tensor:
  if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
    raise pickle.UnpicklingError('it makes a tensor of something that is no storage')
  if len(shape) > _MOST_SIDES:
    raise pickle.UnpicklingError(f'a tensor of {len(shape)} dimensions')
  return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: _Tensor, requires_grad: bool, hooks: Any) -> _Tensor:
  return tensor


def _read_zip(archive: zipfile.ZipFile, packed: int) -> Any:
  claimed = sum(one.file_size for one in archive.infolist())
  if claimed > packed:  # PyTorch compresses nothing
    raise zipfile.BadZipFile(f'{packed} bytes that unpack to {claimed}')
  names = archive.namelist()
  pickled = [name for name in names if name.endswith('/data.pkl')]
  if len(pickled) != 1:
    raise zipfile.BadZipFile(f'a zip with {len(pickled)} files data.pkl')
  root = pickled[0].removesuffix('data.pkl')
  if f'{root}byteorder' in names and archive.read(f'{root}byteorder') != b'little':
    raise pickle.UnpicklingError('its numbers are big endian')
  storages: dict[str, _Storage] = {}

  def storage_of(key: str, dtype: np.dtype, size: int) -> _Storage:
    if key not in storages:
      storages[key] = _Storage(key, dtype, size)
      storages[key].read(archive.read(f'{root}data/{key}'), 0)
    return storages[key]

  return _arrays(_Unpickler(io.BytesIO(archive.read(pickled[0])), storage_of).load(), {})


def _read_old(content: bytes) -> Any:
  file = io.BytesIO(content)
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
  found, keys = load(), load()
  offset = file.tell()
  for key in keys:
    storage = storages[str(key)]
    (size,) = struct.unpack_from('<q', content, offset)
    if size != storage.size:
      raise pickle.UnpicklingError(f'storage {key} has {size} numbers, its tensors need {storage.size}')
    offset = storage.read(content, offset + 8)
  return _arrays(found, {})


def _arrays(found: Any, done: dict[int, Any]) -> Any:
  """Tensors as arrays, in whatever they lie; what lies there twice is made once (`done`: id -> made)."""
  if id(found) not in done:
    if isinstance(found, _Tensor):
      done[id(found)] = found.array()
    elif isinstance(found, dict):
      done[id(found)] = {key: _arrays(value, done) for key, value in found.items()}
    elif type(found) in (list, tuple):
      done[id(found)] = type(found)(_arrays(value, done) for value in found)
    else:
      done[id(found)] = found
  return done[id(found)]
