"""run/run_archive.py: what it unpacks, and what it refuses of strangers."""

import io
import os
import re
import tarfile
import zipfile

import pytest

from triplet_det.run import run_archive

RUN = {'best/2000/record/metadata': b'{}', 'best/2000/state/array': b'\0' * 999, 'config.json': b'{}'}
SUFFIXES = ['.zip', '.tar', '.tar.gz', '.tgz']


def write(path, files):
  """Name -> content; or, in a tar, a TarInfo."""
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, content in files.items():
        archive.writestr(name, content)
    return path
  with tarfile.open(path, 'w:gz' if path.name.endswith(('gz',)) else 'w') as archive:
    for name, content in files.items():
      one = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
      if isinstance(content, bytes):
        one.size = len(content)
      archive.addfile(one, io.BytesIO(content) if isinstance(content, bytes) else None)
  return path


def special(name, kind, target=''):
  one = tarfile.TarInfo(name)
  one.type, one.linkname = kind, target
  return one


def below(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('top', ['', './', 'shapes/', 'runs/mine/'])
def test_a_run_folder(tmp_path, suffix, top):
  archive = write(tmp_path / f'run{suffix}', {top + name: content for name, content in RUN.items()})
  place = run_archive.find_run(archive)
  run_archive.unpack(archive, tmp_path / 'out')
  assert below(tmp_path / 'out' / place) == RUN
  assert {path.name for path in tmp_path.iterdir()} == {archive.name, 'out'}


def test_as_tar_and_zip_write_it(tmp_path):
  """With entries for folders, empty ones too."""
  for name, content in {f'runs/shapes/{name}': content for name, content in RUN.items()}.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'runs/shapes/empty').mkdir()
  with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
    archive.add(tmp_path / 'runs/shapes', 'shapes')
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    for path in sorted((tmp_path / 'runs').rglob('*')):
      archive.write(path, path.relative_to(tmp_path / 'runs'))
  for suffix in ('.tar', '.zip'):
    archive = tmp_path / f'a{suffix}'
    assert run_archive.find_run(archive) == 'shapes/'
    run_archive.unpack(archive, tmp_path / f'out{suffix}')
    assert below(tmp_path / f'out{suffix}/shapes') == RUN and (tmp_path / f'out{suffix}/shapes/empty').is_dir()


def test_one_checkpoint_alone(tmp_path):
  for name, place in (('a.tar', ''), ('b.tar', '2000/')):
    archive = write(tmp_path / name, {f'{place}record/metadata': b'{}', f'{place}state/array': b'x'})
    assert run_archive.find_run(archive) == place


def test_what_holds_no_run(tmp_path):
  assert run_archive.find_run(write(tmp_path / 'a.zip', {'detector.json': b'{}'})) is None  # an exported detector
  with pytest.raises(ValueError, match=r'a\.tar has no run folder in it, with best/ or checkpoints/'):
    run_archive.find_run(write(tmp_path / 'a.tar', {'detector.json': b'{}'}))
  two = {f'{top}/{name}': content for name, content in RUN.items() for top in ('a', 'b')}
  with pytest.raises(ValueError, match=r'two\.zip has 2 run folders in it, a/, b/: give an archive of one'):
    run_archive.find_run(write(tmp_path / 'two.zip', two))


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('name', ['../out.txt', 'best/../../out.txt', '/tmp/triplet_det_out.txt'])
def test_names_that_lead_out(tmp_path, suffix, name):
  (tmp_path / 'in').mkdir()
  archive = write(tmp_path / f'in/run{suffix}', RUN | {name: b'out'})
  for step in (lambda: run_archive.find_run(archive), lambda: run_archive.unpack(archive, tmp_path / 'in/out')):
    with pytest.raises(ValueError, match=f'{re.escape(name)}. leads out of .*run{re.escape(suffix)}'):
      step()
  assert not (tmp_path / 'in/out').exists() and not (tmp_path / 'out.txt').exists()
  assert not os.path.exists('/tmp/triplet_det_out.txt')


@pytest.mark.parametrize(
  'one',
  [
    special('best/link', tarfile.SYMTYPE, '/etc'),
    special('best/hard', tarfile.LNKTYPE, 'config.json'),
    special('best/pipe', tarfile.FIFOTYPE),
    special('best/device', tarfile.CHRTYPE),
  ],
  ids=lambda one: one.name,
)
def test_what_is_neither_file_nor_folder(tmp_path, one):
  archive = write(tmp_path / 'run.tar', RUN | {one.name: one})
  with pytest.raises(ValueError, match=f'{one.name}. in it is a link or a device'):
    run_archive.unpack(archive, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_link_in_a_zip(tmp_path):
  archive = write(tmp_path / 'run.zip', RUN)
  link = zipfile.ZipInfo('best/link')
  link.external_attr = 0o120777 << 16
  with zipfile.ZipFile(archive, 'a') as file:
    file.writestr(link, '/etc/passwd')
  with pytest.raises(ValueError, match="'best/link' in it is a link or a device"):
    run_archive.find_run(archive)


@pytest.mark.parametrize('suffix', ['.zip', '.tar.gz'])
def test_what_swells(tmp_path, suffix):
  archive = write(tmp_path / f'run{suffix}', RUN | {'zeros': bytes(run_archive.SMALL)})
  with pytest.raises(ValueError, match=rf'bytes that unpack to 67,10\d,\d+ or more in 4 files; at most {2**26:,}'):
    run_archive.unpack(archive, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_is_damaged(tmp_path, suffix):
  archive = write(tmp_path / f'run{suffix}', RUN | {'noise': os.urandom(10_000)})
  content = archive.read_bytes()
  archive.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match=rf'run{re.escape(suffix)} is not a whole archive'):
    run_archive.unpack(archive, tmp_path / 'out')
  archive.write_bytes(b'none')
  with pytest.raises(ValueError, match='is not a whole archive'):
    run_archive.find_run(archive)
  assert not (tmp_path / 'out').exists()


def test_a_name_twice(tmp_path):
  archive = tmp_path / 'run.tar'
  with tarfile.open(archive, 'w') as file:
    for content in (b'a', b'b'):
      one = tarfile.TarInfo('record/metadata')
      one.size = 1
      file.addfile(one, io.BytesIO(content))
  with pytest.raises(ValueError, match=r'is not a whole archive .*File exists'):
    run_archive.unpack(archive, tmp_path / 'out')
