"""Faults that a whole data set has, known by their statistics: boxes in another layout or unit, boxes twice, areas.

One box cannot say what its four numbers mean; thousands can. A layout is found where boxes do not fit into their image
as x y width height but do in another reading, which the other boxes do not contradict. What is found is said and never
repaired: a guess about labels is the user's to make.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from triplet_det.data.annotations import Written

_FAR = 0.1  # share of the image's side: no tool's rounding and hardly an annotator's hand reaches out so far
_SLACK = 1.5  # pixels that rounding and counting from 1 may cost
_FEW = 3  # boxes; what fewer have may be chance, in data sets of any size
_ENOUGH = 10  # boxes that lie on one side of an image and none on the other: 1 in 1,000 by chance
_SAMPLE = 30_000  # boxes that are looked at; of more, those of every second, third, ... image
_A_PIXEL = 4  # pixels of area, from which on it is not by rounding that an area is 0
_AREAS_DO = (
  'areas decide which objects count as small, medium or large, and one below 0 leaves its object out of the AP; give '
  'them in pixels, or leave `area` out and width x height is taken'
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the four numbers of a box may be instead of x, y, width and height."""

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


_USUAL = Layout('x y width height', (0, 1, 2, 3), 'sizes', '')
_CORNERS = Layout('x1 y1 x2 y2', (0, 1, 2, 3), 'corners', '[x1, y1, x2 - x1, y2 - y1]')
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
)


@dataclasses.dataclass(frozen=True)
class Fault:
  """What is wrong with how many boxes, and what to do."""

  text: str
  fatal: bool = False  # it cannot be meant, and most boxes are wrong


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
  """Boxes to be judged together."""

  written: Written
  file_names: Sequence[str]
  which: str = 'boxes'

  def __len__(self) -> int:
    return len(self.written.boxes)

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """[n, 2] width and height of each box's image, pixels."""
    return self.written.image_sizes[self.written.image_of, ::-1].astype(np.float64)

  def only(self, chosen: np.ndarray, which: str) -> '_View':
    parts = {name: getattr(self.written, name)[chosen] for name in _PER_BOX}
    return _View(dataclasses.replace(self.written, **parts), self.file_names, which)

  def count(self, chosen: np.ndarray) -> str:
    return f'{chosen.sum():,} of {len(self):,} {self.which} ({_percent(chosen.mean())})'

  def first(self, chosen: np.ndarray) -> str:
    n = int(np.argmax(chosen))
    return f'first: {self.file_names[self.written.image_of[n]]} {[float(f"{v:.6g}") for v in self.written.boxes[n]]}'


_PER_BOX = ('boxes', 'areas', 'classes', 'crowd', 'turned', 'image_of')


