"""Charts: where their pixels and their shapes are, against the numbers they were made of."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from triplet_det.pictures import plots
from triplet_det.pictures.plots import Chart, Curve, plot_curves

NAN = math.nan


def rgb(color: str) -> tuple[int, ...]:
  return tuple(bytes.fromhex(color.removeprefix('#')))


FIRST, SECOND = rgb(plots.COLORS[0]), rgb(plots.COLORS[1])
LEGEND = 70  # rows at the top, with the title


def pixels(image: np.ndarray, color: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of this very colour, below the legend."""
  rows, columns = np.nonzero((image[LEGEND:] == color).all(axis=-1))
  assert rows.size
  return rows + LEGEND, columns


def plot_area(image: np.ndarray) -> tuple[int, int, int]:
  """Left, right and bottom: the longest black row, without the label at its left."""
  black = (image < 10).all(axis=-1)
  bottom = int(black.sum(axis=1).argmax())
  columns = np.flatnonzero(black[bottom])
  line = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)[-1]
  assert len(line) > 700
  return line[0], line[-1], bottom


def test_curve_goes_where_the_numbers_are():
  """y = x over [0, 100] runs from the bottom left to the top right; a gap at NaN stays white."""
  x = np.arange(0.0, 101.0)
  image = plot_curves(Chart('T', 'step', [Curve('loss', x, np.where((x > 40) & (x < 60), NAN, x))]), 'loss')
  assert image.shape == (500, 900, 3) and image.dtype == np.uint8
  left, right, bottom = plot_area(image)
  assert left < 100 and right > 850 and 400 < bottom < 470
  rows, columns = pixels(image, FIRST)
  slope, start = np.polyfit(columns, rows, 1)
  assert start + slope * left == pytest.approx(bottom, abs=1.5)
  assert columns.min() == pytest.approx(left, abs=3) and columns.max() == pytest.approx(right, abs=3)
  assert np.abs(rows - (start + slope * columns)).max() < 3
  gap = (columns > left + 0.42 * (right - left)) & (columns < left + 0.58 * (right - left))
  assert not gap.any()
  # The lines of the grid, 20 apart, cross the curve at the fifths of its way.
  grid = np.flatnonzero((image[:bottom, 500] == rgb('#e6e6e6')).all(axis=-1))[::-1]
  np.testing.assert_allclose((grid - start) / slope, left + np.arange(0.2, 1.1, 0.2) * (right - left), atol=5)


