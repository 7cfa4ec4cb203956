"""The image size and the length of a run that a data set asks for, by hand."""

import json

import pytest

from triplet_det.data import from_data
from triplet_det.data.layouts.coco_json import read_annotations


def annotations(tmp_path, sides, size=(1000, 500), crowds=()):
  """One image of (width, height) `size`, with squares of these sides."""
  boxes = [[0, 0, side, side] for side in (*sides, *crowds)]
  rows = [
    dict(id=i, image_id=1, category_id=1, bbox=box, area=box[2] ** 2, iscrowd=int(i >= len(sides)))
    for i, box in enumerate(boxes)
  ]
  data = dict(
    images=[dict(id=1, file_name='a.png', width=size[0], height=size[1])],
    categories=[dict(id=1, name='box')],
    annotations=rows,
  )
  (tmp_path / 'a.json').write_text(json.dumps(data))
  return read_annotations(tmp_path / 'a.json')


@pytest.mark.parametrize(
  'sides, size, expected',
  [
    # The smallest tenth of eleven is the second smallest: 20 of 1000 pixels are 8 at 400, and 447 is the next size.
    ([10, 20, *[100] * 9], (1000, 500), 447),
    ([10, 20, *[100] * 9], (500, 1000), 447),
    ([1, 2, *[10] * 9], (100, 50), 447),
    ([10, 16, *[100] * 9], (1000, 500), 511),  # 8 at 500
    ([400] * 11, (1000, 500), 319),
    ([5] * 11, (1000, 500), 639),
  ],
)
def test_small_objects_get_8_pixels(tmp_path, sides, size, expected):
  assert from_data.side_for(annotations(tmp_path, sides, size)) == expected


def test_crowds_do_not_count(tmp_path):
  assert from_data.side_for(annotations(tmp_path, [400] * 5, crowds=[5] * 50)) == 319


class Source:
  """Of a TFDS data set without its JSON, or with these annotations."""

  def __init__(self, known=None):
    self._known = known

  @property
  def annotations(self):
    if self._known is None:
      raise FileNotFoundError('no JSON')
    return self._known


def test_a_size_that_is_given_needs_no_annotations(tmp_path):
  assert [from_data.settled_side(side, Source()) for side in (0, 500)] == [0, 500]
  assert from_data.settled_side(from_data.FROM_DATA, Source(annotations(tmp_path, [400]))) == 319
  with pytest.raises(FileNotFoundError, match='no JSON'):
    from_data.settled_side(from_data.FROM_DATA, Source())


@pytest.mark.parametrize(
  ('images', 'batch', 'steps'),
  [
    (448, 4, 2_200),  # 18 x 448 / 4 = 2,016
    (448, 2, 4_200),  # 4,032
    (8, 4, 1_600),
    (355, 4, 1_600),  # 1,597.5
    (356, 4, 1_800),  # 1,602
    (118_287, 4, 20_000),
    (0, 4, 1_600),
  ],
)
def test_each_image_is_seen_often_enough(images, batch, steps):
  total, every = from_data.settled_length(-1, -1, images, batch)
  assert (total, every) == (steps, steps // 8)


def test_what_is_given_is_kept():
  assert from_data.settled_length(7, 3, 205, 4) == (7, 3)
  assert from_data.settled_length(7, -1, 205, 4) == (7, 1)
  assert from_data.settled_length(-1, 100, 448, 4) == (2_200, 100)
