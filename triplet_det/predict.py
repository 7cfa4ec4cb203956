"""Images and videos in, boxes out: `python -m triplet_det.predict --checkpoint runs/shapes --out boxes PATH...`.

Over many images: the same command continues a killed run; `--shard 3/16` does the third of sixteen shares, and
`--merge` joins them when all are done. In Python: `triplet_det.load`.
"""

import argparse
import dataclasses
import glob
import hashlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from triplet_det import drawing, figures, image_ids, loading, parts, places, video
from triplet_det.loading import LoadedDetector, load, read_image
from triplet_det.merge import merge
from triplet_det.parts import WHOLE, Place, Shard, Summary
from triplet_det.progress import ProgressLine, show_messages

SHEET_ROWS = 16  # images on the sheet of figures
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', *video.SUFFIXES)


def find_images(patterns: Sequence[str]) -> list[Path]:
  """The image and video files that paths, folders (with their subfolders) and globs name, without repetition.

  Raises:
    FileNotFoundError: a pattern names nothing.
    ValueError: a URL.
  """
  found = []
  for pattern in patterns:
    path = places.local(pattern)
    if path.is_dir():
      files = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
    else:
      files = [path] if path.exists() else sorted(Path(p) for p in glob.glob(pattern, recursive=True))
    if not files:
      raise FileNotFoundError(
        f'{pattern}: no such file, or a folder without images; give files that are there, or folders and patterns with '
        f'some ({", ".join(SUFFIXES)})'
      )
    found += files
  return list(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a call of `predict` did."""

  summary: Summary  # of all files; of this shard alone if there are several
  images: int  # detected by this call; the others were done before
  seconds: float  # compilation included
  programs: int  # compiled for it


def predict(
  loaded: LoadedDetector,
  paths: Sequence[Path],
  out: Path,
  *,
  threshold: float,
  draw: bool = True,
  coco: bool = False,
  annotations: Path | None = None,
  shard: Shard = WHOLE,
) -> Outcome:
  """Detects on files and writes what `merge.merge` lists, and a drawing (PNG) per image, into `out`.

  What is done is kept in `out`/parts as it goes; the same call continues after a kill.

  Args:
    loaded: of `load`.
    paths: image and video files.
    out: folder, made if need be.
    threshold: only boxes with higher scores are drawn and in the plain form; COCO results have all.
    draw: whether to draw images and videos.
    coco: whether to write COCO results as well, image_id being the position among all images and frames.
    annotations: COCO JSON whose image and category ids to use instead; implies `coco`.
    shard: the share of this process; with several, `merge.merge` makes the results when all are done.

  Raises:
    ValueError: annotations that do not fit, or a run of other settings was begun in `out`.
  """
  categories, ids = loaded.categories, [None] * len(paths)
  if annotations is not None:
    known = image_ids.read_ids(annotations, paths, categories)
    categories, ids, coco = known.categories, known.images, True
  names = picture_names(paths)
  about = dict(
    loaded.about,
    test=dataclasses.asdict(loaded.tester.settings),
    categories=categories.to_coco(),
    files=len(paths),
    names=hashlib.sha256('\n'.join(map(str, paths)).encode()).hexdigest(),
    annotations=annotations and str(annotations),
    threshold=threshold,
    coco=coco,
    videos={str(i): [str(path), names[i]] for i, path in enumerate(paths) if draw and video.is_video(path)},
  )
  part = parts.Part(out, shard, about)
  start, before, programs = time.monotonic(), part.summary.images, loaded.tester.num_programs
  if not part.complete:
    work = _Work(loaded, paths, part, shard)
    progress = ProgressLine(work.total(), len(part.done), prefix='predict', unit='image')
    for place, found in loaded.tester.stream(work):
      image, path = work.images.pop(place), paths[place.item]
      found = loaded.wrap(found)
      if draw and not video.is_video(path):
        drawing.save_png(out / names[place.item], found.draw(image, threshold=threshold))
      part.add(place, str(path), found if coco else found.above(threshold), ids[place.item])
      progress.update(len(part.done))
    part.finish(work.frames)
    progress.close()
  part.close()
  seconds, summary = time.monotonic() - start, part.summary
  images = summary.images - before
  if shard.count == 1:
    summary = merge(out)
    parts.remove(out, shard)
  return Outcome(summary, images, seconds, loaded.tester.num_programs - programs)


class _Work:
  """Iterates over (place, image) of all that a part still lacks.

  Attributes:
    images: those handed out, for whoever wants to draw on them; they are taken from here.
    frames: videos' numbers of frames by their items, as far as they were read.
  """

  def __init__(self, loaded: LoadedDetector, paths: Sequence[Path], part: parts.Part, shard: Shard):
    self._loaded, self._paths, self._part, self._shard = loaded, paths, part, shard
    self.images: dict[Place, np.ndarray] = {}
    self.frames: dict[int, int] = {}

  def total(self) -> int | None:
    """Images and frames of the shard as the files claim; None if one does not."""
    total = 0
    for item, path in enumerate(self._paths):
      if video.is_video(path):
        claimed = video.claimed_frames(path)
        if not claimed:
          return None
        total += claimed // self._shard.count
      else:
        total += self._shard.has(Place(item, 0))
    return total

  def __iter__(self) -> Iterator[tuple[Place, np.ndarray]]:
    for item, path in enumerate(self._paths):
      try:
        for frame, image in _frames_of(path, lambda frame: self._is_wanted(Place(item, frame))):  # noqa: B023
          if video.is_video(path):
            self.frames[item] = frame + 1
          if image is not None:
            self._loaded.check(image, str(path))
            self.images[Place(item, frame)] = image
            yield Place(item, frame), image
      except (ValueError, OSError) as error:  # a file that is no image, or cannot be opened
        self.frames.pop(item, None)
        if self._is_wanted(Place(item, 0)):
          self._part.leave_out(Place(item, 0), str(path), str(error))

  def _is_wanted(self, place: Place) -> bool:
    return self._shard.has(place) and place not in self._part.done


def _frames_of(path: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray | None]]:
  """(number, image) of every frame of a video; an image file is one frame."""
  if video.is_video(path):
    yield from video.read_frames(path, wanted)
  elif wanted(0):
    yield 0, read_image(path)


def picture_names(paths: Sequence[Path]) -> list[str]:
  """A drawing's name per file; files of one name in several folders are told apart by a number."""
  taken, names = {}, []
  for path in paths:
    count = taken[path.stem] = taken.get(path.stem, 0) + 1
    stem = path.stem if count == 1 else f'{path.stem}_{count}'
    names.append(f'{stem}.mp4' if video.is_video(path) else f'{stem}.png')
  return names


def draw_figures(
  loaded: LoadedDetector, paths: Sequence[Path], out: Path, *, threshold: float, left_out: Collection[str] = ()
) -> None:
  """Figs. 1, 6 and 7 of each image: heatmaps, pairs of corners kept and rejected, and a sheet of the first images.

  Writes `figures/<stem>_heatmaps.png`, `figures/<stem>_pairs.png` and `figures/sheet.png`.

  Args:
    loaded: of `load`, from a checkpoint.
    paths: as given to `predict`; videos are passed over.
    out: the folder of `predict`, with its drawings.
    threshold: only pairs and centers with higher scores are drawn.
    left_out: the files that `predict` left out.
  """
  jobs = [
    (path, name)
    for path, name in zip(paths, picture_names(paths))
    if str(path) not in left_out and not video.is_video(path)
  ]
  rows, done, at_once = [], 0, loaded.tester.batch_size
  progress = ProgressLine(len(jobs), prefix='figures', unit='image')
  for chunk in (jobs[i : i + at_once] for i in range(0, len(jobs), at_once)):
    images = [read_image(path) for path, _ in chunk]
    for (path, name), image, proposals in zip(chunk, images, loaded.tester.proposals(images)):
      heatmaps = figures.draw_heatmaps(image, loaded.heatmaps(image))
      pairs = figures.draw_pairs(image, proposals, loaded.categories.names, threshold=threshold)
      for kind, panels in (('heatmaps', heatmaps), ('pairs', pairs)):
        drawing.save_png(out / 'figures' / f'{Path(name).stem}_{kind}.png', figures.side_by_side(panels))
      if len(rows) < SHEET_ROWS:
        rows.append([figures.Panel(read_image(out / name), path.name), *heatmaps, *pairs])
      done += 1
      progress.update(done)
  progress.close()
  if rows:
    drawing.save_png(out / 'figures' / 'sheet.png', figures.sheet(rows))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m triplet_det.predict', description='Detects objects in images; boxes are x1 y1 x2 y2 in pixels.'
  )
  parser.add_argument('paths', nargs='*', help='images, videos, folders or glob patterns')
  parser.add_argument('--checkpoint', help='run folder, checkpoint folder, exported file, or demo')
  parser.add_argument('--out', required=True, help='folder for detections.json and the drawings')
  parser.add_argument('--threshold', type=float, default=0.3, help='lowest score (default %(default)s)')
  parser.add_argument('--batch_size', type=int, default=8, help='images per batch (default %(default)s)')
  loading.add_settings_flags(parser)
  parser.add_argument('--coco', action='store_true', help='also write coco_results.json, boxes of all scores')
  parser.add_argument('--annotations', type=Path, help='COCO JSON with the image and category ids for --coco')
  parser.add_argument('--shard', default='1/1', metavar='I/N', help='do this share only, the first of 16 is 1/16')
  parser.add_argument('--merge', action='store_true', help='join the parts of all shards in --out; detects nothing')
  parser.add_argument('--figures', action='store_true', help='also draw heatmaps, and pairs kept and rejected')
  parser.add_argument('--no_drawings', action='store_true', help='write the JSON only')
  cache = 'folder of compiled programs; empty: none (default %(default)s)'
  parser.add_argument('--compilation_cache', default='~/.cache/triplet_det', help=cache)
  arguments = parser.parse_args()
  if arguments.merge and (arguments.paths or arguments.checkpoint):
    parser.error('--merge joins what is in --out: give neither paths nor --checkpoint with it')
  if not arguments.merge and not (arguments.paths and arguments.checkpoint):
    parser.error('--checkpoint and at least one image, video, folder or pattern are needed')
  if arguments.figures and arguments.no_drawings:
    parser.error('--figures draws, --no_drawings forbids it: give one of the two')
  if arguments.figures and (arguments.shard != '1/1' or loading.is_exported(arguments.checkpoint)):
    parser.error('--figures needs a checkpoint, not an exported file, and all images in one process')
  if not 0 <= arguments.threshold <= 1:
    parser.error(f'--threshold is {arguments.threshold}: scores are from 0 to 1, give one of these')
  return arguments


