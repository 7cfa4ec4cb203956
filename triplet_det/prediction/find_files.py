"""The images and videos that a user means, and what is passed over."""

import collections
import functools
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from triplet_det.data import image_files
from triplet_det.pictures import video
from triplet_det.prediction import result_folder
from triplet_det.run import output_paths

OTHERS, RESULTS, RESULT_FOLDERS = 'files of other kinds', 'results of predict', 'folders of results of predict'


class Found(NamedTuple):
  """What a user means."""

  paths: list[Path]  # images and videos
  lost: int  # images that cannot be decoded here, and folders that cannot be read


def find_images(patterns: Sequence[str]) -> Found:
  """The image and video files that paths, folders (with their subfolders) and globs name, without repetition.

  What else is passed over is counted, and said once: files of other kinds, linked subfolders, results of `predict`.

  Raises:
    FileNotFoundError: a pattern names nothing.
    ValueError: a URL.
  """
  found, search = [], _Search()
  for pattern in patterns:
    path, before = output_paths.local(pattern), search.count(RESULTS, RESULT_FOLDERS)
    if path.is_dir():
      files = search.below(path)
    else:
      named = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
      files = [one for one in named if not search.is_folder(one) and search.takes(one, search.lists_for(one.parent))]
    # A pattern that the shell expands names folders of results, ._x.jpg and folders called x.jpg among the images.
    has_its_name = path.exists() and path.suffix.lower() in search.suffixes
    if not files and not has_its_name and search.count(RESULTS, RESULT_FOLDERS) == before:
      raise FileNotFoundError(
        f'{pattern}: no such file, or a folder without images; give files that are there, or folders and patterns with '
        f'some ({", ".join(search.suffixes)}){search.told()}'
      )
    found += sorted(files)
  if not found:
    raise FileNotFoundError(f'{", ".join(patterns)}: no images there; give files that are there{search.told()}')
  if told := search.told():
    print(told.removeprefix('; '), file=sys.stderr)
  return Found(list(dict.fromkeys(found)), search.lost)


class _Search:
  """Tells images from what is passed over, which is noted."""

  def __init__(self):
    self.suffixes = (*image_files.suffixes(), *video.SUFFIXES)
    self.foreign = image_files.foreign_suffixes()
    self.lost = 0
    self.passed: dict[str, list[Path]] = collections.defaultdict(list)  # kind -> files and folders
    self._read = functools.lru_cache(maxsize=4)(result_folder.read)  # files come folder by folder

  def below(self, top: Path) -> list[Path]:
    """The images and videos in a folder and its subfolders."""
    found = []
    for name, folders, files in os.walk(top, onerror=lambda error: self._lose('unreadable folders', error.filename)):
      folder = Path(name)
      results = self._read(folder)
      if results.run and folder != top and not results.among_photos:
        self._pass(RESULT_FOLDERS, folder)
        folders.clear()
        continue
      for one in folders:
        if (folder / one).is_symlink():
          self._pass('linked folders', folder / one)
      lists = self.lists_for(folder)
      for path in map(folder.joinpath, files):
        if not self.takes(path, lists):
          continue
        if path.suffix.lower() in self.suffixes:
          found.append(path)
        elif why := self.foreign.get(path.suffix.lower()):
          self._lose(why, path)
        else:
          self._pass(OTHERS, path)
    return found

  def lists_for(self, folder: Path) -> list[result_folder.ResultFolder]:
    """What may list a file in the folder; figures are listed one folder above."""
    return [results for results in (self._read(folder), self._read(folder.parent)) if results.run]

  def takes(self, path: Path, lists: Sequence[result_folder.ResultFolder]) -> bool:
    """False for what macOS writes beside files, and for what predict wrote."""
    if path.name.startswith('._'):
      self._pass(OTHERS, path)
    elif any(results.has(path) for results in lists):
      self._pass(RESULTS, path)
    else:
      return True
    return False

  def is_folder(self, path: Path) -> bool:
    if path.is_dir():
      self._pass('folders', path)
      return True
    return False

  def count(self, *kinds: str) -> int:
    return sum(len(self.passed[kind]) for kind in kinds)

  def told(self) -> str:
    """What was passed over, for the end of a message."""
    others = ['._*' if path.name.startswith('._') else path.suffix or path.name for path in self.passed[OTHERS]]
    kinds = ', '.join(f'{kind} {count}' for kind, count in collections.Counter(others).most_common(8))
    told = [
      f'{what} ({len(paths)}{f": {kinds}" if what == OTHERS else ""}), such as {paths[0]}'
      for what, paths in self.passed.items()
      if paths
    ]
    return f'; passed over: {"; ".join(told)}' if told else ''

  def _lose(self, why: str, path: Path) -> None:
    self.lost += 1
    self._pass(why, path)

  def _pass(self, kind: str, path: Path) -> None:
    self.passed[kind].append(path)
