"""Makes one result of the parts of `predict`: JSON in the order of the files, and drawn videos."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triplet_det.categories import CategoryTable
from triplet_det.pictures import video
from triplet_det.prediction import result_folder
from triplet_det.prediction.parts_on_disk import FOLDER, Part, Place, Shard, Summary, detections_of
from triplet_det.run import output_paths
from triplet_det.run.progress import ProgressLine


def merge(out: Path, written: Mapping[str, str] | None = None) -> Summary:
  """Makes detections.json, COCO results and videos of all parts in `out`.

  Writes detections.json, a row per image in the order of the files: image, for a video frame, for an image the name
  of its drawing, detections (the plain form, `ImageDetections.to_rows`) and, if COCO results were asked for, image_id;
  then also coco_results.json, with all boxes and not only those above the threshold; a video per video, drawn; and
  predict.json, which lists all files.

  Args:
    out: the folder.
    written: name -> digest of what the parts do not know of.

  Raises:
    FileNotFoundError: no parts there.
    ValueError: parts that are missing, not complete, or of different runs, or that would be written over something
      else; says which.
  """
  with contextlib.ExitStack() as stack:
    parts = [stack.enter_context(contextlib.closing(Part(path))) for path in _part_paths(out)]
    run = _Run(out, parts)
    run.begin()
    run.write_rows()
    run.draw_videos()
    run.end(written or {})
    found = [part.summary for part in parts]
  left_out = {path: reason for one in found for path, reason in one.left_out.items()}
  counts = sum(one.images for one in found), sum(one.boxes for one in found)
  return Summary(*counts, left_out, found[0].threshold)


class _Run:
  """All parts as one, in the order of the files and frames."""

  def __init__(self, out: Path, parts: Sequence[Part]):
    unfinished = [part.path.name for part in parts if part.frames is None]
    if unfinished:
      raise ValueError(f'{out / FOLDER}: not complete are {", ".join(unfinished)}: run these shards to their end first')
    self._out, self._about, self._frames = out, parts[0].about, parts[0].frames
    for part in parts[1:]:
      part.check_same_run(self._about)
    self._part_of = {place: part for part in parts for place in part.done}
    self._categories = CategoryTable.from_coco(self._about['categories'])
    self._written: dict[str, str] = {}  # name -> digest

  def begin(self) -> None:
    names = names_of(self._about)
    for name in names:
      output_paths.check_inside(self._out, name)
    inputs = [Path(path) for _, path, _ in self._about['videos']]
    with result_folder.alone(self._out) as results:
      results.check(self._about, names, inputs)
      results.begin(self._about, names, inputs)

  def end(self, written: Mapping[str, str]) -> None:
    results = result_folder.read(self._out)
    present = [self._out / name for name in names_of(self._about) if (self._out / name).exists()]
    written = self._written | written | {path.name: result_folder.digest(path) for path in present}
    dataclasses.replace(results, files=written).write()

  def write_rows(self) -> None:
    places = [Place(item, frame) for item in range(self._about['files']) for frame in range(self._frames.get(item, 1))]
    coco_results = _json_list(self._out / 'coco_results.json') if self._about['coco'] else contextlib.nullcontext()
    with _json_list(self._out / 'detections.json') as write_plain, coco_results as write_coco:
      for position, place in enumerate(places):  # what was left out has a position as well
        line = self._line(place)
        if 'left_out' in line:
          continue
        self._written |= line.get('drawing', {})
        found = detections_of(line, self._categories)
        row = dict(image=line['image'])
        if place.item in self._frames:
          row['frame'] = place.frame
        if 'drawing' in line:
          (row['drawing'],) = line['drawing']
        if self._about['coco']:
          row['image_id'] = position if line['image_id'] is None else line['image_id']
          for one in found.to_coco(row['image_id']):
            write_coco(one)
        write_plain(dict(row, detections=found.above(self._about['threshold']).to_rows()))

  def draw_videos(self) -> None:
    for item, path, name in self._about['videos']:
      if item in self._frames:
        video.write_video(self._out / name, self._drawn(item, Path(path)), video.frame_rate(Path(path)))

  def _drawn(self, item: int, path: Path) -> Iterator[np.ndarray]:
    progress = ProgressLine(self._frames[item], prefix=f'draw {path.name}', unit='frame')
    for frame, image in video.read_frames(path):
      found = detections_of(self._line(Place(item, frame)), self._categories)
      yield found.draw(image, threshold=self._about['threshold'])
      progress.update(frame + 1)
    progress.close()

  def _line(self, place: Place) -> dict[str, Any]:
    if place not in self._part_of:
      raise ValueError(f'{self._out / FOLDER}: no line about file {place.item}, frame {place.frame}; run predict again')
    return self._part_of[place].line(place)


def names_of(about: Mapping[str, Any]) -> list[str]:
  """The names of all files that `merge` may write."""
  lists = ['detections.json'] + ['coco_results.json'] * about['coco']
  return [*lists, *(f'{name}.tmp' for name in lists), *(name for _, _, name in about['videos'])]


@contextlib.contextmanager
def _json_list(path: Path) -> Iterator[Callable[[Mapping], None]]:
  """What writes a row of a JSON list; the file is there when the list is whole."""
  unfinished = output_paths.unfinished(path)
  with unfinished.open('w') as file:
    written = itertools.count()
    yield lambda row: file.write((',\n' if next(written) else '[') + json.dumps(row, allow_nan=False))
    file.write(']\n' if next(written) else '[]\n')
  unfinished.replace(path)


def _part_paths(out: Path) -> list[Path]:
  """The paths of all parts of a run, every one of them there."""
  names = {path.name for path in (out / FOLDER).glob('part_*_of_*.jsonl')}
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
