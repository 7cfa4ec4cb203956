"""Drawing the scenes of the embedded data set: one object, one scene (NumPy and OpenCV, no JAX).

The scenes put the paper's argument (Sec. 1, 3.1) into small images: corners alone are misled, the center tells.
  * The classes come in pairs of one outline, solid or hollow: what tells them apart is near the center.
  * Groups of one class, equal in size and colour, stand in rows and blocks: the top-left corner of one object and the
    bottom-right corner of its neighbour make a plausible box, whose central region is empty.
  * The corners of most boxes lie on the background: corners must be found from afar, which corner pooling is for.

Coordinates are pixels, (x, y), pixel i covers [i, i + 1). Boxes are COCO's: x, y, width, height.
"""

import dataclasses
import math

import cv2
import numpy as np

IMAGE_SIDES = (96, 191)  # smallest and largest height and width
OBJECTS_PER_IMAGE = (3, 10)
MIN_VISIBLE = 0.45  # share of an object's painted pixels that later objects leave uncovered, in every case
MIN_INSIDE = 0.85  # share of an object's outline that must lie inside the image

_SUBPIXELS = 4  # supersampling of outlines, per side of a pixel
_TURN = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_ROUND = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1) / 2
_SQUARE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_TRIANGLE = np.array([[0, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_DIAMOND = np.array([[0, -0.5], [0.5, 0], [0, 0.5], [-0.5, 0]])

# name -> (outline in a unit box around 0, hollow); the position is the class index
CLASSES = {
  'disc': (_ROUND, False),
  'ring': (_ROUND, True),
  'square': (_SQUARE, False),
  'frame': (_SQUARE, True),
  'triangle': (_TRIANGLE, False),
  'hollow triangle': (_TRIANGLE, True),
  'diamond': (_DIAMOND, False),
  'hollow diamond': (_DIAMOND, True),
}
CLASS_NAMES = tuple(CLASSES)
_CLASS_LIST = tuple(CLASSES.values())

# square root of an outline's area in pixels: COCO's small (< 32), medium, large (> 96)
_SMALL, _MEDIUM, _LARGE = (16, 31), (36, 66), (98, 124)
_SMALL_SHARE = 0.35  # of the groups
_LARGE_SHARE = 0.65  # of the images that may have room for one
_GROUP_SIZES, _GROUP_SHARES = (2, 3, 4, 5, 6), (0.3, 0.2, 0.25, 0.1, 0.15)
_VISIBLE = (MIN_VISIBLE, 0.9, 0.95)  # the share asked for at one try of placing: most objects hide little
_TRIES = 6  # places tried per object
_MAX_IOU = 0.5  # of any two boxes of an image
_MIN_COLOR_DISTANCE = 85  # in RGB, between the background and every group


@dataclasses.dataclass(frozen=True)
class Look:
  """What the objects of a group share: class, size and surface."""

  label: int  # class index
  side: float  # pixels, square root of the unturned width x height
  aspect: float  # width / height
  hole: float  # size of the hole relative to the outline, where the class is hollow
  color: np.ndarray  # [3] float32, 0..255
  pattern: str  # 'plain', 'stripes' or 'checks'
  period: float  # pixels, of stripes and checks
  slant: float  # radians, direction of stripes and checks

  @property
  def size(self) -> np.ndarray:
    """Width and height of the unturned outline, pixels."""
    return self.side * np.array([math.sqrt(self.aspect), 1 / math.sqrt(self.aspect)])


@dataclasses.dataclass(frozen=True)
class Stencil:
  """An outline rasterised inside the image; its arrays cover the same patch, whose top-left pixel is (x, y)."""

  x: int
  y: int
  paint: np.ndarray  # [h, w] float32 in [0, 1], coverage by the painted surface (without the hole)
  outline: np.ndarray  # [h, w] bool, pixels at least half inside the outline (with the hole)
  inside: float  # share of the outline's area that lies inside the image

  @property
  def window(self) -> tuple[slice, slice]:
    """Rows and columns of the patch in the image."""
    height, width = self.paint.shape
    return slice(self.y, self.y + height), slice(self.x, self.x + width)


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """Ground truth of one object; occlusion changes nothing here, the image's border does."""

  label: int  # class index
  box: tuple[int, int, int, int]  # x, y, width, height in pixels, tight around the outline inside the image
  area: int  # pixels inside the outline and the image; a hole counts, so that size is not a matter of class
  mask: np.ndarray  # [height, width] bool, pixels at least half painted, in the box, before occlusion


@dataclasses.dataclass(frozen=True)
class Scene:
  """One image and its objects, in the order of drawing (later ones cover earlier ones)."""

  image: np.ndarray  # [H, W, 3] uint8, RGB
  objects: tuple[SceneObject, ...]


def _coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
  """Share of each pixel of a [height, width] patch inside the polygon `points` [P, 2]; float32."""
  fine = np.zeros((height * _SUBPIXELS, width * _SUBPIXELS), np.uint8)
  vertices = [np.rint(points * _SUBPIXELS - 0.5).astype(np.int32)]  # OpenCV's integer coordinates are pixel centers
  cv2.fillPoly(fine, vertices, 255)
  cv2.polylines(fine, vertices, True, 128)  # OpenCV fills the edge too; half of it is outside
  return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def rasterise(look: Look, center: tuple[float, float], angle: float, image_size: tuple[int, int]) -> Stencil:
  """Rasterises an object.

  Args:
    look: what to draw.
    center: middle (x, y) of the object's box before the image cuts it off; inside the image.
    angle: radians by which the outline is turned.
    image_size: (height, width).
  """
  unit, hollow = _CLASS_LIST[look.label]
  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, -sin], [sin, cos]])
  points = (unit * look.size) @ turn.T
  points += np.array(center) - (points.min(0) + points.max(0)) / 2
  low = np.floor(points.min(0)).astype(int) - 1
  size = np.ceil(points.max(0)).astype(int) + 1 - low
  points -= low
  middle = points.mean(0)

  def scaled(factor: float) -> np.ndarray:
    return _coverage(middle + factor * (points - middle), size[1], size[0])

  whole = scaled(1.0)
  paint = whole - scaled(look.hole) if hollow else whole
  start, stop = np.maximum(-low, 0), np.minimum(size, np.array(image_size)[::-1] - low)
  part = slice(start[1], stop[1]), slice(start[0], stop[0])
  x, y = low + start
  return Stencil(int(x), int(y), paint[part], whole[part] >= 0.5, float(whole[part].sum() / whole.sum()))


