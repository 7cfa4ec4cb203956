"""The data doctor against counts by hand: what a split holds, what was repaired, what is wrong."""

import dataclasses
import hashlib
import json
import struct

import cv2
import numpy as np
import pytest

from tests.tiny_coco import write_tiny_coco
from triplet_det.data import doctor, doctor_report, pipeline, sources

CATEGORIES = [dict(id=4, name='cat'), dict(id=2, name='dog'), dict(id=9, name='bird')]
BOXES = {  # file name -> (category id, bbox, area, is it a crowd)
  'a.png': [
    (4, [10, 10, 10, 10], 100, 0),
    (4, [30, 20, 40, 40], 1600, 0),
    (4, [50, 20, 32, 32], 1024, 0),  # on the border between small and medium
    (2, [80, 1, 100, 98], 9800, 0),
    (4, [190, 90, 20, 20], 400, 0),  # its lower right quarter of 10 x 10 pixels is left in the image
  ],
  'b.png': [(2, [5, 5, 40, 50], 2000, 1), (4, [5, 5, 0, 4], 0, 0)],  # a crowd, and one without width
  'c.png': [],
  'd.png': [(2, [0, 0, 60, 80], 4800, 0)],
}
SIZES = {'a.png': (200, 100), 'b.png': (60, 80), 'c.png': (60, 80), 'd.png': (60, 80)}  # width, height
EASY = dict(input_size=31, crop_scales=(1.0,), max_objects=8)


def write(folder, boxes=BOXES, *, categories=CATEGORIES, split='train', prefix='', grey=0, leave_out=()):
  """Writes images and a JSON into the folder and opens them."""
  images, annotations = [], []
  for number, (name, rows) in enumerate(boxes.items(), start=1):
    width, height = SIZES.get(name, (60, 80))
    images.append(dict(id=number, file_name=prefix + name, width=width, height=height))
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), (grey + number) % 256, np.uint8)
    (folder / (prefix + name)).write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
    for category, box, area, crowd in rows:
      row = dict(category_id=category, image_id=number, bbox=box, area=area, iscrowd=crowd)
      row = {key: value for key, value in row.items() if key not in leave_out}
      annotations.append(dict(row, id=len(annotations) + 1))
  path = folder / 'annotations.json'
  path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
  return sources.JsonSource(folder, path, split)


def by_name(found, values):
  return dict(zip(found.file_names, values))


@pytest.mark.parametrize(
  'scale, cat, dog', [(1.0, [2, 2, 0], [0, 1, 1]), (0.5, [4, 0, 0], [0, 2, 0]), (3.0, [1, 1, 2], [0, 0, 2])]
)
def test_counts_by_class_and_size(tmp_path, scale, cat, dog):
  """Areas at scale 0.5: 25, 400, 256, 2450, 100 and 1200; at 3: 900, 14400, 9216 (on the border), ..., 3600."""
  found = doctor.examine(write(tmp_path), scale=scale)
  assert found.counts.tolist() == [cat, dog, [0, 0, 0]]
  assert found.per_class == {'cat': 4, 'dog': 2, 'bird': 0}
  assert by_name(found, found.objects.tolist()) == {'a.png': 5, 'b.png': 0, 'c.png': 0, 'd.png': 1}
  assert by_name(found, found.image_sizes.tolist())['a.png'] == [100, 200]
  expected = scale * np.sqrt([10 * 10, 40 * 40, 32 * 32, 100 * 98, 10 * 10, 60 * 80])
  np.testing.assert_allclose(np.sort(found.sides), np.sort(expected), rtol=1e-5)
  assert found.crowds == 1


def test_crowds_as_objects(tmp_path):
  found = doctor.examine(write(tmp_path), crowds_are_objects=True)
  assert found.counts[1].tolist() == [0, 2, 1]
  assert by_name(found, found.objects.tolist())['b.png'] == 1
  assert found.crowds == 0 and not [repair for repair in found.repairs if 'iscrowd' in repair.what]


