"""Faults that a whole data set has, known by their statistics: boxes in another layout or unit, boxes twice, areas.

One box cannot say what its four numbers mean; thousands can. A layout is found where boxes do not fit into their image
as x y width height but do in another reading, which the other boxes do not contradict. What is found is said and never
repaired: a guess about labels is the user's to make.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from triplet_det.data import box_layouts
from triplet_det.data.annotations import Written
from triplet_det.data.box_layouts import ENOUGH, FAR, FEW, SLACK, USUAL

_SAMPLE = 30_000  # boxes that are looked at; of more, those of every second, third, ... image
_JITTER = 3  # pixels between the boxes of one object, drawn twice
_A_PIXEL = 4  # pixels of area, from which on it is not by rounding that an area is 0
_AREAS_DO = (
  'areas decide which objects count as small, medium or large, and one below 0 leaves its object out of the AP; give '
  'them in pixels, or leave `area` out and width x height is taken'
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
    n, images = int(np.argmax(chosen)), len(np.unique(self.written.image_of[chosen]))
    where = f', all in {images} image{"s" * (images > 1)}' if images < min(FEW, chosen.sum()) else ''
    numbers = [float(f'{v:.6g}') for v in self.written.boxes[n]]
    return f'first: {self.file_names[self.written.image_of[n]]} {numbers}{where}'

  def is_in_several_images(self, chosen: np.ndarray, several: int = FEW) -> bool:
    """Boxes of one image are no independent witnesses: objects may lie in a grid, or in a corner."""
    return len(np.unique(self.written.image_of[chosen])) >= several


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
    return [*misread, *others, *_doubles(sample, near=0 if misread else _JITTER), *_marks(view, misread)]


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
  if found := box_layouts.find(boxes, sizes, view.written.areas):
    layout, only_so, only_usual, share = found
    telling = only_so.sum() + only_usual.sum()
    # No arrangement of objects makes most boxes end far outside, as corners do.
    surely = layout.kind == 'corners' and only_so.mean() > 0.5
    enough = view.is_in_several_images(only_so, 2 if surely else FEW) or (surely and only_so.sum() >= 2 * ENOUGH)
    yield Fault(
      f'about {_percent(share)} of {len(view):,} {view.which} are {layout.name}, not {USUAL.name}: of the {telling:,} '
      f'that can tell, {only_so.sum():,} fit their image or their area only so, {only_usual.sum():,} only as '
      f'{USUAL.name} ({view.first(only_so)}): write {layout.instead}',
      fatal=bool(share > 0.5 and only_so.sum() >= 5 and enough),
    )
    return

  far = (reach > sizes * (1 + FAR)).any(axis=1)
  begin_inside = (boxes[:, :2] < -SLACK).any(axis=1).mean() < 0.01
  smaller = sizes <= np.median(sizes, axis=0)
  for unit, what in ((100, 'percent of width and height'), (1000, 'thousandths of width and height (0 to 1000)')):
    # In whatever layout, the numbers of all images end at the unit, as well in the smaller ones.
    ends = reach if reach.max() <= 1.005 * unit else boxes.reshape(-1, 2, 2).max(axis=1)
    fills = (np.where(smaller, ends, 0).max(axis=0) >= 0.9 * unit).all() and ends.max() <= 1.005 * unit
    if not (fills and begin_inside):
      continue
    # None ends beyond the unit in images that go on, where as many would as begin near the other edge.
    begin_near = (sizes > 1.15 * unit) & (boxes[:, :2] < sizes - unit)
    empty = begin_near.sum(axis=0) >= ENOUGH
    enough = len(view) >= 2 * ENOUGH
    if empty.any():
      certain = enough and empty.all() and all(view.is_in_several_images(axis) for axis in begin_near.T)
      yield _unit(view, np.ones(len(view), bool), unit, what, fatal=certain)
      return
    if far.mean() > 0.5:  # the others may be pixels
      beyond = (ends > sizes + SLACK).any(axis=1)
      yield _unit(view, beyond, unit, what, fatal=enough and view.is_in_several_images(beyond), at_least=True)
      return

  ends = (reach / sizes).max(axis=0)
  empty = (boxes[:, :2] / sizes < 1 - ends).sum(axis=0) >= ENOUGH
  in_corner, opposite = _in_corner(boxes, sizes), _in_corner(np.c_[sizes - reach, boxes[:, 2:]], sizes).sum()
  ends_at = f'{ends[0]:.2f} x its width and {ends[1]:.2f} x its height'
  other_size = 'if they were drawn on images of another size, multiply them by the ratio of the sizes'
  if far.sum() >= max(FEW, 0.03 * len(view)):
    yield Fault(
      f'{view.count(far)} reach out of their image by more than a tenth of its side, up to {ends_at} '
      f'({view.first(far)}): {other_size}',
      fatal=begin_inside and far.sum() >= ENOUGH and far.mean() > 0.5 and view.is_in_several_images(far),
    )
  elif empty.all() and (ends < 0.7).all():
    yield Fault(f'no box of {len(view):,} reaches beyond {ends_at} ({view.first(reach[:, 0] > 0)}): {other_size}')
  elif in_corner.sum() >= max(ENOUGH + opposite, 5 * opposite, 0.1 * len(view)):
    yield _unit(view, in_corner, 100, 'in the upper left 100 x 100 pixels, as percent of width and height are')
  else:
    beyond = reach - sizes
    one = ((beyond > 0.5) & (beyond <= SLACK)).any(axis=1)
    if one.sum() >= max(5, 0.01 * len(view)) and boxes[:, :2].min() >= 0.99 and beyond.max() <= SLACK:
      yield Fault(
        f'{view.count(one)} end one pixel outside their image and none begins before 1 ({view.first(one)}): they are '
        'counted from 1, take 1 from x and y'
      )


def _in_corner(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  return (boxes <= 100.5).all(axis=1) & (sizes >= 150).all(axis=1)


def _unit(
  view: _View, chosen: np.ndarray, unit: int, what: str, *, fatal: bool = False, at_least: bool = False
) -> Fault:
  """Boxes in parts of their image instead of pixels, in whatever layout; `at_least` these."""
  boxes = view.written.boxes if at_least else view.written.boxes[chosen]
  in_units, no_areas = np.full((len(boxes), 2), float(unit)), np.full(len(boxes), np.nan)
  found = box_layouts.find(boxes, in_units, no_areas, slack=0.005 * unit)
  also = f', and {found.layout.name}' if found else ''
  unsure = "; if they are YOLO's, x and y are centers too" if unit == 1 else ''
  then = f', then write {found.layout.instead}' if found else unsure
  factors = 'width and height' if unit == 1 else f'width / {unit} and height / {unit}'
  return Fault(
    f'{"at least " * at_least}{view.count(chosen)} are {what}, not pixels{also} ({view.first(chosen)}): multiply by '
    f'{factors} of the image{then}',
    fatal,
  )


def _areas(view: _View) -> Iterator[Fault]:
  (width, height), areas = view.written.boxes[:, 2:].T, view.written.areas
  product = width * height
  small = (areas > 0) & (areas < 0.01 * product) & (product >= _A_PIXEL)
  large = (width > 0) & (height > 0) & (areas > 1.1 * (width + SLACK) * (height + SLACK))
  percent = large & (np.abs(areas - product * view.sizes.prod(axis=1) / 100**2) <= 0.02 * areas)
  if percent.sum() >= max(FEW, 0.05 * len(view)):
    yield _unit(view, percent, 100, 'percent of width and height, as their areas show')
    large &= ~percent
  for wrong, what in ((small, 'less than a hundredth of'), (large, 'more than')):
    if wrong.sum() >= max(FEW, 0.05 * len(view)):
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
  elif len(view) >= 2 * ENOUGH and same.mean() > 0.5:
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
  allowed = np.minimum(near, 0.2 * boxes[:, 2:].min(axis=1).clip(0))
  twice = np.zeros(len(view), bool)
  for step in range(1, 9):  # hardly more others begin within the same pixels
    same = (np.abs(boxes[step:] - boxes[:-step]).max(axis=1) <= allowed[step:]) & (group[step:] == group[:-step])
    twice[order[step:]] |= same
  if twice.sum() >= max(FEW, 0.02 * len(view)):
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
  if not misread and nowhere.sum() >= max(FEW, 0.02 * len(view)):
    yield Fault(
      f'{view.count(nowhere)} have no width or height inside their image and are left out ({view.first(nowhere)}): '
      'their objects are background then; give x and y of the upper left corner, and a width and height above 0'
    )
  if turned.any():
    yield Fault(
      f'{view.count(turned)} are turned by an angle of their own, `rotation`, `angle` or `theta` '
      f'({view.first(turned)}): it is ignored; give the upright box around each'
    )
  if len(view) >= FEW and crowd.mean() > 0.5:
    yield Fault(
      f'{view.count(crowd)} are around groups (iscrowd 1, {view.first(crowd)}), which count as objects nowhere but in '
      'training with augment.train_on_crowd=True; give single objects iscrowd 0'
    )
