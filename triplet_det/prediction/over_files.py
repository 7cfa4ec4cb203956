"""Detection over image and video files: what is done is kept as it goes, and drawn."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from triplet_det.detection import paper_figures
from triplet_det.detection.loading import LoadedDetector, read_image
from triplet_det.pictures import drawing, video
from triplet_det.prediction import coco_image_ids, merge_parts, parts_on_disk, result_folder
from triplet_det.prediction.parts_on_disk import WHOLE, Part, Place, Shard, Summary
from triplet_det.run import output_paths
from triplet_det.run.progress import ProgressLine

SHEET = f'{result_folder.FIGURES}/sheet.png'
_LONGEST = 200  # bytes of a drawing's name without number and suffix
SHEET_ROWS = 16  # images on the sheet of figures


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
  figures: bool = False,
) -> Outcome:
  """Detects on files and writes what `merge_parts.merge` lists, and a drawing (PNG) per image, into `out`.

  What is done is kept in `out`/parts as it goes; the same call continues after a kill.

  Args:
    loaded: of `load`.
    paths: image and video files.
    out: folder, made if need be.
    threshold: only boxes with higher scores are drawn and in the plain form; COCO results have all.
    draw: whether to draw images and videos.
    coco: whether to write COCO results as well, image_id being the position among all images and frames.
    annotations: COCO JSON whose image and category ids to use instead; implies `coco`.
    shard: the share of this process; with several, `merge_parts.merge` makes the results when all are done.
    figures: whether to draw what `draw_figures` lists; needs drawings, and all images in one process.

  Raises:
    ValueError: annotations that do not fit the files, a run of other settings was begun in `out`, or an input or
      another file of the user's would be written over.
  """
  categories, ids, sizes = loaded.categories, [None] * len(paths), [None] * len(paths)
  if annotations is not None:
    known = coco_image_ids.read_ids(annotations, paths, categories)
    categories, ids, sizes, coco = known.categories, known.images, known.sizes, True
  names = picture_names(paths)
  about = dict(
    loaded.about,
    test=dataclasses.asdict(loaded.tester.settings),
    categories=categories.to_coco(),
    files=len(paths),
    names=hashlib.sha256('\n'.join(map(str, paths)).encode(errors='surrogateescape')).hexdigest(),
    annotations=annotations and str(annotations),
    threshold=threshold,
    coco=coco,
    videos=[(i, str(path), names[i]) for i, path in enumerate(paths) if draw and video.is_video(path)],
  )
  drawn = [name for name, path in zip(names, paths) if draw and not video.is_video(path)]
  written = merge_parts.names_of(about) + drawn + [f for name in drawn for f in figure_names(name) if figures]
  written += [SHEET] * figures
  about = json.loads(json.dumps(about))  # as it comes back from the parts
  out.mkdir(parents=True, exist_ok=True)
  start, programs = time.monotonic(), loaded.tester.num_programs
  with contextlib.ExitStack() as stack:
    with result_folder.alone(out) as results:
      results.check(about, written, [*paths, *([annotations] if annotations else [])])
      part = stack.enter_context(contextlib.closing(Part(shard.path(out))))
      part.begin(about)
      results.begin(about, written, paths)
    _do_again(part, out)
    before = part.summary.images
    if part.frames is None:
      work = _Work(loaded, paths, sizes, part, shard)
      progress = ProgressLine(work.total(), len(part.done), prefix='predict', unit='image')
      for place, found in loaded.tester.stream(work, failed=work.leave_out):
        image, path = work.images.pop(place), paths[place.item]
        found = loaded.wrap(found)
        drawn = {}
        if draw and not video.is_video(path):
          name = names[place.item]
          drawing.save_png(out / name, found.draw(image, threshold=threshold))
          drawn = {name: result_folder.digest(out / name)}
        part.add(place, str(path), found if coco else found.above(threshold), ids[place.item], drawn)
        progress.update(len(part.done))
      part.finish({item: n for item, n in work.frames.items() if str(paths[item]) not in part.summary.left_out})
      progress.close()
    summary = part.summary
    drawn = draw_figures(loaded, paths, out, sizes, threshold=threshold, left_out=summary.left_out) if figures else {}
  outcome = Outcome(
    summary=summary,
    images=summary.images - before,
    seconds=time.monotonic() - start,
    programs=loaded.tester.num_programs - programs,
  )
  if shard.count == 1:
    merge_parts.merge(out, drawn)
    parts_on_disk.remove(out, shard)
  return outcome


def _do_again(part: Part, out: Path) -> None:
  """What was left out may be whole by now, and drawings may be gone."""
  left_out = part.summary.left_out
  for place in list(part.done):
    line = part.line(place)
    if line['image'] in left_out or not all((out / name).exists() for name in line.get('drawing', ())):
      part.do_again(place)


class _Work:
  """Iterates over (place, image) of all that a part still lacks.

  Attributes:
    images: those handed out, for whoever wants to draw on them; they are taken from here.
    frames: videos' numbers of frames by their items, as far as they were read.
  """

  def __init__(
    self,
    loaded: LoadedDetector,
    paths: Sequence[Path],
    sizes: Sequence[tuple[int, int] | None],  # (height, width) that annotations claim, if known
    part: Part,
    shard: Shard,
  ):
    self._loaded, self._paths, self._sizes, self._part, self._shard = loaded, paths, sizes, part, shard
    self.images: dict[Place, np.ndarray] = {}
    self.frames: dict[int, int] = {}

  def total(self) -> int | None:
    """Images and frames of the shard as the files claim; None if one does not."""
    total = 0
    for item, path in enumerate(self._paths):
      count = video.claimed_frames(path) if video.is_video(path) else 1
      if not count:
        return None
      total += sum(self._shard.has(Place(item, frame)) for frame in range(count))
    return total

  def __iter__(self) -> Iterator[tuple[Place, np.ndarray]]:
    for item, path in enumerate(self._paths):
      try:
        for frame, image in self._frames_of(item, path):
          if str(path) in self._part.summary.left_out:  # a video, for one of its frames
            break
          if image is not None:
            self._loaded.check(image, str(path))
            self.images[Place(item, frame)] = image
            yield Place(item, frame), image
      except (ValueError, OSError, MemoryError) as error:  # no image, too large a one, or it cannot be opened
        self.frames.pop(item, None)
        if self._is_wanted(Place(item, 0)):
          self._part.leave_out(Place(item, 0), str(path), str(error))

  def leave_out(self, place: Place, reason: str) -> None:
    """Notes that memory was too short for an image that was handed out."""
    height, width = self.images.pop(place).shape[:2]
    size = f'{height} x {width} pixels (height x width), {self._loaded.tester.batch_size} images at once'
    what = f'memory is too short for {size}: give a smaller --batch_size, or make it smaller ({reason})'
    self._part.leave_out(place, str(self._paths[place.item]), what)

  def _frames_of(self, item: int, path: Path) -> Iterator[tuple[int, np.ndarray | None]]:
    """(number, image) of every frame of a video, None for those of others; an image file is one frame."""
    if video.is_video(path):
      for frame, image in video.read_frames(path, lambda frame: self._is_wanted(Place(item, frame))):
        self.frames[item] = frame + 1
        yield frame, image
    elif self._is_wanted(Place(item, 0)):
      yield 0, self._loaded.read(path, self._sizes[item])

  def _is_wanted(self, place: Place) -> bool:
    return self._shard.has(place) and place not in self._part.done


def picture_names(paths: Sequence[Path]) -> list[str]:
  """A drawing's name per file; files of one name in several folders are told apart by a number."""
  stems = output_paths.unique([_shortened(path.stem) for path in paths])
  return [stem + ('.mp4' if video.is_video(path) else '.png') for stem, path in zip(stems, paths)]