def test_repairs_with_their_first_examples(tmp_path):
  found = doctor.examine(write(tmp_path))
  assert [str(repair) for repair in found.repairs] == [
    'boxes without width or height inside their image, left out: 1 (first: b.png [5, 5, 0, 4])',
    'boxes that reach out of their image, cut at its edges: 1 (first: a.png [190, 90, 20, 20])',
    'boxes around groups (iscrowd), not counted as objects: 1 (first: b.png)',
    'images without a box, kept as background: 1 (first: c.png)',
  ]
  filled = doctor.examine(write(tmp_path / 'filled', leave_out=('area', 'iscrowd')))
  repairs = {repair.what.partition(',')[0]: repair for repair in filled.repairs}
  area = repairs['boxes without area']
  assert (area.count, area.examples) == (8, ('annotations[0]', 'annotations[1]', 'annotations[2]'))
  assert repairs['boxes without iscrowd'].count == 8
  assert filled.counts[1].tolist() == [0, 2, 1]  # the crowd is an object now, of width x height


def test_every_repair_is_told(tmp_path):
  """What a reader repairs, also of photos that stand upright, is in the report of `check_data`."""
  tiny = write_tiny_coco(tmp_path / 'coco')
  where = tiny.images('val2017'), tiny.annotations('val2017'), 'validation'
  for orientation in ('stored', 'upright'):
    report = sources.JsonSource(*where, orientation=orientation).annotations.report
    counts = {'images', 'images_without_boxes', 'boxes', 'most_boxes_in_an_image', 'crowd'}
    assert report.keys() - counts == doctor._REPAIRS.keys()


def test_nothing_wrong(tmp_path):
  boxes = {name: [(c['id'], [5, 5, 30, 30], 900, 0) for c in CATEGORIES] for name in ('a.png', 'b.png')}
  train = doctor.examine(write(tmp_path / 'train', boxes))
  evaluation = doctor.examine(write(tmp_path / 'val', boxes, prefix='v'))
  diagnosis = doctor.diagnose(train, evaluation, **EASY)
  assert diagnosis.warnings == diagnosis.fatal == ()
  assert doctor_report.full(diagnosis).endswith('\n\nnothing is wrong')
  assert list(diagnosis.splits) == ['train', 'evaluation']
  assert list(doctor.diagnose(train, **EASY).splits) == ['train']


def test_classes_that_are_missing(tmp_path):
  train = doctor.examine(write(tmp_path / 'train', {'a.png': [(4, [5, 5, 30, 30], 900, 0)]}))
  birds = doctor.examine(write(tmp_path / 'val', {'v.png': [(9, [5, 5, 30, 30], 900, 0)]}))
  assert doctor.diagnose(train, birds, **EASY).warnings == (
    'classes of the evaluation without an object to learn from, which lower the AP: 1 (first: bird)',
    'classes without any object, of which nothing can be learnt: 1 (first: dog)',
    'classes without an object in the evaluation, so that nobody will know how well they are found: 1 (first: cat)',
  )
  assert doctor.diagnose(train, **EASY).warnings == (
    'classes without any object, of which nothing can be learnt: 2 (first: dog, bird)',
  )


def test_other_categories_stop_a_training(tmp_path):
  boxes = {'a.png': [(4, [5, 5, 30, 30], 900, 0)]}
  train = doctor.examine(write(tmp_path / 'train', boxes))
  cow = doctor.examine(write(tmp_path / 'val', boxes, categories=[*CATEGORIES[:2], dict(id=9, name='cow')], prefix='v'))
  [text] = doctor.diagnose(train, cow, **EASY).fatal
  assert text.endswith("differ: only in training ['bird'], only in evaluation ['cow']")
  turned = doctor.examine(write(tmp_path / 'turned', boxes, categories=CATEGORIES[::-1], prefix='w'))
  [text] = doctor.diagnose(train, turned, **EASY).fatal
  assert text.endswith('differ: same names in another order or with other ids')


