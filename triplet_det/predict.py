"""Images in, boxes out: `python -m triplet_det.predict --checkpoint runs/shapes --out boxes PATH...`.

In Python: `detector = triplet_det.load('runs/shapes')`; `detections = detector([image, 'photo.jpg'])`.
"""

import argparse
import dataclasses
import glob
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from etils import epath

from triplet_det import checkpoints, drawing, evaluate, figures, inference
from triplet_det.categories import CategoryTable
from triplet_det.data import augment
from triplet_det.models import detector
from triplet_det.progress import ProgressLine, show_messages
from triplet_det.structs import Detections, KeypointMaps

SHEET_ROWS = 16  # images on the sheet of figures
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


class LoadedDetector:
  """A trained detector: list in, list out, same order.

  Attributes:
    categories: the table that turns class indices into names and data set ids.
  """

  def __init__(
    self,
    tester: inference.Detector,
    categories: CategoryTable,
    apply_fn: Callable[..., KeypointMaps],
    variables: Mapping,
  ):
    self.tester = tester
    self.categories = categories
    self._apply_fn, self._variables = apply_fn, variables

  def __call__(self, images: Sequence[np.ndarray | str | epath.PathLike]) -> list[Detections]:
    """Detections of each image, in order, in its own pixels.

    Args:
      images: uint8 RGB arrays [height, width, 3] or paths of image files, of any sizes.

    Returns:
      One `structs.Detections` of NumPy arrays per image, best first: boxes [D, 4], scores [D], classes [D].

    Raises:
      ValueError: an image of another type or shape, or a file that cannot be decoded; says which.
      FileNotFoundError: a path that is not there.
    """
    if isinstance(images, str | Path):
      raise ValueError(f'the detector takes a list of images, got the path {images}: pass [path]')
    return self.tester([image if isinstance(image, np.ndarray) else read_image(image) for image in images])

  def heatmaps(self, image: np.ndarray) -> figures.Heatmaps:
    """The corner and center heatmaps of an image at the scale of the centers, in its own pixels."""
    settings = self.tester.settings
    where = dict(scale=settings.center_scale, canvas_multiple=settings.canvas_multiple)
    return figures.heatmaps(self._apply_fn, self._variables, image, **where)


def load(
  checkpoint: epath.PathLike, *, settings: inference.Settings | None = None, batch_size: int = 8
) -> LoadedDetector:
  """The detector of a run folder or checkpoint folder.

  Args:
    checkpoint: a run folder (its best weights are taken) or one checkpoint folder in it.
    settings: how to test; None takes the run's own.
    batch_size: images of one size that go through the network together.

  Raises:
    FileNotFoundError: no checkpoint there.
  """
  variables, record = checkpoints.load_weights(checkpoint)
  module = detector.build(record.model)
  variables = jax.device_put(variables)
  settings = settings or evaluate.settings_for(record.test)
  tester = evaluate.make_detector(module, variables, settings, batch_size=batch_size)
  return LoadedDetector(tester, record.categories, evaluate.last_stack(module), variables)


def read_image(path: epath.PathLike) -> np.ndarray:
  """An image file as uint8 RGB [height, width, 3]."""
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no image {path}')
  return augment.decode_image(path.read_bytes(), str(path))


def find_images(patterns: Sequence[str]) -> list[Path]:
  """The image files that paths, folders (searched with their subfolders) and glob patterns name, without repetition.

  Raises:
    FileNotFoundError: a pattern names nothing.
  """
  found = []
  for pattern in patterns:
    path = Path(pattern)
    if path.is_dir():
      files = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
    else:
      files = [path] if path.exists() else sorted(Path(p) for p in glob.glob(pattern, recursive=True))
    if not files:
      raise FileNotFoundError(f'{pattern}: no such file, or a folder without images ({", ".join(SUFFIXES)})')
    found += files
  return list(dict.fromkeys(found))


def _read_all(paths: Sequence[Path], unreadable: dict[str, str]) -> Iterator[tuple[int, np.ndarray]]:
  """(position, image) of every file that can be decoded; the others are noted with their reason."""
  for i, path in enumerate(paths):
    try:
      image = read_image(path)
    except ValueError as error:
      unreadable[str(path)] = str(error)
      continue
    yield i, image


