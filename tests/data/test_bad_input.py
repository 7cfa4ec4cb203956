"""Whatever is wrong with the data: one clear message with the file and the numbers, or a repair that is counted."""

import json
import logging
import re

import cv2
import numpy as np
import pytest

from tests.tiny_coco import write_tiny_coco
from triplet_det.data import image_files, pipeline, prepare_tfds
from triplet_det.data.layouts.coco_json import read_annotations, read_ground_truth, read_images


def _folder(tmp_path, *, objects=1, encoded=None, size=(30, 40), **changes):
  """One image `a.jpg` with `objects` boxes; `changes` replace keys of the JSON. Returns the settings of a source."""
  if encoded is None:
    encoded = cv2.imencode('.jpg', np.full((*size, 3), 90, np.uint8))[1].tobytes()
  (tmp_path / 'a.jpg').write_bytes(encoded)
  box = dict(image_id=1, category_id=1, area=100, iscrowd=0)
  data = dict(
    images=[dict(id=1, file_name='a.jpg', height=size[0], width=size[1])],
    categories=[dict(id=1, name='cat')],
    annotations=[dict(box, id=n + 1, bbox=[n % 10, n // 10, 10 + n / 100, 10]) for n in range(objects)],
  )
  (tmp_path / 'a.json').write_text(json.dumps({**data, **changes}))
  return dict(images=tmp_path, annotations=tmp_path / 'a.json')


def _open(tmp_path, **kwargs):
  return pipeline.open_source('coco_json', **_folder(tmp_path, **kwargs))


def _batch(source, **settings):
  batches = pipeline.train_batches(source, **{**dict(batch_size=1, input_size=63, seed=0), **settings})
  try:
    return next(batches)
  finally:
    batches.close()


def test_unknown_format_and_settings():
  with pytest.raises(ValueError, match=r"'voc'; possible: \['coco_json', 'shapes', 'tfds'\]"):
    pipeline.open_source('voc', split='train')
  with pytest.raises(ValueError, match=r"no setting \['image'\]; possible: \['annotations', 'images'"):
    pipeline.open_source('coco_json', image='x')
  with pytest.raises(ValueError, match=r"not given: \['images', 'annotations'\]"):
    pipeline.open_source('coco_json', images='', split='train')


def test_missing_places(tmp_path):
  settings = _folder(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'no folder of images at .*/nowhere'):
    pipeline.open_source('coco_json', **{**settings, 'images': tmp_path / 'nowhere'})
  with pytest.raises(FileNotFoundError, match=r'no annotations at .*/no\.json'):
    pipeline.open_source('coco_json', **{**settings, 'annotations': tmp_path / 'no.json'})
  with pytest.raises(FileNotFoundError, match=r"no prepared data set 'coco/2017' in .*prepare_coco"):
    pipeline.open_source('tfds', data_dir=tmp_path)


def test_missing_image_files(tmp_path):
  images = [dict(id=n, file_name=f'{n}.jpg', height=4, width=4) for n in range(1, 8)]
  with pytest.raises(FileNotFoundError, match=r'7 of the 7 images of .*a\.json are not in .*: 1\.jpg, 2\.jpg, 3\.jpg'):
    _open(tmp_path, images=images)


@pytest.mark.parametrize('name', ['../2.jpg', 'a/../../2.jpg', '/tmp/2.jpg', '..'])
def test_file_names_stay_in_the_folder_of_images(tmp_path, name):
  images = [dict(id=n, file_name=f, height=4, width=4) for n, f in ((1, 'day..1/a..jpg'), (2, name))]
  with pytest.raises(
    ValueError, match=rf'1 of the 2 file_names of .*a\.json lead out of .*: {re.escape(name)}; they are'
  ):
    _open(tmp_path, images=images)


@pytest.mark.parametrize('text', ['', '{"images": [', 'hello'])
def test_not_json(tmp_path, text):
  path = tmp_path / 'x.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=rf'x\.json: not a JSON file \({len(text)} bytes\)'):
    read_annotations(path)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(images=[]), '`images` is empty'),
    (dict(categories=[]), '`categories` is empty'),
    (dict(annotations=[]), '0 annotations for 1 images'),
    (dict(annotations=None), r"without \['annotations'\]"),
    (
      dict(images=[dict(id=1, file_name='a.jpg')]),
      r'images\[0\]: height must be an integer .*, got nothing in',
    ),
    (
      dict(images=[dict(id=1, file_name='a.jpg', height=0, width=5)]),
      r'images\[0\]: height must be .*, got 0 in',
    ),
    (
      dict(images=[dict(id=1, file_name=f'{n}', height=5, width=5) for n in 'ab']),
      r'1 of 2 images share their id',
    ),
    (
      dict(images=[dict(id=n, file_name='a.jpg', height=5, width=5) for n in (1, 2)]),
      r"1 of 2 images share their file_name: \['a.jpg'",
    ),
    (dict(categories=[dict(id=1, name='a'), dict(id=1, name='b')]), r'id listed more than once: \[1\]'),
    (
      dict(annotations=[dict(id=1, image_id=1, category_id=9, bbox=[0, 0, 1, 1])]),
      r'1 of 1 annotations have an unknown category_id; .* annotations\[0\] with category_id 9; known: 1 ids, \[1\]',
    ),
    (
      dict(annotations=[dict(id=1, image_id=77, category_id=1, bbox=[0, 0, 1, 1])]),
      r'unknown image_id; .* annotations\[0\] with image_id 77',
    ),
    (dict(annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 1])]), r'annotations\[0\]: bbox must be 4'),
    (dict(annotations=[dict(id=1, image_id=1, category_id=1)]), r'annotations\[0\]: bbox must be 4 .* got nothing in'),
    (
      dict(annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, float('nan'), 1])]),
      r'annotations\[0\]: bbox must be 4 numbers .*, got \[0, 0, nan, 1\]',
    ),
    (
      dict(annotations=[dict(id=1, image_id=1, category_id=1, bbox=[500, 500, 9, 9])]),
      r'all 1 boxes are degenerate',
    ),
  ],
)
def test_contradictions_in_the_json(tmp_path, changes, message):
  with pytest.raises(ValueError, match=r'a\.json: .*' + message):
    _open(tmp_path, **changes)


