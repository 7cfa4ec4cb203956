"""Videos as sequences of RGB images, read and written by OpenCV."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from absl import logging

SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_USUAL_RATE = 25.0  # images/s, for files that do not say theirs


def is_video(path: Path) -> bool:
  return path.suffix.lower() in SUFFIXES


def claimed_frames(path: Path) -> int:
  """Number of frames as the file's header has it, which may be off; 0 if unknown."""
  try:
    return max(0, int(_open(path).get(cv2.CAP_PROP_FRAME_COUNT)))
  except ValueError:
    return 0


def frame_rate(path: Path) -> float:
  """Images per second."""
  rate = _open(path).get(cv2.CAP_PROP_FPS)
  return rate if np.isfinite(rate) and rate > 0 else _USUAL_RATE


def read_frames(
  path: Path, wanted: Callable[[int], bool] = lambda frame: True
) -> Iterator[tuple[int, np.ndarray | None]]:
  """(number from 0, uint8 RGB [height, width, 3]) of every frame; of a frame that is not wanted, None.

  Raises:
    ValueError: not a video that OpenCV reads, or without a frame.
  """
  capture = _open(path)
  try:
    count = 0
    while capture.isOpened() and capture.grab():
      image = None
      if wanted(count):
        decoded, image = capture.retrieve()
        if not decoded:
          break
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
      yield count, image
      count += 1
    claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
  finally:
    capture.release()
  if not count:
    raise ValueError(f'{path}: is not a video that OpenCV {cv2.__version__} can read, or is cut short')
  if count < claimed:
    logging.warning('%s: %d of the %d frames that it claims to have can be read', path, count, claimed)


def _open(path: Path) -> cv2.VideoCapture:
  if not path.is_file():  # a pipe would be waited for
    raise ValueError(f'{path}: is no regular file, or gone; give a video file')
  if str(path) != str(path).encode(errors='replace').decode():
    raise ValueError(f'{path}: OpenCV opens videos whose names are UTF-8 only: rename it')
  return cv2.VideoCapture(str(path))


def write_video(path: Path, images: Iterable[np.ndarray], rate: float) -> None:
  """Writes RGB images of one size as MPEG-4, whole or not at all; an odd side loses its last line.

  Args:
    path: ends in .mp4.
    images: uint8 [height, width, 3]; at least one.
    rate: images per second.

  Raises:
    ValueError: no images, or OpenCV here cannot write such a file.
    OSError: it was not written whole.
  """
  with tempfile.TemporaryDirectory(prefix='unfinished_', dir=path.parent) as folder:  # no name of another video's
    unfinished, writer, count = Path(folder, path.name), None, 0
    for count, image in enumerate(images, start=1):  # noqa: B007
      image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
      if writer is None:
        size = image.shape[1], image.shape[0]
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        if not writer.isOpened():
          raise ValueError(f'{path}: OpenCV {cv2.__version__} cannot write MPEG-4 of {size[0]} x {size[1]} pixels here')
      writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if writer is None:
      raise ValueError(f'{path}: no images to write')
    writer.release()
    if claimed_frames(unfinished) != count:  # OpenCV does not say that a disk was full, or a file too large for it
      raise OSError(f'{path}: of {count} images not all could be written: is there room, and may files be so large?')
    unfinished.replace(path)
