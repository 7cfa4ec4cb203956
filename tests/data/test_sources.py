"""The COCO JSON reader, the two sources and the preparation by TFDS."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorflow_datasets.core import hashing, shuffle

from tests.tiny_coco import CATEGORIES, write_tiny_coco
from triplet_det import categories
from triplet_det.data import prepare_tfds, sources
from triplet_det.data.layouts.coco_json import read_annotations, read_ground_truth
from triplet_det.evaluators import coco_ap


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  return write_tiny_coco(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def prepared(tiny, tmp_path_factory):
  """The tiny data set as TFDS keeps it: the data_dir."""
  data_dir = tmp_path_factory.mktemp('tfds')
  prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root), data_dir)
  return data_dir


def _write(path: Path, data: dict) -> Path:
  path.write_text(json.dumps(data))
  return path


def test_annotations_against_the_json(tiny):
  data = json.loads(tiny.annotations().read_text())
  found = read_annotations(tiny.annotations())
  assert found.categories.to_coco() == [dict(id=c['id'], name=c['name']) for c in CATEGORIES]
  for i, image in enumerate(data['images']):
    theirs = [a for a in data['annotations'] if a['image_id'] == image['id']]
    rows = found.rows(i)
    assert len(theirs) == len(found.boxes[rows])
    size = np.array([image['width'], image['height']] * 2)
    for annotation, box, index, crowd, area in zip(
      theirs, found.boxes[rows], found.classes[rows], found.crowd[rows], found.areas[rows]
    ):
      x, y, w, h = annotation['bbox']
      np.testing.assert_allclose(box * size, [x, y, x + w, y + h], atol=1e-4)
      assert CATEGORIES[index]['id'] == annotation['category_id']
      assert (crowd, area) == (annotation['iscrowd'], annotation['area'])
  assert found.report['images'] == 7 and found.report['images_without_boxes'] == 1
  assert found.report['boxes'] == len(data['annotations']) and found.report['crowd'] == 1
  assert sum(found.report[k] for k in ('clipped', 'degenerate', 'filled_area', 'renumbered_ids')) == 0


def test_the_digest_tells_other_annotations_from_these(tiny, tmp_path):
  """In any field that is read; not by the order of the images in the file, nor by what is not read."""
  path = tiny.annotations('train2017')
  content = json.loads(path.read_text())

  def digest(change=lambda content: None):
    other = json.loads(json.dumps(content))
    change(other)
    (tmp_path / 'other.json').write_text(json.dumps(other, indent=3))
    return sources.JsonSource(tiny.images('train2017'), tmp_path / 'other.json').annotations.digest

  same = sources.JsonSource(tiny.images('train2017'), path)
  assert same.contents == f'{len(same)} images, {len(same.annotations.boxes)} boxes, digest {digest()}'
  assert digest(lambda c: c['images'].reverse()) == digest(lambda c: c.update(info={'year': 1})) == digest()
  others = [
    digest(lambda c: c['annotations'].pop()),
    digest(lambda c: c['annotations'][0]['bbox'].__setitem__(2, c['annotations'][0]['bbox'][2] * 0.9)),
    digest(lambda c: c['annotations'][0].update(area=1.5)),
    digest(lambda c: c['annotations'][0].update(iscrowd=1 - c['annotations'][0]['iscrowd'])),
    digest(lambda c: c['categories'][0].update(name='ball')),
    digest(lambda c: c['images'][0].update(height=c['images'][0]['height'] + 1)),
  ]
  assert len({*others, digest()}) == len(others) + 1


def test_order_is_that_of_tfds(tiny):
  hasher = hashing.Hasher('validation')
  found = read_annotations(tiny.annotations())
  ordered = found.in_tfds_order('validation')
  assert list(ordered.file_names) == sorted(found.file_names, key=hasher.hash_key) != list(found.file_names)
  for i, image_id in enumerate(ordered.image_ids):
    before = found.image_ids.tolist().index(image_id)
    assert ordered.file_names[i] == found.file_names[before]
    np.testing.assert_array_equal(ordered.image_sizes[i], found.image_sizes[before])
    for field in ('boxes', 'classes', 'crowd', 'ids', 'areas'):
      ours, theirs = getattr(ordered, field), getattr(found, field)
      np.testing.assert_array_equal(ours[ordered.rows(i)], theirs[found.rows(before)])


@pytest.mark.parametrize('split, folder', [('train', 'train2017'), ('validation', 'val2017')])
def test_sources_agree_to_the_bit(tiny, prepared, split, folder):
  ours = sources.JsonSource(tiny.images(folder), tiny.annotations(folder), split)
  theirs = sources.TfdsSource(data_dir=prepared, split=split)
  assert len(ours) == len(theirs) == (7 if split == 'train' else 3)
  for i in range(len(ours)):
    a, b = ours[i], theirs[i]
    assert a.encoded == b.encoded == (tiny.images(folder) / a.file_name).read_bytes()
    assert (a.image_id, a.file_name) == (b.image_id, b.file_name) == (ours.image_ids[i], ours.annotations.file_names[i])
    for field in ('boxes', 'classes', 'crowd'):
      x, y = getattr(a, field), getattr(b, field)
      assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    decoded = cv2.imdecode(np.frombuffer(a.encoded, np.uint8), cv2.IMREAD_COLOR)
    assert a.size == decoded.shape[:2] == ours.image_sizes[i]
  for what in ('categories', 'image_ids', 'image_sizes', 'ground_truth'):
    assert getattr(ours, what) == getattr(theirs, what)
  for what in ('file_names', 'report'):
    assert getattr(ours.annotations, what) == getattr(theirs.annotations, what)


def test_pickles_are_small_and_work(tiny, prepared):
  for source in (sources.JsonSource(tiny.images(), tiny.annotations()), sources.TfdsSource(data_dir=prepared)):
    assert source.ground_truth['images'] and source.categories
    pickled = pickle.dumps(source)
    assert b'segmentation' not in pickled
    again = pickle.loads(pickled)
    assert again[3].encoded == source[3].encoded and again.categories == source.categories
    assert again.ground_truth == source.ground_truth


def test_preparing_twice_reads_what_is_there(tiny, prepared):
  directory = prepare_tfds.prepared_directory(prepared)
  before = (directory / 'dataset_info.json').stat().mtime
  assert prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root), prepared) == directory
  assert (directory / 'dataset_info.json').stat().mtime == before
  with pytest.raises(ValueError, match=r"already prepared with the splits \['train', 'validation'\], without \['test'"):
    prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root, ['test2017']), prepared)


def contents(directory):
  """Name of a file -> its bytes."""
  root = Path(directory)
  return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_several_files_have_the_order_of_one(tiny, prepared, tmp_path, monkeypatch):
  """And nothing goes through TFDS's shuffling, which needs TensorFlow for what is larger than this."""
  monkeypatch.setattr(prepare_tfds, 'BYTES_PER_FILE', sum(map(len, image_bytes(tiny))) / 2.5)
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 100)
  directory = prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root), tmp_path)
  names = [path.name for path in directory.glob('coco-train.array_record-*')]
  assert sorted(names) == [f'coco-train.array_record-0000{k}-of-00003' for k in range(3)]
  one, several = (sources.TfdsSource(data_dir=data_dir, split='train') for data_dir in (prepared, tmp_path))
  assert len(one) == len(several) == 7
  assert [one[i].encoded for i in range(7)] == [several[i].encoded for i in range(7)]
  assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def image_bytes(tiny):
  return [path.read_bytes() for path in Path(tiny.images()).glob('*.jpg')]


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch):
  """A preparation with a file for each image that ended at the sixth: its data_dir, its finished files, all names."""
  monkeypatch.setattr(prepare_tfds, 'BYTES_PER_FILE', 1)
  monkeypatch.setattr(prepare_tfds, '_threads', lambda: 1)
  decode, read = prepare_tfds.decode_image, []

  def decode_and_note(encoded, name, **settings):
    if len(read) == 5:
      raise MemoryError('killed')
    read.append(name)
    return decode(encoded, name, **settings)

  with monkeypatch.context() as change:
    change.setattr(prepare_tfds, 'decode_image', decode_and_note)
    with pytest.raises(MemoryError):
      prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root), tmp_path / 'stopped')
  (finished,) = prepare_tfds.prepared_directory(tmp_path / 'stopped').parent.glob('finished.*')
  return tmp_path / 'stopped', Path(finished), read


