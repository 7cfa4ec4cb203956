"""A folder of results knows that it is one: its predict.json lists the files that predict wrote there.

A listed file that is still as it was written is a result: it is no photo for a later run, and it goes when another run
begins in its folder. Everything else belongs to the user: it is neither removed nor written over.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triplet_det.prediction import parts_on_disk
from triplet_det.prediction.parts_on_disk import Part
from triplet_det.run import output_paths
from triplet_det.run.in_use import in_use

LIST = 'predict.json'
FIGURES = 'figures'
_WRITER = 'triplet_det.predict'


@dataclasses.dataclass(frozen=True)
class ResultFolder:
  """What predict.json says of its folder."""

  folder: Path
  run: str = ''  # digest of all that the results depend on
  among_photos: bool = False  # images that were predicted on lie in the folder as well
  parts: Sequence[Path] = ()  # of the run that has not ended, or of shards
  files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)  # name -> digest; None until the run's end

  def has(self, path: Path) -> bool:
    """Whether predict wrote this file, and nobody has changed it since."""
    with contextlib.suppress(OSError, ValueError):
      name = path.relative_to(self.folder).as_posix()
      if name == LIST:
        return bool(self.run)  # nothing of a link, or of another program, is taken for it
      return name in self.files and _is_plain(path) and self.files[name] in (None, digest(path))
    return False

  def check(self, about: Mapping[str, Any], names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Before anything is written: would files of these names be written over something else?

    Raises:
      ValueError: over an input, or over a file of the user's; or the folder has parts of another run.
    """
    for path in self.parts if run_of(about) != self.run else ():
      with contextlib.closing(Part(path)) as part:
        if part.about is not None:
          part.check_same_run(about)
    for name in (FIGURES, parts_on_disk.FOLDER):
      output_paths.check_inside(self.folder, name)
    present = {output_paths.key(name) for name in os.listdir(self.folder)}
    beside = [LIST, f'{LIST}.tmp']
    near = [name for name in (*names, *beside) if '/' in name or output_paths.key(name) in present]
    met = [self.folder / name for name in near if os.path.lexists(self.folder / name)]
    output_paths.check_apart(met, inputs)
    unfinished = self.folder / f'{LIST}.tmp'
    foreign = [path for path in met if not (_is_plain(path) if path == unfinished else self.has(path))]
    if foreign:
      raise ValueError(
        f'{foreign[0]} would be written over, and is no result of predict or was changed since'
        f'{f", as {len(foreign) - 1} more" if foreign[1:] else ""}: move it, or give another --out'
      )

  def begin(self, about: Mapping[str, Any], names: Sequence[str], inputs: Iterable[Path]) -> None:
    """Lists what a run will write, before it does; a run that begins removes the results of the one before."""
    goes_on = bool(self.parts) and run_of(about) == self.run
    if goes_on and not set(names) - set(self.files):
      return
    if not goes_on:
      for name in self.files:
        output_paths.check_inside(self.folder, name)
      checked = set(names)
      for path in (self.folder / name for name in self.files if name in checked or self.has(self.folder / name)):
        path.unlink(missing_ok=True)
      with contextlib.suppress(OSError):  # not there, or not empty
        (self.folder / FIGURES).rmdir()
    here = self.folder.resolve()
    among = any(folder.resolve().is_relative_to(here) for folder in {path.parent for path in inputs})
    files = dict.fromkeys(names) | (dict(self.files) if goes_on else {})
    dataclasses.replace(self, run=run_of(about), among_photos=among, files=files).write()

  def write(self) -> None:
    content = dict(results_of=_WRITER, run=self.run, among_photos=self.among_photos, files=self.files)
    output_paths.write_whole(self.folder / LIST, json.dumps(content, indent=0) + '\n')


def read(folder: Path) -> ResultFolder:
  """What is known of a folder; of one that is not predict's, nothing (`run` is empty)."""
  parts = sorted((folder / parts_on_disk.FOLDER).glob('part_*_of_*.jsonl'))
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    path = folder / LIST
    content = json.loads(path.read_bytes()) if _is_plain(path) else {}
    files = {str(name): known if known is None else str(known) for name, known in content['files'].items()}
    if content['results_of'] == _WRITER:
      return ResultFolder(folder, str(content['run']), bool(content['among_photos']), parts, files)
  return ResultFolder(folder, parts=parts)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[ResultFolder]:
  """The folder, while no other process begins a run in it: shards may start at the same time."""
  with in_use(folder, part='begins', wait=True):
    yield read(folder)


def run_of(about: Mapping[str, Any]) -> str:
  """Tells a run from those with other results."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def digest(path: Path) -> str:
  """Tells what was written from what somebody made of it."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()[:32]


def _is_plain(path: Path) -> bool:
  return path.is_file() and not path.is_symlink()