def paint_object(canvas: np.ndarray, stencil: Stencil, look: Look) -> None:
  """Blends the object's surface and darker rim into `canvas` [H, W, 3] float32, in place."""
  height, width = stencil.paint.shape
  y, x = np.mgrid[:height, :width].astype(np.float32) / look.period
  cos, sin = math.cos(look.slant), math.sin(look.slant)
  along, across = x * cos + y * sin, y * cos - x * sin
  if look.pattern == 'stripes':
    shade = np.floor(along) % 2 - 0.5
  elif look.pattern == 'checks':
    shade = (np.floor(along) + np.floor(across)) % 2 - 0.5
  else:  # plain: lit from one side
    shade = 0.8 * across * look.period / look.side
  # The rim keeps objects of one group apart where they overlap.
  depth = cv2.distanceTransform(stencil.outline.astype(np.uint8), cv2.DIST_L2, 3)
  core = np.clip(depth - max(1.2, 0.06 * look.side), 0, 1)[..., None]
  rim = 0.55 * look.color
  surface = rim + core * (look.color + 36 * shade[..., None] - rim)
  alpha = stencil.paint[..., None]
  canvas[stencil.window] += alpha * (np.clip(surface, 0, 255) - canvas[stencil.window])


def ground_truth(stencil: Stencil, label: int) -> SceneObject:
  """Box, area and mask of a stencil that has at least one pixel inside its outline."""
  x, y, width, height = cv2.boundingRect(stencil.outline.astype(np.uint8))
  return SceneObject(
    label=label,
    box=(stencil.x + x, stencil.y + y, width, height),
    area=int(stencil.outline.sum()),
    mask=stencil.paint[y : y + height, x : x + width] >= 0.5,
  )


