"""PyTorch's files without PyTorch: both formats give what was written; all but weights is refused and does nothing."""

import collections
import contextlib
import os
import pickle
import random
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests import torch_files
from tests.torch_files import Storage, Tensor
from triplet_det.models import torch_file

RNG = np.random.default_rng(0)
WEIGHTS = collections.OrderedDict(
  (name, RNG.normal(0, 9, shape).astype(dtype))
  for name, shape, dtype in (
    ('a.weight', (2, 3, 1, 4), np.float32),
    ('a.bias', (2,), np.float64),
    ('b.weight', (5, 1), np.float16),
    ('b.num_batches_tracked', (), np.int64),
  )
)
FORMATS = {'zip': dict(zipped=True), 'old': dict(zipped=False)}


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
  return lambda content: torch_files.write(tmp_path / 'weights.pth', content, **FORMATS[request.param])


def test_what_was_written_is_read(write):
  read = torch_file.read(write({'state_dict': WEIGHTS, 'epoch': 7, 'lists': [(WEIGHTS['a.bias'], None)]}))
  assert list(read) == ['state_dict', 'epoch', 'lists'] and read['epoch'] == 7
  assert list(read['state_dict']) == list(WEIGHTS)
  for name, value in WEIGHTS.items():
    assert read['state_dict'][name].dtype == value.dtype
    np.testing.assert_array_equal(read['state_dict'][name], value)
  np.testing.assert_array_equal(read['lists'][0][0], WEIGHTS['a.bias'])
  assert not read['state_dict']['a.bias'].flags.writeable


def test_views_of_one_storage(write):
  storage = Storage(np.arange(24, dtype=np.float32))
  part, turned, none = ((4, (2, 3), (3, 1)), (0, (4, 6), (1, 4)), (24, (0, 3), (3, 1)))
  views = dict(part=Tensor(storage, *part), turned=Tensor(storage, *turned), none=Tensor(storage, *none))
  read = torch_file.read(write(views))
  np.testing.assert_array_equal(read['part'], np.arange(4, 10).reshape(2, 3))
  np.testing.assert_array_equal(read['turned'], np.arange(24).reshape(6, 4).T)
  assert read['none'].shape == (0, 3)


def test_objects_of_other_packages_are_passed_over(write):
  """NumPy's by its own pickling; OpenMMLab's by opcodes, as a history of its message hub is pickled: with a function of
  a class, reached by `getattr`, and attributes; and a dictionary of its own kind. None of their modules is here."""
  assert 'mmengine' not in sys.modules
  beside = dict(scalar=np.float64(0.4), kind=np.float32, state=np.dtype('>i4'), inside=[np.int64(3), 'text'])
  read = torch_file.read(write({'meta': beside, 'state_dict': WEIGHTS}))
  assert list(read['state_dict']) == list(WEIGHTS) and read['meta']['inside'][1] == 'text'
  passed_over = read['meta']['scalar'], read['meta']['kind'], read['meta']['state'], read['meta']['inside'][0]
  assert all(type(value) is torch_file.Foreign for value in passed_over)

  history = (
    b'cmmengine.logging.history_buffer\nHistoryBuffer\nq\x00)\x81}(X\x01\x00\x00\x00f'
    b'c__builtin__\ngetattr\nh\x00X\x03\x00\x00\x00min\x86RX\x01\x00\x00\x00nK\x05ub'
  )
  own_dict = b'cmmengine.config.config\nConfigDict\n)RX\x01\x00\x00\x00aK\x01s'
  read = torch_file.read(write(b'\x80\x02(' + history + own_dict + b'K\x07t.'))
  assert [type(value) for value in read] == [torch_file.Foreign, torch_file.Foreign, int]


def test_an_object_passed_over_makes_no_tensor(write):
  for opcodes in (
    b'ctorch._utils\n_rebuild_tensor_v2\n(cnumpy\nzeros\nK\x00)))tR',  # a storage that is none
    b'cnumpy\nfloat32\nQ',  # a persistent id that is none
  ):
    with pytest.raises(ValueError, match='refused'):
      torch_file.read(write(b'\x80\x02' + opcodes + b'.'))


class Acting:
  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.mkdir, (str(self.target),)


def test_what_acts_is_refused_and_does_not_act(write, tmp_path):
  with pytest.raises(ValueError, match=r'refused, .* of weights alone \(it asks for posix\.mkdir\)'):
    torch_file.read(write(dict(WEIGHTS, more=Acting(tmp_path / 'broken_into'))))
  assert not (tmp_path / 'broken_into').exists()
  (tmp_path / 'bare.pkl').write_bytes(pickle.dumps(Acting(tmp_path / 'broken_into')))
  with pytest.raises(ValueError, match='it asks for posix'):
    torch_file.read(tmp_path / 'bare.pkl')
  assert not (tmp_path / 'broken_into').exists()


def nested(levels, make):
  """A container of two that are one, and so on: 2^levels of them when each is made for itself."""
  value = make()
  for _ in range(levels):
    value = [value, value]
  return value


