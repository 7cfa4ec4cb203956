"""What predict writes is never an input, never over a file of the user's, and never taken for a photo afterwards."""

import itertools
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_detector import stand_in
from triplet_det.data import image_files
from triplet_det.pictures import video
from triplet_det.prediction import find_files, over_files
from triplet_det.prediction.merge_parts import merge
from triplet_det.prediction.parts_on_disk import Shard
from triplet_det.run import output_paths


def draw(path: Path, seed: int = 0) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.random.default_rng(seed).integers(0, 256, (30, 41, 3), np.uint8)
  path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
  return path


def content(folder: Path) -> dict[str, bytes]:
  """Of every file below."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def run(out: Path, *patterns, loaded=None, **options):
  paths = find_files.find_images([str(pattern) for pattern in patterns]).paths
  return over_files.predict(loaded or stand_in(), paths, out, threshold=0.4, **options)


def images_in(out: Path) -> list[str]:
  return [Path(row['image']).name for row in json.loads((out / 'detections.json').read_text())]


@pytest.fixture
def photos(tmp_path):
  """Two JPEGs."""
  for n in range(2):
    draw(tmp_path / 'photos' / f'a{n}.jpg', n)
  return tmp_path / 'photos'


@pytest.mark.parametrize('way', ['itself', 'linked', 'relative', 'hard', 'link_in_it', 'video', 'annotations'])
def test_an_output_is_never_an_input(tmp_path, monkeypatch, way):
  photos, out = tmp_path / 'photos', tmp_path / 'out'
  first, options = draw(photos / 'a.png'), {}
  draw(photos / 'b.png', 1)
  if way == 'itself':
    out = photos
  elif way == 'linked':
    out.symlink_to(photos)
  elif way == 'relative':
    monkeypatch.chdir(tmp_path)
    out = Path('photos/../photos')
  elif way == 'video':
    out, first = photos, photos / 'v.mp4'
    video.write_video(first, [np.full((48, 64, 3), 9, np.uint8)] * 3, 25)
    for name in ('a', 'b'):
      (photos / f'{name}.png').rename(photos / f'{name}.bmp')
  elif way == 'annotations':
    out.mkdir()
    first = out / 'coco_results.json'
    first.write_text(
      json.dumps(dict(images=[dict(id=i, file_name=f'{n}.png') for i, n in enumerate('ab')], categories=[]))
    )
    first.write_text(json.dumps({**json.loads(first.read_text()), 'categories': stand_in().categories.to_coco()}))
    options = dict(annotations=first)
  else:
    out.mkdir()
    os.link(first, out / 'a.png') if way == 'hard' else (out / 'a.png').symlink_to(first)
  before = content(tmp_path)
  with pytest.raises(ValueError) as refused:
    run(out, photos, **options)
  written = out / first.name if way != 'annotations' else first
  assert f'{written} would be written over the input {first}' in str(refused.value)
  assert content(tmp_path) == before


def test_what_lies_in_the_way_is_kept(photos, tmp_path):
  out = tmp_path / 'out'
  for name in ('a1.png', 'detections.json', 'predict.json', 'detections.json.tmp'):
    out.mkdir()
    (out / name).write_text('mine')
    with pytest.raises(ValueError, match=rf'out/{name} would be written over, and is no result of predict.*another'):
      run(out, photos)
    assert content(out) == {name: b'mine'}
    shutil.rmtree(out)
  out.mkdir()
  (out / 'figures').symlink_to(photos)
  with pytest.raises(ValueError, match=r"'figures' leads out of .*out"):
    run(out, photos)


def test_names_are_unique():
  def names(*given):
    return over_files.picture_names([Path(name) for name in given])

  assert names('a.jpg', 'a.png', 'a_2.jpg') == ['a.png', 'a_3.png', 'a_2.png']
  assert names('x/a.png', 'b.png', 'y/a.png') == ['a.png', 'b.png', 'a_2.png']
  assert names('v.mp4', 'v.jpg', 'unfinished_v.mp4') == ['v.mp4', 'v_2.png', 'unfinished_v.mp4']
  assert names('A.png', 'a.png') == ['A.png', 'a_2.png']
  assert names('caf\u00e9.png', 'cafe\u0301.png') == ['caf\u00e9.png', 'cafe\u0301_2.png']
  for given in itertools.product(('a', 'A', 'a_2', 'a_2_2', 'a_3'), repeat=4):
    told = output_paths.unique(given)
    assert len({unicodedata.normalize('NFC', name).casefold() for name in told}) == 4
    assert all(one == name or one.startswith(f'{name}_') for one, name in zip(told, given))


def test_every_image_has_its_drawing(tmp_path):
  for n, name in enumerate(('part.jpg', 'part.png', 'part_2.jpg')):
    draw(tmp_path / 'in' / name, n)
  run(tmp_path / 'out', tmp_path / 'in')
  drawn = list((tmp_path / 'out').glob('*.png'))
  assert len(drawn) == 3 and len({path.read_bytes() for path in drawn}) == 3


@pytest.mark.parametrize('place', ['in_it', 'beside', 'itself'])
def test_a_second_run_sees_the_same_images(photos, tmp_path, capsys, place):
  out = {'in_it': photos / 'deep' / 'out', 'beside': tmp_path / 'out', 'itself': photos}[place]
  searched = tmp_path if place == 'beside' else photos
  for _ in range(2):
    assert run(out, searched, coco=True).images == 2
    assert images_in(out) == ['a0.jpg', 'a1.jpg']
  told = capsys.readouterr().err
  if place == 'itself':
    assert 'passed over: results of predict (5), such' in told and 'folders of' not in told
  else:
    assert f'passed over: folders of results of predict (1), such as {out}' in told
  # Named by itself, or by a pattern, it has no photos either.
  if place != 'itself':
    with pytest.raises(FileNotFoundError, match=r'passed over: results of predict \(5\)'):
      find_files.find_images([str(out)])
    assert (
      len(find_files.find_images([str(out), str(photos / '*.jpg'), str(out / '*.png'), str(out / 'a0.png')]).paths) == 2
    )
  # As the shell expands photos/*.
  assert run(out, *sorted(photos.iterdir()), coco=True).images == 2


def test_results_of_an_earlier_run_go_and_nothing_else_does(photos, tmp_path):
  out = tmp_path / 'out'
  video.write_video(photos / 'v.mp4', [np.full((48, 64, 3), 9, np.uint8)] * 3, 25)
  run(out, photos, coco=True)
  assert {*content(out)} == {
    *('a0.png', 'a1.png', 'v.mp4', 'coco_results.json', 'detections.json', 'predict.json'),
  }
  (out / 'a0.png').rename(out / 'nice.png')
  shutil.copy(photos / 'a0.jpg', out / 'mine.jpg')
  for gone in ('a1.jpg', 'v.mp4'):
    (photos / gone).unlink()
  draw(photos / 'new.jpg', 7)
  run(out, photos)
  assert {*content(out)} == {'a0.png', 'new.png', 'detections.json', 'predict.json', 'nice.png', 'mine.jpg'}
  # A drawing that its user drew on stays when its image is gone, and is not written over when it is there.
  draw(out / 'new.png', 9)
  with pytest.raises(ValueError, match=r'out/new\.png would be written over, and .* was changed since: move it'):
    run(out, photos)
  (photos / 'new.jpg').unlink()
  before = (out / 'new.png').read_bytes()
  run(out, photos)
  assert (out / 'new.png').read_bytes() == before and images_in(out) == ['a0.jpg']


def test_a_run_in_a_copied_folder(photos, tmp_path):
  """Times of files say nothing."""
  run(tmp_path / 'out', photos)
  shutil.copytree(tmp_path / 'out', tmp_path / 'copy', copy_function=shutil.copy)
  (photos / 'a0.jpg').unlink()
  run(tmp_path / 'copy', photos)
  assert {*content(tmp_path / 'copy')} == {'a1.png', 'detections.json', 'predict.json'}


@pytest.mark.parametrize('killed_after', [0, 1, 3])
def test_a_killed_run_keeps_what_it_has(tmp_path, killed_after):
  out = tmp_path / 'photos' / 'out'
  for n in range(6):
    draw(tmp_path / 'photos' / f'{n}.jpg', n)
  run(out, tmp_path / 'photos', coco=True)
  whole = content(out)
  loaded = stand_in(killed_after=killed_after)
  loaded.tester.batch_size = 1
  with pytest.raises(KeyboardInterrupt):
    run(out, tmp_path / 'photos', loaded=loaded, coco=True)
  assert len(list(out.glob('*.png'))) == killed_after and not list(out.glob('*results.json'))
  assert run(out, tmp_path / 'photos', coco=True).images == 6 - killed_after
  assert content(out) == whole
  # Of a killed run whose parts were removed, as the message about other settings says, the drawings are known.
  with pytest.raises(KeyboardInterrupt):
    run(out, tmp_path / 'photos', loaded=stand_in(killed_after=4))
  with pytest.raises(ValueError, match='coco False there, True now'):
    run(out, tmp_path / 'photos', coco=True)
  shutil.rmtree(out / 'parts')
  run(out, tmp_path / 'photos', coco=True)
  assert content(out) == whole


def test_shards_clean_once(tmp_path):
  out, photos = tmp_path / 'out', tmp_path / 'photos'
  for n in range(6):
    draw(photos / f'{n}.jpg', n)
  run(out, photos, coco=True)
  whole = content(out)
  (photos / '5.jpg').rename(photos / '6.jpg')
  for index in (2, 1):
    run(out, photos, coco=True, shard=Shard(index, 2))
    assert len(list(out.glob('*.png'))) == {2: 3, 1: 6}[index]
  with pytest.raises(ValueError, match='coco True there, False now'):
    run(out, photos, shard=Shard(2, 3))
  assert len(list(out.glob('*.png'))) == 6
  for _ in range(2):
    merge(out)
    merged = {name: text for name, text in content(out).items() if not name.startswith('p')}
    assert {*merged} == {*whole} - {'5.png', 'predict.json'} | {'6.png'}
    assert images_in(out) == [f'{n}.jpg' for n in (0, 1, 2, 3, 4, 6)]
  run(out, photos, coco=True, shard=Shard(1, 2))  # complete, and left as it is
  assert {name: text for name, text in content(out).items() if not name.startswith('p')} == merged


def test_what_a_stranger_lists_stays_in_the_folder(photos, tmp_path):
  out = tmp_path / 'out'
  run(out, photos)
  listed = json.loads((out / 'predict.json').read_text())
  for name in ('../mine.txt', str(tmp_path / 'mine.txt'), 'link/mine.txt'):
    (tmp_path / 'mine.txt').write_text('mine')
    (out / 'link').unlink(missing_ok=True)
    (out / 'link').symlink_to(tmp_path)
    (out / 'predict.json').write_text(json.dumps(listed | {'files': {name: None}}))
    for gone in out.glob('*.png'):
      gone.unlink()
    (out / 'detections.json').unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f'{name}.* leads out of .*out: it is not followed'):
      run(out, photos, coco=True)
    assert (tmp_path / 'mine.txt').read_text() == 'mine'
    shutil.rmtree(out / 'parts')


@pytest.mark.parametrize('name', ['../w.mp4', '/w.mp4', 'deep/w.mp4', 'w.mp4', 'v.mp4'])
def test_a_part_of_a_stranger_writes_no_video_elsewhere(tmp_path, name):
  name = name.replace('/w', f'{tmp_path}/w') if name.startswith('/') else name
  out = tmp_path / 'out'
  frames = [np.full((48, 64, 3), 9, np.uint8)] * 3
  (out / 'deep').mkdir(parents=True)
  video.write_video(out / 'v.mp4', frames, 25)
  run(tmp_path / 'other', out / 'v.mp4', shard=Shard(1, 2))
  run(tmp_path / 'other', out / 'v.mp4', shard=Shard(2, 2))
  shutil.copytree(tmp_path / 'other' / 'parts', out / 'parts')
  for part in (out / 'parts').iterdir():
    lines = part.read_text().replace('"v.mp4"]', f'"{name}"]').splitlines(keepends=True)
    part.write_text(''.join(re.sub(r', "crc32": \d+}', '}', line) for line in lines))  # as if it were sound
  for place in (tmp_path / 'w.mp4', out / 'w.mp4', out / 'deep' / 'w.mp4'):
    place.write_text('mine')
  before = content(tmp_path)
  with pytest.raises(ValueError, match=r'leads out of|v\.mp4 would be written over|w\.mp4 would be written over'):
    merge(out)
  assert content(tmp_path) == before


def test_what_is_passed_over_is_said(photos, tmp_path, capsys, monkeypatch):
  draw(tmp_path / 'elsewhere' / 'c.png')
  (photos / 'linked').symlink_to(tmp_path / 'elsewhere')
  (photos / 'x.jpg').mkdir()
  draw(photos / 'x.jpg' / 'd.JPG')
  (photos / 'y.jpg').mkdir()
  (photos / '._a0.jpg').write_bytes(b'\0\5\x16\7')
  for name in ('e.heic', 'f.heic', 'notes.txt', 'README'):
    (photos / name).write_text('x')
  monkeypatch.setattr(image_files, 'foreign_suffixes', lambda: {'.heic': image_files.not_readable('HEIF')})
  found = find_files.find_images([str(photos)])
  assert [path.name for path in found.paths] == ['a0.jpg', 'a1.jpg', 'd.JPG'] and found.lost == 2
  told = capsys.readouterr().err
  assert 'passed over: linked folders (1), such as' in told and str(photos / 'linked') in told
  assert 'HEIC, which cannot be decoded here: pip install pillow-heif (2), such as' in told
  assert 'files of other kinds (3: ' in told
  for kind in ('.txt 1', '._* 1', 'README 1'):
    assert kind in told
  # As the shell expands a pattern, and as it is given to be expanded here.
  assert len(find_files.find_images(sorted(map(str, photos.glob('*.jpg')))).paths) == 3
  assert [path.name for path in find_files.find_images([str(photos / '*.jpg')]).paths] == ['a0.jpg', 'a1.jpg']
  assert 'folders (2), such as' in capsys.readouterr().err
  with pytest.raises(FileNotFoundError, match=r'no images there.*passed over: files of other kinds'):
    find_files.find_images([str(photos / '._a0.jpg'), str(photos / 'y.jpg')])
  with pytest.raises(FileNotFoundError, match=r'gone\.jpg: no such file'):
    find_files.find_images([str(photos), str(photos / 'gone.jpg')])


@pytest.mark.parametrize('suffix', ['.jfif', '.jpe', '.gif', '.avif', '.jp2', '.JPG'])
def test_formats_that_can_be_decoded_are_found(tmp_path, suffix):
  content = draw(tmp_path / 'a.jpg').read_bytes()
  if suffix in ('.gif', '.avif', '.jp2'):
    if not cv2.haveImageWriter(f'a{suffix}'):
      pytest.skip(f'OpenCV here has no {suffix}')
    content = cv2.imencode(suffix, np.full((40, 50, 3), 90, np.uint8))[1].tobytes()
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / f'b{suffix}').write_bytes(content)
  assert run(tmp_path / 'out', tmp_path / 'in').images == 1


def test_the_home_is_the_home(photos, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert len(find_files.find_images(['~/photos']).paths) == 2
  assert len(find_files.find_images(['~/photos/*.jpg']).paths) == 2
  assert output_paths.local('~/out') == tmp_path / 'out'
  assert output_paths.local('~nobody_of_this_name/x') == Path('~nobody_of_this_name/x')
