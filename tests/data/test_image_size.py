"""The image size that a data set asks for, by hand."""

import json

import pytest

from triplet_det.data import image_size
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
    # The smallest tenth of eleven is the second smallest: 40 of 1000 pixels are 16 at 400, and 447 is the next size.
    ([10, 40, *[100] * 9], (1000, 500), 447),
    ([10, 40, *[100] * 9], (500, 1000), 447),
    ([1, 4, *[10] * 9], (100, 50), 447),
    ([10, 32, *[100] * 9], (1000, 500), 511),  # 16 at 500
    ([400] * 11, (1000, 500), 319),
    ([5] * 11, (1000, 500), 639),
  ],
)
def test_small_objects_get_16_pixels(tmp_path, sides, size, expected):
  assert image_size.side_for(annotations(tmp_path, sides, size)) == expected


def test_crowds_do_not_count(tmp_path):
  assert image_size.side_for(annotations(tmp_path, [400] * 5, crowds=[5] * 50)) == 319


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
  assert [image_size.settled(side, Source()) for side in (0, 500)] == [0, 500]
  assert image_size.settled(image_size.FROM_DATA, Source(annotations(tmp_path, [400]))) == 319
  with pytest.raises(FileNotFoundError, match='no JSON'):
    image_size.settled(image_size.FROM_DATA, Source())
