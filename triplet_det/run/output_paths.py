"""Where results go: found out before hours of work and not after, and before anything of a user's is lost."""

import collections
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath


def make_folder(flag: str, path: epath.PathLike) -> None:
  """Makes a folder for results if it is not there.

  Args:
    flag: that named it, for the message.
    path: local, or a URL (gs://...), which is not tried.

  Raises:
    ValueError: it cannot be made, is a file, or cannot be written.
  """
  if '://' in str(path):
    return
  folder = local(str(path))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    reason = '' if os.access(folder, os.W_OK | os.X_OK) else 'it may not be written'
  except OSError as error:
    reason = error.strerror
  if reason:
    raise ValueError(
      f'{flag}={path} cannot be a folder for results: {reason}; give the name of a new or of your own one'
    )


def make_place(flag: str, path: epath.PathLike) -> None:
  """Makes the folder of a file that will be written, before the work whose result it takes.

  Raises:
    ValueError: it cannot be made or written, or a folder has the file's name.
  """
  if epath.Path(path).is_dir():
    raise ValueError(f'{flag}={path} is a folder: give the name of a file')
  make_folder(f'the folder of {flag}', epath.Path(path).parent)


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file whole or not at all: what is killed meanwhile leaves the one that was there."""
  beside = unfinished(epath.Path(path))
  beside.write_bytes(content.encode() if isinstance(content, str) else content)
  beside.replace(path)


def local(text: str) -> Path:
  """A path on this machine, ~ being the home.

  Raises:
    ValueError: a URL, which a `Path` would take for a folder, or nothing, which it would take for this one.
  """
  if not text:
    raise ValueError('a path is empty: give one; . is the current folder')
  if '://' in text:
    raise ValueError(
      f'{text} is not on this machine, and only the run folder and the data of triplet_det.main may be elsewhere: give '
      f'a local path, and copy (gcloud storage cp --recursive, for gs://)'
    )
  return Path(os.path.expanduser(text))  # an unknown ~user stays as it is, where Path.expanduser raises


def check_apart(outputs: Iterable[Path], inputs: Iterable[epath.PathLike]) -> None:
  """Compares what will be written with what is read, behind links (hard ones too) and as the file system spells names.

  Args:
    outputs: files, or folders whose content may be replaced.
    inputs: files or folders.

  Raises:
    ValueError: an output is an input, lies in one, or is a folder with an input in it.
  """
  written = {same: path for path in outputs if (same := _identity(path))}
  if not written:  # nothing is there yet
    return
  behind_outputs = {same: path for path in written.values() for one in _way(path) if (same := _identity(one))}
  has_folder = any(path.is_dir() for path in written.values())
  for path in inputs:
    same = _identity(path)
    hit = written.get(same) or (os.path.isdir(path) and behind_outputs.get(same))
    if same and not hit and has_folder:
      hit = next((written[one] for one in map(_identity, _way(path)) if one in written), None)
    if same and hit:
      raise ValueError(f'{hit} would be written over the input {path}: give another place for the results')


def _identity(path: epath.PathLike) -> tuple[int, int] | None:
  """Equal for all names of a file; None if there is none."""
  try:
    found = os.stat(path)
  except (OSError, ValueError):
    return None
  return found.st_dev, found.st_ino


def _way(path: epath.PathLike) -> Iterable[Path]:
  """The folders that a file lies in, behind links."""
  return Path(os.path.realpath(path)).parents


def check_inside(folder: epath.PathLike, name: str) -> None:
  """Raises ValueError if a name that was read somewhere, or a link on its way, leads out of the folder."""
  way = Path(name)
  leads_out = way.is_absolute() or '..' in way.parts or not way.parts
  if '://' not in str(folder) and not leads_out:
    leads_out = not Path(folder, name).resolve().is_relative_to(Path(folder).resolve())
  if leads_out:
    raise ValueError(f'{name!r} leads out of {folder}: it is not followed; names must stay in this folder')


def unfinished(path: epath.Path) -> epath.Path:
  """Where a file is written until it is whole; ValueError if a link is there, what it leads to is not written over."""
  beside = path.with_name(path.name + '.tmp')
  if os.path.islink(beside):
    raise ValueError(f'{beside} is a link to {os.readlink(beside)}: it is not followed; remove it')
  return beside


def key(name: str) -> str:
  """Equal for names that are one on file systems without case, or with their own way of writing accents."""
  return unicodedata.normalize('NFC', name).casefold()


def unique(names: Sequence[str]) -> list[str]:
  """The names, told apart by `key`: of equal ones those behind the first get a number that no other name has."""
  taken = {key(name) for name in names}
  told, numbers = [], collections.Counter()
  for name in names:
    same, free = key(name), name
    while numbers[same] and key(free) in taken:
      numbers[same] += 1
      free = f'{name}_{numbers[same]}'
    numbers[same] = numbers[same] or 1
    taken.add(key(free))
    told.append(free)
  return told
