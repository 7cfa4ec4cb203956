"""The sections of the page, each a piece of HTML made of one part of the run; what is missing gets one sentence."""

import dataclasses
import html
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence

from triplet_det.report.charts import Curve, line_chart
from triplet_det.report.gallery import show_pictures
from triplet_det.report.run_folder import Curves, Evaluation, Run, read_curves, read_error_analysis, read_gallery
from triplet_det.report.tables import flat, metric_table, number, sentence, symbol, table, values_table

AP = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
AR = ('AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')
FD = ('FD', 'FD5', 'FD25', 'FD50', 'FD_S', 'FD_M', 'FD_L')
HEADLINE = ('AP', 'AP50', 'AP75', 'FD')
LOSS_TERMS = ('loss', 'focal_corner', 'focal_center', 'pull', 'push', 'offset')
NO_EVALUATION = 'This run has no finished evaluation yet.'


def header(run: Run) -> str:
  """Name of the run, AP and where it comes from."""
  facts = {}
  if run.log:
    last, total = run.log[-1]['step'], run.config.get('total_steps')
    facts['trained to step'] = f'{last:,}' + (f' of {total:,}' if isinstance(total, int) and total > last else '')
  if run.shown:
    about = run.shown.fingerprint
    facts['evaluated at step'] = '' if run.shown.step is None else f'{run.shown.step:,}'
    facts['split'] = html.escape(run.shown.split)
    facts['images'] = f'{about["images"]:,}' if isinstance(about.get('images'), int) else ''
    facts['commit'] = html.escape(f'{about.get("commit") or ""}')
    facts['date'] = _time(run.shown)
  metrics = run.shown.metrics if run.shown else {}
  headline = {symbol(name): number(metrics[name], name) for name in HEADLINE if name in metrics}
  return (
    f'<header id="run"><p class="kind">triplet_det run</p><h1>{html.escape(run.name)}</h1>'
    + (_definitions('headline', headline) or sentence(_why_no_metrics(run)))
    + f'{_definitions("facts", facts)}</header>'
  )


def learning_curves(run: Run) -> str:
  """Loss and its terms, AP and FD over the steps, learning rate, and whatever else is logged."""
  if not run.log:
    return sentence('Nothing is logged yet: metrics.jsonl has no line.')
  logged = dict.fromkeys(name for row in run.log for name in row)
  others = [name.removeprefix('train/') for name in logged if name.startswith('train/')]
  average_precision = _over_steps(run, 'Average precision', 'eval/', AP[:3], y_range=(0.0, 1.0), decimals=3)
  charts = [
    _over_steps(run, 'Loss and its terms, log scale', 'train/', LOSS_TERMS, log=True),
    average_precision,
    _over_steps(run, 'False discovery rate', 'eval/', FD[:4], decimals=3),
    *(_over_steps(run, _words(name).capitalize(), 'train/', [name]) for name in others if name not in LOSS_TERMS),
  ]
  missing = '' if average_precision else sentence('AP over the steps begins with the first evaluation.')
  return f'<div class="charts">{"".join(charts)}</div>{missing}'


def metric_tables(run: Run) -> str:
  """The 12 numbers of COCO, the 7 of the false discovery rate, and the AP of each class."""
  shown = run.shown
  if not shown or not shown.metrics:
    return sentence(_why_no_metrics(run))
  if 'FD' in shown.metrics:
    discovery = metric_table('False discovery rate, lower is better', FD, shown.metrics)
  else:
    discovery = _made_before('false discovery rates', run)
  return (
    metric_table('Average precision', AP, shown.metrics)
    + metric_table('Average recall', AR, shown.metrics)
    + discovery
    + '<p class="note">AP and AR: mean over IoU 0.50 to 0.95. FD = 1 − AP, mean over IoU 0.05 to 0.50. Below AP and FD '
    'stands a single IoU in percent, below AR how many detections an image may have. S, M, L: objects with areas below '
    '32², between, and above 96² pixels.</p>' + _class_table(shown)
  )


