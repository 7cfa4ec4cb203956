"""Boxes, keypoints and heatmaps on an image, and sheets of pictures (Figs. 1, 6, 7); OpenCV only.

Images are uint8 [H, W, 3] RGB and are never modified. Boxes are x1 y1 x2 y2 and points (x, y), both in pixels of the
image that is given. Small images are enlarged by a whole factor, so that text on them can be read. To combine several
drawings on one small image, enlarge it first: `big, factor = enlarge(image)`, then draw `boxes * factor` on `big`.
"""

import colorsys
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

Color = tuple[int, int, int]  # RGB

GROUND_TRUTH: Color = (30, 100, 255)  # blue, as in Fig. 1
DETECTION: Color = (235, 35, 35)  # red
MIN_SIDE = 480  # pixels of the longer side that a drawing has at least
SHADE, HEAT = 0.4, 0.75  # opacity of a shaded box, and of the hottest colour
_FONT = cv2.FONT_HERSHEY_SIMPLEX  # OpenCV 5 draws its TrueType font instead
_INK, _WHITE = (40, 40, 40), (255, 255, 255)


class _Mark(NamedTuple):
  """A box with its tag."""

  box: np.ndarray  # [4] float64, pixels of the image as it was given
  text: str
  color: Color


def class_color(class_index: int) -> Color:
  """The colour of a class: hues a golden angle apart, so the first few dozen classes differ, in three shades."""
  shade = ((0.90, 0.95), (0.65, 1.00), (0.95, 0.70))[class_index % 3]
  red, green, blue = colorsys.hsv_to_rgb(0.61803398875 * class_index % 1, *shade)
  return round(255 * red), round(255 * green), round(255 * blue)


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
  """A copy whose longer side has at least MIN_SIDE pixels, and the whole factor by which coordinates grew."""
  _check_image(image)
  factor = max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))
  if factor == 1:
    return image.copy(), 1
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR), factor


def draw_boxes(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: Sequence[str],
  *,
  scores: Sequence[float] | None = None,
  colors: Color | Sequence[Color] = DETECTION,
) -> np.ndarray:
  """Boxes [N, 4] with a tag each ("dog 0.93"), the best on top; what lies outside the image is cut off.

  Args:
    image: uint8 [H, W, 3] RGB.
    boxes: [N, 4] pixels.
    labels: N texts.
    scores: N numbers for the tags and the order of drawing; None leaves them out.
    colors: one RGB colour, or N, such as `class_color` of each.

  Raises:
    ValueError: if the lengths differ, a box is not finite, or the image is not uint8 [H, W, 3].
  """
  return _draw_marks(image, _marks(boxes, labels, scores, colors))


def draw_ground_truth_and_detections(
  image: np.ndarray,
  gt_boxes: np.ndarray,
  gt_labels: Sequence[str],
  boxes: np.ndarray,
  labels: Sequence[str],
  scores: Sequence[float],
) -> np.ndarray:
  """Ground truth in blue with tags below, detections in red with tags above, the best on top (Fig. 1)."""
  truth = _marks(gt_boxes, gt_labels, None, GROUND_TRUTH)[::-1]
  return _draw_marks(image, _marks(boxes, labels, scores, DETECTION), truth)


def _marks(boxes, labels, scores, colors) -> list[_Mark]:
  """The best last; without scores the first is taken for the best."""
  counts = {'boxes': len(boxes), 'labels': len(labels)} | ({} if scores is None else {'scores': len(scores)})
  if len(set(counts.values())) > 1:
    raise ValueError(f'one label and one score per box, got {counts}')
  texts = labels if scores is None else [f'{label} {score:.2f}' for label, score in zip(labels, scores)]
  marks = list(map(_Mark, _finite('boxes', boxes, 4), texts, _per_box(colors, len(boxes))))
  return marks[::-1] if scores is None else [marks[i] for i in np.argsort(scores, kind='stable')]


