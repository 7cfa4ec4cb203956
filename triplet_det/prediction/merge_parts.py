"""Makes one result of the parts of `predict`: JSON in the order of the files, and drawn videos."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triplet_det.categories import CategoryTable
from triplet_det.detection.result import ImageDetections
from triplet_det.pictures import video
from triplet_det.prediction.parts_on_disk import FOLDER, Place, Shard, Summary, check_same_run, read_lines
from triplet_det.run.progress import ProgressLine


def merge(out: Path) -> Summary:
  """Makes detections.json, COCO results and videos of all parts in `out`.

  Writes detections.json, a row per image in the order of the files: image, for a video frame, detections (the plain
  form, `ImageDetections.to_rows`) and, if COCO results were asked for, image_id; then also coco_results.json, with all
  boxes and not only those above the threshold; a video per video, drawn.

  Raises:
    FileNotFoundError: no parts there.
    ValueError: parts that are missing, not complete, or of different runs; says which.
  """
  readers = [_Reader(path) for path in _part_paths(out)]
  about = readers[0].about
  for other in readers[1:]:
    check_same_run(other.path, other.about, about)
  unfinished = [reader.path.name for reader in readers if reader.frames is None]
  if unfinished:
    raise ValueError(f'{out / FOLDER}: not complete are {", ".join(unfinished)}: run these shards to their end first')
  where = {place: (reader, offset) for reader in readers for place, offset in reader.offsets.items()}
  frames = {int(item): count for item, count in readers[0].frames.items()}
  merged = _Merged(out, about, where, frames)
  summary = merged.write()
  merged.draw_videos()
  for reader in readers:
    reader.close()
  return summary


class _Reader:
  """A part, read line by line: of its images only where they are is kept in memory."""

  def __init__(self, path: Path):
    self.path, self.about, self.frames, self.offsets = path, {}, None, {}
    for offset, _, line in read_lines(path):
      if 'at' in line:
        self.offsets[Place(*line['at'])] = offset
      self.about, self.frames = line.get('about', self.about), line.get('frames', self.frames)
    self._file = path.open('rb')

  def line(self, offset: int) -> dict[str, Any]:
    self._file.seek(offset)
    return json.loads(self._file.readline())

  def close(self) -> None:
    self._file.close()


class _Merged:
  """All parts as one, in the order of the files and frames."""

  def __init__(self, out: Path, about: Mapping, where: Mapping[Place, tuple[_Reader, int]], frames: Mapping[int, int]):
    self._out, self._about, self._where, self._frames = out, about, where, frames
    self._categories = CategoryTable.from_coco(about['categories'])

  def write(self) -> Summary:
    boxes, images, left_out = 0, 0, {}
    with _JsonList(self._out / 'detections.json') as plain, _JsonList(self._out / 'coco_results.json') as coco:
      for position, place in self._positions():
        line = self._line(place)
        if 'left_out' in line:
          left_out[line['image']] = line['left_out']
          continue
        found = self._found(line)
        above = found.above(self._about['threshold'])
        row = dict(image=line['image'])
        if place.item in self._frames:
          row['frame'] = place.frame
        if self._about['coco']:
          row['image_id'] = position if line['image_id'] is None else line['image_id']
          coco.extend(found.to_coco(row['image_id']))
        plain.extend([dict(row, detections=above.to_rows())])
        images, boxes = images + 1, boxes + len(above)
      if not self._about['coco']:
        coco.discard()
    return Summary(images, boxes, left_out)

  def draw_videos(self) -> None:
    for item, (path, name) in self._about['videos'].items():
      count = self._frames.get(int(item))
      if count is not None:
        pictures = self._pictures(int(item), Path(path), count)
        video.write_video(self._out / name, pictures, video.frame_rate(Path(path)))

  def _pictures(self, item: int, path: Path, count: int) -> Iterator[np.ndarray]:
    progress = ProgressLine(count, prefix=f'draw {path.name}', unit='frame')
    for frame, image in video.read_frames(path):
      yield self._found(self._line(Place(item, frame))).draw(image, threshold=self._about['threshold'])
      progress.update(frame + 1)
    progress.close()

  def _positions(self) -> Iterator[tuple[int, Place]]:
    """Every place with its position; a file that was left out has one as well."""
    position = 0
    for item in range(self._about['files']):
      for frame in range(self._frames.get(item, 1)):
        yield position, Place(item, frame)
        position += 1

  def _line(self, place: Place) -> dict[str, Any]:
    if place not in self._where:
      raise ValueError(f'{self._out / FOLDER}: no line about file {place.item}, frame {place.frame}; run predict again')
    reader, offset = self._where[place]
    return reader.line(offset)

  def _found(self, line: Mapping[str, Any]) -> ImageDetections:
    boxes = np.array(line['boxes'], np.float32).reshape(-1, 4)
    scores, classes = np.array(line['scores'], np.float32), np.array(line['classes'], np.int32)
    return ImageDetections(boxes, scores, classes, self._categories)


class _JsonList:
  """A JSON list written row by row, there when it is whole."""

  def __init__(self, path: Path):
    self._path, self._unfinished = path, path.with_name(path.name + '.tmp')
    self._file, self._rows, self._wanted = self._unfinished.open('w'), 0, True

  def extend(self, rows) -> None:
    for row in rows:
      self._file.write((',\n' if self._rows else '[') + json.dumps(row, allow_nan=False))
      self._rows += 1

  def discard(self) -> None:
    self._wanted = False

  def __enter__(self) -> '_JsonList':
    return self

  def __exit__(self, kind, error, trace) -> None:
    self._file.write(']\n' if self._rows else '[]\n')
    self._file.close()
    if kind is None and self._wanted:
      self._unfinished.replace(self._path)
    else:
      self._unfinished.unlink()


def _part_paths(out: Path) -> list[Path]:
  """The paths of all parts of a run, every one of them there."""
  names = {path.name: path for path in (out / FOLDER).glob('part_*_of_*.jsonl')}
  counts = sorted({int(name.removesuffix('.jsonl').split('_')[-1]) for name in names})
  if not counts:
    raise FileNotFoundError(f'no parts in {out / FOLDER}: run predict with --shard first')
  if len(counts) > 1:
    raise ValueError(f'{out / FOLDER} has parts of runs in {" and ".join(map(str, counts))} shards: remove the others')
  paths = [Shard(index, counts[0]).path(out) for index in range(1, counts[0] + 1)]
  missing = [path.name for path in paths if path.name not in names]
  if missing:
    raise ValueError(f'{out / FOLDER}: {len(missing)} of {counts[0]} parts are missing: {", ".join(missing[:5])}')
  return paths