def test_no_object_to_learn(tmp_path):
  crowds = doctor.examine(write(tmp_path, {'a.png': [(4, [5, 5, 30, 30], 900, 1)]}))
  [text] = doctor.diagnose(crowds, **EASY).fatal
  told = '1 boxes, all around groups (iscrowd); augment.train_on_crowd=True takes these for objects'
  assert text == f'{tmp_path}/annotations.json has no object to learn: {told}'


def test_tiny_objects_and_small_images(tmp_path):
  """Sides 12, 14 and 40 are 6, 7 and 20 at scale 0.5; images of at most 80 pixels are 40, the largest 100."""
  boxes = {
    'a.png': [(c['id'], [5, 5, s, s], s * s, 0) for c, s in zip(CATEGORIES, (12, 14, 40))],
    'd.png': [],
  }
  train = doctor.examine(write(tmp_path), scale=0.5)
  diagnosis = doctor.diagnose(train, input_size=39, crop_scales=(2.0, 1.0), max_objects=8)
  assert not [text for text in diagnosis.warnings if 'smaller' in text]
  train = doctor.examine(write(tmp_path / 'tiny', boxes), scale=0.5)
  tiny, small = doctor.diagnose(train, input_size=41, crop_scales=(2.0, 1.0), max_objects=8).warnings
  assert tiny.startswith('67% of the objects are smaller than 8 x 8 pixels') and '0.5 (median 7.0)' in tiny
  assert small.startswith('1 of 2 training images are smaller at image_scale 0.5 than the smallest crop of 41 pixels')
  assert small.endswith('(first: d.png)')
  boxes['a.png'].pop()
  train = doctor.examine(write(tmp_path / 'all', boxes), scale=0.5)
  assert doctor.diagnose(train, **EASY).warnings[1].startswith('all objects are smaller than 8 x 8 pixels')


def test_more_objects_than_slots(tmp_path):
  train = doctor.examine(write(tmp_path))
  [text] = [t for t in doctor.diagnose(train, **{**EASY, 'max_objects': 4}).warnings if 'max_objects' in t]
  assert text.startswith('1 training images have more than 4 objects') and 'up to 5:' in text and 'a.png' in text
  assert not [t for t in doctor.diagnose(train, **{**EASY, 'max_objects': 5}).warnings if 'max_objects' in t]


def test_images_of_more_than_a_hundred_objects(tmp_path):
  """COCO's AP counts 100 detections; more than `max_objects` are another matter, in training alone."""
  full = {'a.png': [(4, [n, 5, 9, 9 + n % 50], 81, 0) for n in range(101)], 'b.png': [(4, [1, 1, 9, 9], 81, 0)]}
  examined = [doctor.examine(write(tmp_path / name, full, prefix=name)) for name in ('train', 'val')]
  texts = [t for t in doctor.diagnose(*examined, **{**EASY, 'max_objects': 128}).warnings if 'more than 100' in t]
  for text, name in zip(texts, ('train', 'val'), strict=True):
    start = f'{tmp_path}/{name}/annotations.json: 1 images have more than 100 objects, up to 101 (first: {name}a.png)'
    assert text.startswith(start) and text.endswith('test.max_detections; see docs/troubleshooting.md')


def test_categories_of_one_name(tmp_path):
  names = [
    dict(id=n, name=name) for n, name in enumerate(['Red cell', 'red_cell', 'red cells', ' dog', 'Dog', 'a', 'b'])
  ]
  split = doctor.examine(write(tmp_path, {'a.png': [(n, [5, 5, 30, 30], 900, 0) for n in range(7)]}, categories=names))
  assert doctor.diagnose(split, **EASY).warnings == (
    f'{split.path}: categories whose names differ by capitals, spaces or signs alone: 2 '
    "(first: 'Red cell' = 'red_cell', ' dog' = 'Dog'); if they are one class, give their objects one id",
  )


