"""Line charts by matplotlib: a run's learning curves as PNG files, and the charts of its page as shapes for SVG.

matplotlib is imported where something is drawn and only there: neither the start of a training nor a prediction waits
for it. Figures are objects that go when they are drawn; pyplot, which keeps them, is not used.
"""

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import numpy as np
from etils import epath

from triplet_det.pictures import drawing

# The first seven are distinct for colour-blind readers too (Okabe and Ito). The eleventh curve begins again.
COLORS = (
  *('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#5a5a5a'),
  *('#7c4dc4', '#8c564b', '#96b928'),
)
STYLES = 8  # of curves in page.css; the ninth curve of a chart looks like the first
MOST_DOTS = 24  # a curve of so few points shows each of them
MOST_POINTS = 400  # of a curve on the page; a screen shows no more
WIDTH, HEIGHT = 420, 260  # of the view box of a chart; the page scales it to the column
LEFT, RIGHT, TOP, BOTTOM = 50, 402, 10, 216  # edges of the plot in the view box
_SVG = '{http://www.w3.org/2000/svg}'


@dataclasses.dataclass(frozen=True)
class Curve:
  """One curve of a chart."""

  name: str
  x: Sequence[float]  # [n]
  y: Sequence[float]  # [n]; where x or y is not finite, the curve is interrupted
  note: str = ''  # beside the name in the page's legend, while no point is looked at


@dataclasses.dataclass(frozen=True)
class Chart:
  """Curves over common axes."""

  title: str
  x_label: str
  curves: Sequence[Curve]  # at least one
  x_range: tuple[float, float] | None = None  # None fits the data
  y_range: tuple[float, float] | None = None
  log: bool = False  # vertical axis with powers of ten
  decimals: int | None = None  # of the values under the pointer; None: four significant digits


@dataclasses.dataclass(frozen=True)
class Shape:
  """A line, a dot or a text of a chart in units of the view box; page.css says how it looks."""

  kind: str  # CSS classes: 'x' and 'y', the axes; 'frame'; 'curve c0', 'curve c1' ...
  path: str = ''  # of a line, as SVG has it
  x: str = ''  # of a dot or a text
  y: str = ''
  text: str = ''


def plot_curves(chart: Chart, y_label: str = '') -> np.ndarray:
  """The chart as a picture, with its legend below the title: uint8 [500, 900, 3] RGB.

  Raises:
    ValueError: if the lengths of x and y differ, or no point of any curve can be drawn.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure((9, 5), dpi=100)
  figure.set_layout_engine('constrained', w_pad=0.1, h_pad=0.1)
  axes = _without_box(figure.add_subplot())
  _draw(axes, chart, [{'color': color} for _, color in zip(chart.curves, itertools.cycle(COLORS))], most_ticks=8)
  axes.set(xlabel=chart.x_label, ylabel=y_label)
  heading = {'title': chart.title, 'title_fontproperties': {'weight': 'bold'}, 'alignment': 'left'}
  figure.legend(loc='outside upper left', ncols=6, frameon=False, **heading)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3]


def write_learning_curves(folder: epath.Path, rows: Sequence[Mapping]) -> None:
  """A run's metrics.jsonl as pictures: loss.png with its terms, ap.png with AP, AP50 and AP75 if evaluated."""

  def over_steps(prefix: str, names: list[str]) -> list[Curve]:
    points = {name: [(row['step'], row[prefix + name]) for row in rows if prefix + name in row] for name in names}
    return [Curve(name, *zip(*found)) for name, found in points.items() if found]

  terms = ['loss', 'focal_corner', 'focal_center', 'pull', 'push', 'offset']
  for file, title, label, curves in (
    ('loss.png', 'training loss', 'loss', over_steps('train/', terms)),
    ('ap.png', 'validation AP', 'AP', over_steps('eval/', ['AP', 'AP50', 'AP75'])),
  ):
    if curves:
      drawing.save_png(folder / file, plot_curves(Chart(title, 'step', curves), label))


class SvgCharts:
  """Draws charts one after the other on the same axes, in half the time that new axes for each would take."""

  def __init__(self):
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / 72, HEIGHT / 72), dpi=72)  # a unit of the view box is a point
    plot = (LEFT / WIDTH, 1 - BOTTOM / HEIGHT, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT)
    self._axes = _without_box(figure.add_axes(plot))
    self._axes.xaxis.set_gid('x')
    self._axes.yaxis.set_gid('y')
    self._axes.spines['bottom'].set_gid('frame')

  def draw(self, chart: Chart) -> tuple[list[Shape], dict]:
    """The shapes of a chart, and its numbers as page.js reads them.

    Raises:
      ValueError: if the lengths of x and y differ, or no point of any curve can be drawn.
    """
    import matplotlib

    chart = dataclasses.replace(chart, curves=[_thinned(curve) for curve in chart.curves])
    svg = io.BytesIO()
    _draw(self._axes, chart, [{'gid': f'curve c{i % STYLES}'} for i in range(len(chart.curves))], most_ticks=5)
    with matplotlib.rc_context({'svg.fonttype': 'none'}):  # texts stay texts
      self._axes.figure.savefig(svg, format='svg')
    low, high = self._axes.get_xlim()
    values = {
      'x': {'label': chart.x_label, 'low': low, 'high': high, 'start': LEFT, 'end': RIGHT, 'width': WIDTH},
      'decimals': chart.decimals,
      'curves': [{'x': _rounded(curve.x), 'y': _rounded(curve.y)} for curve in chart.curves],
    }
    return _shapes(svg.getvalue()), values


