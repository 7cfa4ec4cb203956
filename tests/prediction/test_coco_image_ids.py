"""Which image of a COCO JSON a file is: matched rightly, or refused with both names."""

import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_detector import CATEGORIES, stand_in
from triplet_det.prediction import over_files
from triplet_det.prediction.coco_image_ids import read_ids

COMPOSED, SPLIT = (unicodedata.normalize(form, 'Bär.jpg') for form in ('NFC', 'NFD'))


@pytest.fixture
def ids(tmp_path):
  """What the names of a JSON, with ids from 1, make of paths: the ids."""

  def find(names, paths, **sizes):
    images = [dict(id=n, file_name=name, **sizes) for n, name in enumerate(names, start=1)]
    path = tmp_path / 'known.json'
    path.write_text(json.dumps(dict(images=images)))
    return read_ids(path, [Path(one) for one in paths], CATEGORIES)

  return find


@pytest.mark.parametrize(
  'names, paths, wanted',
  [
    (['day1/1.jpg', 'day2/1.jpg'], ['in/day2/1.jpg', 'in/day1/1.jpg'], (2, 1)),
    (['1.jpg', 'day1/1.jpg'], ['day1/1.jpg', 'day2/1.jpg'], (2, 1)),
    (['day1\\1.jpg', '.\\2.jpg'], ['in/day1/1.jpg', 'in/2.jpg'], (1, 2)),
    (['./day1//1.jpg'], ['./in/../in/day1/1.jpg'], (1,)),
    ([COMPOSED], [SPLIT], (1,)),
    ([SPLIT], [f'in/{COMPOSED}'], (1,)),
    (['/data/in/1.jpg'], ['/data/in/1.jpg'], (1,)),
  ],
)
def test_files_that_are_found(ids, names, paths, wanted):
  assert ids(names, paths).images == wanted


def test_a_folder_that_the_file_is_in_without_its_path_saying_so(ids, tmp_path, monkeypatch):
  (tmp_path / 'day2').mkdir()
  monkeypatch.chdir(tmp_path / 'day2')
  assert ids(['day1/1.jpg', 'day2/1.jpg'], ['1.jpg']).images == (2,)


@pytest.mark.parametrize(
  'names, paths, told',
  [
    (['1.jpg'], ['in/day1/1.jpg', 'in/day2/1.jpg'], "'1.jpg': 'in/day1/1.jpg' and 'in/day2/1.jpg': leave one out"),
    ([COMPOSED], [COMPOSED, SPLIT], r"'B\xe4r.jpg': 'B\xe4r.jpg' and 'Ba\u0308r.jpg': leave one out"),
    ([COMPOSED, SPLIT], [COMPOSED], r"images 1 and 2 have one name in two spellings, 'B\xe4r.jpg' and 'Ba\u0308r.jpg'"),
    (['a/1.jpg', 'a\\1.jpg'], ['a/1.jpg'], r"one name in two spellings, 'a/1.jpg' and 'a\\1.jpg'"),
    (['1.JPG'], ['in/1.jpg'], "such as in/1.jpg (it has '1.JPG', which is another folder or another spelling)"),
    (['day1/1.jpg'], ['in/1.jpg'], "such as in/1.jpg (it has 'day1/1.jpg', which is another folder"),
    (['1.jpg'], ['in/1.jpg', 'in/2.jpg'], '1 of 2 files are not among the 1 images of'),
    (['1.jpg', 'v.mp4'], ['1.jpg', 'v.mp4'], 'v.mp4 is a video, and no frame is an image of'),
  ],
)
def test_files_that_are_refused(ids, names, paths, told):
  with pytest.raises(ValueError) as error:
    ids(names, paths)
  assert told in str(error.value)


def test_the_sizes_in_the_json(ids):
  assert ids(['1.jpg', '2.jpg'], ['2.jpg'], height=30, width=40).sizes == ((30, 40),)
  assert ids(['1.jpg'], ['1.jpg'], height=30).sizes == (None,)
  with pytest.raises(ValueError, match=r"images\[0\]: height must be an integer from 1 to 2147483647, got '30'"):
    ids(['1.jpg'], ['1.jpg'], height='30', width=40)


def test_an_image_of_another_size_is_left_out(tmp_path):
  for name in ('1.png', '2.png'):
    cv2.imwrite(str(tmp_path / name), np.zeros((30, 40, 3), np.uint8))
  images = [dict(id=7, file_name='1.png', height=300, width=400), dict(id=8, file_name='2.png', height=30, width=40)]
  (tmp_path / 'known.json').write_text(json.dumps(dict(images=images)))
  paths = [tmp_path / '1.png', tmp_path / '2.png']
  out = tmp_path / 'out'
  found = over_files.predict(stand_in(), paths, out, threshold=0.5, annotations=tmp_path / 'known.json')
  reason = found.summary.left_out[str(paths[0])]
  assert 'the file has 30 x 40 pixels (height x width), its annotations say 300 x 400' in reason
  assert {row['image_id'] for row in json.loads((out / 'coco_results.json').read_text())} == {8}
