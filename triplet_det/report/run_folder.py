"""What a run folder holds, as values: log, config and evaluations, each of which may be missing."""

import contextlib
import dataclasses
import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping

from etils import epath

from triplet_det.run import config_history, output_paths
from triplet_det.run.metric_writers import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One folder below eval/."""

  folder: epath.Path
  step: int | None  # None if neither the fingerprint nor the folder's name says
  written: datetime.datetime | None  # UTC, when it was complete; None: it is not
  metrics: dict[str, float]  # empty if not complete, or if the split has no objects
  fingerprint: dict  # empty if not complete

  @property
  def split(self) -> str:
    return str(self.fingerprint.get('split', ''))


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """Precision over recall at one IoU threshold; NaN without objects."""

  iou: float
  overall: list[float]  # [R] mean over the classes
  classes: dict[str, list[float]]  # name -> [R]


@dataclasses.dataclass(frozen=True)
class Curves:
  """curves.json."""

  recall: list[float]  # [R]
  precision_recall: list[PrecisionRecall]
  false_discovery: list[dict[str, float]]  # rows of 'iou', 'FD', 'FD_S', 'FD_M', 'FD_L'


@dataclasses.dataclass(frozen=True)
class ErrorAnalysis:
  """error_analysis.json."""

  rows: dict[str, dict[str, float]]  # output replaced by ground truth -> metrics
  fingerprint: dict


@dataclasses.dataclass(frozen=True)
class Box:
  """A box of a picture."""

  name: str  # of its class
  corners: tuple[float, float, float, float]  # x1 y1 x2 y2, pixels of the original image
  score: float | None  # None: ground truth


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image of gallery.json."""

  title: str  # best or worst
  image: epath.Path
  file_name: str
  width: int  # pixels of the original image
  height: int
  f1: float | None
  truth: list[Box]
  detections: list[Box]
  rejected: list[Box]  # pairs without a center in their central region


@dataclasses.dataclass(frozen=True)
class Run:
  """One run folder, and more about the evaluation that the page shows."""

  folder: epath.Path
  log: tuple[dict, ...]  # lines of metrics.jsonl by step: 'step', and 'train/...' or 'eval/...' -> float
  config: dict  # empty if there is no config.json
  history: tuple[dict, ...]  # lines of config_history.jsonl: 'step' from which on its 'values' hold
  evaluations: tuple[Evaluation, ...]  # the newest first; what is not complete comes last
  shown: Evaluation | None  # the newest complete one that has metrics (not of a test set), else the newest complete one
  curves: Curves | None  # of `shown`, as the pictures; None if there is no file, or no metrics
  pictures: list[Picture] | None
  error_analysis: ErrorAnalysis | None  # of `shown`, else the newest that there is

  @property
  def name(self) -> str:
    return self.folder.name or str(self.folder)


def read_run(workdir: epath.PathLike) -> Run:
  """Reads log and config, the metrics of all evaluations, and all that is to be shown of one.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: names the file that is broken.
  """
  folder = epath.Path(workdir).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f'there is no run folder {folder}: give one that was trained')
  log = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
  with _understood(folder / config_history.CONFIG_FILE) as config:
    config = dict(config or {})
  evaluations = [_read_evaluation(path) for path in (folder / 'eval').glob('*') if path.is_dir()]
  oldest = datetime.datetime.min.replace(tzinfo=datetime.UTC)
  # The step decides between evaluations of the same time, as a copied folder has them.
  evaluations.sort(key=lambda e: (e.written or oldest, e.step or 0, e.folder.name), reverse=True)
  complete = [e for e in evaluations if e.written]
  shown = next((e for e in complete if e.metrics), complete[0] if complete else None)
  # Mode error_analysis writes into the folder of mode eval, which need not be the one that is shown.
  analyses = (_read_error_analysis(e.folder) for e in [shown, *evaluations] if e)
  return Run(
    folder=folder,
    log=tuple(sorted(log, key=lambda row: row['step'])),
    config=config,
    history=tuple(config_history.read(folder)),
    evaluations=tuple(evaluations),
    shown=shown,
    curves=_read_curves(shown.folder) if shown and shown.metrics else None,
    pictures=_read_gallery(shown.folder) if shown else None,
    error_analysis=next(filter(None, analyses), None),
  )