INT64 = 'an integer of 64 bits'
SIDE = 'an integer from 1 to 2147483647'
NAME = 'a name, without control characters'
BOX = '4 numbers of pixels (x, y, width, height)'
AREA = 'a number of pixels, at least 0 (without the key, width x height is taken)'


def _json(**rows):
  """A sound COCO JSON of two images, of whose first image, category and annotation `rows` change keys."""
  data = dict(
    images=[dict(id=n, file_name=f'{n}.jpg', height=30, width=40) for n in (1, 2)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    annotations=[dict(id=n, image_id=n, category_id=n, bbox=[n, 2, 10, 9], area=90, iscrowd=0) for n in (1, 2)],
  )
  for name, changes in rows.items():
    data[name][0] |= changes
  return data


@pytest.mark.parametrize(
  'name, key, wanted, values',
  [
    ('images', 'id', INT64, ['1', True, 1.5, 2**63, -(2**63) - 1, 10**400, None, [1], {'a': 1}, float('nan'), 1e300]),
    ('images', 'width', SIDE, ['40', True, 40.5, 0, -40, 2**31, float('inf'), None, [[[[[[[[40]]]]]]]]]),
    ('images', 'file_name', NAME, [7, None, ['1.jpg'], '', ' ', 'a\0.jpg', 'a\n.jpg', '\ud800.jpg']),
    ('categories', 'id', INT64, ['1', False, 2**64, None]),
    ('categories', 'name', NAME, [1, None, '', '\t', 'cat\0', '\udfff']),
    ('annotations', 'image_id', INT64, ['1', True, [1], None]),
    ('annotations', 'category_id', INT64, ['1', True, {}, 1.5]),
    ('annotations', 'bbox', BOX, [None, '1234', [1, 2, 3], [1, 2, 3, 4, 5], ['1', 2, 3, 4], [True, 2, 3, 4]]),
    ('annotations', 'bbox', BOX, [[[1, 2, 3, 4]], {'x': 1}, [1, 2, None, 4], [1, 2, 10**400, 4], [1, 2, 2e9, 4]]),
    ('annotations', 'area', AREA, ['90', -1, float('nan'), float('inf'), 10**400, [90], True]),
    ('annotations', 'iscrowd', 'an integer from 0 to 1', ['0', '1', 2, -1, 0.5, [0]]),
  ],
)
def test_types_and_ranges(tmp_path, name, key, wanted, values):
  """One reader for all: what it says of each field, with the quotes of a string."""
  path = tmp_path / 'a.json'
  for value in values:
    path.write_text(json.dumps(_json(**{name: {key: value}})))
    readers = [read_annotations, read_ground_truth, *([read_images] if name != 'annotations' else [])]
    if key == 'width' and value is None:  # predict can do without
      assert read_images(path)['images'][0]['width'] is None
      readers.pop()
    for read in readers:
      with pytest.raises(ValueError) as error:
        read(path)
      told = str(error.value)
      assert f'a.json: {name}[0]: {key} must be {wanted}, got ' in told and f'1 of 2 {name}' in told
      assert 'got 1000000' in told if value == 10**400 else f'got {value!r}'[:11] in told
      assert len(told) < 600


@pytest.mark.parametrize(
  'name, key, value, read',
  [
    ('images', 'id', 1.0, 1),
    ('images', 'width', 40.0, 40),
    ('categories', 'id', 1.0, 1),
    ('annotations', 'image_id', 1.0, 1),
    ('annotations', 'category_id', 1.0, 1),
    ('annotations', 'iscrowd', True, 1),
    ('annotations', 'iscrowd', 0.0, 0),
  ],
)
def test_what_can_only_be_meant_as_an_integer(tmp_path, name, key, value, read):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(_json(**{name: {key: value}})))
  assert read_annotations(path).report['read_as_integers'] == 1
  now = read_ground_truth(path)[name][0][key]
  assert type(now) is int and now == read