def _draw_marks(image: np.ndarray, marks: Sequence[_Mark], with_tag_below: Sequence[_Mark] = ()) -> np.ndarray:
  """All boxes first, so that no box crosses a tag; the others on top of those with their tags below."""
  canvas, factor = enlarge(image)
  for mark in (*with_tag_below, *marks):
    x1, y1, x2, y2 = _corners(canvas, mark.box * factor)
    thickness = max(2, round(0.004 * max(canvas.shape[:2])))
    cv2.rectangle(canvas, (x1, y1), (x2, y2), mark.color, thickness, cv2.LINE_AA)
  for mark in with_tag_below:
    _draw_tag(canvas, mark.box * factor, mark.text, mark.color, below=True)
  for mark in marks:
    _draw_tag(canvas, mark.box * factor, mark.text, mark.color, below=False)
  return canvas


def shade_boxes(image: np.ndarray, boxes: np.ndarray, colors: Color | Sequence[Color] = DETECTION) -> np.ndarray:
  """Boxes [N, 4] filled with a translucent colour, such as the central regions of Fig. 3; the first lies on top."""
  canvas, factor = enlarge(image)
  boxes = _finite('boxes', boxes, 4) * factor
  for box, color in reversed(list(zip(boxes, _per_box(colors, len(boxes))))):
    x1, y1, x2, y2 = _corners(canvas, box)
    inside = canvas[y1 : y2 + 1, x1 : x2 + 1]
    inside[:] = np.rint((1 - SHADE) * inside + SHADE * np.array(color))
  return canvas