def precision_recall(run: Run) -> str:
  """Precision over recall at the IoU thresholds of curves.json: a chart of all classes and one of each, to choose."""
  curves, missing = _curves(run)
  if not curves:
    return missing
  charts, without = {}, []
  for name in [None, *dict.fromkeys(name for one in curves.precision_recall for name in one.classes)]:
    at_iou = {one.iou: one.overall if name is None else one.classes[name] for one in curves.precision_recall}
    drawn = [
      Curve(f'IoU {iou:.2f}', curves.recall, precision, f'AP {_mean(precision):.3f}')
      for iou, precision in at_iou.items()
      if _finite(precision)
    ]
    title = 'mean over all classes' if name is None else name
    if drawn:
      attributes = f'data-choice="{len(charts)}"' + (' hidden' if charts else '')
      charts[title] = line_chart(
        f'Precision: {title}',
        drawn,
        x_label='recall',
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        decimals=3,
        attributes=attributes,
      )
    else:
      without.append(title)
  if not charts:
    return sentence('No class of this split has an object, so there is no curve.')
  options = ''.join(f'<option value="{i}">{html.escape(title)}</option>' for i, title in enumerate(charts))
  choice = f'<label class="choose">Class <select>{options}</select></label>'
  return f'<div class="chosen">{choice}{"".join(charts.values())}</div>' + (
    sentence(f'Without objects in this split: {", ".join(without)}.') if without else ''
  )


def false_discovery(run: Run) -> str:
  """FD at each IoU threshold, of all objects and by size."""
  curves, missing = _curves(run)
  if not curves:
    return missing
  sizes = {'FD': 'all objects', 'FD_S': 'small', 'FD_M': 'medium', 'FD_L': 'large'}
  rates = {name: [row.get(name, math.nan) for row in curves.false_discovery] for name in sizes}
  ious = [row['iou'] for row in curves.false_discovery]
  drawn = [
    Curve(sizes[name], ious, values, f'FD {_mean(values):.3f}') for name, values in rates.items() if _finite(values)
  ]
  if not drawn:
    return sentence('The split has no objects, so there is no false discovery rate.')
  body = [
    [f'{iou:.2f}', *(number(values[i], f'{name} at {iou:.2f}') for name, values in rates.items())]
    for i, iou in enumerate(ious)
  ]
  return (
    line_chart('False discovery rate, lower is better', drawn, x_label='IoU', decimals=3)
    + '<details><summary>The numbers</summary>'
    + f'{table(["IoU", *map(symbol, rates)], body, "False discovery rate at each IoU")}</details>'
  )


def error_analysis(run: Run) -> str:
  """AP with one output of the network replaced by ground truth (Table 5), and which one limits the detector."""
  # Mode error_analysis writes into the folder of mode eval, which need not be the one that is shown.
  places = [run.shown, *run.evaluations] if run.shown else run.evaluations
  analysis = next((found for one in places if (found := read_error_analysis(one.folder))), None)
  if not analysis and not run.shown:
    return sentence(NO_EVALUATION)
  if not analysis:
    return sentence('There is no error analysis yet; it is made by', _command(run, 'error_analysis'))
  rows, about = analysis.rows, analysis.fingerprint
  before = rows.get('nothing', {}).get('AP', math.nan)
  gains = {replaced: metrics.get('AP', math.nan) - before for replaced, metrics in rows.items()}
  body = []
  for replaced, metrics in rows.items():
    ap, *others = (number(metrics.get(name, math.nan), name) for name in AP)
    gain = '' if replaced == 'nothing' else number(gains[replaced], 'gain', signed=True)
    body.append([html.escape(replaced), ap, gain, *others])
  single = {name: gain for name, gain in gains.items() if name not in ('nothing', 'everything') and math.isfinite(gain)}
  verdict = ''
  if single:
    most = max(single, key=single.get)
    verdict = f'<p>Perfect <strong>{html.escape(most)}</strong> would gain most: {single[most]:+.3f} AP.</p>'
  ap, *others = map(symbol, AP)
  made = (
    f'<p class="note">Of step {html.escape(str(about.get("step")))}, split {html.escape(str(about.get("split")))}.</p>'
  )
  head = ['replaced', ap, 'gain', *others]
  return verdict + table(head, body, 'AP with outputs replaced by ground truth') + made


def gallery(run: Run) -> str:
  """The best and the worst images."""
  if not run.shown:
    return sentence(NO_EVALUATION)
  pictures = read_gallery(run.shown.folder)
  if pictures is None:
    return _made_before('gallery.json', run)
  if not pictures:
    return sentence('The evaluation drew no images.')
  return show_pictures(pictures, threshold=float(run.config.get('draw_threshold', 0.5)))


