"""Line charts as inline SVG: axes, legend with values, gaps where a number is missing.

Colours are CSS classes, so that the page can change them with its light or dark theme, and every curve of a chart has
its own dash pattern too. The numbers travel along in `data-values`, where page.js reads what is under the pointer.
"""

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 420, 260  # of the view box; the page scales it to the column
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 408, 10, 216  # edges of the plot
MOST_POINTS = 400  # of a curve; a screen shows no more
MOST_DOTS = 24
STYLES = 8  # of curves in page.css; the ninth curve looks like the first


@dataclasses.dataclass(frozen=True)
class Curve:
  """One curve of a chart."""

  name: str
  x: Sequence[float]  # [n] finite
  y: Sequence[float]  # [n]; where it is not finite, the curve is interrupted
  note: str = ''  # beside the name in the legend, while no point is looked at
  style: int | None = None  # 0 .. STYLES - 1; None: its place in the chart


@dataclasses.dataclass(frozen=True)
class Axis:
  """One axis: what it shows, from where to where, and where that is in the view box."""

  label: str
  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def place(self, values) -> np.ndarray:
    """Positions in the view box; NaN for what is not finite or has no logarithm."""
    values = np.asarray(values, np.float64)
    low, high = self.low, self.high
    if self.log:
      values = np.log10(np.where(values > 0, values, np.nan))
      low, high = math.log10(low), math.log10(high)
    return self.start + (np.where(np.isfinite(values), values, np.nan) - low) / (high - low) * (self.end - self.start)


def line_chart(
  title: str,
  curves: Sequence[Curve],
  *,
  x_label: str,
  x_range: tuple[float, float] | None = None,
  y_range: tuple[float, float] | None = None,
  log: bool = False,
  decimals: int | None = None,
  attributes: str = '',
) -> str:
  """A <figure> with title, legend and plot.

  Args:
    title: above the plot; any text, as all names are.
    curves: at least one.
    x_label: of the horizontal axis, and before the value under the pointer.
    x_range: lowest and highest x; None fits the data.
    y_range: lowest and highest y; None fits the data.
    log: vertical axis with powers of ten; needs a positive y somewhere.
    decimals: of the values under the pointer; None: four significant digits.
    attributes: HTML, written into the figure's tag as it is.
  Raises:
    ValueError: no curve has a point that can be drawn.
  """
  curves = [_thinned(curve) for curve in curves]
  xs = np.concatenate([np.asarray(curve.x, np.float64) for curve in curves])
  ys = np.concatenate([np.asarray(curve.y, np.float64) for curve in curves])
  ys = ys[np.isfinite(ys) & ((ys > 0) | (not log))]
  if not ys.size:
    raise ValueError(f'chart {title!r}: none of the {len(xs)} points can be drawn')
  x_axis = Axis(x_label, *_widened(*(x_range or (xs.min(), xs.max()))), _LEFT, _RIGHT)
  y_axis = Axis('', *_widened(*(y_range or _fitted(ys.min(), ys.max(), log)), log), _BOTTOM, _TOP, log)
  styles = [i % STYLES if curve.style is None else curve.style for i, curve in enumerate(curves)]
  values = {
    'x': {'label': x_label, 'low': x_axis.low, 'high': x_axis.high, 'start': _LEFT, 'end': _RIGHT, 'width': WIDTH},
    'decimals': decimals,
    'curves': [{'x': _rounded(curve.x), 'y': _rounded(curve.y)} for curve in curves],
  }
  described = f'{title} over {x_label}: ' + ', '.join(f'{c.name} {c.note}'.strip() for c in curves)
  return (
    f'<figure class="chart" {attributes} data-values="{html.escape(json.dumps(values, separators=(",", ":")))}">'
    f'<figcaption><span>{html.escape(title)}</span><output class="at"></output></figcaption>'
    f'<ul class="legend">{"".join(map(_legend_entry, curves, styles))}</ul>'
    f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
    f'aria-label="{html.escape(described)}. The arrow keys read the values.">'
    f'{_grid(x_axis, y_axis)}'
    f'{"".join(_drawn(curve, style, x_axis, y_axis) for curve, style in zip(curves, styles))}'
    f'<line class="cursor" y1="{_TOP}" y2="{_BOTTOM}" hidden=""/></svg></figure>'
  )