def itself():
  value = []
  value.append(value)
  return value


def copies():
  """One list that many dictionaries are made from: opcodes, because no pickler writes such a thing."""
  pairs = b'(l' + b''.join(b'(K%cK\x00ta' % (number % 256) for number in range(20_000)) + b'q\x00'
  again = b'ccollections\nOrderedDict\nq\x01' + b'h\x01(h\x00tR' * 20_000
  return b'\x80\x02(' + pairs + again + b't.'


BIG = Storage(np.zeros(8, np.float32), claimed=2**40)
EIGHT = Storage(np.zeros(8, np.float32))
MALICIOUS = {
  'a storage larger than the file': (dict(a=Tensor(BIG, 0, (2**40,), (1,))), 'storage 0 needs 1099511627776 numbers'),
  'beyond its storage': (dict(a=Tensor(EIGHT, 4, (5,), (1,))), r'\(5,\) reaches beyond its storage of 8 numbers'),
  'before its storage': (dict(a=Tensor(EIGHT, -1, (5,), (1,))), r'a tensor \(5,\) with strides'),
  'strides that go back': (dict(a=Tensor(EIGHT, 7, (5,), (-1,))), r'with strides \(-1,\)'),
  'one number often': (dict(a=Tensor(EIGHT, 0, (2**20, 2**20), (0, 0))), r'reaches beyond its storage of 8'),
  'sides that are none': (dict(a=Tensor(EIGHT, 0, (2.5,), (1,))), r'a tensor \(2\.5,\)'),
  'many dimensions': (dict(a=Tensor(EIGHT, 0, (1,) * 99, (1,) * 99)), '99 dimensions'),
  'a list in itself': (itself(), 'RecursionError'),
  'copies of its items': (copies(), 'more copies of its items than bytes'),
  'a memo of 2^31 places': (b'\x80\x02Nr\xff\xff\xff\x7f.', None),  # of which one is taken
  'bytes of 2^60': (b'\x80\x04\x8e' + (2**60).to_bytes(8, 'little') + b'x.', 'EOFError'),
  'attributes of a class': (b'\x80\x02ctorch\nFloatStorage\n}(U\x01aK\x01ub.', 'it sets the attributes of a'),
  'a protocol that is none': (b'\x80\x63N.', 'unsupported pickle protocol'),
}


@pytest.mark.parametrize('kind', MALICIOUS)
def test_a_malicious_file_costs_nothing(kind, write):
  content, told = MALICIOUS[kind]
  path = write(content)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match='refused') if told else contextlib.nullcontext() as raised:
      torch_file.read(path)
    assert not told or raised.match(told)
    assert tracemalloc.get_traced_memory()[1] < 30 * path.stat().st_size + 2**22
  finally:
    tracemalloc.stop()


def test_what_lies_there_twice_is_made_once(write):
  read = torch_file.read(write(nested(60, lambda: WEIGHTS['a.bias'])))
  while isinstance(read, list):
    assert read[0] is read[1]
    read = read[0]
  np.testing.assert_array_equal(read, WEIGHTS['a.bias'])


def test_the_attributes_of_a_storage_stay(tmp_path):
  """What sets its size would make a view of memory that is not its own."""
  main, _ = torch_files.pickled(dict(a=Tensor(EIGHT, 0, (8,), (1,))))
  at = main.index(b'Q') + 1  # behind the persistent id the storage is on top
  main = main[:at] + b'}(U\x04sizeM\xff\xffub' + main[at:]
  with pytest.raises(ValueError, match='it sets the attributes of a _Storage'):
    torch_file.read(torch_files.write(tmp_path / 'a.pth', main, zipped=False))


def test_a_zip_that_unpacks_to_more_than_itself(tmp_path):
  content = dict(a=np.zeros(2**20, np.float32))
  path = torch_files.write(tmp_path / 'a.pth', content, zipped=True, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match=rf'{path.stat().st_size} bytes that unpack to 4\d+'):
    torch_file.read(path)


def test_damaged_files_are_refused(write):
  """Cut short anywhere, or with another byte: an error of one kind, or what another file would have said."""
  path = write(WEIGHTS)
  whole, draws = path.read_bytes(), random.Random(0)
  for _ in range(300):
    path.write_bytes(whole[: draws.randrange(len(whole))])
    with pytest.raises(ValueError, match='refused'):
      torch_file.read(path)
  for _ in range(300):
    damaged = bytearray(whole)
    damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
    path.write_bytes(damaged)
    try:
      torch_file.read(path)
    except ValueError as error:
      assert str(error).startswith('refused, it is not a')


def test_other_files(tmp_path):
  for content in (b'', b'x', b'PK', b'\x80\x02}q\x00.', b'PK\x05\x06' + bytes(18)):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(ValueError, match='refused, it is not a'):
      torch_file.read(tmp_path / 'a.pth')
  with pytest.raises(OSError):
    torch_file.read(tmp_path)