def evaluations(run: Run) -> str:
  """All evaluations of the run, the newest first."""
  if not run.evaluations:
    return sentence(NO_EVALUATION)
  body = []
  for one in run.evaluations:
    name = html.escape(one.folder.name) + (' <em>shown here</em>' if one is run.shown else '')
    step = '' if one.step is None else f'<data value="{one.step}">{one.step:,}</data>'
    cells = [number(one.metrics[key], key) if key in one.metrics else '' for key in HEADLINE]
    body.append([name, step, html.escape(one.split), *cells, _time(one)])
  return table(
    ['evaluation', 'step', 'split', *map(symbol, HEADLINE), 'date'], body, 'All evaluations', kind='sortable'
  )


def config(run: Run) -> str:
  """config.json, folded."""
  if not run.config:
    return sentence('This run has no config.json: its training has not begun, or began with an older version.')
  summary = f'The {len(flat(run.config))} values the run was trained with'
  return f'<details><summary>{summary}</summary>{values_table(run.config, "Config")}</details>'


def fingerprint(run: Run) -> str:
  """How the metrics came about."""
  if not run.shown:
    return sentence(NO_EVALUATION)
  return values_table(run.shown.fingerprint, f'How {run.shown.folder.name} was made')


def _definitions(kind: str, definitions: Mapping[str, str]) -> str:
  """Terms and what they stand for, HTML both; those that stand for nothing are left out."""
  pairs = ''.join(f'<div><dt>{term}</dt><dd>{text}</dd></div>' for term, text in definitions.items() if text)
  return f'<dl class="{kind}">{pairs}</dl>' if pairs else ''


def _why_no_metrics(run: Run) -> str:
  if not run.shown:
    return NO_EVALUATION
  split, name = run.shown.split, run.shown.folder.name
  return f'The split {split} has no annotated objects, so there are no metrics; the detections are in eval/{name}.'


def _curves(run: Run) -> tuple[Curves | None, str]:
  """The curves of the evaluation that is shown, or the sentence that stands in their place."""
  if not run.shown or not run.shown.metrics:
    return None, sentence(_why_no_metrics(run))
  curves = read_curves(run.shown.folder)
  return (curves, '') if curves else (None, _made_before('curves.json', run))


def _over_steps(run: Run, title: str, prefix: str, names: Sequence[str], *, log: bool = False, **settings) -> str:
  """A chart of some of the logged metrics, with their last values; '' if there is nothing to draw."""
  digits = '.3f' if 'decimals' in settings else '.4g'
  drawn = []
  for name in names:
    points = [(row['step'], row[prefix + name]) for row in run.log if prefix + name in row]
    if any(math.isfinite(y) and (y > 0 or not log) for _, y in points):
      steps, values = zip(*points)
      drawn.append(Curve(_words(name), steps, values, format(values[-1], digits)))
  if not drawn:
    return ''
  if len(names) == 1:  # the title says it
    drawn = [dataclasses.replace(drawn[0], name='')]
  return line_chart(title, drawn, x_label='step', x_range=(0, run.log[-1]['step']), log=log, **settings)


def _class_table(shown: Evaluation) -> str:
  """AP per class, and at the IoU thresholds of the precision-recall curves, whose mean it is."""
  curves = read_curves(shown.folder)
  at_iou = {f'AP{100 * one.iou:.0f}': one.classes for one in curves.precision_recall} if curves else {}
  body = []
  for key, value in shown.metrics.items():
    if key.startswith('AP/'):
      name = key.removeprefix('AP/')
      bar = f'<span class="bar" style="--share:{0.0 if math.isnan(value) else value:.3f}"></span>'
      more = [number(_mean(classes.get(name, [])), f'{ap}/{name}') for ap, classes in at_iou.items()]
      body.append([html.escape(name), number(value, key) + bar, *more])
  head = ['class', 'AP', *map(symbol, at_iou)]
  return table(head, body, 'Average precision of each class', kind='sortable') if body else ''


def _time(evaluation: Evaluation) -> str:
  written = evaluation.written
  return f'<time datetime="{written.isoformat()}">{written:%Y-%m-%d %H:%M} UTC</time>' if written else 'no metrics yet'


def _made_before(what: str, run: Run) -> str:
  return sentence(f'{run.shown.folder.name} was made by an older version, without {what}; anew:', _command(run, 'eval'))


def _command(run: Run, mode: str) -> str:
  """What to type; CONFIG is the config file the run was begun with."""
  return f'python -m triplet_det.main --config CONFIG --workdir {shlex.quote(str(run.folder))} --config.mode={mode}'


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _finite(values: Iterable[float]) -> bool:
  return any(map(math.isfinite, values))


def _mean(values: Iterable[float]) -> float:
  finite = [value for value in values if math.isfinite(value)]
  return math.fsum(finite) / len(finite) if finite else math.nan