@pytest.mark.parametrize('value', ['x', None, [], [1], 2**63, True, 1.0, -(2**70), 0])
def test_annotation_ids_are_nothing_but_an_index(tmp_path, value):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(_json(annotations={'id': value, 'segmentation': {'size': 'odd'}, 'keypoints': None})))
  assert read_annotations(path).report['renumbered_ids'] == 2
  assert [row['id'] for row in read_ground_truth(path)['annotations']] == [1, 2]


@pytest.mark.parametrize('name', ['images', 'categories', 'annotations'])
def test_lists_that_are_none(tmp_path, name):
  path = tmp_path / 'a.json'
  for value, told in ((3, 'not 3'), ('x', "not 'x'"), ({}, 'not {}'), ([None], rf'{name}\[0\] is None')):
    path.write_text(json.dumps(_json() | {name: value}))
    with pytest.raises(ValueError, match=rf'a\.json: `{name}` must be a list of objects, {told}'):
      read_annotations(path)


TEXT = json.dumps(_json())


@pytest.mark.parametrize(
  'written, told',
  [
    (
      TEXT.replace('cat', 'k\xe4tzchen').encode('latin-1'),
      r"not a text in UTF-8 \(b'\\xe4' at byte \d+\): save it as UTF-8",
    ),
    (TEXT.encode('utf-16')[:-1], 'not a text in UTF-16-LE'),
    (b'[' * 10**6, 'lists or objects inside each other, too deep to read'),
    (TEXT.replace('90', '[' * 10**6).encode(), 'lists or objects inside each other, too deep to read'),
    (TEXT.replace('90', '9' * 5000).encode(), 'not a JSON file .* 5000 digits'),
    (TEXT.replace('90', '1e400').encode(), 'area must be .*, got inf'),
    (
      TEXT.replace('"area": 90', '"area": 90, "area": 91').encode(),
      "the key 'area' has two values .*, 90 and 91",
    ),
    (TEXT.encode()[:-1] + b', "images": []}', "the key 'images' has two values in one object"),
    (TEXT.replace('dog', 'cat').encode(), r"category name listed more than once: \['cat'\]"),
  ],
)
def test_texts_that_are_no_sound_json(tmp_path, written, told):
  path = tmp_path / 'a.json'
  path.write_bytes(written)
  with pytest.raises(ValueError, match=rf'a\.json: .*{told}'):
    read_annotations(path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32-le'])
def test_texts_that_are_read(tmp_path, encoding):
  path = tmp_path / 'a.json'
  path.write_text(TEXT[:-1] + ', "info": null}', encoding=encoding)
  assert read_annotations(path).categories.names == ('cat', 'dog')


def test_an_area_that_nobody_asks_for(tmp_path):
  """That of a box which is left out may be negative, as its width is."""
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(_json(annotations={'bbox': [30, 2, -10, 9], 'area': -90})))
  assert read_annotations(path).report['degenerate'] == 1


