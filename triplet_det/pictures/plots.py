"""Learning curves as a picture, drawn with OpenCV, so that reports and READMEs need no plotting library."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from etils import epath

from triplet_det.pictures import drawing
from triplet_det.pictures.drawing import FONT, text_scale

# RGB. The first seven are distinct for colour-blind readers too (Okabe and Ito). The eleventh curve begins again.
COLORS = (
  (0, 114, 178),
  (213, 94, 0),
  (0, 158, 115),
  (204, 121, 167),
  (230, 159, 0),
  (86, 180, 233),
  (90, 90, 90),
  (124, 77, 196),
  (140, 86, 75),
  (150, 185, 40),
)
_INK, _GREY, _GRID = (35, 35, 35), (105, 105, 105), (230, 230, 230)
_LEFT, _RIGHT, _BOTTOM = 78, 28, 62  # margins, pixels
_SHIFT = 4  # OpenCV takes coordinates in 1/16 pixels


def plot_curves(
  series: Mapping[str, tuple[np.ndarray, np.ndarray]],
  title: str = '',
  xlabel: str = '',
  ylabel: str = '',
  *,
  size: tuple[int, int] = (900, 500),
  y_range: tuple[float, float] | None = None,
) -> np.ndarray:
  """Curves over common axes with a legend.

  Args:
    series: name -> (x, y), two lists of the same length; where x or y is not finite the curve is interrupted.
    title: above the plot.
    xlabel: below the horizontal axis.
    ylabel: beside the vertical axis.
    size: width and height in pixels.
    y_range: lowest and highest y; None fits the data.
  Returns:
    uint8 [height, width, 3] RGB.
  Raises:
    ValueError: if the lengths of x and y differ, or no point of any curve is finite.
  """
  points = {name: _points(name, *xy) for name, xy in series.items()}
  finite = [p[np.isfinite(p).all(axis=1)] for p in points.values()]
  if not sum(len(p) for p in finite):
    raise ValueError(f'nothing to plot: no finite point in {len(series)} curves {list(series)}')
  low, high = np.concatenate(finite).min(axis=0), np.concatenate(finite).max(axis=0)
  x_low, x_high = _widened(low[0], high[0], margin=0.0)
  y_low, y_high = y_range or _widened(low[1], high[1], margin=0.06)

  image = np.full((size[1], size[0], 3), 255, np.uint8)
  top = _write_header(image, title, list(series))
  right, bottom = size[0] - _RIGHT, size[1] - _BOTTOM

  def to_pixels(xy: np.ndarray) -> np.ndarray:
    fraction = (xy - (x_low, y_low)) / (x_high - x_low, y_high - y_low)
    return (_LEFT, bottom) + fraction * (right - _LEFT, top - bottom)

  for tick in _ticks(x_low, x_high, (right - _LEFT) // 110):
    column = round(to_pixels(np.array([tick, y_low]))[0])
    cv2.line(image, (column, bottom), (column, bottom + 5), _GREY, 1)
    _text(image, _tick_text(tick, x_high), (column, bottom + 21), anchor=0.5, color=_GREY)
  for tick in _ticks(y_low, y_high, (bottom - top) // 55):
    row = round(to_pixels(np.array([x_low, tick]))[1])
    cv2.line(image, (_LEFT, row), (right, row), _GRID, 1)
    _text(image, _tick_text(tick, y_high - y_low), (_LEFT - 9, row + 5), anchor=1.0, color=_GREY)
  cv2.line(image, (_LEFT, bottom), (right, bottom), _GREY, 1)
  _text(image, xlabel, ((_LEFT + right) // 2, size[1] - 16), anchor=0.5, height=11)
  _write_rotated(image, ylabel, (top + bottom) // 2)

  plot = image[top - 4 : bottom + 1]  # a view: curves outside `y_range` stay off the labels
  for i, xy in enumerate(points.values()):
    _draw_curve(plot, to_pixels(xy) - (0, top - 4), COLORS[i % len(COLORS)])
  return image


def _points(name: str, x, y) -> np.ndarray:
  """[n, 2] float64."""
  x, y = np.asarray(x, np.float64).reshape(-1), np.asarray(y, np.float64).reshape(-1)
  if len(x) != len(y):
    raise ValueError(f'curve {name!r} has {len(x)} values of x and {len(y)} of y')
  return np.stack([x, y], axis=1)


def _widened(low: float, high: float, *, margin: float) -> tuple[float, float]:
  """The range of an axis: never empty, with a margin, down to zero if the data come near it."""
  if low == high:
    return low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
  if margin and 0 <= low < 0.4 * high:
    return 0.0, high + margin * high
  return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, most: int) -> list[float]:
  """At most about `most` round values (1, 2 or 5 times a power of ten apart) within [low, high]."""
  smallest = (high - low) / max(2, most)
  power = 10.0 ** math.floor(math.log10(smallest))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= smallest * (1 - 1e-9))
  return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float, span: float) -> str:
  if not 1e-3 <= abs(span) < 1e7:
    return f'{value:.3g}'
  value = 0.0 if abs(value) < 1e-9 * abs(span) else value
  text = f'{value:,.6f}'
  return text.rstrip('0').rstrip('.')


def _draw_curve(canvas: np.ndarray, pixels: np.ndarray, color: tuple[int, int, int]) -> None:
  """Line pieces between gaps; dots where they are few, or where a point stands alone."""
  finite = np.isfinite(pixels).all(axis=1)
  starts = np.flatnonzero(finite & ~np.concatenate([[False], finite[:-1]]))
  ends = np.flatnonzero(finite & ~np.concatenate([finite[1:], [False]])) + 1
  for start, end in zip(starts, ends):
    fixed = np.rint(pixels[start:end] * 2**_SHIFT).astype(np.int32)
    cv2.polylines(canvas, [fixed.reshape(-1, 1, 2)], False, color, 2, cv2.LINE_AA, _SHIFT)
    if end - start == 1 or finite.sum() <= 40:
      for center in fixed.tolist():
        cv2.circle(canvas, center, 4 * 2**_SHIFT, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _write_header(image: np.ndarray, title: str, names: list[str]) -> int:
  """The title and, below it, the legend, in as many lines as it needs; returns the row where the plot begins."""
  row = 14
  if title:
    _text(image, title, (_LEFT, row + 20), height=15, thickness=2)
    row += 34
  left = _LEFT
  for i, name in enumerate(names):
    width = 34 + cv2.getTextSize(name, FONT, text_scale(11), 1)[0][0]
    if left > _LEFT and left + width > image.shape[1] - _RIGHT:
      left, row = _LEFT, row + 22
    cv2.line(image, (left + 1, row + 9), (left + 21, row + 9), COLORS[i % len(COLORS)], 3, cv2.LINE_AA)
    _text(image, name, (left + 28, row + 14), height=11)
    left += width + 20
  return row + 34


def _write_rotated(image: np.ndarray, text: str, middle: int) -> None:
  """Text that reads upwards, at the left edge, centered at row `middle`."""
  strip = np.full((22, image.shape[0], 3), 255, np.uint8)
  _text(strip, text, (image.shape[0] - middle, 15), anchor=0.5, height=11)
  image[:, 4:26] = np.minimum(image[:, 4:26], cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE))


def _text(image, text: str, baseline: tuple[int, int], *, anchor=0.0, height=10, color=_INK, thickness=1) -> None:
  """Writes `text` with its left (anchor 0), middle (0.5) or right end (1) at `baseline`; capitals `height` px high."""
  width = cv2.getTextSize(text, FONT, text_scale(height), thickness)[0][0]
  start = (round(baseline[0] - anchor * width), baseline[1])
  cv2.putText(image, text, start, FONT, text_scale(height), color, thickness, cv2.LINE_AA)


def write_learning_curves(folder: epath.Path, rows: Sequence[Mapping]) -> None:
  """A run's metrics.jsonl as pictures: loss.png with its terms, ap.png with AP, AP50 and AP75 if evaluated."""

  def series(prefix: str, names: list[str]) -> dict:
    chosen = {name: [(row['step'], row[prefix + name]) for row in rows if prefix + name in row] for name in names}
    return {name: tuple(zip(*points)) for name, points in chosen.items() if points}

  terms = ['loss', 'focal_corner', 'focal_center', 'pull', 'push', 'offset']
  for file, title, label, curve in (
    ('loss.png', 'training loss', 'loss', series('train/', terms)),
    ('ap.png', 'validation AP', 'AP', series('eval/', ['AP', 'AP50', 'AP75'])),
  ):
    if curve:
      drawing.save_png(folder / file, plot_curves(curve, title, 'step', label))