def find(written: Written, file_names: Sequence[str]) -> list[Fault]:
  """All faults of a split's boxes; none in sound data, however small or large.

  Args:
    written: the boxes; the order of the images must not depend on what is in them, see `Annotations.in_tfds_order`.
    file_names: of the images.
  """
  if not len(written.boxes):
    return []
  view = sample = _View(written, file_names)
  every = min(1 + len(view) // _SAMPLE, 1 + len(file_names) // 100)
  if every > 1 and (chosen := written.image_of % every == 0).any():
    sample = view.only(chosen, f'boxes in one of {every} images')
  with np.errstate(all='ignore'):
    misread = list(_places(sample))
    # Areas, sizes and near twins of boxes that are read wrongly say nothing.
    others = [] if misread else [*_areas(sample), *_shapes(sample)]
    return [*misread, *others, *_doubles(sample, near=0 if misread else 1), *_marks(view, misread)]


def _percent(share: float) -> str:
  """Never 0% or 100% of what is only nearly so."""
  return f'{share:.0%}' if share in (0, 1) or 0.005 <= share < 0.995 else f'{share:.2%}'


def _places(view: _View) -> Iterator[Fault]:
  """Numbers that are no pixels, or in another order than x y width height."""
  boxes = view.written.boxes
  # No object is a pixel in the very corner of its image.
  fractions = (boxes <= 1.01).all(axis=1) & (boxes >= -1).all(axis=1) & (view.sizes > 8).all(axis=1)
  if fractions.mean() >= 0.01:
    yield _unit(view, fractions, 1, 'fractions of width and height (0 to 1)', fatal=fractions.mean() > 0.5)
  if fractions.all():
    return
  if fractions.any():
    view = view.only(~fractions, 'other boxes')
    boxes = view.written.boxes
  sizes, reach = view.sizes, boxes[:, :2] + boxes[:, 2:]
  if found := _layout(boxes, sizes, view.written.areas):
    layout, only_so, only_usual, share = found
    yield Fault(
      f'about {_percent(share)} of {len(view):,} {view.which} are {layout.name}, not {_USUAL.name}: '
      f'{only_so.sum():,} fit their image or their area only so, {only_usual.sum():,} only as {_USUAL.name} '
      f'({view.first(only_so)}): write {layout.instead}',
      fatal=share > 0.5 and only_so.sum() >= 5,
    )
    return

  far = (reach > sizes * (1 + _FAR)).any(axis=1)
  begin_inside = (boxes[:, :2] < -_SLACK).any(axis=1).mean() < 0.01
  smaller = sizes <= np.median(sizes, axis=0)
  for unit, what in ((100, 'percent of width and height'), (1000, 'thousandths of width and height (0 to 1000)')):
    # In whatever layout, the numbers of all images end at the unit, as well in the smaller ones.
    ends = reach if reach.max() <= 1.005 * unit else boxes.reshape(-1, 2, 2).max(axis=1)
    fills = (np.where(smaller, ends, 0).max(axis=0) >= 0.9 * unit).all() and ends.max() <= 1.005 * unit
    if not (fills and begin_inside):
      continue
    # None ends beyond the unit in images that go on, where as many would as begin near the other edge.
    empty = ((sizes > 1.15 * unit) & (boxes[:, :2] < sizes - unit)).sum(axis=0) >= _ENOUGH
    if empty.any() or far.mean() > 0.5:
      certain = len(view) >= 2 * _ENOUGH and (empty.all() or far.mean() > 0.5)
      yield _unit(view, np.ones(len(view), bool), unit, what, fatal=certain)
      return

  ends = (reach / sizes).max(axis=0)
  empty = (boxes[:, :2] / sizes < 1 - ends).sum(axis=0) >= _ENOUGH
  in_corner, opposite = _in_corner(boxes, sizes), _in_corner(np.c_[sizes - reach, boxes[:, 2:]], sizes).sum()
  ends_at = f'{ends[0]:.2f} x its width and {ends[1]:.2f} x its height'
  other_size = 'if they were drawn on images of another size, multiply them by the ratio of the sizes'
  if far.sum() >= max(_FEW, 0.03 * len(view)):
    yield Fault(
      f'{view.count(far)} reach out of their image by more than a tenth of its side, up to {ends_at} '
      f'({view.first(far)}): {other_size}',
      fatal=begin_inside and far.sum() >= _ENOUGH and far.mean() > 0.5,
    )
  elif empty.all() and (ends < 0.7).all():
    yield Fault(f'no box of {len(view):,} reaches beyond {ends_at} ({view.first(reach[:, 0] > 0)}): {other_size}')
  elif in_corner.sum() >= max(_ENOUGH + opposite, 5 * opposite, 0.1 * len(view)):
    yield _unit(view, in_corner, 100, 'in the upper left 100 x 100 pixels, as percent of width and height are')
  else:
    beyond = reach - sizes
    one = ((beyond > 0.5) & (beyond <= _SLACK)).any(axis=1)
    if one.sum() >= max(5, 0.01 * len(view)) and boxes[:, :2].min() >= 0.99 and beyond.max() <= _SLACK:
      yield Fault(
        f'{view.count(one)} end one pixel outside their image and none begins before 1 ({view.first(one)}): they are '
        'counted from 1, take 1 from x and y'
      )


def _in_corner(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  return (boxes <= 100.5).all(axis=1) & (sizes >= 150).all(axis=1)


def _unit(view: _View, chosen: np.ndarray, unit: int, what: str, *, fatal: bool = False) -> Fault:
  """Boxes in parts of their image instead of pixels, in whatever layout."""
  boxes = view.written.boxes[chosen]
  found = _layout(boxes, np.full((len(boxes), 2), float(unit)), np.full(len(boxes), np.nan), slack=0.005 * unit)
  also = f', and {found[0].name}' if found else ''
  unsure = "; if they are YOLO's, x and y are centers too" if unit == 1 else ''
  then = f', then write {found[0].instead}' if found else unsure
  factors = 'width and height' if unit == 1 else f'width / {unit} and height / {unit}'
  return Fault(
    f'{view.count(chosen)} are {what}, not pixels{also} ({view.first(chosen)}): multiply by {factors} of the '
    f'image{then}',
    fatal,
  )


def _layout(
  boxes: np.ndarray, sizes: np.ndarray, areas: np.ndarray, slack: float = _SLACK
) -> tuple[Layout, np.ndarray, np.ndarray, float] | None:
  """The layout that explains the boxes which do not fit as x y width height.

  Returns:
    The layout, the boxes that fit only so, those that fit only as x y width height, the share of boxes written so; or
    None. A box that fits both ways says nothing.
  """
  usual = _fits(_USUAL, boxes, sizes, slack)
  if usual.all() and not _area_of_corners(boxes, areas).any():
    return None
  # A large object whose box ends a little outside fits as corners by chance, so these need boxes that end far outside.
  far = ~usual & (boxes[:, :2] + boxes[:, 2:] > sizes * (1 + _FAR)).any(axis=1)
  best = None
  for layout in _LAYOUTS:
    fits = _fits(layout, boxes, sizes, slack)
    misfits = ~usual if layout.kind == 'centers' else far
    only_so, only_usual = misfits & fits, usual & ~fits
    explained = only_so.sum() >= 0.9 * misfits.sum()
    so, not_so = int(only_so.sum()), int(only_usual.sum())
    if layout.kind == 'corners' and not_so:
      # Of the sound boxes that are known as such, not all would have stood out as corners.
      others = _USUAL.corners(boxes[only_usual])[:, layout.order]
      so /= max(0.3, (others[:, :2] + others[:, 2:] > sizes[only_usual] * (1 + _FAR)).any(axis=1).mean())
    if layout is _CORNERS:
      only_so |= fits & _area_of_corners(boxes, areas)
    if not explained or only_so.sum() < (2 if layout.kind == 'centers' and not not_so else _FEW):
      continue
    share = max(so / max(1, so + not_so), only_so.mean())
    # Small objects seldom stand at the edge where centers show; the others must not contradict then.
    at_least = max(_ENOUGH, 0.05 * len(boxes)) * (share <= 0.9) if layout.kind == 'centers' else 0.03 * len(boxes)
    if only_so.sum() >= at_least and (best is None or share > best[3] + 0.05):
      best = layout, only_so, only_usual, share
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


def _areas(view: _View) -> Iterator[Fault]:
  (width, height), areas = view.written.boxes[:, 2:].T, view.written.areas
  product = width * height
  small = (areas > 0) & (areas < 0.01 * product) & (product >= _A_PIXEL)
  large = (width > 0) & (height > 0) & (areas > 1.1 * (width + _SLACK) * (height + _SLACK))
  percent = large & (np.abs(areas - product * view.sizes.prod(axis=1) / 100**2) <= 0.02 * areas)
  if percent.sum() >= max(_FEW, 0.05 * len(view)):
    yield _unit(view, percent, 100, 'percent of width and height, as their areas show')
    large &= ~percent
  for wrong, what in ((small, 'less than a hundredth of'), (large, 'more than')):
    if wrong.sum() >= max(_FEW, 0.05 * len(view)):
      yield Fault(
        f'{view.count(wrong)} have an area of {what} width x height ({view.first(wrong)}, area '
        f'{areas[np.argmax(wrong)]:g}): {_AREAS_DO}'
      )


def _shapes(view: _View) -> Iterator[Fault]:
  """Boxes that nobody can have drawn around objects, but that may be meant."""
  sides = view.written.boxes[:, 2:]
  whole = (sides >= 0.98 * view.sizes).all(axis=1)
  same = (sides == np.median(sides, axis=0)).all(axis=1)  # what more than half of them have is their median
  if len(view) >= 5 and whole.mean() > 0.5:
    yield Fault(
      f'{view.count(whole)} cover their whole image ({view.first(whole)}): if these are labels of images, there is '
      'nothing to detect; draw boxes around the objects'
    )
  elif len(view) >= 2 * _ENOUGH and same.mean() > 0.5:
    yield Fault(
      f'{view.count(same)} have one and the same width and height ({view.first(same)}): if points were labelled, the '
      'sizes that the network learns mean nothing; draw boxes around the objects'
    )


def _doubles(view: _View, near: float) -> Iterator[Fault]:
  """The same object twice: image and class are the same, and the box but for `near` pixels."""
  boxes, classes = view.written.boxes, view.written.classes
  group = view.written.image_of * (int(classes.max()) + 1) + classes
  order = np.lexsort((boxes[:, 0], group))
  boxes, group = boxes[order], group[order]
  allowed = np.minimum(near, 0.1 * boxes[:, 2:].min(axis=1).clip(0))
  twice = np.zeros(len(view), bool)
  for step in (1, 2, 3):  # hardly more than two others begin within the same pixel
    same = (np.abs(boxes[step:] - boxes[:-step]).max(axis=1) <= allowed[step:]) & (group[step:] == group[:-step])
    twice[order[step:]] |= same
  if twice.sum() >= max(_FEW, 0.02 * len(view)):
    yield Fault(
      f'{view.count(twice)} are there already, in the same image and class ({view.first(twice)}): the second can '
      'never be found and counts as missed; take one of each out'
    )


def _marks(view: _View, misread: Sequence[Fault]) -> Iterator[Fault]:
  """What boxes show one by one; those that are `misread` are not told to lie nowhere as well."""
  boxes, areas, crowd, turned = (getattr(view.written, name) for name in ('boxes', 'areas', 'crowd', 'turned'))
  sized = (boxes[:, 2:] > 0).all(axis=1)  # all others are left out
  empty = sized & (areas == 0) & (boxes[:, 2] * boxes[:, 3] >= _A_PIXEL)
  wrong = empty | (sized & ((areas < 0) | ~np.isfinite(areas)))
  if wrong.mean() >= 0.01 or wrong.sum() > empty.sum():
    yield Fault(f'{view.count(wrong)} have an area of 0, below 0 or NaN ({view.first(wrong)}): {_AREAS_DO}')
  ends = np.minimum(boxes[:, :2] + boxes[:, 2:], view.sizes)
  nowhere = (ends <= boxes[:, :2].clip(0)).any(axis=1)
  if not misread and nowhere.sum() >= max(_FEW, 0.02 * len(view)):
    yield Fault(
      f'{view.count(nowhere)} have no width or height inside their image and are left out ({view.first(nowhere)}): '
      'their objects are background then; give x and y of the upper left corner, and a width and height above 0'
    )
  if turned.any():
    yield Fault(
      f'{view.count(turned)} are turned by an angle of their own, `rotation`, `angle` or `theta` '
      f'({view.first(turned)}): it is ignored; give the upright box around each'
    )
  if len(view) >= _FEW and crowd.mean() > 0.5:
    yield Fault(
      f'{view.count(crowd)} are around groups (iscrowd 1, {view.first(crowd)}), which count as objects nowhere but in '
      'training with augment.train_on_crowd=True; give single objects iscrowd 0'
    )