def test_annotation_id_zero_is_renumbered(tmp_path):
  box = dict(image_id=1, category_id=1, bbox=[0, 0, 5, 5], area=25, iscrowd=0)
  source = _open(tmp_path, annotations=[dict(box, id=0), dict(box, id=1)])
  assert source.annotations.report['renumbered_ids'] == 2
  assert [a['id'] for a in source.ground_truth['annotations']] == [1, 2]


def test_box_outside_and_degenerate_box(tmp_path, caplog):
  box = dict(image_id=1, category_id=1, area=25, iscrowd=0)
  boxes = [[30, 20, 100, 100], [5, 5, 0, 4]]
  with caplog.at_level(logging.INFO, logger='absl'):
    source = _open(tmp_path, annotations=[dict(box, id=n + 1, bbox=b) for n, b in enumerate(boxes)])
  assert [source.annotations.report[what] for what in ('clipped', 'degenerate', 'boxes')] == [1, 1, 1]
  assert 'clipped 1, degenerate 1' in caplog.text
  np.testing.assert_allclose(source[0].boxes, [[0.75, 20 / 30, 1, 1]])


def test_image_without_objects(tmp_path):
  images = [dict(id=n, file_name='a.jpg' if n == 1 else 'b.jpg', height=30, width=40) for n in (1, 2)]
  (tmp_path / 'b.jpg').write_bytes(cv2.imencode('.jpg', np.zeros((30, 40, 3), np.uint8))[1].tobytes())
  source = _open(tmp_path, images=images)
  assert source.annotations.report['images_without_boxes'] == 1
  batch = _batch(source, batch_size=2, scales=(1.0,), border=10**9)
  assert sorted(batch['valid'].sum(axis=1)) == [0, 1]


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 0.99])
def test_truncated_image(tmp_path, extension, share):
  image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
  whole = cv2.imencode(extension, image)[1].tobytes()
  cut = whole[: int(share * len(whole))]
  source = _open(tmp_path, encoded=cut, size=(60, 80))
  with pytest.raises(ValueError, match=rf'a\.jpg: .*cut short.* \({len(cut)} bytes\)'):
    _batch(source)
  with pytest.raises(pipeline.BrokenInput, match=rf'{tmp_path}.*/a\.jpg: .*cut short.* \({len(cut)} bytes\)') as found:
    list(pipeline.load_images(source, [0]))
  assert not hasattr(found.value, '__notes__')  # Grain leaves one on errors that it lets through


