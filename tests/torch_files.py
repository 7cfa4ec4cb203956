"""Writes PyTorch's weight files without PyTorch, of both formats, as `torch.save` does; arrays are tensors."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
ABOUT = dict(protocol_version=VERSION, little_endian=True, type_sizes=dict(short=2, int=4, long=8))
KINDS = {np.float32: 'FloatStorage', np.float64: 'DoubleStorage', np.float16: 'HalfStorage', np.int64: 'LongStorage'}
KINDS = {np.dtype(dtype): type(name, (), {'__module__': 'torch'}) for dtype, name in KINDS.items()}


def _rebuild(*_) -> None:
  """Stands for PyTorch's function of that name."""


_rebuild.__module__, _rebuild.__qualname__, _rebuild.__name__ = 'torch._utils', *['_rebuild_tensor_v2'] * 2
_UTILS, _TORCH = types.ModuleType('torch._utils'), types.ModuleType('torch')
_UTILS._rebuild_tensor_v2 = _rebuild
for _kind in KINDS.values():
  setattr(_TORCH, _kind.__name__, _kind)


class Storage:
  """Numbers, and how many of them the file claims that there are."""

  def __init__(self, numbers: np.ndarray, claimed: int | None = None):
    self.numbers, self.claimed = np.ravel(numbers), np.size(numbers) if claimed is None else claimed


class Tensor:
  """A view of a storage, whatever it says."""

  def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple):
    self.storage, self.arguments = storage, (offset, shape, strides)


class _Pickler(pickle.Pickler):
  def __init__(self, file):
    super().__init__(file, protocol=2)
    self.storages = []

  def persistent_id(self, value):
    if not isinstance(value, Storage):
      return None
    if value not in self.storages:
      self.storages.append(value)
    key = str(self.storages.index(value))
    return ('storage', KINDS[value.numbers.dtype], key, 'cpu', value.claimed)

  def reducer_override(self, value):
    if isinstance(value, np.ndarray):
      strides = tuple(stride // value.itemsize for stride in np.empty(value.shape, value.dtype).strides)
      value = Tensor(Storage(value), 0, value.shape, strides)
    if isinstance(value, Tensor):
      return _rebuild, (value.storage, *value.arguments, False, collections.OrderedDict())
    return NotImplemented


def pickled(content: Any) -> tuple[bytes, list[Storage]]:
  """The pickle, and the storages that it names."""
  file = io.BytesIO()
  with mock.patch.dict(sys.modules, {'torch': _TORCH, 'torch._utils': _UTILS}):
    pickler = _Pickler(file)
    pickler.dump(content)
  return file.getvalue(), pickler.storages


def write(path: Path, content: Any, *, zipped: bool, compression: int = zipfile.ZIP_STORED) -> Path:
  """As `torch.save` of today, or of before 2020; `content` can be a pickle's bytes already."""
  main, storages = (content, []) if isinstance(content, bytes) else pickled(content)
  if zipped:
    with zipfile.ZipFile(path, 'w', compression) as archive:
      archive.writestr('archive/data.pkl', main)
      archive.writestr('archive/byteorder', 'little')
      for key, storage in enumerate(storages):
        archive.writestr(f'archive/data/{key}', storage.numbers.tobytes())
      archive.writestr('archive/version', '3\n')
    return path
  before = b''.join(pickle.dumps(value, protocol=2) for value in (MAGIC, VERSION, ABOUT))
  keys = pickle.dumps([str(key) for key in range(len(storages))], protocol=2)
  numbers = b''.join(struct.pack('<q', storage.claimed) + storage.numbers.tobytes() for storage in storages)
  path.write_bytes(before + main + keys + numbers)
  return path
