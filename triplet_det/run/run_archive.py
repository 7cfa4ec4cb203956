"""Archives of run folders, .zip or .tar, of whomever: unpacked in their own folder, regular files alone."""

import contextlib
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from triplet_det.run import output_paths

SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz')
INFLATION, SMALL = 20, 2**26  # unpacked, it has at most so many times its own bytes; 64 MiB without asking
MAX_MEMBERS = 100_000  # Hourglass-104 has some hundred files
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)
# A run folder, and behind the bar one checkpoint folder alone.
_RUN = re.compile(r'(.*?/)?(?:best|checkpoints)/\d+/record/metadata|(.*?/)?record/metadata')


class _Member(NamedTuple):
  name: str
  size: int
  is_folder: bool
  open: Callable[[], IO[bytes]]


def find_run(archive: Path) -> str | None:
  """Where in the archive the run folder is, '' for its root; None for a zip without one, such as an exported detector.

  Raises:
    ValueError: damaged, several run folders in it, a .tar without one, or what `unpack` refuses.
  """
  names = []
  with _members(archive) as members:
    names += [member.name for member in members]
  found = {one[1] or one[2] or '' for one in map(_RUN.fullmatch, names) if one}
  if len(found) > 1:
    listed = ', '.join(sorted(one or '(its root)' for one in found)[:5])
    raise ValueError(f'{archive} has {len(found)} run folders in it, {listed}: give an archive of one')
  if not found and archive.suffix != '.zip':
    raise ValueError(
      f'{archive} has no run folder in it, with best/ or checkpoints/: give an archive of one ({", ".join(SUFFIXES)})'
    )
  return found.pop() if found else None


def unpack(archive: Path, folder: Path) -> None:
  """Unpacks all of it as the new `folder`, whole or not at all.

  Raises ValueError for what is damaged, leads out of the folder, is neither a file nor a folder, or is far larger than
  the archive; names it.
  """
  unfinished = folder.with_name(f'{folder.name}.tmp')
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  with _members(archive) as members:
    for member in members:
      path = unfinished / member.name
      if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      with member.open() as content, path.open('xb') as file:
        shutil.copyfileobj(content, file)
  unfinished.replace(folder)


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
  """What is in it, checked member by member as they are met."""
  try:
    with contextlib.ExitStack() as opened:
      if archive.suffix == '.zip':
        members = _of_zip(opened.enter_context(zipfile.ZipFile(archive)))
      else:
        members = _of_tar(opened.enter_context(tarfile.open(archive)))
      yield _checked(members, archive)
  except _BROKEN as error:
    full = getattr(error, 'errno', None)
    if full is not None and not isinstance(error, FileExistsError | NotADirectoryError):
      raise  # of this machine's disk
    raise ValueError(f'{archive} is not a whole archive ({error}): fetch it again, or give another one') from error


def _of_zip(file: zipfile.ZipFile) -> Iterator[_Member | str]:
  for one in file.infolist():
    kind = one.external_attr >> 28  # of Unix: 4 a folder, 8 a file, 0 not said
    if kind not in (0, 4, 8):
      yield one.filename
    yield _Member(one.filename, one.file_size, one.is_dir(), lambda one=one: file.open(one))


def _of_tar(file: tarfile.TarFile) -> Iterator[_Member | str]:
  for one in file:
    if not (one.isreg() or one.isdir()):
      yield one.name
    yield _Member(one.name.removeprefix('./'), one.size, one.isdir(), lambda one=one: file.extractfile(one))


def _checked(members: Iterator[_Member | str], archive: Path) -> Iterator[_Member]:
  limit, size = max(SMALL, INFLATION * archive.stat().st_size), 0
  for number, member in enumerate(members):
    if isinstance(member, str):
      raise ValueError(f'{archive}: {member!r} in it is a link or a device; files and folders alone are unpacked')
    if member.name in ('', '.', './'):
      continue
    output_paths.check_inside(archive, member.name)
    size += member.size
    if size > limit or number >= MAX_MEMBERS:
      raise ValueError(
        f'{archive}: {archive.stat().st_size:,} bytes that unpack to {size:,} or more in {number + 1:,} files; at most '
        f'{limit:,} in {MAX_MEMBERS:,} are sensible: give another one'
      )
    yield member
