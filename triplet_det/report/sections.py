"""What the sections of the page show and no file of the run says as it is: curves, means, gains."""

import math
from collections.abc import Iterable, Mapping, Sequence

from triplet_det.pictures.plots import Chart, Curve
from triplet_det.report import gallery
from triplet_det.report.run_folder import Curves, Run

LOSS_TERMS = ('loss', 'focal_corner', 'focal_center', 'pull', 'push', 'offset')


def values(run: Run) -> dict:
  """Names of templates/page.html -> what stands for them; None where the run has nothing of the kind."""
  rows = run.error_analysis.rows if run.error_analysis else {}
  before = rows.get('nothing', {}).get('AP', math.nan)
  gains = {replaced: metrics.get('AP', math.nan) - before for replaced, metrics in rows.items()}
  single = {name: gain for name, gain in gains.items() if name not in ('nothing', 'everything') and math.isfinite(gain)}
  threshold = float(run.config.get('draw_threshold', 0.5))
  return {
    'learning_curves': learning_curves(run.log),
    'classes': ap_of_classes(run.shown.metrics, run.curves) if run.shown else {},
    'precision_recall': precision_recall(run.curves) if run.curves else None,
    'false_discovery': false_discovery(run.curves) if run.curves else None,
    'gains': gains,  # of AP by each replaced output
    'most_gain': max(single, key=single.get, default=None),  # the output that limits the detector
    'gallery': gallery.arrange(run.pictures, threshold) if run.pictures else None,
    'config': flat(run.config),
    'changes': changes(run.history, run.log[-1]['step'] if run.log else None),
    'fingerprint': flat(run.shown.fingerprint) if run.shown else {},
  }


def learning_curves(log: Sequence[Mapping[str, float]]) -> list[Chart]:
  """Loss and its terms, AP and FD over the steps, learning rate, and whatever else is logged."""
  logged = dict.fromkeys(name for row in log for name in row)
  others = [name.removeprefix('train/') for name in logged if name.startswith('train/')]
  charts = [
    _over_steps(log, 'Loss and its terms, log scale', 'train/', LOSS_TERMS, log_scale=True),
    _over_steps(log, 'Average precision', 'eval/', ('AP', 'AP50', 'AP75'), y_range=(0.0, 1.0), decimals=3),
    _over_steps(log, 'False discovery rate', 'eval/', ('FD', 'FD5', 'FD25', 'FD50'), decimals=3),
    *(
      _over_steps(log, name.replace('_', ' ').capitalize(), 'train/', [name])
      for name in others
      if name not in LOSS_TERMS
    ),
  ]
  return [chart for chart in charts if chart.curves]


def _over_steps(log, title: str, prefix: str, names: Sequence[str], *, log_scale=False, **settings) -> Chart:
  """Some of the logged metrics, with their last values; without curves if there is nothing to draw."""
  digits = '.3f' if 'decimals' in settings else '.4g'
  curves = []
  for name in names:
    points = [(row['step'], row[prefix + name]) for row in log if prefix + name in row]
    if any(math.isfinite(y) and (y > 0 or not log_scale) for _, y in points):
      steps, found = zip(*points)
      # The title says the name of a single one.
      curves.append(Curve(name.replace('_', ' ') if len(names) > 1 else '', steps, found, format(found[-1], digits)))
  x_range = (0, max(1, log[-1]['step'])) if log else None
  return Chart(title, 'step', curves, x_range, log=log_scale, **settings)


def ap_of_classes(metrics: Mapping[str, float], curves: Curves | None) -> dict[str, dict[str, float]]:
  """Class -> its AP, and at the IoU thresholds of the precision-recall curves, whose mean it is."""
  names = [name.removeprefix('AP/') for name in metrics if name.startswith('AP/')]
  at_iou = {f'AP{100 * one.iou:.0f}': one.classes for one in curves.precision_recall} if curves else {}
  return {
    name: {'AP': metrics[f'AP/{name}']} | {ap: _mean(classes.get(name, [])) for ap, classes in at_iou.items()}
    for name in names
  }


def precision_recall(curves: Curves) -> dict:
  """Charts of precision over recall at the IoU thresholds, of all classes and of each; and classes without objects."""
  charts, without = {}, []
  for name in [None, *dict.fromkeys(name for one in curves.precision_recall for name in one.classes)]:
    at_iou = {one.iou: one.overall if name is None else one.classes[name] for one in curves.precision_recall}
    drawn = [
      Curve(f'IoU {iou:.2f}', curves.recall, precision, f'AP {_mean(precision):.3f}')
      for iou, precision in at_iou.items()
      if any(map(math.isfinite, precision))
    ]
    title = 'mean over all classes' if name is None else name
    if drawn:
      charts[title] = Chart(f'Precision: {title}', 'recall', drawn, (0.0, 1.0), (0.0, 1.0), decimals=3)
    else:
      without.append(title)
  return {'charts': charts, 'without': without}


def false_discovery(curves: Curves) -> Chart:
  """FD at each IoU threshold, of all objects and by size; without curves if the split has no objects."""
  ious = [row['iou'] for row in curves.false_discovery]
  drawn = []
  for name, size in (('FD', 'all objects'), ('FD_S', 'small'), ('FD_M', 'medium'), ('FD_L', 'large')):
    rates = [row.get(name, math.nan) for row in curves.false_discovery]
    if any(map(math.isfinite, rates)):
      drawn.append(Curve(size, ious, rates, f'FD {_mean(rates):.3f}'))
  return Chart('False discovery rate, lower is better', 'IoU', drawn, decimals=3)


def changes(history: Sequence[Mapping], last: int | None) -> dict:
  """Columns, one for all steps that were trained with the same values, and name -> value in each, of those that differ.

  Empty if nothing changed. `last` is the newest step, None if there is none; starts without a step have no column.
  """
  names = sorted({name for line in history for name in line['changed']})
  if not names:
    return {}
  pairs = zip(history, [line['step'] for line in history[1:]] + [last])
  trained = [(line, end) for line, end in pairs if end is None or end > line['step']]
  if len(trained) < 2:
    return {}
  history, ends = zip(*trained)
  spans = [f'steps {line["step"] + 1:,} to {"…" if end is None else f"{end:,}"}' for line, end in zip(history, ends)]
  commits = [str(line.get('commit') or '') for line in history]
  rows = {name: [str(line['values'].get(name, '')) for line in history] for name in names}
  return {'columns': spans, 'rows': rows | {'commit': commits}}


def flat(nested: Mapping[str, object], prefix: str = '') -> dict[str, str]:
  """Nested mappings as dotted names -> texts."""
  texts = {}
  for name, value in nested.items():
    if isinstance(value, Mapping):
      texts |= flat(value, f'{prefix}{name}.')
    else:
      texts[f'{prefix}{name}'] = str(value)
  return texts


def _mean(values: Iterable[float]) -> float:
  finite = [value for value in values if math.isfinite(value)]
  return math.fsum(finite) / len(finite) if finite else math.nan