def continued(tiny, data_dir, monkeypatch):
  """The names of the images that the next preparation looks at; its result is what an unbroken one makes."""
  decode, read = prepare_tfds.decode_image, []
  monkeypatch.setattr(prepare_tfds, 'decode_image', lambda *a, **k: read.append(a[1]) or decode(*a, **k))
  splits = prepare_tfds.official_splits(tiny.root)
  directory = prepare_tfds.prepare(splits, data_dir)
  assert not list(directory.parent.glob('finished.*'))
  now = list(read)
  assert contents(directory) == contents(prepare_tfds.prepare(splits, data_dir.with_name('whole')))
  return now


def test_a_stopped_preparation_is_continued(tiny, stopped, monkeypatch, caplog):
  data_dir, finished, read = stopped
  assert sorted(path.name for path in finished.iterdir()) == [
    f'coco-train.array_record-0000{k}-of-00007' for k in range(5)
  ]
  with caplog.at_level(logging.WARNING, logger='absl'):
    now = continued(tiny, data_dir, monkeypatch)
  assert 'train: 5 of 7 images are there from a preparation before' in caplog.text
  assert not set(read) & set(now) and len(now) == 10 - 5


def test_a_finished_file_that_is_cut_short_is_made_anew(tiny, stopped, monkeypatch):
  data_dir, finished, read = stopped
  os.truncate(finished / 'coco-train.array_record-00001-of-00007', 0)
  assert set(continued(tiny, data_dir, monkeypatch)) & set(read) == {read[1]}