def _read_curves(folder: epath.Path) -> Curves | None:
  with _understood(folder / 'curves.json') as content:
    if not content:
      return None
    recall = _numbers(content['recall'])
    return Curves(
      recall=recall,
      precision_recall=[
        PrecisionRecall(
          iou=float(curve['iou']),
          overall=_numbers(curve['all'], len(recall)),
          classes={str(name): _numbers(values, len(recall)) for name, values in curve['classes'].items()},
        )
        for curve in content['precision_recall']
      ],
      false_discovery=[{name: float(value) for name, value in row.items()} for row in content['false_discovery']],
    )


def _read_gallery(folder: epath.Path) -> list[Picture] | None:
  with _understood(folder / 'gallery.json') as content:
    if content is None:
      return None
    return [_picture(entry, folder) for entry in content]


def _read_error_analysis(folder: epath.Path) -> ErrorAnalysis | None:
  with _understood(folder / 'error_analysis.json') as content:
    if not content:
      return None
    rows = {str(row['replaced']): _metrics(row['metrics']) for row in content['rows']}
    return ErrorAnalysis(rows, dict(content['fingerprint']))


@contextlib.contextmanager
def _understood(path: epath.Path) -> Iterator:
  """Gives the file's JSON content, None if there is no file; what cannot be read or used is a ValueError naming it."""
  try:
    yield json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    reason = f'{type(error).__name__}: {error}'
    raise ValueError(
      f'{path} is broken or not what this version writes ({reason}): make it anew, or move it'
    ) from error


def _read_evaluation(folder: epath.Path) -> Evaluation:
  path = folder / 'metrics.json'
  with _understood(path) as content:
    check_results(folder, content or {})
    fingerprint = dict(content['fingerprint']) if content else {}
    in_name = re.search(r'step_(\d+)', folder.name)
    step = int(fingerprint['step']) if 'step' in fingerprint else int(in_name[1]) if in_name else None
    written = datetime.datetime.fromtimestamp(path.stat().mtime, datetime.UTC) if content else None
    return Evaluation(folder, step, written, _metrics(content['metrics']) if content else {}, fingerprint)


def check_results(folder: epath.Path, content: Mapping) -> None:
  """Raises ValueError if results.json is not the one that metrics.json, with this content, was measured on."""
  path, known = folder / 'results.json', content.get('results')
  if known and path.exists() and path.stat().length != known['bytes']:
    raise ValueError(f'it is of results of {known["bytes"]} bytes, {path.name} beside it has {path.stat().length}')


def _metrics(metrics: Mapping) -> dict[str, float]:
  return {str(name): float(value) for name, value in metrics.items()}  # JSON has no NaN: it is the string "NaN"


def _numbers(values: list, length: int | None = None) -> list[float]:
  if length is not None and len(values) != length:
    raise ValueError(f'{len(values)} numbers instead of {length}')
  return [float(value) for value in values]


def _picture(entry: Mapping, folder: epath.Path) -> Picture:
  width, height = int(entry['width']), int(entry['height'])
  if min(width, height) < 1:
    raise ValueError(f'the image {entry["file_name"]} has {width} x {height} pixels')
  output_paths.check_inside(folder, entry['image'])
  return Picture(
    title=str(entry['title']),
    image=folder / entry['image'],
    file_name=str(entry['file_name']),
    width=width,
    height=height,
    f1=None if entry['f1'] is None else float(entry['f1']),
    **{kind: [_box(box) for box in entry[kind]] for kind in ('truth', 'detections', 'rejected')},
  )


def _box(box: Mapping) -> Box:
  corners = tuple(_numbers(box['box'], 4))
  if not all(map(math.isfinite, corners)):
    raise ValueError(f'the box {box} is not finite')
  return Box(str(box['name']), corners, float(box['score']) if 'score' in box else None)