def test_a_systematic_fault_is_a_finding(tmp_path):
  """Boxes as x1 y1 x2 y2 in one split of two; sound ones there are told of nothing."""
  boxes = {f'{n}.png': [(4, [20 + n, 30, 25, 20 + n], 500, 0)] for n in range(10)}
  wrong = {name: [(4, [x, y, x + w, y + h], 500, 0)] for name, [(_, (x, y, w, h), *_)] in boxes.items()}
  train, val = (doctor.examine(write(tmp_path / n, b, prefix=n)) for n, b in (('train', boxes), ('val', wrong)))
  diagnosis = doctor.diagnose(train, val, **EASY)
  [text] = diagnosis.fatal
  assert text.startswith(f'{val.path}: about 100% of 10 boxes are x1 y1 x2 y2, not x y width height: ')
  assert f'wrong: {text}' in doctor_report.full(diagnosis)
  assert doctor.diagnose(train, **EASY).fatal == ()


def turned(path, tag, order='<'):
  """Writes a JPEG of random size with an EXIF orientation."""
  big = order == '>'
  exif = (b'MM\0*' if big else b'II*\0') + struct.pack(f'{order}IHHHIHHI', 8, 1, 0x112, 3, 1, tag, 0, 0)
  segment = b'\xff\xe1' + struct.pack('>H', len(exif) + 8) + b'Exif\0\0' + exif
  jpeg = cv2.imencode('.jpg', np.zeros((80, 60, 3), np.uint8))[1].tobytes()
  path.write_bytes(jpeg[:2] + segment + jpeg[2:])


def test_images_that_viewers_show_turned(tmp_path):
  """Told before training, of a sample, and after all images were read; not if the setting says that it is known."""
  boxes = {f'{n}.jpg': [(4, [20 + n % 7, 30, 25, 20], 500, 0)] for n in range(300)}
  source = write(tmp_path, boxes)
  for n in range(300):
    turned(tmp_path / f'{n}.jpg', 1 if n % 3 else 6, '<>'[n % 2])
  train = doctor.examine(source)
  sample = doctor.read_headers(source)
  assert sample.looked_at == 200 and 40 < len(sample.names) < 95
  everything = doctor.read_every_image(source, lambda done: None)
  assert everything.turned.looked_at == 300 and set(everything.turned.names) == {f'{n}.jpg' for n in range(0, 300, 3)}
  for found in (sample, everything.turned):
    [text] = [t for t in doctor.diagnose(train, **EASY, turned=[found]).warnings if 'EXIF' in t]
    count = f'{len(found.names)} of {found.looked_at} images of data.train that were looked at are shown turned'
    assert text.startswith(count) and text.endswith('give --config.data.train.orientation=upright')
    known = dataclasses.replace(found, setting='upright')
    assert not [t for t in doctor.diagnose(train, **EASY, turned=[known]).warnings if 'EXIF' in t]
  (tmp_path / '5.jpg').unlink()
  assert doctor.read_headers(source).looked_at == 200  # a missing file is for whoever needs it to say


def in_both(diagnosis):
  return [text for text in diagnosis.warnings if 'evaluated images' in text]


def test_images_in_both_splits(tmp_path):
  """By name until the files are read: a.png has the name of another image, x.png is a copy of d.png."""
  train = write(tmp_path / 'train')
  evaluation = write(tmp_path / 'val', {'a.png': BOXES['a.png'], 'x.png': BOXES['d.png']}, grey=50)
  (tmp_path / 'val/x.png').write_bytes((tmp_path / 'train/d.png').read_bytes())
  examined = doctor.examine(train), doctor.examine(evaluation)
  [text] = in_both(doctor.diagnose(*examined, **EASY))
  assert text.startswith('1 of 2 evaluated images have the file name') and text.endswith('(first: a.png)')
  files = [doctor.read_every_image(source, lambda done: None) for source in (train, evaluation)]
  [text] = in_both(doctor.diagnose(*examined, **EASY, files=files))
  assert text.startswith('1 of 2 evaluated images are the same file') and text.endswith('(first: x.png)')


