"""Every image of a split exactly once -> detections -> COCO results JSON, metrics and pictures."""

import dataclasses
import json
import subprocess
from collections.abc import Mapping
from importlib import metadata

import jax
import numpy as np
from absl import logging
from etils import epath

import triplet_det
from triplet_det import canvas, drawing, inference
from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.evaluators import coco_ap, coco_results, image_quality
from triplet_det.metric_writers import json_safe
from triplet_det.models.detector import Detector
from triplet_det.progress import ProgressLine
from triplet_det.structs import Detections

DRAWN = 8  # of the best and of the worst images


def make_detector(
  module: Detector,
  variables: Mapping,
  settings: inference.Settings,
  *,
  batch_size: int,
  sharding: jax.sharding.NamedSharding | None = None,
) -> inference.Detector:
  """The network as a function from images to detections."""

  def last_stack(variables, images):
    return module.apply(variables, images)[-1]

  needed = module.config.size_multiple
  if settings.canvas_multiple % needed:
    raise ValueError(f'test.canvas_multiple is {settings.canvas_multiple}, the network needs a multiple of {needed}')
  return inference.Detector(last_stack, variables, settings, batch_size=batch_size, sharding=sharding)


def settings_for(test: Mapping, image_scale: float = 1.0) -> inference.Settings:
  """The settings of a config or checkpoint, for images that are worked on at `image_scale` of their resolution."""
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in test.items()}
  scales = tuple(scale * image_scale for scale in values.pop('scales'))
  return inference.Settings(scales=scales, **values | {'center_scale': values['center_scale'] * image_scale})


def detect(detector: inference.Detector, source: pipeline.Source) -> dict[int, Detections]:
  """Image id -> detections, for every image of the source; images of one canvas size follow each other."""
  sizes = source.image_sizes
  order = sorted(range(len(source)), key=lambda i: canvas.canvas_size(*sizes[i], detector.settings.canvas_multiple))
  images = ((record.image_id, image) for _, record, image in pipeline.load_images(source, order))
  progress = ProgressLine(len(source), prefix='eval', unit='image')
  found = {}
  for image_id, detections in detector.stream(images):
    found[image_id] = detections
    progress.update(len(found))
  progress.close()
  if len(found) != len(source):
    raise RuntimeError(f'{len(found)} different images were evaluated, the split has {len(source)}')
  return found


def evaluate(
  detector: inference.Detector,
  source: pipeline.Source,
  categories: CategoryTable,
  directory: epath.PathLike,
  *,
  decimals: int = -1,
  draw_threshold: float = 0.5,
  about: Mapping | None = None,
) -> dict[str, float]:
  """Detects, writes results.json, metrics.json and pictures into `directory`, and returns the metrics of `coco_ap`.

  Args:
    detector: of `make_detector`.
    source: the split; without an object to find (a test set, or crowds alone) the metrics are empty.
    categories: the checkpoint's table; must be the source's.
    directory: made if need be.
    decimals: digits in the results JSON; -1 keeps all.
    draw_threshold: scores of the boxes in the pictures.
    about: further facts for the fingerprint (step, checkpoint).

  Raises:
    ValueError: the source has other categories than the checkpoint.
  """
  if source.categories != categories:
    raise ValueError('the data do not fit the checkpoint: ' + differences(categories, source.categories))
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  found = detect(detector, source)
  rows = coco_results.results_rows(found.items(), categories, decimals=None if decimals < 0 else decimals)
  coco_results.write_results(directory / 'results.json', rows)
  ground_truth = source.ground_truth
  objects = sum(not annotation.get('iscrowd', 0) for annotation in ground_truth['annotations'])
  if not objects:
    logging.warning('the split has no object to find on its %d images: no metrics', len(source))
  metrics = coco_ap.evaluate(ground_truth, rows) if objects else {}
  recipe = fingerprint(detector.settings, images=len(source), decimals=decimals, **(about or {}))
  draw_best_and_worst(source, rows, categories, directory, draw_threshold)
  # Written last: an evaluation with metrics.json is complete.
  safe = {name: json_safe(value) for name, value in metrics.items()}
  (directory / 'metrics.json').write_text(json.dumps(dict(metrics=safe, fingerprint=recipe), indent=1) + '\n')
  return metrics


