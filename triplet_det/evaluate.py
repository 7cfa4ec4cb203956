"""Every image of a split exactly once -> detections -> COCO results JSON, metrics, curves and pictures."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

import jax
from absl import logging
from etils import epath

import triplet_det
from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.detection import batches, coco_results, inference
from triplet_det.detection.settings import Settings
from triplet_det.devices import sharding
from triplet_det.evaluators import best_and_worst, coco_ap, false_discovery
from triplet_det.run import json_files, metric_writers
from triplet_det.run.own_commit import own_commit
from triplet_det.run.progress import ProgressLine
from triplet_det.structs import Detections

_BEGUN = 0.01  # AP below which chance hits make it rise and fall


def detect(detector: inference.Detector, source: pipeline.Source) -> dict[int, Detections]:
  """Image id -> detections, for this host's share of the source; images of one canvas size follow each other."""
  return dict(_detections(detector, source))


def _detections(detector: inference.Detector, source: pipeline.Source) -> Iterator[tuple[int, Detections]]:
  """`detect` one after the other: the device works on a batch while what the one before gave is taken."""
  sizes = source.image_sizes
  order = sorted(range(len(source)), key=lambda i: batches.canvases_of(*sizes[i], detector.settings))
  order = order[jax.process_index() :: jax.process_count()]
  images = ((record.image_id, image) for _, record, image in pipeline.load_images(source, order))
  found = set()
  with contextlib.closing(ProgressLine(len(order), prefix='eval', unit='image')) as progress:
    for image_id, detections in detector.stream(images):
      found.add(image_id)
      yield image_id, detections
      progress.update(len(found))
  if len(found) != len(order):
    raise RuntimeError(f'{len(found)} different images were evaluated, this host has {len(order)} of the split')


def evaluate(
  detector: inference.Detector,
  source: pipeline.Source,
  categories: CategoryTable,
  directory: epath.PathLike,
  *,
  split: str,
  run_name: str,
  decimals: int = -1,
  draw_threshold: float = 0.5,
  about: Mapping | None = None,
) -> dict[str, float]:
  """Detects, writes what was found and how good it is into `directory`, and returns the metrics.

  The files: results.json (COCO rows), for a split without annotations also under the name that COCO's server wants;
  gallery.json, best.png, worst.png and their folders (`best_and_worst.write`); curves.json (precision over recall, FD
  over IoU); metrics.json (the metrics, a fingerprint of how they came about, and number, bytes and SHA-256 of the
  results that they are of), whose older one is removed first and which comes last: where it is, all is whole.

  Args:
    detector: of `make_detector`.
    source: the split; without an object to find (a test set, or crowds alone) there are no metrics and no curves.
    categories: the checkpoint's table; must be the source's.
    directory: made if need be.
    split: its name, for the fingerprint and the server.
    run_name: the algorithm's name, for the server.
    decimals: digits in the results JSON; -1 keeps all.
    draw_threshold: scores of the boxes in the pictures.
    about: further facts for the fingerprint (step, checkpoint).

  Returns:
    Those of `coco_ap` and of `false_discovery`.

  Raises:
    ValueError: the source has other categories than the checkpoint.
  """
  check_categories(source, categories)
  found = _detections(detector, source)
  rows = coco_results.results_rows(found, categories, decimals=None if decimals < 0 else decimals)
  if jax.process_count() > 1:
    rows = [row for part in sharding.from_all_hosts(json.dumps(rows)) for row in json.loads(part)]
  if jax.process_index() > 0:  # the first host measures and writes, and tells the others
    return json.loads(sharding.from_all_hosts('')[0])
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'metrics.json').unlink(missing_ok=True)  # of an earlier evaluation; it says that all here is whole
  written = coco_results.write_results(directory / 'results.json', rows)
  if not source.ground_truth['annotations']:
    name = coco_results.server_file_name(split, run_name)
    coco_results.write_results(directory / name, rows)
    logging.info("for COCO's server: %s, to be sent as a zip of that name", directory / name)
  best_and_worst.write(detector, source, rows, directory, threshold=draw_threshold)
  metrics, curves = measure(source.ground_truth, rows)
  json_files.write_json(directory / 'curves.json', curves, indent=None)
  if left_out := source.annotations.report['degenerate']:
    logging.info('%d boxes without a size inside their image are no objects to find, as in training', left_out)
  known = dict(split=split, images=len(source), left_out=left_out, decimals=decimals)
  recipe = fingerprint(detector.settings, **known, **(about or {}))
  # Written last: an evaluation with metrics.json is complete.
  json_files.write_json(directory / 'metrics.json', dict(metrics=metrics, fingerprint=recipe, results=written))
  sharding.from_all_hosts(json.dumps(metrics))
  return metrics


def measure(ground_truth: Mapping, rows: Sequence[Mapping]) -> tuple[dict[str, float], dict]:
  """Metrics of COCO results, and the curves behind them as curves.json has them; nothing without an object to find."""
  if all(annotation.get('iscrowd', 0) for annotation in ground_truth['annotations']):
    logging.warning('the split has no object to find on its %d images: no metrics', len(ground_truth['images']))
    return {}, {}
  thresholds = sorted({*coco_ap.IOU_THRESHOLDS, *false_discovery.IOU_THRESHOLDS})
  both = coco_ap.accumulate(ground_truth, rows, iou_thresholds=thresholds)
  precision, discovery = both.at(coco_ap.IOU_THRESHOLDS), both.at(false_discovery.IOU_THRESHOLDS)
  curves = dict(
    recall=precision.recall_thresholds.tolist(),
    precision_recall=coco_ap.precision_recall(precision),
    false_discovery=false_discovery.over_thresholds(discovery),
  )
  return coco_ap.summarise(precision) | false_discovery.summarise(discovery), curves