def test_every_image_is_read(tmp_path):
  source, calls = write(tmp_path), []
  whole = (tmp_path / 'a.png').read_bytes()
  (tmp_path / 'b.png').write_bytes(b'no image')
  (tmp_path / 'c.png').unlink()
  (tmp_path / 'd.png').write_bytes(whole)  # of another size than annotated
  files = doctor.read_every_image(source, calls.append)
  assert calls == [1, 2, 3, 4]
  assert files.digests == {'a.png': hashlib.md5(whole).hexdigest()}
  assert set(files.unreadable) == {'b.png', 'c.png', 'd.png'}
  fatal = doctor.diagnose(doctor.examine(source), **EASY, files=[files]).fatal
  assert len(fatal) == 3 and all(text.startswith('unreadable: ') for text in fatal)
  for part in ('b.png: is not an image', 'c.png', 'd.png: the file has 100 x 200 pixels'):
    assert any(part in text for text in fatal)


def test_the_tables(tmp_path):
  diagnosis = doctor.diagnose(doctor.examine(write(tmp_path)), **EASY)
  lines = doctor_report.full(diagnosis).splitlines()
  rows = [line.split() for line in lines]
  assert ['train', 'all', 'small', 'medium', 'large'] in rows
  for row in ('cat 4 2 2 0', 'dog 2 0 1 1', 'bird 0 0 0 0', 'all 6 2 3 1'):
    assert row.split() in rows
  assert '  image sizes, width x height (images): 60 x 80 (3), 200 x 100 (1)' in lines
  assert '  objects per image: 0 to 5, median 0.5 (5%: 0, 25%: 0, 75%: 2, 95%: 4.4)' in lines
  assert lines[-1] == 'warning: classes without any object, of which nothing can be learnt: 1 (first: bird)'


def test_the_few_lines_before_training(tmp_path):
  train = doctor.examine(write(tmp_path))
  lines = doctor_report.brief(doctor.diagnose(train, **EASY))
  assert lines[0] == 'train: 4 images, 6 objects: cat 4, dog 2, bird 0'
  assert lines[1].endswith('at image_scale 1 small 33%, medium 50%, large 17%')
  assert lines[2].startswith('  boxes without width or height inside their image, left out: 1; boxes that reach')
  assert len(lines) == 4
  many = doctor.Diagnosis({'train': train}, ('number 0', 'number 1'), tuple(f'number {n}' for n in range(2, 9)))
  lines = doctor_report.brief(many)
  assert len(lines) == doctor_report.BRIEF == 10
  assert lines[3] == 'wrong: number 0' and lines[5] == 'warning: number 2'
  assert lines[-1] == 'and 3 more, which --config.mode=check_data shows'
  names = [dict(id=n + 1, name=f'n{n}') for n in range(12)]
  boxes = {'a.png': [(n + 1, [5, 5, 30, 30], 900, 0) for n in range(12) for _ in range(n)]}
  [line, *_] = doctor_report.brief(
    doctor.diagnose(doctor.examine(write(tmp_path / 'x', boxes, categories=names)), **EASY)
  )
  assert line.endswith('66 objects: n11 11, n10 10, n9 9, n8 8, ..., n1 1, n0 0')


def test_a_test_set_without_boxes(tmp_path):
  train = doctor.examine(write(tmp_path / 'train'))
  write(tmp_path / 'test')
  path = tmp_path / 'test/annotations.json'
  data = json.loads(path.read_text())
  path.write_text(json.dumps({**data, 'annotations': []}))
  source = pipeline.open_source(
    'coco_json', images=tmp_path / 'test', annotations=path, split='validation', require_boxes=False
  )
  diagnosis = doctor.diagnose(train, doctor.examine(source), **EASY)
  assert f'{path} has no object to find: there will be no metrics' in diagnosis.warnings
  assert 'evaluation: 4 images, 0 objects: cat 0, dog 0, bird 0' in doctor_report.brief(diagnosis)
  assert 'evaluation' in doctor_report.full(diagnosis)