def test_jpeg_that_is_cut_after_a_whole_thumbnail(monkeypatch):
  """Releases of OpenCV before 5 decode this without a word; the end marker of the thumbnail must not deceive."""
  image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
  jpeg = cv2.imencode('.jpg', image)[1].tobytes()
  thumbnail = cv2.imencode('.jpg', image[:8, :8])[1].tobytes()
  header = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
  whole = jpeg[:2] + header + jpeg[2:]
  assert image_files.decode_image(whole, 'a.jpg').shape == (60, 80, 3)
  assert image_files.decode_image(whole + b'\0\0', 'a.jpg').shape == (60, 80, 3)
  monkeypatch.setattr(cv2, 'imdecode', lambda *_: image)
  with pytest.raises(ValueError, match='without its end marker'):
    image_files.decode_image(whole[:-100], 'a.jpg')


def test_not_an_image(tmp_path):
  source = _open(tmp_path, encoded=b'<html>404</html>')
  with pytest.raises(ValueError, match=r'a\.jpg: is not an image, or is cut short \(16 bytes\)'):
    _batch(source)


def test_size_that_differs_from_the_json(tmp_path):
  encoded = cv2.imencode('.jpg', np.zeros((40, 30, 3), np.uint8))[1].tobytes()
  source = _open(tmp_path, encoded=encoded, size=(30, 40))
  with pytest.raises(ValueError, match=r'a\.jpg: the file has 40 x 30 .* say 30 x 40 .*EXIF'):
    _batch(source)
  with pytest.raises(ValueError, match=r'a\.jpg: the file has 40 x 30'):
    split = prepare_tfds.Split('train', tmp_path, tmp_path / 'a.json')
    prepare_tfds.prepare([split], tmp_path / 'tfds')
  assert not prepare_tfds.prepared_directory(tmp_path / 'tfds').exists()


def test_130_objects_in_128_slots(tmp_path, caplog):
  source = _open(tmp_path, objects=130)
  assert source.annotations.report['most_boxes_in_an_image'] == 130
  with caplog.at_level(logging.WARNING, logger='absl'):
    batch = _batch(source, input_size=127, scales=(1.0,), border=10**9, flip=False)
  assert batch['valid'].shape == (1, 128) and batch['valid'].all()
  widths = batch['boxes'][0, :, 2] - batch['boxes'][0, :, 0]
  np.testing.assert_allclose(widths, 10 + np.arange(2, 130) / 100, atol=1e-4)  # the two smallest are gone
  assert 'a.jpg: 130 objects for 128 slots' in caplog.text


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(batch_size=10, host_count=4), 'batch size 10 cannot be divided among 4 hosts'),
    (dict(batch_size=0), 'batch size 0'),
    (dict(batch_size=4, host_count=2, host_index=2), 'host 2 of 2'),
    (dict(batch_size=4, scales=(0.0, 1.0)), r'scales \(0\.0, 1\.0\)'),
    (dict(batch_size=4, input_size=0), 'input_size 0'),
  ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    _batch(_open(tmp_path), **settings)


def test_categories_that_differ_between_splits(tmp_path):
  (tmp_path / 'b').mkdir()
  one = _folder(tmp_path)
  other = _folder(tmp_path / 'b', categories=[dict(id=1, name='dog')])
  splits = [prepare_tfds.Split(name, *s.values()) for name, s in (('train', one), ('validation', other))]
  with pytest.raises(ValueError, match=r'categories differ: 1 in .*a\.json, 1 in .*b/a\.json'):
    prepare_tfds.prepare(splits, tmp_path / 'tfds')


def test_unknown_split(tmp_path):
  tiny = write_tiny_coco(tmp_path / 'coco', train=1, val=2)
  prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root, ['val2017']), tmp_path)
  with pytest.raises(ValueError, match=r"no split 'train'; it has \['validation'\]"):
    pipeline.open_source('tfds', data_dir=tmp_path, split='train')
