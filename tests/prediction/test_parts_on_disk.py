"""Many images: a killed run continues, several processes share the work, frames of videos are images."""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_detector import CATEGORIES, Colours, stand_in
from triplet_det.detection.loading import read_image
from triplet_det.pictures import video
from triplet_det.prediction import over_files
from triplet_det.prediction.merge_parts import merge
from triplet_det.prediction.parts_on_disk import Part, Shard

FRAMES = 11


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Two images, a video, an image that is broken, an image."""
  folder = tmp_path_factory.mktemp('files')
  rng = np.random.default_rng(0)
  for name in ('a.png', 'b.png', 'd.png'):
    cv2.imwrite(str(folder / name), rng.integers(0, 256, (30, 41, 3), np.uint8))
  (folder / 'c.jpg').write_bytes(b'\xff\xd8 no image')
  frames = [np.full((49, 64, 3), (20 * i, 250 - 20 * i, 60), np.uint8) for i in range(FRAMES)]
  video.write_video(folder / 'v.mp4', frames, 12.5)
  return [folder / name for name in ('a.png', 'b.png', 'v.mp4', 'c.jpg', 'd.png')]


def results(out: Path) -> dict[str, list]:
  return {path.name: json.loads(path.read_text()) for path in out.glob('*.json')}


@pytest.fixture(scope='module')
def at_once(files, tmp_path_factory):
  out = tmp_path_factory.mktemp('at_once')
  outcome = over_files.predict(stand_in(), files, out, threshold=0.5, coco=True)
  assert outcome.images == outcome.summary.images == 3 + FRAMES
  assert (
    list(outcome.summary.left_out) == [str(files[3])] and 'is not an image' in outcome.summary.left_out[str(files[3])]
  )
  assert not (out / 'parts').exists()
  return out


def test_rows_are_in_the_order_of_files_and_frames(at_once, files):
  plain, coco = results(at_once)['detections.json'], results(at_once)['coco_results.json']
  expected = [(f.name, None) for f in files[:2]] + [('v.mp4', i) for i in range(FRAMES)] + [('d.png', None)]
  assert [(Path(row['image']).name, row.get('frame')) for row in plain] == expected
  # The position: two images, the frames, and the broken file's place stays empty.
  assert [row['image_id'] for row in plain] == [0, 1, *range(2, 2 + FRAMES), 3 + FRAMES]
  assert len(coco) == 3 * len(plain)  # all scores
  finder, boxes = Colours(), 0
  for position, row in enumerate(plain):
    image = read_image(row['image']) if 'frame' not in row else dict(video.read_frames(files[2]))[row['frame']]
    wanted = finder.find(image)
    above = int((wanted.scores > 0.5).sum())
    boxes += above
    assert [one['name'] for one in row['detections']] == ['cat', 'cow', 'dog'][:above]
    mine = coco[3 * position : 3 * position + 3]
    assert [one['image_id'] for one in mine] == [row['image_id']] * 3
    assert [one['category_id'] for one in mine] == [7, 12, 9]
    np.testing.assert_array_equal(np.float32([one['score'] for one in mine]), wanted.scores)
  assert boxes and boxes == sum(len(row['detections']) for row in plain)


def test_videos_are_drawn(at_once, files):
  pictures = dict(video.read_frames(at_once / 'v.mp4'))
  assert len(pictures) == FRAMES and video.frame_rate(at_once / 'v.mp4') == 12.5
  frames = dict(video.read_frames(files[2]))
  assert frames[0].shape == (48, 64, 3)  # an odd line is cut
  _, blue_first = cv2.VideoCapture(str(files[2])).read()
  np.testing.assert_allclose(blue_first.mean((0, 1)), (60, 250, 0), atol=6)
  loaded = stand_in()
  for i in (0, 5, FRAMES - 1):
    np.testing.assert_allclose(frames[i].mean((0, 1)), (20 * i, 250 - 20 * i, 60), atol=6)  # lossy
    expected = loaded.wrap(loaded.tester.find(frames[i])).draw(frames[i], threshold=0.5)
    assert pictures[i].shape == expected.shape
    assert np.abs(pictures[i].astype(int) - expected).mean() < 6
  assert sorted(path.name for path in at_once.glob('*.png')) == ['a.png', 'b.png', 'd.png']


@pytest.mark.parametrize('killed_after', [0, 4, 8])
@pytest.mark.parametrize('cut', [0, 7])
def test_a_killed_run_continues(at_once, files, tmp_path, killed_after, cut):
  killed = stand_in(killed_after=killed_after)
  with pytest.raises(KeyboardInterrupt):
    over_files.predict(killed, files, tmp_path, threshold=0.5, coco=True)
  assert not (tmp_path / 'detections.json').exists()
  part = tmp_path / 'parts' / 'part_1_of_1.jsonl'
  content = part.read_bytes()
  part.write_bytes(content[: len(content) - cut])  # the last line did not reach the disk
  again = stand_in()
  outcome = over_files.predict(again, files, tmp_path, threshold=0.5, coco=True)
  repeated = set(again.tester.seen) & set(killed.tester.seen)
  assert len(repeated) == (1 if cut and killed_after else 0)
  assert outcome.images == 3 + FRAMES - killed_after + len(repeated)
  assert results(tmp_path) == results(at_once)


@pytest.mark.parametrize('count', [2, 5])
def test_shards_share_the_work(at_once, files, tmp_path, count, capsys):
  seen = []
  for index in range(count, 0, -1):
    loaded = stand_in()
    outcome = over_files.predict(loaded, files, tmp_path, threshold=0.5, coco=True, shard=Shard(index, count))
    assert outcome.images == outcome.summary.images == len(loaded.tester.seen)
    seen += loaded.tester.seen
    done, total = re.findall(r'predict  image (\d+)/(\d+)', capsys.readouterr().err)[-1]
    assert int(done) == int(total) == outcome.images + len(outcome.summary.left_out)
    if index > 1:
      with pytest.raises(ValueError, match=f'{index - 1} of {count} parts are missing: part_1_of_{count}'):
        merge(tmp_path)
  assert len(seen) == len(set(seen)) == 3 + FRAMES
  summary = merge(tmp_path)
  assert results(tmp_path) == results(at_once)
  assert (tmp_path / 'v.mp4').stat().st_size == (at_once / 'v.mp4').stat().st_size
  assert (summary.images, list(summary.left_out)) == (3 + FRAMES, [str(files[3])])
  # A shard that is complete is left as it is.
  again = stand_in()
  outcome = over_files.predict(again, files, tmp_path, threshold=0.5, coco=True, shard=Shard(1, count))
  assert outcome.images == 0 and not again.tester.seen


def flip(line):
  """A bit of a number: still JSON."""
  at = line.index(b'"scores": [0.') + len(b'"scores": [0.')
  return line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]


DAMAGES = {  # of three lines, and how many places are lost
  'a bit of a number': (lambda a, b, c: a + flip(b) + c, 1),
  'the end of a line': (lambda a, b, c: a + b[:-2] + c, 2),
  'a sector of zeros': (lambda a, b, c: a[:-20] + bytes(20 + len(b)) + c, 3),
  'not even a number': (lambda a, b, c: a + b'5\n' + c, 1),
}


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_damaged_line_is_done_again_and_said(at_once, files, tmp_path, kind, caplog):
  with pytest.raises(KeyboardInterrupt):
    over_files.predict(stand_in(killed_after=8), files, tmp_path, threshold=0.5, coco=True)
  part, (damage, lost) = tmp_path / 'parts' / 'part_1_of_1.jsonl', DAMAGES[kind]
  lines = part.read_bytes().splitlines(keepends=True)
  part.write_bytes(b''.join(lines[:3]) + damage(*lines[3:6]) + b''.join(lines[6:]))
  outcome = over_files.predict(stand_in(), files, tmp_path, threshold=0.5, coco=True)
  assert re.search(rf'{part}: line [45] is damaged, what it was about is done again', caplog.text)
  assert outcome.images == 3 + FRAMES - 8 + lost
  assert results(tmp_path) == results(at_once)


def test_damage_of_a_whole_part_is_not_merged(files, tmp_path):
  options = dict(threshold=0.5, draw=False)
  for index in (1, 2):
    over_files.predict(stand_in(), files[:2], tmp_path, **options, shard=Shard(index, 2))
  part = tmp_path / 'parts' / 'part_2_of_2.jsonl'
  about, line, frames = part.read_bytes().splitlines(keepends=True)
  for damaged in (about + flip(line) + frames, about + line + b'x' + frames):
    part.write_bytes(damaged)
    with pytest.raises(ValueError, match=r'not complete are part_2_of_2\.jsonl: run these shards to their end first'):
      merge(tmp_path)
    assert not (tmp_path / 'detections.json').exists()
    over_files.predict(stand_in(), files[:2], tmp_path, **options, shard=Shard(2, 2))
    assert merge(tmp_path).images == 2  # and it stays repaired
    (tmp_path / 'detections.json').unlink()
  part.write_bytes(b'x' + about + line + frames)
  for again in (merge, lambda out: over_files.predict(stand_in(), files[:2], out, **options, shard=Shard(2, 2))):
    with pytest.raises(
      ValueError, match=r'part_2_of_2\.jsonl: line 1, which says of which run it is, is damaged\. Remove'
    ):
      again(tmp_path)
  old = [json.dumps({k: v for k, v in json.loads(one).items() if k != 'crc32'}) for one in (about, line, frames)]
  part.write_text('\n'.join(old) + '\n')  # of a version without checksums
  assert merge(tmp_path).images == 2


@pytest.mark.parametrize('shard', [Shard(1, 1), Shard(1, 2)])
def test_a_file_that_is_repaired_and_a_drawing_that_is_gone_are_done_again(shard, files, tmp_path):
  """Of a finished shard, and of a run that was killed."""
  photos, out = tmp_path / 'photos', tmp_path / 'out'
  photos.mkdir()
  paths = [photos / f'{n}.png' for n in range(9)]
  for path in paths:
    shutil.copy(files[0], path)
  whole = paths[0].read_bytes()
  paths[0].write_bytes(whole[:100])
  options = dict(threshold=0.5, coco=True, shard=shard)
  with pytest.raises(KeyboardInterrupt) if shard.count == 1 else contextlib.nullcontext():
    over_files.predict(stand_in(killed_after=4), paths, out, **options)
  part = Part(shard.path(out))
  assert list(part.summary.left_out) == [str(paths[0])] and part.summary.images == 4
  part.close()
  paths[0].write_bytes(whole)
  (out / '2.png').unlink()
  outcome = over_files.predict(stand_in(), paths, out, **options)
  assert not outcome.summary.left_out and (out / '2.png').exists() and (out / '0.png').exists()
  # 0 and 2 anew; and the four that were not done.
  assert (outcome.images, outcome.summary.images) == ((6, 9) if shard.count == 1 else (2, 5))
  if shard.count == 1:
    undisturbed = over_files.predict(stand_in(), paths, tmp_path / 'other', **options).summary
    assert undisturbed == outcome.summary
    for name in ('detections.json', 'coco_results.json'):
      assert (out / name).read_bytes() == (tmp_path / 'other' / name).read_bytes()


def test_parts_of_other_runs_are_refused(files, tmp_path):
  options = dict(threshold=0.5, draw=False)
  with pytest.raises(FileNotFoundError, match='--shard first'):
    merge(tmp_path)
  over_files.predict(stand_in(), files[:2], tmp_path, **options, shard=Shard(1, 2))
  with pytest.raises(ValueError, match=r'threshold 0.5 there, 0.4 now.*Give another --out'):
    over_files.predict(stand_in(), files[:2], tmp_path, threshold=0.4, draw=False, shard=Shard(1, 2))
  with pytest.raises(ValueError, match='files 2 there, 1 now'):
    over_files.predict(stand_in(), files[:1], tmp_path, **options, shard=Shard(1, 2))
  other = stand_in()
  other.tester.settings = dataclasses.replace(other.tester.settings, mirror=False)
  with pytest.raises(ValueError, match=r'in another way: test\.mirror True there, False now\. Give'):
    over_files.predict(other, files[:2], tmp_path, **options, shard=Shard(1, 2))
  with pytest.raises(KeyboardInterrupt):
    over_files.predict(stand_in(killed_after=0), files[:2], tmp_path, **options, shard=Shard(2, 2))
  with pytest.raises(ValueError, match='not complete are part_2_of_2'):
    merge(tmp_path)
  over_files.predict(stand_in(), files[:2], tmp_path, **options, shard=Shard(3, 3))
  with pytest.raises(ValueError, match='runs in 2 and 3 shards'):
    merge(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'), [('0/4', 'from 1, 1/4 is the first'), ('5/4', 'shard 5/4'), ('3', 'third of sixteen is 3/16')]
)
def test_shards_are_counted_from_one(text, message):
  assert Shard.parse('3/16') == Shard(3, 16)
  with pytest.raises(ValueError, match=message):
    Shard.parse(text)


def test_ids_of_an_annotation_file(files, tmp_path):
  images = [dict(id=41, file_name='a.png'), dict(id=17, file_name=f'{files[0].parent.name}/d.png')]
  images.append(dict(id=99, file_name='d.png'))  # the longer name goes first
  content = dict(images=images, categories=[dict(id=i, name=n) for i, n in ((3, 'cow'), (1, 'cat'), (2, 'dog'))])
  (tmp_path / 'known.json').write_text(json.dumps(content))
  chosen = [files[4], files[0]]
  options = dict(threshold=0.5, draw=False)
  over_files.predict(stand_in(), chosen, tmp_path, **options, annotations=tmp_path / 'known.json')
  rows = results(tmp_path)['coco_results.json']
  assert [row['image_id'] for row in rows] == [17] * 3 + [41] * 3
  assert [row['category_id'] for row in rows] == [1, 3, 2] * 2
  with pytest.raises(ValueError, match=r'1 of 2 files are not among the 3 images .*b\.png'):
    over_files.predict(stand_in(), files[:2], tmp_path, **options, annotations=tmp_path / 'known.json')
  content['categories'].pop()
  (tmp_path / 'known.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match="lacks 1 of the 3 classes of the detector: 'dog'; it has 'cow', 'cat': give"):
    over_files.predict(stand_in(), chosen, tmp_path, **options, annotations=tmp_path / 'known.json')
  (tmp_path / 'known.json').write_text('[]')
  with pytest.raises(ValueError, match='not a COCO JSON: the top level is a list'):
    over_files.predict(stand_in(), chosen, tmp_path, **options, annotations=tmp_path / 'known.json')
  with pytest.raises(FileNotFoundError, match='no annotations'):
    over_files.predict(stand_in(), chosen, tmp_path, **options, annotations=tmp_path / 'unknown.json')
  assert stand_in().categories == CATEGORIES


def test_a_broken_video_is_left_out(tmp_path):
  (tmp_path / 'v.mp4').write_bytes(b'no video')
  outcome = over_files.predict(stand_in(), [tmp_path / 'v.mp4'], tmp_path / 'out', threshold=0.5)
  assert outcome.summary.images == 0 and 'OpenCV' in outcome.summary.left_out[str(tmp_path / 'v.mp4')]
  assert results(tmp_path / 'out')['detections.json'] == []
  with pytest.raises(ValueError, match='no images to write'):
    video.write_video(tmp_path / 'w.mp4', [], 25.0)


def test_a_video_that_is_not_written_whole_is_none(tmp_path):
  """Where a file may have no more than 20,000 bytes; OpenCV does not say so."""
  program = f"""
import resource
import numpy as np
from pathlib import Path
from triplet_det.pictures import video
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 256, (20, 96, 128, 3), np.uint8)
video.write_video(Path({str(tmp_path)!r}, 'w.mp4'), noise, 25.0)
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert 'of 20 images not all could be written' in done.stderr and not list(tmp_path.iterdir())
