"""The best and the worst images: plain pictures, and on top the boxes and tags that page.js shows and hides."""

import base64
import dataclasses
import math
import statistics

import cv2
import numpy as np
from etils import epath

from triplet_det.report.run_folder import Picture

MAX_SIDE = 640  # pixels of an embedded image
MAX_BYTES = 150_000  # of an embedded image: 16 of them stay below 3.3 MB as base64
TEXT_HEIGHT = 0.035  # of the tile's width; as in page.css
# In this order the tags of a picture choose their places. A tag lies above ('up') or below ('down') the upper (0) or
# the lower (1) edge of its box; which of the four is tried first differs between the kinds.
PLACES = {
  'truth': ((1, 'down'), (1, 'up'), (0, 'up'), (0, 'down')),
  'detections': ((0, 'up'), (0, 'down'), (1, 'down'), (1, 'up')),
  'rejected': ((0, 'down'), (0, 'up'), (1, 'up'), (1, 'down')),
}


@dataclasses.dataclass(frozen=True)
class Tag:
  """Where the name of a box stands, pixels of the original image."""

  x: float
  y: float  # the edge it is attached to
  side: str  # of that edge: up or down
  at_right: bool  # it ends at x instead of beginning there


@dataclasses.dataclass(frozen=True)
class DrawnBox:
  """A box with its tag, pixels of the original image."""

  text: str
  score: float | None  # None: ground truth
  hidden: bool  # until the slider is moved
  corners: tuple[float, float, float, float]  # x1 y1 x2 y2, cut at the image's edges
  tag: Tag


@dataclasses.dataclass(frozen=True)
class Tile:
  """A picture with all that is drawn on it."""

  picture: Picture
  uri: str | None  # of the image; None: it is missing or unreadable
  extent: float  # pixels of the original image along the tile's width
  boxes: dict[str, list[DrawnBox]]  # kind -> the best score first


@dataclasses.dataclass(frozen=True)
class Gallery:
  """All pictures, in tiles of one shape."""

  threshold: float  # boxes with scores up to it are hidden
  lowest_score: float  # below it the slider shows no more
  ratio: float  # width of a tile over its height
  some: dict[str, bool]  # kind -> there is one on some picture
  tiles: dict[str, list[Tile]]  # best and worst


def arrange(pictures: list[Picture], threshold: float) -> Gallery:
  """Puts at least one picture into tiles."""
  scores = [box.score for picture in pictures for box in picture.detections + picture.rejected]
  ratio = min(max(statistics.median(picture.width / picture.height for picture in pictures), 0.8), 1.6)
  tiles = {}
  for picture in pictures:
    tiles.setdefault(picture.title, []).append(_tile(picture, threshold, ratio))
  return Gallery(
    threshold=threshold,
    lowest_score=min([threshold, *(math.floor(100 * score) / 100 for score in scores)]),
    ratio=ratio,
    some={kind: any(getattr(picture, kind) for picture in pictures) for kind in PLACES},
    tiles=tiles,
  )


def _tile(picture: Picture, threshold: float, ratio: float) -> Tile:
  extent = max(picture.width, picture.height * ratio)
  boxes = {kind: [] for kind in PLACES}
  taken = np.empty((0, 4))  # what the tags so far cover
  for kind, drawn in boxes.items():
    for box in sorted(getattr(picture, kind), key=lambda box: -(box.score or 0.0)):
      x1, x2 = (min(max(x, 0.0), picture.width) for x in box.corners[0::2])
      y1, y2 = (min(max(y, 0.0), picture.height) for y in box.corners[1::2])
      corners = x1, y1, max(x1, x2), max(y1, y2)
      text = box.name + ('' if box.score is None else f' {box.score:.2f}')
      size = TEXT_HEIGHT * extent * np.array([0.66 * len(text), 1.2])
      tag, covered = _best_tag(kind, corners, size, (picture.width, picture.height), taken)
      taken = np.concatenate([taken, [covered]])
      drawn.append(DrawnBox(text, box.score, box.score is not None and box.score <= threshold, corners, tag))
  return Tile(picture, _data_uri(picture.image), extent, boxes)


def _best_tag(kind: str, corners, size: np.ndarray, image_size, taken: np.ndarray) -> tuple[Tag, np.ndarray]:
  """Where a tag of `size` hides least of the `taken` places [n, 4] and stays on the image; and what it covers [4]."""
  x1, y1, x2, y2 = corners
  found = []
  for edge, side in PLACES[kind]:
    for at_right in (False, True):
      y = (y1, y2)[edge]
      start = np.array([x2 - size[0] if at_right else x1, y - (size[1] if side == 'up' else 0.0)])
      covered = np.concatenate([start, start + size])
      outside = size.prod() - _common_area(covered, np.array([[0, 0, *image_size]])).sum()
      hides = 4 * outside + _common_area(covered, taken).sum()
      found.append((hides, Tag(x2 if at_right else x1, y, side, at_right), covered))
  return min(found, key=lambda place: place[0])[1:]


def _common_area(one: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Of a rectangle [4] with others [n, 4]: [n]."""
  sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
  return np.maximum(sides, 0.0).prod(axis=1)


def _data_uri(path: epath.Path) -> str | None:
  """The image as a JPEG inside a URI, at most MAX_SIDE pixels a side; None if there is no readable image."""
  content = np.frombuffer(path.read_bytes(), np.uint8) if path.exists() else np.empty(0, np.uint8)
  image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
  if image is None:
    return None
  factor = MAX_SIDE / max(image.shape[:2])
  if factor < 1:
    size = [max(1, round(factor * side)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  for quality in (88, 75, 60, 40):
    encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    if len(encoded) <= MAX_BYTES:
      break
  return 'data:image/jpeg;base64,' + base64.b64encode(encoded).decode()