def test_texts_are_written():
  """Each of the four where it belongs: another one changes pixels there and nowhere else."""

  def drawn(title='T', name='loss', x_label='step', y_label='AP') -> np.ndarray:
    return plot_curves(Chart(title, x_label, [Curve(name, [0, 1], [0, 1])]), y_label)

  def changed(image: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what differs."""
    rows, columns = np.nonzero((image != before).any(axis=-1))
    return rows.min(), rows.max(), columns.min(), columns.max()

  before = drawn()
  _, right, bottom = plot_area(before)
  top, end, *_ = changed(drawn(title='Q'))
  assert top > 5 and end < 30
  top, end, *_ = changed(drawn(name='lost'))
  assert top > 25 and end < LEGEND
  top, _, left, end = changed(drawn(x_label='stop'))
  assert top > bottom + 25 and right / 2 - 50 < left and end < right / 2 + 80
  *_, end = changed(drawn(y_label='AR'))
  assert end < 30


def test_a_point_between_gaps_is_a_dot():
  y = np.ones(101)
  y[[49, 51]] = NAN
  image = plot_curves(Chart('', '', [Curve('a', np.arange(101), y)]))
  left, right, _ = plot_area(image)
  rows, columns = pixels(image, FIRST)
  dot = columns[np.abs(rows - np.median(rows)) >= 3]  # higher than the line
  assert dot.size and (dot.min() + dot.max()) / 2 == pytest.approx((left + right) / 2, abs=1)
  assert dot.max() - dot.min() < 8


def test_second_curve_and_single_points():
  image = plot_curves(Chart('', '', [Curve('train', [0, 10], [1, 2]), Curve('evaluation', [5], [1.0])]))
  left, right, _ = plot_area(image)
  assert len(pixels(image, FIRST)[0]) > 500
  rows, columns = pixels(image, SECOND)
  assert 5 <= np.ptp(columns) <= 9 and 5 <= np.ptp(rows) <= 9
  assert (columns.min() + columns.max()) / 2 == pytest.approx((left + right) / 2, abs=1)
  first_rows, first_columns = pixels(image, FIRST)
  at_start = first_rows[first_columns < left + 6]  # also y = 1
  assert (rows.min() + rows.max()) / 2 == pytest.approx(np.median(at_start), abs=2)


@pytest.mark.parametrize('draw', [plot_curves, lambda chart: plots.SvgCharts().draw(chart)])
@pytest.mark.parametrize(
  ('chart', 'message'),
  [
    (Chart('t', 'x', [Curve('a', [1, 2], [1])]), "'a' has 2 values of x and 1 of y"),
    (Chart('flat', 'x', [Curve('c', [0, 1], [NAN, NAN])]), "chart 'flat': there is no point to draw in 1 curves"),
    (Chart('t', 'x', [Curve('c', [NAN, math.inf], [1, 2])]), 'no point to draw'),
    (Chart('t', 'x', [Curve('c', [0, 1], [0, -1])], log=True), 'no point to draw'),
    (Chart('t', 'x', []), '0 curves'),
  ],
)
def test_errors(draw, chart, message):
  with pytest.raises(ValueError, match=message):
    draw(chart)


def test_learning_curves_of_a_log(tmp_path):
  rows = [{'step': step, 'train/loss': 10 - step / 10, 'train/pull': 1.0} for step in range(0, 100, 10)]
  plots.write_learning_curves(tmp_path, rows)
  assert [path.name for path in tmp_path.iterdir()] == ['loss.png']
  plots.write_learning_curves(tmp_path, [*rows, {'step': 90, 'eval/AP': 0.5, 'eval/AP50': 0.7}])
  loss, ap = (cv2.imread(str(tmp_path / name))[..., ::-1] for name in ('loss.png', 'ap.png'))
  rows, columns = pixels(loss, FIRST)
  assert np.polyfit(columns, rows, 1)[0] > 0.3  # falls
  assert np.ptp(pixels(loss, SECOND)[0]) < 10  # pull stays
  assert pixels(ap, FIRST)[0].mean() > pixels(ap, SECOND)[0].mean()  # AP50 is the higher


def drawn(chart: Chart) -> list[plots.Shape]:
  return plots.SvgCharts().draw(chart)[0]


def points(path: str) -> np.ndarray:
  """[n, 2] in the view box."""
  return np.array(re.findall(r'[ML](\S+?) ([^ML]+)', path), float)


def ticks(shapes: list[plots.Shape], axis: str) -> list[str]:
  return [shape.text for shape in shapes if shape.kind == axis and shape.text]


def test_shapes_lie_on_the_fixed_plot():
  """page.js finds x by these edges alone."""
  shapes, values = plots.SvgCharts().draw(
    Chart('t', 'recall', [Curve('c', [0, 0.5, 1], [0, 0.5, 1])], (0.0, 1.0), (0.0, 1.0))
  )
  (line,) = (shape.path for shape in shapes if shape.kind == 'curve c0' and shape.path)
  corner, middle, end = points(line)
  np.testing.assert_array_equal(corner, [plots.LEFT, plots.BOTTOM])
  np.testing.assert_array_equal(end, [plots.RIGHT, plots.TOP])
  np.testing.assert_array_equal(middle, (corner + end) / 2)
  dots = [(float(s.x), float(s.y)) for s in shapes if s.kind == 'curve c0' and s.x]
  np.testing.assert_array_equal(dots, points(line))
  (frame,) = (shape.path for shape in shapes if shape.kind == 'frame')
  np.testing.assert_array_equal(points(frame), [[plots.LEFT, plots.BOTTOM], [plots.RIGHT, plots.BOTTOM]])
  assert ticks(shapes, 'x') == ticks(shapes, 'y') == ['0', '0.2', '0.4', '0.6', '0.8', '1']
  assert values == {
    'x': {**{'label': 'recall', 'low': 0.0, 'high': 1.0}, **{'start': plots.LEFT, 'end': plots.RIGHT, 'width': 420}},
    'decimals': None,
    'curves': [{'x': [0, 0.5, 1], 'y': [0, 0.5, 1]}],
  }


def test_every_chart_is_as_on_new_axes():
  """What one chart sets (scale, ranges, curves) does not reach the next."""
  x = [0, 10, 20]
  charts = [
    Chart('a', 'x', [Curve('c', x, [1, 2, 300])], log=True),
    Chart('b', 'x', [Curve('c', x, [5, 6, 7]), Curve('d', x, [1, 1, 1])], (0, 100), (0, 50)),
    Chart('c', 'x', [Curve('c', x, [-5, 6, 7])]),
    Chart('d', 'x', [Curve('c', [5], [0.25])]),
    Chart('e', 'x', [Curve('c', [3, 4], [2, 8])], log=True),
  ]
  alone = [plots.SvgCharts().draw(chart) for chart in charts]
  pen = plots.SvgCharts()
  assert [pen.draw(chart) for chart in charts] == alone
  assert [pen.draw(chart) for chart in charts[::-1]] == alone[::-1]


def test_log_axis():
  shapes = drawn(Chart('t', 'x', [Curve('c', [1, 2, 3, 4], [1e-3, 1e-1, 0, 1e2])], log=True))
  assert ticks(shapes, 'y') == ['0.001', '0.01', '0.1', '1', '10', '100']
  (line,) = (shape.path for shape in shapes if shape.kind == 'curve c0' and shape.path)
  heights = [float(shape.path.split()[-1]) for shape in shapes if shape.kind == 'y' and shape.path]
  np.testing.assert_allclose(points(line)[:, 1], [heights[0], heights[2], heights[5]], atol=0.11)  # 0 has no place
  assert len([shape for shape in shapes if shape.kind == 'curve c0' and shape.x]) == 3
  narrow = drawn(Chart('t', 'x', [Curve('c', [1, 2], [2, 8])], log=True))  # less than a power of ten
  assert ticks(narrow, 'y') == ['2', '4', '6', '8']


def test_ranges_and_tick_texts():
  steps = Chart('t', 'step', [Curve('c', [0, 480_000], [1e-5, 5e-5])])
  assert ticks(drawn(steps), 'x') == ['0', '100,000', '200,000', '300,000', '400,000']
  assert ticks(drawn(steps), 'y') == ['0', '2e-5', '4e-5']  # from zero, as nothing is below it
  assert ticks(drawn(Chart('t', 'x', [Curve('c', [0, 3e6], [-2, 2])])), 'x') == ['0', '1M', '2M', '3M']
  assert ticks(drawn(Chart('t', 'x', [Curve('c', [0, 1], [-2, 2])])), 'y') == ['-2', '-1', '0', '1', '2']
  assert ticks(drawn(Chart('t', 'x', [Curve('c', [7], [0])])), 'y')[0] == '0'  # a single point has a range too


def test_gaps_and_single_points_as_shapes():
  shapes, values = plots.SvgCharts().draw(Chart('t', 'x', [Curve('c', range(6), [1, 2, NAN, 3, NAN, NAN])]))
  (line,) = (shape.path for shape in shapes if shape.kind == 'curve c0' and shape.path)
  assert [to for to, _ in itertools.groupby(re.findall('[ML]', line))][:2] == ['M', 'L']
  assert line.count('L') == 1  # from 1 to 2; 3 is alone
  dots = [(float(shape.x), float(shape.y)) for shape in shapes if shape.kind == 'curve c0' and shape.x]
  assert len(dots) == 3
  np.testing.assert_array_equal(points(line)[:2], dots[:2])
  assert values['curves'] == [{'x': [0, 1, 2, 3, 4, 5], 'y': [1, 2, None, 3, None, None]}]
  assert json.loads(json.dumps(values)) == values


def test_long_curves_keep_their_peaks():
  x, y = np.arange(100_000), np.random.default_rng(0).uniform(size=100_000)
  y[31_234], y[77_777] = 50.0, -50.0
  shapes, values = plots.SvgCharts().draw(Chart('t', 'x', [Curve('c', x, y)]))
  xs, ys = values['curves'][0]['x'], values['curves'][0]['y']
  assert len(xs) <= plots.MOST_POINTS + 2
  assert ys[xs.index(31_234)] == 50 and ys[xs.index(77_777)] == -50
  assert xs[0] == 0 and xs[-1] == 99_999
  np.testing.assert_allclose(ys, y[xs], rtol=5e-6)
  (line,) = (shape.path for shape in shapes if shape.kind == 'curve c0')  # and no dots
  top, bottom = points(line)[:, 1].argmin(), points(line)[:, 1].argmax()
  at = (points(line)[[top, bottom], 0] - plots.LEFT) / (plots.RIGHT - plots.LEFT)
  np.testing.assert_allclose(at, [0.31234, 0.77777], atol=1e-3)


def test_every_curve_has_its_class():
  curves = [Curve(str(i), [0, 1], [i, i]) for i in range(10)]
  kinds = [s.kind for s in drawn(Chart('t', 'x', curves)) if s.kind.startswith('curve') and s.path]
  assert kinds == [f'curve c{i % 8}' for i in range(10)]


def test_importing_it_does_not_import_matplotlib():
  code = 'import sys, triplet_det.pictures.plots; assert "matplotlib" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2])