def _shortened(stem: str) -> str:
  """Where file systems end names at 255 bytes, there must be room for a number and a suffix."""
  encoded = stem.encode(errors='surrogateescape')
  return stem if len(encoded) <= _LONGEST else encoded[:_LONGEST].decode(errors='ignore')


def figure_names(drawing_name: str) -> list[str]:
  """The names of the two figures of an image."""
  return [f'{result_folder.FIGURES}/{Path(drawing_name).stem}_{kind}.png' for kind in ('heatmaps', 'pairs')]


def draw_figures(
  loaded: LoadedDetector,
  paths: Sequence[Path],
  out: Path,
  sizes: Sequence[tuple[int, int] | None],
  *,
  threshold: float,
  left_out: Collection[str] = (),
) -> dict[str, str]:
  """Figs. 1, 6 and 7 of each image: heatmaps, pairs of corners kept and rejected, and a sheet of the first images.

  Writes `figures/<stem>_heatmaps.png`, `figures/<stem>_pairs.png` and `figures/sheet.png`.

  Args:
    loaded: of `load`, from a checkpoint.
    paths: as given to `predict`; videos are passed over.
    out: the folder of `predict`, with its drawings.
    sizes: (height, width) that annotations claim, if known.
    threshold: only pairs and centers with higher scores are drawn.
    left_out: the files that `predict` left out.

  Returns:
    name -> digest of what was written.
  """
  jobs = [
    (path, name, size)
    for path, name, size in zip(paths, picture_names(paths), sizes)
    if str(path) not in left_out and not video.is_video(path)
  ]
  rows, written, done, at_once = [], {}, 0, loaded.tester.batch_size
  small = loaded.tester.settings.small_box
  progress = ProgressLine(len(jobs), prefix='figures', unit='image')
  for chunk in (jobs[i : i + at_once] for i in range(0, len(jobs), at_once)):
    images = [loaded.read(path, size) for path, _, size in chunk]
    for (path, name, _), image, proposals in zip(chunk, images, loaded.tester.proposals(images)):
      heatmaps = paper_figures.draw_heatmaps(image, loaded.heatmaps(image))
      pairs = paper_figures.draw_pairs(image, proposals, loaded.categories.names, threshold=threshold, small_box=small)
      for figure, panels in zip(figure_names(name), (heatmaps, pairs)):
        drawing.save_png(out / figure, paper_figures.side_by_side(panels))
        written[figure] = result_folder.digest(out / figure)
      if len(rows) < SHEET_ROWS:
        rows.append(
          [
            paper_figures.Panel(read_image(out / name, max_pixels=None), path.name.encode(errors='replace').decode()),
            *heatmaps,
            *pairs,
          ]
        )
      done += 1
      progress.update(done)
  progress.close()
  if rows:
    drawing.save_png(out / SHEET, paper_figures.sheet(rows))
    written[SHEET] = result_folder.digest(out / SHEET)
  return written