class _Easel:
  """The picture as it grows: what is drawn, what shows at each pixel, and whether one more object is fair."""

  def __init__(self, canvas: np.ndarray):
    self.canvas = canvas
    self.objects: list[SceneObject] = []
    self._owner = np.full(canvas.shape[:2], -1, np.int16)  # index of the object that shows

  def place(self, stencil: Stencil, look: Look, visible: float) -> bool:
    """Draws the object and returns True, or leaves the picture alone if that would be unfair.

    `visible` is the share of its painted pixels that every object below must keep.
    """
    if stencil.inside < MIN_INSIDE:
      return False
    new = ground_truth(stencil, look.label)
    if any(_box_iou(new.box, item.box) > _MAX_IOU for item in self.objects):
      return False
    cover = np.zeros(self._owner.shape, bool)
    cover[stencil.window] = stencil.paint >= 0.5
    below = np.flatnonzero(np.bincount(self._owner[cover] + 1)[1:])
    if not all(_stays_readable(self.objects[i], self._owner == i, cover, visible) for i in below):
      return False
    self._owner[cover] = len(self.objects)
    self.objects.append(new)
    paint_object(self.canvas, stencil, look)
    return True


def _stays_readable(item: SceneObject, shows: np.ndarray, cover: np.ndarray, visible: float) -> bool:
  """Whether an object can still be told and boxed: enough of its surface, extent and middle is left.

  Args:
    item: the object below.
    shows: [H, W] bool, its pixels that show so far.
    cover: [H, W] bool, pixels of the object to be drawn.
    visible: least share of its painted pixels.
  """
  x, y, width, height = item.box
  box = slice(y, y + height), slice(x, x + width)
  shows = shows[box] & ~cover[box]
  if shows.sum() < visible * item.mask.sum():
    return False
  _, _, shown_width, shown_height = cv2.boundingRect(shows.astype(np.uint8))
  if shown_width * shown_height < 0.8 * width * height:
    return False
  return cover[box][height // 3 : height - height // 3, width // 3 : width - width // 3].mean() <= 0.3


def _box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
  width = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
  height = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
  return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def _distant_color(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
  """A random colour far from those taken, the background (the first) above all; appended to `taken`."""
  candidates = rng.uniform(25, 235, (64, 3)).astype(np.float32)
  distances = np.linalg.norm(candidates[:, None] - np.array(taken), axis=-1)
  far = distances[:, 0] >= _MIN_COLOR_DISTANCE
  best = np.argmax(np.where(far, np.minimum(distances.min(1), _MIN_COLOR_DISTANCE), 0))
  taken.append(candidates[best])
  return candidates[best]


def _draw_background(rng: np.random.Generator, height: int, width: int, base: np.ndarray) -> np.ndarray:
  """A smooth gradient around the colour `base` with a few stray lines and angles; [height, width, 3] float32."""
  nodes = np.clip(base + rng.normal(0, 12, (3, 3, 3)), 0, 255).astype(np.float32)
  canvas = cv2.resize(nodes, (width, height), interpolation=cv2.INTER_LINEAR)
  for _ in range(rng.integers(2, 7)):
    points = rng.uniform(0, [width, height], (1, 2)) + np.cumsum(rng.normal(0, 24, (rng.integers(2, 4), 2)), axis=0)
    color = np.clip(base + rng.choice([-1, 1], 3) * rng.uniform(15, 50), 0, 255)
    cv2.polylines(canvas, [np.rint(points).astype(np.int32)], False, color.tolist(), int(rng.integers(1, 4)))
  return canvas


def _draw_look(rng: np.random.Generator, scales: tuple[float, float], taken: list[np.ndarray]) -> Look:
  """A group's look; the square root of its outlines' area is in the range `scales`, whatever the class."""
  label = int(rng.integers(len(_CLASS_LIST)))
  fill = cv2.contourArea(_CLASS_LIST[label][0].astype(np.float32))
  return Look(
    label=label,
    side=float(np.exp(rng.uniform(*np.log(scales))) / np.sqrt(fill)),
    aspect=float(np.exp(rng.uniform(*np.log((0.7, 1.43))))),
    hole=float(rng.uniform(0.48, 0.6)),
    color=_distant_color(rng, taken),
    pattern=str(rng.choice(['plain', 'stripes', 'checks'])),
    period=float(rng.uniform(3, 8)),
    slant=float(rng.uniform(0, np.pi)),
  )


def _scatter(rng: np.random.Generator, look: Look, room: np.ndarray) -> np.ndarray:
  """The middle (x, y) of a box anywhere in an image of `room` (width, height) pixels, slightly cut off at times."""
  margin = np.minimum(look.size * (0.42 if rng.random() < 0.2 else 0.54), room / 2)
  return rng.uniform(margin, room - margin)


def _draw_centers(rng: np.random.Generator, count: int, look: Look, height: int, width: int) -> np.ndarray:
  """Middles of a group's boxes, [count, 2] as (x, y): rows or columns of even pitch, or scattered."""
  room, size = np.array([width, height]), look.size
  pitch = size * rng.uniform(1.08, 1.6, 2)
  lines = rng.choice([1, 1, 2]) if count < 4 else 2
  along = np.arange(count) % -(-count // lines), np.arange(count) // -(-count // lines)
  grid = np.stack(along if rng.random() < 0.5 else along[::-1], axis=1)
  spread = grid.max(0) * pitch + size
  if rng.random() < 0.25 or (spread > room).any():
    return np.stack([_scatter(rng, look, room) for _ in range(count)])
  start = rng.uniform(size / 2, room - spread + size / 2 + 1e-6)
  return start + grid * pitch + rng.normal(0, 0.03, (count, 2)) * size


def _plan(rng: np.random.Generator, height: int, width: int) -> list[tuple[int, tuple[float, float]]]:
  """How many objects of which scales to try, group after group; the large one comes first, below the others."""
  plan = []
  if min(height, width) >= _LARGE[0] and rng.random() < _LARGE_SHARE:
    plan.append((1, (_LARGE[0], min(_LARGE[1], height, width))))
  counts = [rng.choice(_GROUP_SIZES, p=_GROUP_SHARES)]
  counts += [rng.choice((2, 3))] * (rng.random() < 0.6) + [1] * rng.integers(0, 4)
  return plan + [(int(count), _SMALL if rng.random() < _SMALL_SHARE else _MEDIUM) for count in counts]


def compose(rng: np.random.Generator) -> Scene:
  """Draws one scene; a pure function of the generator's state.

  Returns:
    A scene of 3 to 10 objects; height and width are drawn independently.
  """
  height, width = rng.integers(IMAGE_SIDES[0], IMAGE_SIDES[1] + 1, 2).tolist()
  taken = [rng.uniform(30, 225, 3)]
  easel = _Easel(_draw_background(rng, height, width, taken[0]))
  least, most = OBJECTS_PER_IMAGE
  plan = _plan(rng, height, width)
  while (plan and len(easel.objects) < most) or len(easel.objects) < least:
    count, scales = plan.pop(0) if plan else (1, _SMALL)
    look = _draw_look(rng, scales, taken)
    for center in _draw_centers(rng, min(count, most - len(easel.objects)), look, height, width):
      for _ in range(_TRIES):
        if easel.place(rasterise(look, center, rng.uniform(-0.2, 0.2), (height, width)), look, rng.choice(_VISIBLE)):
          break
        center = _scatter(rng, look, np.array([width, height]))
  noise = rng.standard_normal(easel.canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
  return Scene(np.clip(np.rint(easel.canvas + noise), 0, 255).astype(np.uint8), tuple(easel.objects))
