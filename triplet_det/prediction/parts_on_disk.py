"""What `predict` has found so far, on disk: a killed run continues, and several processes share the work.

Every process appends to a part of its own, `<out>/parts/part_3_of_16.jsonl`: a line about the run, a line per image as
it is done, and a last line that says that all are. `merge` makes one result of the parts.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triplet_det.detection.result import ImageDetections

FOLDER = 'parts'


class Place(NamedTuple):
  """Which image: position in the list of files, and the frame of a video (0 for an image)."""

  item: int
  frame: int


@dataclasses.dataclass(frozen=True)
class Shard:
  """The share of one process: the `index`-th (from 1) of `count`."""

  index: int = 1
  count: int = 1

  def __post_init__(self):
    if not 1 <= self.index <= self.count:
      raise ValueError(
        f'shard {self.index}/{self.count}: shards are numbered from 1, 1/{max(self.count, 1)} is the first and '
        f'{max(self.count, 1)}/{max(self.count, 1)} the last'
      )

  @classmethod
  def parse(cls, text: str) -> 'Shard':
    """'3/16', the third of sixteen."""
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if not match:
      raise ValueError(f'{text!r} is not a shard: the third of sixteen is 3/16')
    return cls(int(match[1]), int(match[2]))

  def has(self, place: Place) -> bool:
    return (place.item + place.frame) % self.count == self.index - 1

  def path(self, out: Path) -> Path:
    return out / FOLDER / f'part_{self.index}_of_{self.count}.jsonl'


WHOLE = Shard()


@dataclasses.dataclass(frozen=True)
class Summary:
  """What there is in a part, or in all of them."""

  images: int  # without those left out
  boxes: int  # above the threshold
  left_out: Mapping[str, str]  # file -> reason


class Part:
  """The part of one process; opening it again continues where it stopped.

  Attributes:
    done: the places that need no more work.
    complete: whether all of the shard is done.
  """

  def __init__(self, out: Path, shard: Shard, about: Mapping[str, Any]):
    """Args:
    out: folder of the results, made if need be.
    shard: of this process.
    about: all that the results depend on, for JSON.

    Raises:
      ValueError: the part there is of another run.
    """
    path = shard.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    self.done, self.complete = set(), False
    self._threshold = float(np.float32(about['threshold']))  # as `ImageDetections.above` compares
    self._images, self._boxes, self._left_out = 0, 0, {}
    whole = 0
    for _, whole, line in read_lines(path) if path.exists() else ():  # noqa: B007
      if 'about' in line:
        check_same_run(path, line['about'], about)
      else:
        self._note(line)
    with path.open('ab') as file:
      file.truncate(whole)  # a line cut short by a kill goes
    self._file = path.open('a')
    if not whole:
      self._write(dict(about=about))

  @property
  def summary(self) -> Summary:
    return Summary(self._images, self._boxes, self._left_out)

  def add(self, place: Place, image: str, found: ImageDetections, image_id: int | None = None) -> None:
    """Notes what was found in an image."""
    boxes = dict(boxes=found.boxes.tolist(), scores=found.scores.tolist(), classes=found.classes.tolist())
    self._append(dict(at=place, image=image, image_id=image_id, **boxes))

  def leave_out(self, place: Place, image: str, reason: str) -> None:
    """Notes that a file cannot be used, and why."""
    self._append(dict(at=place, image=image, left_out=reason))

  def finish(self, frames: Mapping[int, int]) -> None:
    """Notes that all is done; `frames` are the numbers of frames of the videos by their items."""
    self._append(dict(frames={str(item): count for item, count in frames.items()}))

  def close(self) -> None:
    self._file.close()

  def _append(self, line: Mapping[str, Any]) -> None:
    self._write(line)
    self._note(line)

  def _write(self, line: Mapping[str, Any]) -> None:
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()  # from now on only the machine, not the process, can lose it

  def _note(self, line: Mapping[str, Any]) -> None:
    if 'frames' in line:
      self.complete = True
      return
    self.done.add(Place(*line['at']))
    if 'left_out' in line:
      self._left_out[line['image']] = line['left_out']
    else:
      self._images += 1
      self._boxes += sum(score > self._threshold for score in line['scores'])


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """(first byte, byte after the last, content) of the lines of a part, up to the first that a kill cut short."""
  begin = 0
  with path.open('rb') as file:
    for raw in file:
      try:
        line = json.loads(raw)
      except ValueError:
        return
      if not raw.endswith(b'\n'):
        return
      yield begin, begin + len(raw), line
      begin += len(raw)


def check_same_run(path: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  wanted = json.loads(json.dumps(wanted))
  differing = [
    f'{key} {there.get(key)} there, {wanted.get(key)} now'
    for key in sorted({*there, *wanted})
    if there.get(key) != wanted.get(key)
  ]
  if differing:
    raise ValueError(
      f'{path} was begun in another way: {"; ".join(differing)[:600]}. Give another --out, or remove {path.parent}'
    )


def remove(out: Path, shard: Shard) -> None:
  """Removes a part, and their folder with the last one."""
  shard.path(out).unlink()
  if not any(shard.path(out).parent.iterdir()):
    shard.path(out).parent.rmdir()