def test_without_links_a_preparation_begins_anew(tiny, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError('no links here')

  monkeypatch.setattr(os, 'link', refuse)
  splits = prepare_tfds.official_splits(tiny.root)
  directory = prepare_tfds.prepare(splits, tmp_path)
  monkeypatch.undo()
  assert contents(directory) == contents(prepare_tfds.prepare(splits, tmp_path / 'linked'))


@pytest.mark.parametrize('what', ['annotation id', 'folder'])
def test_what_other_data_left_is_not_taken(tiny, stopped, tmp_path, monkeypatch, what):
  data_dir, finished, _ = stopped
  data = json.loads(tiny.annotations().read_text())
  if what == 'annotation id':
    data['annotations'][0]['id'] += 1000
  images = tiny.images() if what == 'annotation id' else shutil.copytree(tiny.images(), tmp_path / 'images')
  split = prepare_tfds.Split('train', images, _write(tmp_path / 'other.json', data))
  noted, decode = [], prepare_tfds.decode_image
  monkeypatch.setattr(prepare_tfds, 'decode_image', lambda *a, **k: noted.append(a[1]) or decode(*a, **k))
  directory = prepare_tfds.prepare([split], data_dir)
  assert len(noted) == 7 and not finished.exists()  # of no use any more
  assert [path.name for path in directory.parent.glob('finished.*')] == []


def test_the_slower_of_two_takes_the_winners_set(tiny, tmp_path, monkeypatch, caplog):
  splits, decode = prepare_tfds.official_splits(tiny.root), prepare_tfds.decode_image
  winner = prepare_tfds.prepare(splits, tmp_path / 'winner')
  ours = prepare_tfds.prepared_directory(tmp_path / 'slower')

  def overtaken(*arguments, **settings):
    if not ours.exists():
      shutil.copytree(winner, ours)
    return decode(*arguments, **settings)

  monkeypatch.setattr(prepare_tfds, 'decode_image', overtaken)
  with caplog.at_level(logging.WARNING, logger='absl'):
    assert prepare_tfds.prepare(splits, tmp_path / 'slower') == ours
  assert contents(ours) == contents(winner)


def test_another_data_set_or_a_part_of_one_is_not_taken_for_this_one(tiny, prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / 'tfds')
  directory = prepare_tfds.prepared_directory(tmp_path / 'tfds')
  other = write_tiny_coco(tmp_path / 'other', seed=1)  # as many images and objects

  def again(root, **changed):
    return prepare_tfds.prepare(prepare_tfds.official_splits(root, ['val2017']), tmp_path / 'tfds', **changed)

  assert again(tiny.root) == directory
  with pytest.raises(
    ValueError, match=rf'{directory} holds another data set: its validation \(3 images\) is not of'
  ) as e:
    again(other.root)
  assert str(other.annotations('val2017')) in str(e.value) and 'remove it or choose another directory' in str(e.value)
  shutil.rmtree(directory / 'annotations')  # as TFDS prepares it: the numbers of images are compared
  assert again(other.root) == directory
  more = write_tiny_coco(tmp_path / 'more', val=4)
  with pytest.raises(ValueError, match='holds another data set'):
    again(more.root)
  (records,) = directory.glob('*validation*-of-*')
  records.unlink()
  with pytest.raises(
    ValueError, match=rf'only in part there: 1 of 1 files of validation are missing, such as {records.name}'
  ):
    again(tiny.root)
  (directory / 'dataset_info.json').unlink()
  with pytest.raises(ValueError, match=rf'{directory} is only in part there, without dataset_info\.json: remove it'):
    again(tiny.root)


def test_other_image_formats_subfolders_and_own_names(tmp_path):
  """PNG bytes pass unchanged, files may lie in subfolders, an image may have no objects in a test split."""
  images = tmp_path / 'pictures'
  (images / 'a' / 'b').mkdir(parents=True)
  names = ['a/b/one.png', 'a/two.png', 'three.png']
  for n, name in enumerate(names):
    cv2.imwrite(str(images / name), np.full((8 + n, 9, 3), 40 * n, np.uint8))
  data = dict(
    images=[dict(id=n, file_name=name, height=8 + n, width=9) for n, name in enumerate(names)],
    categories=[dict(id=7, name='cat')],
  )
  path = _write(tmp_path / 'image_info_own.json', data)
  prepare_tfds.prepare([prepare_tfds.Split('test', images, path)], tmp_path, config='own')
  theirs = sources.TfdsSource('coco/own', tmp_path, 'test', require_boxes=False)
  ours = sources.JsonSource(images, path, 'test', require_boxes=False)
  stored = ours.annotations.file_names
  assert stored == theirs.annotations.file_names and sorted(stored) == sorted(names)
  assert ours.annotations.report == theirs.annotations.report
  for i, name in enumerate(stored):
    assert ours[i].encoded == theirs[i].encoded == (images / name).read_bytes()
    assert ours[i].boxes.shape == theirs[i].boxes.shape == (0, 4)
  assert ours.ground_truth['annotations'] == []


def test_records_hold_what_tfds_would_store(tiny, prepared):
  """Ids and areas too (truncated, as in TFDS), although our own source does not read them."""
  data = json.loads(tiny.annotations().read_text())
  directory = prepare_tfds.prepared_directory(prepared)
  records = tfds.builder_from_directory(directory).as_data_source(
    split='train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  stored = [pair for record in records for pair in zip(record['objects']['id'], record['objects']['area'])]
  assert sorted(stored) == [(a['id'], int(a['area'])) for a in data['annotations']]
  assert (directory / 'annotations/instances_train.json').read_bytes() == tiny.annotations().read_bytes()


def test_version_in_the_name_and_directory_itself(prepared):
  directory = prepare_tfds.prepared_directory(prepared)
  assert sources.find_prepared('coco/2017:1.1.0', prepared) == directory
  assert sources.find_prepared('coco/2017', prepared) == directory
  assert sources.find_prepared('whatever', directory) == directory


def test_prepared_without_json(tiny, prepared, tmp_path):
  """A data set that TFDS prepared: no JSON beside it, no metadata, so ids come from the names."""
  directory = tmp_path / 'coco'
  shutil.copytree(prepare_tfds.prepared_directory(prepared), directory)
  shutil.rmtree(directory / 'annotations')
  assert sources.TfdsSource(data_dir=directory).categories.ids == (3, 1, 90)  # from the metadata
  (directory / 'metadata.json').write_text('{}')
  source = sources.TfdsSource(data_dir=directory)
  assert source.categories.ids == (1, 2, 3) and source.categories.names == ('disc', 'square', 'ring')
  assert len(source[1].encoded) > 0
  with pytest.raises(FileNotFoundError, match='annotations=FILE'):
    _ = source.ground_truth
  given = sources.TfdsSource(data_dir=directory, annotations=tiny.annotations())
  assert given.categories.ids == (3, 1, 90)
  assert len(given.ground_truth['images']) == 7
  wrong = sources.TfdsSource(data_dir=directory, annotations=tiny.annotations('val2017'))
  with pytest.raises(ValueError, match=r'\(3 images\) is not the JSON of split .train. .*\(7 images\)'):
    _ = wrong.image_sizes

  names = categories.COCO.names
  assert (len(names), names[0], names[-1]) == (80, 'person', 'toothbrush')
  (directory / 'objects-label.labels.txt').write_text('\n'.join(names) + '\n')
  features = json.loads((directory / 'features.json').read_text())
  label = features['featuresDict']['features']['objects']['sequence']['feature']['featuresDict']['features']['label']
  label['classLabel']['numClasses'] = '80'
  _write(directory / 'features.json', features)
  ids = sources.TfdsSource(data_dir=directory).categories.ids
  ranges = [(1, 11), (13, 25), (27, 28), (31, 44), (46, 65), (67, 67), (70, 70), (72, 82), (84, 90)]
  assert ids == tuple(i for first, last in ranges for i in range(first, last + 1))


def test_tfrecord_is_refused(prepared, tmp_path):
  directory = tmp_path / 'coco'
  shutil.copytree(prepare_tfds.prepared_directory(prepared), directory)
  info = json.loads((directory / 'dataset_info.json').read_text())
  _write(directory / 'dataset_info.json', {**info, 'fileFormat': 'tfrecord'})
  with pytest.raises(FileNotFoundError, match=r'tfrecord files.*scripts/prepare_coco.py'):
    sources.TfdsSource(data_dir=directory)


def test_repairs_are_counted(tmp_path):
  boxes = [[-5, -5, 20, 20], [90, 40, 30, 30], [10, 10, 0, 5], [10, 10, 5, -1], [200, 10, 5, 5], [1, 2, 3, 4]]
  data = dict(
    images=[dict(id=4, file_name='a.jpg', height=50, width=100)],
    categories=[dict(id=1, name='cat')],
    annotations=[dict(id=n, image_id=4, category_id=1, bbox=box) for n, box in enumerate(boxes)],
  )
  path = _write(tmp_path / 'a.json', data)
  found = read_annotations(path)
  pixels = found.boxes * [100, 50, 100, 50]
  np.testing.assert_allclose(pixels, [[0, 0, 15, 15], [90, 40, 100, 50], [1, 2, 4, 6]], atol=1e-5)
  counts = {k: found.report[k] for k in ('boxes', 'clipped', 'degenerate', 'filled_area', 'filled_iscrowd')}
  assert counts == dict(boxes=3, clipped=3, degenerate=3, filled_area=6, filled_iscrowd=6)
  assert found.report['renumbered_ids'] == 6
  truth = read_ground_truth(path)
  assert [a['id'] for a in truth['annotations']] == [1, 2, 6]  # what training leaves out is no ground truth either
  assert [a['bbox'] for a in truth['annotations']] == [boxes[0], boxes[1], boxes[5]]
  assert truth['annotations'][0]['area'] == 400


def test_what_training_leaves_out_is_no_ground_truth(tmp_path):
  """Otherwise no detector could reach an AP of 1. From both sources, and counted by both."""
  tiny = write_tiny_coco(tmp_path / 'coco')
  data = json.loads(tiny.annotations('val2017').read_text())
  sound = len(data['annotations'])
  image = data['images'][1]
  for box in ([5, 5, 0, 0], [5, 5, -3, 4], [image['width'], 0, 9, 9], [-9, -9, 9, 5], [3, 3, 4, 1e-9]):
    row = dict(id=len(data['annotations']) + 1, image_id=image['id'], category_id=1, bbox=box, area=9, iscrowd=0)
    data['annotations'].append(row)
  _write(tiny.annotations('val2017'), data)
  prepare_tfds.prepare(prepare_tfds.official_splits(tiny.root, ['val2017']), tmp_path)
  ours = sources.JsonSource(tiny.images('val2017'), tiny.annotations('val2017'), 'validation')
  for source in (ours, sources.TfdsSource(data_dir=tmp_path, split='validation')):
    truth = source.ground_truth['annotations']
    written = [{k: v for k, v in row.items() if k != 'segmentation'} for row in data['annotations'][:sound]]
    assert truth == written and source.annotations.report['degenerate'] == 5
    assert sum(len(source[i].boxes) for i in range(len(source))) == sound
    rows = [{key: row[key] for key in ('image_id', 'category_id', 'bbox')} | dict(score=0.9) for row in truth]
    assert coco_ap.evaluate(source.ground_truth, rows)['AP'] == pytest.approx(1)
    assert coco_ap.evaluate(data | dict(annotations=data['annotations'][: sound + 1]), rows)['AP'] < 0.99


@pytest.mark.parametrize('change', ['a box', 'an image'])
def test_a_json_that_changes_while_a_run_reads_it(change, tmp_path):
  """The ground truth is read again for an evaluation, hours after the rest."""
  tiny = write_tiny_coco(tmp_path / 'coco')
  path = tiny.annotations('val2017')
  source = sources.JsonSource(tiny.images('val2017'), path, 'validation')
  data = json.loads(path.read_text())
  if change == 'a box':
    data['annotations'][0]['bbox'][2] -= 1
  else:
    data['images'].append(dict(data['images'][0], id=999, file_name='new.jpg'))
  _write(path, data)
  with pytest.raises(ValueError, match=r'instances_val2017\.json was changed after it was read: .* put it back'):
    _ = source.ground_truth


def test_id_zero_and_missing_fields_do_not_cost_ap(tmp_path):
  """With annotation id 0 pycocotools counts the box as never found."""
  data = dict(
    images=[dict(id=1, file_name='a.jpg', height=50, width=100), dict(id=2, file_name='b.jpg', height=50, width=100)],
    categories=[dict(id=1, name='cat')],
    annotations=[dict(id=n, image_id=n + 1, category_id=1, bbox=[10, 10, 20, 20]) for n in range(2)],
  )
  truth = COCO()
  truth.dataset = read_ground_truth(_write(tmp_path / 'a.json', data))
  truth.createIndex()
  found = truth.loadRes([dict(image_id=i, category_id=1, bbox=[10, 10, 20, 20], score=0.9) for i in (1, 2)])
  evaluation = COCOeval(truth, found, 'bbox')
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summarize()
  assert evaluation.stats[0] == pytest.approx(1.0)


def test_official_splits():
  splits = prepare_tfds.official_splits('/data/coco', ['train2014', 'test-dev2014'])
  assert [s.name for s in splits] == ['train', 'test_dev']
  assert str(splits[1].images) == '/data/coco/test2014'
  assert str(splits[1].annotations) == '/data/coco/annotations/image_info_test-dev2014.json'
  for wrong in ('training', 'train'):
    with pytest.raises(ValueError, match='unknown COCO split'):
      prepare_tfds.official_splits('/data/coco', [wrong])
  with pytest.raises(ValueError, match='one year'):
    prepare_tfds.official_splits('/data/coco', ['train2014', 'val2017'])


def test_script(tiny, tmp_path):
  script = Path(__file__).parents[2] / 'scripts/prepare_coco.py'

  def run(*arguments):
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=tmp_path)

  first = run('--coco', str(tiny.root), '--data_dir', 'out', '--splits', 'val2017')
  assert first.returncode == 0, first.stderr
  assert '\nprepared: ' in first.stdout and 'validation: 3 images, 3 categories' in first.stdout
  assert '--config.data.train.data_dir=out' in first.stdout
  again = run('--coco', str(tiny.root), '--data_dir', 'out', '--splits', 'val2017')
  assert 'already prepared: ' in again.stdout and '\nprepared: ' not in again.stdout
  (tmp_path / 'out/coco/2017/incomplete.ABCDEF_1.1.0').mkdir()
  other = write_tiny_coco(tmp_path / 'other', seed=1)
  refused = run('--coco', str(other.root), '--data_dir', 'out', '--splits', 'val2017')
  assert refused.returncode == 2 and 'out/coco/2017/1.1.0 holds another data set' in refused.stderr
  assert 'remove it if none does' in run(*first.args[2:]).stdout
  missing = run('--coco', str(tmp_path / 'nowhere'), '--data_dir', 'out2')
  assert missing.returncode == 2 and 'no annotations at' in missing.stderr and 'Traceback' not in missing.stderr


def test_a_pipe_in_place_of_an_image_is_not_waited_for(tmp_path):
  coco = write_tiny_coco(tmp_path)
  source = sources.JsonSource(coco.images(), coco.annotations())
  path = coco.images() / source.annotations.file_names[2]
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match=f'{path}: is no regular file but a folder, a pipe or a device'):
    source[2]
  assert source.header(2) is None and source.header(1).orientation == 1