def fingerprint(settings: inference.Settings, **about) -> dict:
  """How a metric came about: test settings, facts given, versions and commit."""
  versions = {name: metadata.version(name) for name in ('jax', 'flax', 'pycocotools', 'opencv-python-headless')}
  here = epath.Path(__file__).parent
  git = subprocess.run(
    ['git', '-C', str(here), 'describe', '--always', '--dirty'], capture_output=True, text=True, check=False
  )
  commit = git.stdout.strip() or None
  return dict(
    about,
    test=dataclasses.asdict(settings),
    triplet_det=triplet_det.__version__,
    commit=commit,
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    versions=versions,
  )


def draw_best_and_worst(
  source: pipeline.Source, rows: list[Mapping], categories: CategoryTable, directory: epath.Path, threshold: float
) -> None:
  """Ground truth (blue) and detections (red) of the images with the best and the worst F1: best.png, worst.png."""
  ground_truth = source.ground_truth
  quality = image_quality.evaluate_images(ground_truth, rows, threshold=threshold)
  ranked = sorted(quality, key=lambda image_id: (-quality[image_id], image_id))
  if not ranked:  # a test set: nothing to rank by
    ranked = list(source.image_ids)
  index_of = {image_id: i for i, image_id in enumerate(source.image_ids)}
  name_of = dict(zip(categories.ids, categories.names))
  for title, image_ids in (('best', ranked[:DRAWN]), ('worst', ranked[: -DRAWN - 1 : -1])):
    pictures, captions = [], []
    for _, record, image in pipeline.load_images(source, [index_of[i] for i in image_ids]):
      truth = [a for a in ground_truth['annotations'] if a['image_id'] == record.image_id]
      mine = [row for row in rows if row['image_id'] == record.image_id]
      picture = drawing.draw_ground_truth_and_detections(
        image,
        _corners(truth),
        [name_of[a['category_id']] for a in truth],
        _corners(mine),
        [name_of[row['category_id']] for row in mine],
        [row['score'] for row in mine],
        threshold=threshold,
      )
      drawing.save_png(directory / title / f'{epath.Path(record.file_name).stem}.png', picture)
      pictures.append(picture)
      captions.append(f'{record.file_name}  F1 {quality.get(record.image_id, float("nan")):.2f}')
    drawing.save_png(directory / f'{title}.png', drawing.contact_sheet(pictures, columns=4, captions=captions))


def format_metrics(metrics: Mapping[str, float]) -> str:
  """The 12 COCO numbers and the AP per class as a table for the terminal."""
  lines = [f'  {name:<8}{value:.3f}' for name, value in metrics.items() if not name.startswith('AP/')]
  classes = [(name[3:], value) for name, value in metrics.items() if name.startswith('AP/')]
  width = max((len(name) for name, _ in classes), default=0) + 2
  lines += [f'  AP of {name:<{width}}{value:.3f}' for name, value in classes]
  return '\n'.join(lines)


def evaluation_folder(workdir: epath.PathLike, step: int) -> epath.Path:
  """Where the results, metrics and pictures of a step's evaluation are."""
  return epath.Path(workdir) / 'eval' / f'step_{step:06d}'


def read_metrics(directory: epath.PathLike) -> dict[str, float]:
  """The metrics that `evaluate` wrote into `directory`; empty if it did not finish."""
  path = epath.Path(directory) / 'metrics.json'
  metrics = json.loads(path.read_text())['metrics'] if path.exists() else {}
  return {name: float(value) for name, value in metrics.items()}  # JSON has no NaN: it is the string "NaN"


def differences(ours: CategoryTable, theirs: CategoryTable) -> str:
  """How the category table `theirs` departs from `ours`, for a message."""
  missing = sorted(set(theirs.names) - set(ours.names))
  extra = sorted(set(ours.names) - set(theirs.names))
  if not missing and not extra:
    return f'the {len(ours)} category names agree, their order or ids differ'
  return f'{len(theirs)} categories instead of {len(ours)}; not known: {missing or "none"}; lacking: {extra or "none"}'


def _corners(rows: list[Mapping]) -> np.ndarray:
  boxes = np.array([row['bbox'] for row in rows], np.float64).reshape(-1, 4)
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