def _run(arguments: argparse.Namespace) -> Summary:
  """Does what the command says and tells how it went."""
  out = places.local(arguments.out)
  if arguments.merge:
    return merge(out)
  shard = Shard.parse(arguments.shard)
  paths = find_images(arguments.paths)
  changes = loading.changes_of(arguments)
  places.make_folder('--out', out)
  few = len(paths) if not any(map(video.is_video, paths)) else arguments.batch_size
  loaded = load(arguments.checkpoint, batch_size=min(arguments.batch_size, few), **changes)
  wanted = dict(coco=arguments.coco, annotations=arguments.annotations, shard=shard, draw=not arguments.no_drawings)
  outcome = predict(loaded, paths, out, threshold=arguments.threshold, **wanted)
  if arguments.figures:
    left_out = outcome.summary.left_out
    draw_figures(loaded, paths, out, threshold=arguments.threshold, left_out=left_out)
  rate = outcome.images / outcome.seconds
  print(
    f'{outcome.images} images in {outcome.seconds:.1f} s, {rate:.2f} images/s; programs compiled: {outcome.programs}'
  )
  return outcome.summary


def main() -> None:
  arguments = _parse()
  flags.FLAGS.mark_as_parsed()  # absl's log wants it; this command has none of absl's flags
  show_messages()
  if arguments.compilation_cache:
    jax.config.update('jax_compilation_cache_dir', str(Path(arguments.compilation_cache).expanduser()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  try:
    summary = _run(arguments)
  except (FileNotFoundError, ValueError, ImportError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  for path, reason in summary.left_out.items():
    print(f'left out: {path}: {reason}', file=sys.stderr)
  print(f'{summary.boxes} boxes in {summary.images} images above {arguments.threshold}: {arguments.out}')
  sys.exit(1 if summary.left_out else 0)


if __name__ == '__main__':
  main()
