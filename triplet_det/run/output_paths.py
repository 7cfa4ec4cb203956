"""Where results go: a folder that can be written, found out before hours of work and not after."""

import os
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
  folder = epath.Path(path).expanduser()
  if '://' in str(path):
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
    reason = '' if os.access(folder, os.W_OK | os.X_OK) else 'it may not be written'
  except OSError as error:
    reason = error.strerror
  if reason:
    raise ValueError(
      f'{flag}={path} cannot be a folder for results: {reason}; give the name of a new or of your own one'
    )


def local(text: str) -> Path:
  """A path on this machine. Raises ValueError for a URL, which a `Path` would take for the folder `gs:`."""
  if '://' in text:
    raise ValueError(
      f'{text} is not on this machine, and only the run folder and the data of triplet_det.main may be elsewhere: give '
      f'a local path, and copy (gcloud storage cp --recursive, for gs://)'
    )
  return Path(text)