def predict(
  loaded: LoadedDetector, paths: Sequence[Path], out: Path, *, threshold: float, draw: bool = True
) -> tuple[int, dict[str, str]]:
  """Writes `detections.json` (a row per image, best boxes first) and drawings into `out`.

  Args:
    loaded: of `load`.
    paths: image files.
    out: folder, made if need be.
    threshold: only boxes with higher scores are written and drawn.
    draw: whether to write a PNG per image.

  Returns:
    Number of boxes written, and the files left out with the reason.
  """
  out.mkdir(parents=True, exist_ok=True)
  names, unreadable, rows = loaded.categories.names, {}, {}
  pictures = _picture_names(paths)
  progress = ProgressLine(len(paths), prefix='predict', unit='image')
  for i, found in loaded.tester.stream(_read_all(paths, unreadable)):
    keep = found.scores > threshold
    labels = [names[c] for c in found.classes[keep]]
    rows[i] = [
      dict(name=name, score=round(float(score), 4), box=[round(float(v), 2) for v in box])
      for name, score, box in zip(labels, found.scores[keep], found.boxes[keep])
    ]
    if draw:
      colors = [drawing.class_color(c) for c in found.classes[keep]]
      image = read_image(paths[i])
      picture = drawing.draw_boxes(image, found.boxes[keep], labels, scores=found.scores[keep], colors=colors)
      drawing.save_png(out / pictures[i], picture)
    progress.update(len(rows) + len(unreadable))
  progress.close()
  table = [dict(image=str(paths[i]), detections=rows[i]) for i in sorted(rows)]
  (out / 'detections.json').write_text('[' + ',\n'.join(map(json.dumps, table)) + ']\n')
  return sum(len(found) for found in rows.values()), unreadable


def draw_figures(
  loaded: LoadedDetector, paths: Sequence[Path], out: Path, *, threshold: float, left_out: Collection[str] = ()
) -> None:
  """Figs. 1, 6 and 7 of each image: heatmaps, pairs of corners kept and rejected, and a sheet of the first images.

  Writes `figures/<stem>_heatmaps.png`, `figures/<stem>_pairs.png` and `figures/sheet.png`.

  Args:
    loaded: of `load`.
    paths: as given to `predict`.
    out: the folder of `predict`, with its drawings.
    threshold: only pairs and centers with higher scores are drawn.
    left_out: the files that `predict` left out.
  """
  jobs = [(path, name) for path, name in zip(paths, _picture_names(paths)) if str(path) not in left_out]
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


def _picture_names(paths: Sequence[Path]) -> list[str]:
  """A drawing's name per file; files of one name in several folders are told apart by a number."""
  taken, names = {}, []
  for path in paths:
    count = taken[path.stem] = taken.get(path.stem, 0) + 1
    names.append(f'{path.stem}.png' if count == 1 else f'{path.stem}_{count}.png')
  return names


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m triplet_det.predict', description='Detects objects in images; boxes are x1 y1 x2 y2 in pixels.'
  )
  parser.add_argument('paths', nargs='+', help='images, folders or glob patterns')
  parser.add_argument('--checkpoint', required=True, help='run folder or checkpoint folder')
  parser.add_argument('--out', required=True, type=Path, help='folder for detections.json and the drawings')
  parser.add_argument('--threshold', type=float, default=0.3, help='lowest score (default %(default)s)')
  parser.add_argument('--batch_size', type=int, default=8, help='images per batch (default %(default)s)')
  parser.add_argument('--no_mirror', action='store_true', help='leave the mirror image out: half the time, less AP')
  parser.add_argument('--figures', action='store_true', help='also draw heatmaps, and pairs kept and rejected')
  parser.add_argument('--no_drawings', action='store_true', help='write the JSON only')
  arguments = parser.parse_args()
  if arguments.figures and arguments.no_drawings:
    parser.error('--figures draws, --no_drawings forbids it: give one of the two')
  flags.FLAGS.mark_as_parsed()  # absl's log wants it; this command has none of absl's flags
  show_messages()
  try:
    paths = find_images(arguments.paths)
    loaded = load(arguments.checkpoint, batch_size=arguments.batch_size)
    if arguments.no_mirror:
      settings = dataclasses.replace(loaded.tester.settings, mirror=False)
      loaded = load(arguments.checkpoint, settings=settings, batch_size=arguments.batch_size)
    boxes, unreadable = predict(
      loaded, paths, arguments.out, threshold=arguments.threshold, draw=not arguments.no_drawings
    )
    if arguments.figures:
      draw_figures(loaded, paths, arguments.out, threshold=arguments.threshold, left_out=unreadable)
  except (FileNotFoundError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  for path, reason in unreadable.items():
    print(f'left out: {path}: {reason}', file=sys.stderr)
  print(f'{boxes} boxes in {len(paths) - len(unreadable)} images above {arguments.threshold}: {arguments.out}')
  sys.exit(1 if unreadable else 0)


if __name__ == '__main__':
  main()