def _without_box(axes):
  """The axes with horizontal lines of a grid in place of a box around them."""
  axes.spines[['left', 'top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#e6e6e6')
  axes.tick_params(axis='x', length=4, pad=6)
  axes.tick_params(axis='y', length=0, pad=6)
  return axes


def _draw(axes, chart: Chart, styles: list[dict], most_ticks: int) -> None:
  """Lines between gaps, and dots where points are few or where one stands alone, in place of what the axes showed.

  Raises:
    ValueError: if the lengths of x and y differ, or no point of any curve can be drawn.
  """
  from matplotlib.ticker import MaxNLocator

  for line in list(axes.lines):
    line.remove()
  lowest = math.inf
  for curve, style in zip(chart.curves, styles):
    x, y = (np.asarray(values, np.float64) for values in (curve.x, curve.y))
    if len(x) != len(y):
      raise ValueError(f'curve {curve.name!r} has {len(x)} values of x and {len(y)} of y')
    some = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not chart.log))
    around = np.pad(some, 1)
    dots = some if some.sum() <= MOST_DOTS else some & ~around[:-2] & ~around[2:]
    axes.plot(x, np.where(some, y, np.nan), label=curve.name, clip_on=False, **style)
    if dots.any():
      axes.plot(x[dots], y[dots], 'o', markersize=6, clip_on=False, **style)
    lowest = y[some].min(initial=lowest)
  if lowest == math.inf:
    names = [curve.name for curve in chart.curves]
    raise ValueError(f'chart {chart.title!r}: there is no point to draw in {len(names)} curves {names}')

  axes.set_yscale('log' if chart.log else 'linear')
  axes.relim()
  axes.autoscale()
  axes.margins(x=0, y=0.06)
  if lowest >= 0 and not chart.log:
    axes.set_ylim(bottom=0)
  if chart.x_range:
    axes.set_xlim(*chart.x_range)
  if chart.y_range:
    axes.set_ylim(*chart.y_range)
  low, high = axes.get_ylim()
  with_round_ticks = [axes.xaxis] if chart.log and high >= 10 * low else [axes.xaxis, axes.yaxis]  # or powers of ten
  for axis in with_round_ticks:
    axis.set_major_locator(MaxNLocator(most_ticks, steps=(1, 2, 5, 10)))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(lambda value, _: _tick_text(value))
  axes.minorticks_off()


def _tick_text(value: float) -> str:
  if value and abs(value) < 1e-3:
    return f'{value:.2g}'.replace('e-0', 'e-')
  return f'{value:,.6g}' if abs(value) < 1e6 else f'{value / 1e6:,.6g}M'


def _shapes(svg: bytes) -> list[Shape]:
  """What was drawn under an id that we gave; matplotlib's own ids, styles and definitions fall away."""
  shapes = []
  for group in ElementTree.fromstring(svg).iter(f'{_SVG}g'):
    kind = group.get('id', '')
    if kind not in ('x', 'y', 'frame') and not kind.startswith('curve '):
      continue
    for one in group.iter():
      at = {name: f'{float(one.get(name)):.1f}' for name in ('x', 'y') if name in one.attrib}
      if one.tag == f'{_SVG}path' and 'id' not in one.attrib:  # those with an id are patterns of dots
        points = re.findall(r'([ML]) (\S+) (\S+)', one.get('d'))
        shapes.append(Shape(kind, path=''.join(f'{to}{float(x):.1f} {float(y):.1f}' for to, x, y in points)))
      elif one.tag == f'{_SVG}use':
        shapes.append(Shape(kind, **at))
      elif one.tag == f'{_SVG}text':
        shapes.append(Shape(kind, text=one.text, **at))
  return shapes


def _thinned(curve: Curve) -> Curve:
  """The lowest and the highest point of every stretch, so that no peak is lost, if there are more than can be seen."""
  x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
  if len(x) <= MOST_POINTS:
    return curve
  kept = {0, len(x) - 1}
  edges = np.linspace(0, len(x), MOST_POINTS // 2).astype(int)
  for start, end in itertools.pairwise(edges):
    if np.isfinite(y[start:end]).any():
      kept |= {start + int(np.nanargmin(y[start:end])), start + int(np.nanargmax(y[start:end]))}
  chosen = sorted(kept)
  return dataclasses.replace(curve, x=x[chosen], y=y[chosen])


def _rounded(values: Sequence[float]) -> list[float | int | None]:
  """Six significant digits, None for what is not finite; whole numbers, as steps are, keep all digits."""
  return [None if not math.isfinite(v) else int(v) if v == int(v) else float(f'{v:.6g}') for v in map(float, values)]
