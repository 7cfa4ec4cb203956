"""What the four numbers of boxes may be instead of x y width height, known by how boxes fit into their images."""

import dataclasses
from typing import NamedTuple

import numpy as np

FAR = 0.1  # share of the image's side: no tool's rounding and hardly an annotator's hand reaches out so far
SLACK = 1.5  # pixels that rounding and counting from 1 may cost
_CARELESS = 0.03  # share of the image's side that a hand reaches out
FEW = 3  # boxes or images; what fewer have may be chance, in data sets of any size
ENOUGH = 10  # boxes that lie on one side of an image and none on the other: 1 in 1,000 by chance


@dataclasses.dataclass(frozen=True)
class Layout:
  """An order and a meaning of the four numbers."""

  name: str
  order: tuple[int, ...]  # which of them are x, y and x, y or width, height
  kind: str  # of the second two: 'corners', 'sizes'; or 'centers', which the first two are
  instead: str  # what to write

  def corners(self, boxes: np.ndarray) -> np.ndarray:
    """[n, 4] as written to [n, 4] x1 y1 x2 y2."""
    first, second = boxes[:, self.order[:2]], boxes[:, self.order[2:]]
    if self.kind == 'centers':
      return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return np.concatenate([first, second if self.kind == 'corners' else first + second], axis=1)


USUAL = Layout('x y width height', (0, 1, 2, 3), 'sizes', '')
_CORNERS = Layout('x1 y1 x2 y2', (0, 1, 2, 3), 'corners', '[x1, y1, x2 - x1, y2 - y1]')
_SIZES_EXCHANGED = Layout('x y height width', (0, 1, 3, 2), 'sizes', '[x, y, width, height]')
# The first of those that explain as much is taken: centers of large objects may as well be corners, which as centers
# would not fit; and in square images y may as well be x.
_LAYOUTS = (
  Layout(
    'center x, center y, width, height', (0, 1, 2, 3), 'centers', '[x - width / 2, y - height / 2, width, height]'
  ),
  _CORNERS,
  Layout('y x height width', (1, 0, 3, 2), 'sizes', '[x, y, width, height]'),
  Layout('y1 x1 y2 x2', (1, 0, 3, 2), 'corners', '[x1, y1, x2 - x1, y2 - y1]'),
  Layout('x1 x2 y1 y2', (0, 2, 1, 3), 'corners', '[x1, y1, x2 - x1, y2 - y1]'),
  _SIZES_EXCHANGED,
)


class Reading(NamedTuple):
  """How boxes that do not fit as x y width height are to be read; a box that fits both ways says nothing."""

  layout: Layout
  only_so: np.ndarray  # [n] bool, the boxes that fit only in this layout
  only_usual: np.ndarray  # [n] bool, those that fit only as x y width height
  share: float  # of all boxes that are written so, as far as these tell


def find(boxes: np.ndarray, sizes: np.ndarray, areas: np.ndarray, slack: float = SLACK) -> Reading | None:
  """The layout that explains the boxes which do not fit as x y width height, if there is one.

  Args:
    boxes: [n, 4] as they are written.
    sizes: [n, 2] width and height of each box's image.
    areas: [n] as they are written; NaN if they tell nothing.
    slack: how far a box may reach out of its image.
  """
  usual = _fits(USUAL, boxes, sizes, slack)
  of_corners = _area_of_corners(boxes, areas)
  if usual.all() and not of_corners.any():
    return None
  # A large object whose box ends a little outside fits as corners by chance, so these need boxes that end far outside;
  # a wide one at the right edge fits with width and height exchanged.
  reach = boxes[:, :2] + boxes[:, 2:]
  far, too_far = (~usual & (reach > sizes * (1 + share)).any(axis=1) for share in (FAR, _CARELESS))
  best = None
  for layout in _LAYOUTS:
    fits = _fits(layout, boxes, sizes, slack)
    are_exchanged = layout is _SIZES_EXCHANGED
    misfits = ~usual if layout.kind == 'centers' else too_far if are_exchanged else far
    only_so, only_usual = misfits & fits, usual & ~fits
    explained = only_so.sum() >= 0.9 * misfits.sum()
    so, not_so = int(only_so.sum()), int(only_usual.sum())
    if layout.kind == 'corners' and not_so:
      # Of the sound boxes that are known as such, not all would have stood out as corners.
      others = USUAL.corners(boxes[only_usual])[:, layout.order]
      so /= max(0.3, (others[:, :2] + others[:, 2:] > sizes[only_usual] * (1 + FAR)).any(axis=1).mean())
    if layout is _CORNERS:
      only_so |= fits & of_corners
    few = 2 * FEW if are_exchanged else 2 if layout.kind == 'centers' and not not_so else FEW
    if not explained or only_so.sum() < few:
      continue
    share = max(so / max(1, so + not_so), only_so.mean())
    at_least = 0.03 * len(boxes)
    if layout.kind == 'centers' or are_exchanged:
      # Small objects seldom stand at the edge where these show; the others must not contradict then.
      at_least = max(ENOUGH, (0.02 if are_exchanged else 0.05) * len(boxes)) * (share <= 0.9)
    if only_so.sum() >= at_least and (best is None or share > best.share + 0.05):
      best = Reading(layout, only_so, only_usual, share)
  return best


def _fits(layout: Layout, boxes: np.ndarray, sizes: np.ndarray, slack: float) -> np.ndarray:
  corners = layout.corners(boxes)
  inside = (corners[:, :2] >= -slack) & (corners[:, 2:] <= sizes + slack) & (corners[:, 2:] >= corners[:, :2])
  return inside.all(axis=1)


def _area_of_corners(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
  """Whose area is that of the corners, and not width x height."""
  product, sides = boxes[:, 2] * boxes[:, 3], boxes[:, 2:] - boxes[:, :2]
  of_corners = sides.prod(axis=1)
  near = np.abs(areas - of_corners) <= 1e-3 * of_corners
  return (sides > 0).all(axis=1) & near & (np.abs(areas - product) > 0.01 * product)
