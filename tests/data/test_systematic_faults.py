"""Faults of whole data sets: found and named with their share in broken sets, and none in sound ones."""

import pickle
import re

import numpy as np
import pytest

from triplet_det.data import systematic_faults
from triplet_det.data.annotations import pack

CATEGORIES = [dict(id=1, name='cat'), dict(id=2, name='dog')]


def sound(*, images=40, each=8, width=640, height=480, smallest=20, largest=160, seed=0):
  """[n, 4] whole x y width height inside images of one size, image after image."""
  rng = np.random.default_rng(seed)
  sides = rng.integers(smallest, largest, (images * each, 2))
  return np.concatenate([rng.integers(0, [width, height] - sides + 1), sides], axis=1).astype(float)


def data_of(boxes, *, each=8, width=640, height=480, areas=None, **columns):
  """The COCO dictionary of the boxes; `columns` are further values of each of them."""
  areas = boxes[:, 2] * boxes[:, 3] if areas is None else areas
  rows = [
    dict(id=n + 1, image_id=n // each, category_id=1, bbox=box.tolist(), area=area, iscrowd=0)
    | {key: values[n] for key, values in columns.items()}
    for n, (box, area) in enumerate(zip(boxes, areas))
  ]
  images = [dict(id=i, file_name=f'{i}.jpg', width=width, height=height) for i in range(len(boxes) // each)]
  return dict(images=images, categories=CATEGORIES, annotations=rows)


def faults(boxes, **settings):
  packed = pack(data_of(boxes, **settings), 'a.json').in_tfds_order('train')
  return systematic_faults.find(packed.written, packed.file_names)


def the_fault(boxes, **settings):
  [found] = faults(boxes, **settings)
  return found


def corners(boxes):
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def centers(boxes):
  return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def in_units(boxes, unit, width=640, height=480):
  return boxes / np.array([width, height, width, height]) * unit


LAYOUTS = {
  'x1 y1 x2 y2': (corners, '[x1, y1, x2 - x1, y2 - y1]'),
  'center x, center y, width, height': (centers, '[x - width / 2, y - height / 2, width, height]'),
  'y x height width': (lambda boxes: boxes[:, [1, 0, 3, 2]], '[x, y, width, height]'),
  'y1 x1 y2 x2': (lambda boxes: corners(boxes)[:, [1, 0, 3, 2]], '[x1, y1, x2 - x1, y2 - y1]'),
  'x1 x2 y1 y2': (lambda boxes: corners(boxes)[:, [0, 2, 1, 3]], '[x1, y1, x2 - x1, y2 - y1]'),
  'x y height width': (lambda boxes: boxes[:, [0, 1, 3, 2]], '[x, y, width, height]'),
}


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('images', (6, 40, 200))
def test_a_layout(name, images):
  written_so, instead = LAYOUTS[name]
  if name == 'x y height width':
    images = max(images, 20)  # hardly one of ten boxes tells
  found = the_fault(written_so(sound(images=images)))
  assert found.fatal
  assert found.text.startswith(f'about 100% of {8 * images:,} boxes are {name}, not x y width height: of the ')
  told = re.search(r'of the ([\d,]+) that can tell, ', found.text)
  assert f'{told[0]}{told[1]} fit their image or their area only so, 0 only as x y width height (first: ' in found.text
  assert found.text.endswith(f': write {instead}')


def test_how_many_boxes_tell_a_layout():
  """Of centers those at an edge; counted here one by one."""
  boxes = centers(sound(smallest=20, largest=60))
  telling = sum(x + w > 641.5 or y + h > 481.5 for x, y, w, h in boxes)
  assert 0 < telling < 40
  text = the_fault(boxes).text
  assert text.startswith('about 100% of 320 boxes are center x, center y, width, height, not x y width height: ')
  assert f': of the {telling} that can tell, {telling} fit their image or their area only so, 0 only as' in text


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('by', ('box', 'image'))
def test_a_merge_of_two_layouts(name, by):
  """Two of five boxes, or all those of two of five images: the share is near, and the run may go on."""
  boxes = sound(images=200)
  wrong = np.arange(len(boxes)) // (1 if by == 'box' else 8) % 5 < 2
  boxes[wrong] = LAYOUTS[name][0](boxes[wrong])
  found = the_fault(boxes)
  share = int(found.text.removeprefix('about ').partition('%')[0])
  assert 30 <= share <= 50 and f'% of 1,600 boxes are {name}, not' in found.text and not found.fatal


@pytest.mark.parametrize('images, each, fatal', [(1, 15, False), (1, 30, True), (2, 8, True)])
def test_corners_in_hardly_any_images(images, each, fatal):
  """No arrangement of objects puts most boxes far outside, but of one image that needs many."""
  found = the_fault(corners(sound(images=images, each=each)), each=each)
  assert f'about 100% of {images * each} boxes are x1 y1 x2 y2' in found.text and found.fatal == fatal
  assert f', all in {images} image' in found.text


def test_corners_are_known_by_their_area_too():
  """Large objects: hardly a box ends outside its image, whichever way it is read."""
  boxes = sound(smallest=250, largest=330, width=640, height=480)
  found = the_fault(np.round(corners(boxes)), areas=boxes[:, 2] * boxes[:, 3])
  assert found.fatal and 'about 100% of 320 boxes are x1 y1 x2 y2' in found.text
  assert 'of the 320 that can tell, 320 fit their image or their area only so, 0 only as' in found.text


@pytest.mark.parametrize('unit, what', ((1, 'fractions of'), (100, 'percent of'), (1000, 'thousandths of')))
@pytest.mark.parametrize('written_so, also', ((np.copy, ''), (corners, 'x1 y1 x2 y2'), (centers, 'center x, ')))
def test_a_unit(unit, what, written_so, also):
  boxes = in_units(written_so(sound()), unit)
  found = the_fault(boxes)
  certain = 320
  if unit == 1000:  # the others may be pixels
    first, second = boxes[:, :2], boxes[:, 2:]
    ends = first if written_so is centers else second if written_so is corners else first + second
    certain = ((ends[:, 0] > 641.5) | (ends[:, 1] > 481.5)).sum()
    assert 200 < certain < 300
  told = f'{"" if unit < 1000 else "at least "}{certain} of 320 boxes ({certain / 320:.0%}) are {what} width and height'
  assert found.text.startswith(told)
  assert f', not pixels{", and " if also else ""}{also}' in found.text
  assert f'multiply by width{"" if unit == 1 else f" / {unit}"} and height' in found.text
  assert (', then write [x' in found.text) == bool(also)
  assert found.fatal


@pytest.mark.parametrize('unit, what', ((1, 'are fractions of'), (100, 'are in the upper left 100 x 100 pixels, as')))
def test_some_in_a_unit(unit, what):
  boxes = sound(images=100)
  wrong = np.arange(len(boxes)) % 5 < 2
  boxes[wrong] = in_units(boxes[wrong], unit)
  found = the_fault(boxes)
  count = int(found.text.partition(' ')[0])
  assert 320 <= count <= 330 and f'of 800 boxes (4{count // 8 - 40}%) {what}' in found.text and not found.fatal


def test_more_than_half_in_thousandths():
  """No more are told to be than are."""
  boxes = sound(images=100)
  wrong = np.arange(len(boxes)) % 10 < 7
  boxes[wrong] = in_units(boxes[wrong], 1000)
  found = the_fault(boxes)
  count = int(found.text.removeprefix('at least ').partition(' ')[0])
  assert 400 < count < 560 and f'of 800 boxes ({count / 800:.0%}) are thousandths of width and height' in found.text


@pytest.mark.parametrize('side, first, text', [(640, 0, 'percent of'), (120, 0, 'percent of'), (640, 300, 'no box of')])
def test_a_grid_in_one_image_stops_no_training(side, first, text):
  """100 objects of 10 pixels; those of several images are independent witnesses, these are not."""
  cells = np.stack(np.meshgrid(range(10), range(10)), axis=-1).reshape(-1, 2) * 10.0
  grid = np.concatenate([cells, np.full_like(cells, 9.5)], axis=1)
  size = dict(width=side, height=side)
  if first:
    grid[:, :2] = grid[:, :2] * 3 + 10
  found = the_fault(grid, each=100, **size)
  assert not found.fatal and text in found.text and ', all in 1 image)' in found.text
  several = the_fault(np.tile(grid, (3, 1)) + np.repeat(range(3), 100)[:, None] * [0.1, 0.1, 0, 0], each=100, **size)
  assert several.fatal == (not first) and 'all in' not in several.text


def test_one_image_of_another_size():
  """More than half of the boxes are wrong, and all in one image."""
  boxes = np.concatenate([sound(images=10, each=8) for _ in range(2)])
  boxes[:130] = sound(images=1, each=130, width=1280, height=960)
  data = data_of(boxes)
  for row in data['annotations'][:130]:
    row['image_id'] = 0
  packed = pack(data, 'a.json').in_tfds_order('train')
  [found] = systematic_faults.find(packed.written, packed.file_names)
  assert 'reach out of their image' in found.text and ', all in 1 image)' in found.text and not found.fatal


@pytest.mark.parametrize('ratio, text', ((2, 'reach out of their image by more than a tenth'), (0.5, 'no box of 320')))
def test_images_of_another_size(ratio, text):
  found = the_fault(sound() * ratio)
  assert text in found.text and 'multiply them by the ratio of the sizes' in found.text
  assert f'{ratio:.2f} x its width and {ratio:.2f} x its height' in found.text
  assert found.fatal == (ratio > 1)


def test_boxes_that_count_from_one():
  boxes = sound()
  boxes[::16, 0] = 640 - boxes[::16, 2]
  boxes[:, :2] += 1
  text = the_fault(boxes).text
  assert 'end one pixel outside their image and none begins before 1' in text and 'take 1 from x and y' in text


@pytest.mark.parametrize('beside', (0, 0.45, 1.5, 3))
def test_boxes_twice(beside):
  """By hand, up to 3 pixels apart."""
  boxes = sound(images=20).reshape(20, 8, 4)
  again = boxes + np.random.default_rng(0).uniform(-beside, beside, boxes.shape)
  text = the_fault(np.concatenate([boxes, again], axis=1).reshape(-1, 4), each=16).text
  assert text.startswith('160 of 320 boxes (50%) are there already, in the same image and class (first: ')
  other_class = np.tile([1] * 8 + [2] * 8, 20).tolist()
  assert not faults(np.concatenate([boxes, again], axis=1).reshape(-1, 4), each=16, category_id=other_class)


def test_areas():
  boxes = sound()
  product = boxes[:, 2] * boxes[:, 3]
  for areas, start in (
    (0 * product, '320 of 320 boxes (100%) have an area of 0, below 0 or NaN'),
    (-product, '320 of 320 boxes (100%) have an area of 0, below 0 or NaN'),
    (np.where(np.arange(320) == 7, np.nan, product), '1 of 320 boxes (0.31%) have an area of 0, below 0 or NaN'),
    (product / (640 * 480), '320 of 320 boxes (100%) have an area of less than a hundredth of width x height'),
    (np.where(np.arange(320) % 5 < 2, 4 * product, product), '128 of 320 boxes (40%) have an area of more than width'),
  ):
    text = the_fault(boxes, areas=areas).text
    assert text.startswith(start) and 'leave `area` out and width x height is taken' in text
  assert not faults(boxes, areas=0.2 * product)  # of masks
  assert not faults(boxes, areas=(boxes[:, 2] + 1) * (boxes[:, 3] + 1))  # both ends counted


def test_turned_boxes_and_groups():
  boxes = sound()
  angles = [30.5 if n % 4 == 0 else 180.0 for n in range(320)]
  for columns in (dict(attributes=[dict(occluded=False, rotation=a) for a in angles]), dict(angle=angles)):
    found = the_fault(boxes, **columns)
    assert found.text.startswith('80 of 320 boxes (25%) are turned by an angle of their own') and not found.fatal
  assert not faults(boxes, attributes=[[], None, dict(rotation=None), dict(angle='left')] * 80)
  assert the_fault(boxes, iscrowd=[1] * 200 + [0] * 120).text.startswith('200 of 320 boxes (62%) are around groups')
  assert not faults(boxes, iscrowd=[1] * 20 + [0] * 300)


def test_boxes_that_nobody_has_drawn():
  whole = np.tile([0.0, 0, 640, 480], (40, 1))
  assert the_fault(whole, each=1).text.startswith('40 of 40 boxes (100%) cover their whole image (first: ')
  points = sound()
  points[:200, 2:] = 20
  assert the_fault(points).text.startswith('200 of 320 boxes (62%) have one and the same width and height')


@pytest.mark.parametrize('seed', range(40))
def test_sound_data_have_no_fault(seed):
  """Images of all sizes, few or many, with objects from tiny to nearly whole, in the middle or cut at the edges."""
  rng = np.random.default_rng(seed)
  width, height = (int(side) for side in rng.integers(64, 2000, 2))
  each, images = int(rng.integers(1, 9)), int(rng.choice([3, 6, 40, 200]))
  sides = rng.uniform(*[(0.01, 0.05), (0.05, 0.3), (0.4, 0.95), (0.01, 0.9)][seed % 4], (images * each, 2))
  at = rng.normal(0.5, 0.05, sides.shape) if seed % 3 == 0 else rng.uniform(0, 1, sides.shape)
  ends = np.concatenate([at - sides / 2, at + sides / 2], axis=1).clip(0, 1) * [width, height, width, height]
  boxes = np.concatenate([ends[:, :2], (ends[:, 2:] - ends[:, :2]).clip(1)], axis=1)
  late = rng.random(len(boxes)) < 0.05
  boxes[late] += rng.normal(0, 2, (late.sum(), 4))  # a careless hand
  boxes = np.round(boxes) if seed % 2 else boxes
  assert not [fault.text for fault in faults(boxes, each=each, width=width, height=height)]


def test_of_very_many_boxes_those_of_some_images_are_looked_at():
  boxes = corners(sound(images=12_000, each=8))
  found = the_fault(boxes)
  assert found.fatal and ' boxes in one of 4 images are x1 y1 x2 y2, ' in found.text
  assert 23_000 < int(found.text.split()[3].replace(',', '')) < 25_000


def test_workers_do_not_get_them():
  packed = pack(data_of(sound(images=2)), 'a.json')
  assert len(packed.written.boxes) == 16 and pickle.loads(pickle.dumps(packed)).written is None


def test_no_box_and_boxes_without_end():
  data = data_of(sound(images=2))
  assert not systematic_faults.find(pack(data | {'annotations': []}, 'a.json').written, ('0.jpg', '1.jpg'))
  ends = np.array([[1e18] * 4, [-1e18] * 4, [1e18, 0, 1, 1], [0, 0, 1e18, 1e18], [5, 5, 0, 0], [9, 9, -3, -3]])
  assert not faults(np.concatenate([sound(images=40), ends, sound(images=1)[:2]]))


@pytest.mark.parametrize('how', ['other corner', 'beside the image'])
def test_boxes_that_lie_nowhere(how):
  """Every second one is left out; the others cannot say why."""
  boxes = sound()
  x, y, w, h = boxes[::2].T
  boxes[::2] = np.stack([x + w, y + h, -w, -h] if how == 'other corner' else [x - 640, y, w, h], axis=1)
  areas = np.abs(boxes[:, 2:]).prod(axis=1)
  fault = the_fault(boxes, areas=areas)
  assert fault.text.startswith('160 of 320 boxes (50%) have no width or height inside their image and are left out')
  assert fault.text.endswith('give x and y of the upper left corner, and a width and height above 0')


def test_percent_in_an_image_hardly_larger_are_known_by_their_areas():
  boxes = sound(width=160, height=120, smallest=10, largest=40)
  areas = boxes.prod(axis=1, where=[False, False, True, True])
  boxes[::2] = in_units(boxes[::2], 100, 160, 120)
  fault = the_fault(boxes, areas=areas, width=160, height=120)
  assert fault.text.startswith(
    '160 of 320 boxes (50%) are percent of width and height, as their areas show, not pixels'
  )


@pytest.mark.parametrize(
  'attributes', [[dict(name='rotation', value=33)], {'Rotation': '33'}, {'rotation_angle': 33.0}], ids=str
)
def test_an_angle_in_another_form(attributes):
  fault = the_fault(sound(), attributes=[attributes] * 320)
  assert fault.text.startswith('320 of 320 boxes (100%) are turned by an angle of their own')


def test_a_number_that_is_no_angle():
  assert faults(sound(), rotation=[10**400] * 320) == []