def fingerprint(settings: Settings, **about) -> dict:
  """How a metric came about: test settings, facts given, versions and commit."""
  versions = {}
  for name in ('jax', 'flax', 'faster-coco-eval', 'opencv-python-headless'):
    with contextlib.suppress(metadata.PackageNotFoundError):  # cv2 may come from another package
      versions[name] = metadata.version(name)
  return dict(
    about,
    test=dataclasses.asdict(settings),
    triplet_det=triplet_det.__version__,
    commit=own_commit(),
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    versions=versions,
  )


def format_metrics(metrics: Mapping[str, float]) -> str:
  """The 12 COCO numbers, FD and the AP per class as a table for the terminal."""
  lines = [
    f'  {name:<8}{value:.3f}' + ('  lower is better' if name == 'FD' else '')
    for name, value in metrics.items()
    if not name.startswith('AP/')
  ]
  classes = [(name[3:], value) for name, value in metrics.items() if name.startswith('AP/')]
  width = max((len(name) for name, _ in classes), default=0) + 2
  lines += [f'  AP of {name:<{width}}{value:.3f}' for name, value in classes]
  return '\n'.join(lines)


def format_error_analysis(rows: Sequence[Mapping]) -> str:
  """Rows of `error_analysis.analyse` as a table for the terminal, percent as in Table 5."""
  columns = list(rows[0]['metrics'])
  lines = ['  replaced      ' + ''.join(f'{name:>7}' for name in columns)]
  for row in rows:
    lines.append(f'  {row["replaced"]:<14}' + ''.join(f'{100 * row["metrics"][name]:7.1f}' for name in columns))
  return '\n'.join(lines)


def evaluation_folder(workdir: epath.PathLike, step: int, *, split: str = '', name: str = '') -> epath.Path:
  """Where the files of an evaluation are: eval/step_000100 in training, eval/<split>_step_000100[_<name>] after it.

  Raises:
    ValueError: name or split do not fit into that of a folder.
  """
  if not re.fullmatch(r'[\w.-]*', name):
    raise ValueError(f'eval_name becomes part of the name of a folder: letters, digits, _ - and . only, not {name!r}')
  if '/' in split:
    raise ValueError(f'data.eval.split becomes part of the name of a folder: no / in it, not {split!r}')
  parts = [split, f'step_{step:06d}', name]
  return epath.Path(workdir) / 'eval' / '_'.join(part for part in parts if part)


def logged(workdir: epath.Path, annotations: str) -> dict[int, dict[str, float]]:
  """The metrics of the evaluations in training as the log has them, by their steps.

  Without those that did not get to their end, are of other annotations than those with this digest, or have a broken
  metrics.json, which is said.
  """
  log = workdir / metric_writers.METRICS_FILE
  found = {}
  for row in metric_writers.read_metrics(log) if log.exists() else []:
    if metrics := {k.removeprefix('eval/'): value for k, value in row.items() if k.startswith('eval/')}:
      found[row['step']] = found.get(row['step'], {}) | metrics
  return {step: metrics for step, metrics in found.items() if _is_of(workdir, step, annotations)}


def _is_of(workdir: epath.Path, step: int, annotations: str) -> bool:
  written = evaluation_folder(workdir, step) / 'metrics.json'
  try:
    text = written.read_text(encoding='utf-8') if written.exists() else '{"fingerprint": {}}'
    return json.loads(text)['fingerprint'].get('annotations', annotations) == annotations
  except (ValueError, KeyError) as error:
    logging.warning('%s is broken (%r): this evaluation does not count', written, error)
    return False


def stands_still(workdir: epath.Path, annotations: str, patience: int) -> str:
  """What to say if the last `patience` evaluations in training brought no better AP.

  Empty if one did, for patience 0, and as long as AP has not begun to rise. Evaluations of other annotations than those
  with this digest do not count.
  """
  if not patience:
    return ''
  found = sorted((step, max(-1.0, metrics['AP'])) for step, metrics in logged(workdir, annotations).items())
  if len(found) <= patience:
    return ''
  best, (step, ap) = max(enumerate(found), key=lambda one: one[1][1])  # the first of equal ones
  if len(found) - 1 - best < patience or ap < _BEGUN:
    return ''
  return (
    f'the run ends at step {found[-1][0]}: AP was best at step {step}, {ap:.3f}, and no better in the last '
    f'{len(found) - 1 - best} evaluations (patience {patience}; --config.patience=0 goes on)'
  )


def check_categories(
  source: pipeline.Source,
  categories: CategoryTable,
  misfit: str = 'the data do not fit the checkpoint',
  advice: str = 'Give the data of that run, or another checkpoint',
) -> None:
  """Raises ValueError if the data have other categories than these, those of a checkpoint; says how they differ."""
  if source.categories != categories:
    raise ValueError(f'{misfit}: {_differences(categories, source.categories)}. {advice}')


def _differences(ours: CategoryTable, theirs: CategoryTable) -> str:
  """How the category table `theirs` departs from `ours`."""

  def listed(names: set[str]) -> str:
    first = sorted(names)[:5]
    return (str(first) if first else 'none') + (f' and {len(names) - 5} more' if len(names) > 5 else '')

  missing, extra = set(theirs.names) - set(ours.names), set(ours.names) - set(theirs.names)
  if not missing and not extra:
    return f'the {len(ours)} category names agree, their order or ids differ'
  return f'{len(theirs)} categories instead of {len(ours)}; not known: {listed(missing)}; lacking: {listed(extra)}'