def _legend_entry(curve: Curve, style: int) -> str:
  return (
    f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><path class="curve c{style}" d="M1 4H25"/></svg>'
    f'<span>{html.escape(curve.name)}</span> <output>{html.escape(curve.note)}</output></li>'
  )


def _grid(x_axis: Axis, y_axis: Axis) -> str:
  parts = []
  for tick in _ticks(y_axis.low, y_axis.high, 5, y_axis.log):
    y = f'{y_axis.place(tick):.1f}'
    parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_RIGHT}"/>')
    parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y}" dy=".33em" text-anchor="end">{_tick_text(tick)}</text>')
  for tick in _ticks(x_axis.low, x_axis.high, 5):
    x = f'{x_axis.place(tick):.1f}'
    anchor = 'end' if float(x) > _RIGHT - 12 else 'middle'
    parts.append(f'<path class="axis" d="M{x} {_BOTTOM}v4"/>')
    parts.append(f'<text class="tick" x="{x}" y="{_BOTTOM + 18}" text-anchor="{anchor}">{_tick_text(tick)}</text>')
  middle = (_LEFT + _RIGHT) / 2
  parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
  label = html.escape(x_axis.label)
  parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
  return ''.join(parts)


def _drawn(curve: Curve, style: int, x_axis: Axis, y_axis: Axis) -> str:
  """The line between gaps; dots where points are few, or where one stands alone."""
  x, y = x_axis.place(curve.x), y_axis.place(curve.y)
  finite = np.isfinite(y)
  starts = finite & ~np.concatenate([[False], finite[:-1]])
  alone = starts & ~np.concatenate([finite[1:], [False]])
  points = [f'{"M" if first else "L"}{a:.1f} {b:.1f}' for a, b, first in zip(x[finite], y[finite], starts[finite])]
  dotted = finite if finite.sum() <= MOST_DOTS else alone
  dots = ''.join(f'<circle class="c{style}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in zip(x[dotted], y[dotted]))
  return f'<path class="curve c{style}" d="{"".join(points)}"/>{dots}'


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


def _fitted(low: float, high: float, log: bool) -> tuple[float, float]:
  """The range of a vertical axis, with a margin; from zero if nothing is below it."""
  if log:
    return low / 1.15, high * 1.15
  if low >= 0:
    return 0.0, high * 1.05
  margin = 0.06 * (high - low)
  return low - margin, high + margin


def _widened(low: float, high: float, log: bool = False) -> tuple[float, float]:
  """The range itself, or a wider one if it is empty."""
  if low < high:
    return float(low), float(high)
  return (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _ticks(low: float, high: float, most: int, log: bool = False) -> list[float]:
  """At most about `most` round values within [low, high]."""
  if log and high / low >= 10:
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**power for power in powers[:: math.ceil(len(powers) / (most + 1))]]
  smallest = (high - low) / most
  power = 10.0 ** math.floor(math.log10(smallest))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= smallest * (1 - 1e-9))
  return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float) -> str:
  if value and abs(value) < 1e-3:
    return f'{value:.2g}'.replace('e-0', 'e-')
  return f'{value:,.6g}' if abs(value) < 1e6 else f'{value / 1e6:,.6g}M'


def _rounded(values: Sequence[float]) -> list[float | int | None]:
  """Six significant digits, None for what is not finite; whole numbers, as steps are, keep all digits."""
  return [None if not math.isfinite(v) else int(v) if v == int(v) else float(f'{v:.6g}') for v in map(float, values)]