def draw_keypoints(
  image: np.ndarray,
  points: np.ndarray,
  *,
  scores: Sequence[float] | None = None,
  colors: Color | Sequence[Color] = DETECTION,
) -> np.ndarray:
  """Points [K, 2] as dots with a white rim, the first on top; their areas go by the scores in [0, 1] if given."""
  canvas, factor = enlarge(image)
  points = _finite('points', points, 2) * factor
  full = max(4, 0.013 * max(canvas.shape[:2]))
  radii = np.maximum(2, np.rint(full * np.sqrt(np.ones(len(points)) if scores is None else scores))).astype(int)
  for (x, y), radius, color in reversed(list(zip(points, radii.tolist(), _per_box(colors, len(points))))):
    cv2.circle(canvas, (round(x), round(y)), radius + max(1, radius // 3), _WHITE, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, (round(x), round(y)), radius, color, cv2.FILLED, cv2.LINE_AA)
  return canvas


def draw_heatmap(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """A heatmap over its image: colours where it is hot, the image where it is cold (Figs. 6e, 6f).

  Args:
    image: uint8 [H, W, 3] RGB.
    heat: [h, w] at least 0, of any resolution, stretched over the image; its own maximum gets the hottest colour.

  Raises:
    ValueError: if the heat is not a finite [h, w] map of numbers >= 0.
  """
  canvas, _ = enlarge(image)
  heat = np.asarray(heat, np.float32)
  if heat.ndim != 2 or not np.isfinite(heat).all() or heat.min() < 0:
    raise ValueError(f'heat must be [h, w], finite and >= 0 (the sigmoid of the logits), got shape {heat.shape}')
  full = float(heat.max()) or 1.0
  heat = np.clip(cv2.resize(heat / full, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR), 0, 1)
  hot = cv2.cvtColor(cv2.applyColorMap(np.uint8(np.rint(255 * heat)), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
  opacity = HEAT * np.minimum(1, 2 * heat)[..., None]  # from half of `full` on, colour alone tells the heat
  return np.uint8(np.rint((1 - opacity) * canvas + opacity * hot))


def contact_sheet(
  images: Sequence[np.ndarray], columns: int, captions: Sequence[str] | None = None, *, cell_width: int = 400
) -> np.ndarray:
  """Images in reading order, each `cell_width` pixels wide, with captions below; a row is as high as its highest.

  Raises:
    ValueError: if there is no image, no column, or not one caption per image.
  """
  if not images or columns < 1:
    raise ValueError(f'a contact sheet needs images and columns, got {len(images)} images, {columns} columns')
  if captions is not None and len(captions) != len(images):
    raise ValueError(f'{len(captions)} captions for {len(images)} images')
  cells = [_cell(image, cell_width, captions[i] if captions else None) for i, image in enumerate(images)]
  gap = max(4, cell_width // 40)
  rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
  heights = [max(cell.shape[0] for cell in row) for row in rows]
  width = min(columns, len(cells)) * (cell_width + gap) + gap
  sheet = np.full((sum(heights) + gap * (len(rows) + 1), width, 3), 255, np.uint8)
  top = gap
  for row, height in zip(rows, heights):
    for column, cell in enumerate(row):
      left = gap + column * (cell_width + gap)
      sheet[top : top + cell.shape[0], left : left + cell_width] = cell
    top += height + gap
  return sheet


def save_png(path: epath.PathLike, image: np.ndarray) -> None:
  """Writes an RGB image; the path may be a URL (gs://...) and its directory is made."""
  _check_image(image)
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def _corners(canvas: np.ndarray, box: np.ndarray) -> list[int]:
  height, width = canvas.shape[:2]
  return np.rint(np.clip(box, 0, [width - 1, height - 1] * 2)).astype(int).tolist()


def _draw_tag(canvas: np.ndarray, box: np.ndarray, text: str, color: Color, *, below: bool) -> None:
  """The text on a ground of the box's colour: outside the box if there is room, else inside, never off the image."""
  height, width = canvas.shape[:2]
  scale = _text_scale(text, max(11, round(0.023 * max(height, width))), 0.95 * width)
  (text_width, text_height), descent = cv2.getTextSize(text, _FONT, scale, 1)
  pad = max(2, text_height // 4)
  tag_width, tag_height = text_width + 2 * pad, text_height + descent + pad
  x1, y1, _, y2 = _corners(canvas, box)
  left = max(0, min(x1, width - tag_width))
  outside, inside = (y2, y2 - tag_height) if below else (y1 - tag_height, y1)
  top = outside if 0 <= outside <= height - tag_height else max(0, min(inside, height - tag_height))
  cv2.rectangle(canvas, (left, top), (left + tag_width, top + tag_height), color, cv2.FILLED)
  bright = np.dot(color, (0.299, 0.587, 0.114)) > 150
  _put(canvas, text, (left + pad, top + pad // 2 + text_height), scale, _INK if bright else _WHITE)


def _cell(image: np.ndarray, width: int, caption: str | None) -> np.ndarray:
  _check_image(image)
  height = max(1, round(image.shape[0] * width / image.shape[1]))
  interpolation = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR
  picture = cv2.resize(image, (width, height), interpolation=interpolation)
  if caption is None:
    return picture
  text_height = max(11, round(0.035 * width))
  strip = np.full((2 * text_height, width, 3), 255, np.uint8)
  scale = _text_scale(caption, text_height, 0.98 * width)
  _put(strip, caption, (2, round(1.4 * text_height)), scale, _INK)
  return np.concatenate([picture, strip])


def _put(canvas, text: str, baseline_left: tuple[int, int], scale: float, color: Color) -> None:
  cv2.putText(canvas, text, baseline_left, _FONT, scale, color, 1, cv2.LINE_AA)


def _text_scale(text: str, height: int, width: float) -> float:
  """OpenCV's scale at which capitals are `height` pixels high, and the text at most `width` pixels wide."""
  return min(4.0 * height / _height_at_scale_4(), width / max(1, cv2.getTextSize(text, _FONT, 1.0, 1)[0][0]))


@functools.cache
def _height_at_scale_4() -> int:
  """Pixels of a capital, measured, because OpenCV 4 and 5 differ."""
  canvas = np.zeros((200, 200), np.uint8)
  cv2.putText(canvas, 'H', (10, 160), _FONT, 4.0, 255, 1)
  return np.count_nonzero(canvas.any(axis=1))


def _per_box(colors: Color | Sequence[Color], count: int) -> Sequence[Color]:
  one_for_all = len(colors) == 3 and np.isscalar(colors[0])
  colors = [colors] * count if one_for_all else colors
  if len(colors) != count:
    raise ValueError(f'{len(colors)} colors for {count} boxes or points')
  return colors


def _check_image(image: np.ndarray) -> None:
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    given = f'{image.dtype} {list(image.shape)}' if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f'an image to draw on is a NumPy array, uint8 [H, W, 3] RGB, got {given}')


def _finite(what: str, coordinates, columns: int) -> np.ndarray:
  """[N, columns] float64."""
  coordinates = np.asarray(coordinates, np.float64).reshape(-1, columns)
  if not np.isfinite(coordinates).all():
    raise ValueError(f'{what} to draw must be finite, got {coordinates[~np.isfinite(coordinates).all(axis=1)][:3]}')
  return coordinates
