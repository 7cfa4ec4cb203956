"""What `predict` has found so far, on disk: a killed run continues, and several processes share the work.

Every process appends to a part of its own, `<out>/parts/part_3_of_16.jsonl`: a line about the run, a line per image as
it is done, and a last line that says that all are. Every line has a checksum. `merge_parts` makes one result of the
parts.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from triplet_det.categories import CategoryTable
from triplet_det.detection.result import ImageDetections

FOLDER = 'parts'
CHECKSUM = 'crc32'  # of a line without it


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
  threshold: float


class Part:
  """The part of one process; of its images only where their lines begin is kept in memory.

  Attributes:
    path: of the file.
    about: all that the results depend on; None of a part without a line.
    frames: the numbers of frames of the videos by their positions; None until all of the shard is done.
  """

  def __init__(self, path: Path):
    """Opens a part, or makes an empty one; what a kill has cut short is not read, what is damaged is done again.

    Raises:
      ValueError: its first line, which says of which run it is, is damaged.
    """
    self.path, self.about, self.frames = path, None, None
    self._boxes, self._total, self._left_out = {}, 0, {}  # of each image, of all; file -> reason
    self._begins: dict[Place, int] = {}
    self._end, self._damaged = 0, []
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open('a+b')
    self._file.seek(0)
    for number, raw in enumerate(self._file, 1):
      if not raw.endswith(b'\n'):
        break
      line = _read_line(raw)
      if line is not None and (self.about or 'about' in line):
        self._note(line, len(raw))
        continue
      if not self.about:
        raise ValueError(f'{path}: line 1, which says of which run it is, is damaged. Remove {path}, it is done again')
      if raw.strip():
        logging.warning('%s: line %d is damaged, what it was about is done again', path, number)
        self._damaged.append((self._end, len(raw)))
      self._end += len(raw)
    if self._damaged:
      self.frames = None  # there is work to do again

  def begin(self, about: Mapping[str, Any]) -> None:
    """Begins the run, or continues it.

    Args:
      about: all that the results depend on, for JSON.

    Raises:
      ValueError: the part is of another run.
    """
    about = json.loads(json.dumps(about))
    if self.about is not None:
      self.check_same_run(about)
    self._file.truncate(self._end)
    with self.path.open('r+b') as file:  # the other one only appends
      for begin, size in self._damaged:
        file.seek(begin)
        file.write(b' ' * (size - 1) + b'\n')
    if self.about is None:
      self._append(dict(about=about))

  def check_same_run(self, about: Mapping[str, Any]) -> None:
    """Raises ValueError if the part is of another run; says in what they differ."""
    there, now = _flat(self.about), _flat(about)
    differing = [
      'other files' if key == 'names' else f'{key} {_short(there.get(key))} there, {_short(now.get(key))} now'
      for key in sorted({*there, *now})
      if there.get(key) != now.get(key)
    ]
    if differing:
      raise ValueError(
        f'{self.path} was begun in another way: {"; ".join(differing)[:600]}. Give another --out, or remove '
        f'{self.path.parent}'
      )

  @property
  def done(self) -> Collection[Place]:
    """The places that need no more work."""
    return self._begins.keys()

  @property
  def summary(self) -> Summary:
    return Summary(len(self._boxes), self._total, self._left_out, self.about['threshold'])

  def do_again(self, place: Place) -> None:
    """Forgets what was noted of a place: its file or its drawing may be another by now."""
    del self._begins[place]
    self._total -= self._boxes.pop(place, 0)
    self._left_out = {}
    self.frames = None

  def add(
    self, place: Place, image: str, found: ImageDetections, image_id: int | None = None, drawing: Mapping | None = None
  ) -> None:
    """Notes what was found in an image, and the name and digest of its drawing."""
    boxes = dict(boxes=found.boxes.tolist(), scores=found.scores.tolist(), classes=found.classes.tolist())
    drawn = dict(drawing=drawing) if drawing else {}
    self._append(dict(at=place, image=image, image_id=image_id, **drawn, **boxes))

  def leave_out(self, place: Place, image: str, reason: str) -> None:
    """Notes that a file cannot be used, and why."""
    self._append(dict(at=place, image=image, left_out=reason))

  def finish(self, frames: Mapping[int, int]) -> None:
    """Notes that all is done; `frames` are the numbers of frames of the videos by their positions."""
    self._append(dict(frames=frames))

  def line(self, place: Place) -> dict[str, Any]:
    """What was noted of a place that is done."""
    self._file.seek(self._begins[place])
    return _read_line(self._file.readline())

  def close(self) -> None:
    self._file.close()

  def _append(self, line: Mapping[str, Any]) -> None:
    text = json.dumps(line)
    raw = f'{text[:-1]}, "{CHECKSUM}": {zlib.crc32(text.encode())}}}\n'.encode()
    self._file.write(raw)
    self._file.flush()  # from now on only the machine, not the process, can lose it
    self._note(line, len(raw))

  def _note(self, line: Mapping[str, Any], size: int) -> None:
    if 'about' in line:
      self.about = line['about']
    elif 'frames' in line:
      self.frames = {int(item): count for item, count in line['frames'].items()}
    else:
      place = Place(*line['at'])
      self._begins[place] = self._end
      if 'left_out' in line:
        self._left_out[line['image']] = line['left_out']
      else:
        threshold = float(np.float32(self.about['threshold']))  # as `ImageDetections.above` compares
        self._total -= self._boxes.get(place, 0)
        self._boxes[place] = sum(score > threshold for score in line['scores'])
        self._total += self._boxes[place]
        self._left_out.pop(line['image'], None)  # it was, at first
    self._end += size


def _flat(about: Mapping[str, Any], path: str = '') -> dict[str, Any]:
  """{'test': {'mirror': True}} -> {'test.mirror': True}."""
  found = {}
  for key, value in about.items():
    found |= _flat(value, f'{path}{key}.') if isinstance(value, Mapping) else {f'{path}{key}': value}
  return found


def _short(value: Any) -> str:
  return text if len(text := str(value)) <= 60 else f'{text[:57]}...'


def _read_line(raw: bytes) -> dict[str, Any] | None:
  """What `Part` wrote, as long as it is what it wrote; lines of an older version have no checksum."""
  text, mark, checksum = raw.rstrip(b'}\n').rpartition(f', "{CHECKSUM}": '.encode())
  try:
    line = json.loads(raw)
    if mark and int(checksum) != zlib.crc32(text + b'}'):
      return None
  except (ValueError, RecursionError):
    return None
  return line if isinstance(line, dict) and line.keys() & {'about', 'frames', 'at'} else None


def detections_of(line: Mapping[str, Any], categories: CategoryTable) -> ImageDetections:
  """What `Part.add` noted."""
  boxes = np.array(line['boxes'], np.float32).reshape(-1, 4)
  scores, classes = np.array(line['scores'], np.float32), np.array(line['classes'], np.int32)
  return ImageDetections(boxes, scores, classes, categories)


def remove(out: Path, shard: Shard) -> None:
  """Removes a part, and their folder with the last one."""
  path = shard.path(out)
  path.unlink()
  if not any(path.parent.iterdir()):
    path.parent.rmdir()
