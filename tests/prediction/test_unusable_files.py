"""The fault of one file is not the fault of the job: it is left out with its reason, and the others are done."""

import json
import os
import socket
import sys

import cv2
import jax
import numpy as np
import pytest

from tests.data.test_image_files import bomb
from tests.tiny_detector import SETTINGS, Colours, stand_in
from triplet_det.detection import launching
from triplet_det.devices import compiler
from triplet_det.pictures import video
from triplet_det.prediction import over_files
from triplet_det.structs import Detections

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)


def predict(loaded, paths, out, **settings):
  return over_files.predict(loaded, paths, out, threshold=0.0, **settings).summary


@pytest.mark.skipif(sys.platform == 'win32', reason='has no pipes of this kind')
def test_what_is_left_out(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cv2.imwrite('z_sound.png', IMAGE)
  os.mkfifo('pipe.jpg')
  os.mkfifo('pipe.mp4')
  with socket.socket(socket.AF_UNIX) as one:
    one.bind('socket.jpg')
  os.mkdir('folder.jpg')
  os.symlink('/dev/zero', 'device.png')
  (tmp_path / 'empty.jpg').touch()
  (tmp_path / 'claims.png').write_bytes(bomb(30_000, 30_000))
  with (tmp_path / 'long.jpg').open('wb') as file:
    file.truncate(3_000_000_000)
  (tmp_path / 'wide.png').write_bytes(cv2.imencode('.png', np.zeros((1, 1_000_000, 3), np.uint8))[1].tobytes())
  loaded = stand_in()
  loaded.max_pixels = 2_000_000  # wide.png's canvas is 31 pixels high
  reasons = {
    'claims.png': '30000 x 30000 pixels (height x width) are 900,000,000, the limit is 2,000,000: ',
    'device.png': 'is no regular file',
    'empty.jpg': 'is not an image, or is cut short (0 bytes)',
    'folder.jpg': 'is no regular file',
    'gone.jpg': 'give a file that is there',
    'long.jpg': '3,000,000,000 bytes are more than an image has of 2,000,000 pixels',
    'pipe.jpg': 'is no regular file',
    'pipe.mp4': 'is no regular file',
    'socket.jpg': 'is no regular file',
    'wide.png': 'of the largest canvas are 31,',
  }
  paths = [over_files.Path(name) for name in (*reasons, 'z_sound.png')]
  summary = predict(loaded, paths, tmp_path / 'out')
  assert summary.images == 1 and (tmp_path / 'out' / 'z_sound.png').exists()
  assert list(summary.left_out) == list(reasons)
  for name, reason in reasons.items():
    assert reason in summary.left_out[name] and name in summary.left_out[name]


@pytest.mark.skipif(sys.platform != 'linux', reason='file names are UTF-8')
def test_a_name_that_is_not_utf_8(tmp_path):
  name = os.fsdecode(b'caf\xe9.png')
  (tmp_path / name).write_bytes(cv2.imencode('.png', IMAGE)[1].tobytes())
  film = tmp_path / os.fsdecode(b'caf\xe9.avi')
  film.write_bytes(b'RIFF')
  summary = predict(stand_in(), [tmp_path / name, film], tmp_path / 'out')
  assert summary.images == 1 and 'rename it' in summary.left_out[str(film)]
  assert (tmp_path / 'out' / name).exists()
  (row,) = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  assert row['image'] == str(tmp_path / name)


class Short(Colours):
  """Has no memory for wide images."""

  def stream(self, keyed_images, failed=None):
    for key, image in keyed_images:
      if image.shape[1] > 60:
        failed(key, 'RESOURCE_EXHAUSTED: Out of memory')
      else:
        yield key, self.find(image)


def test_memory_that_is_too_short_for_one(tmp_path):
  loaded = stand_in()
  loaded.tester = Short()
  paths = [tmp_path / name for name in ('a.png', 'b.png', 'v.mp4')]
  cv2.imwrite(str(paths[0]), np.zeros((20, 90, 3), np.uint8))
  cv2.imwrite(str(paths[1]), IMAGE)
  video.write_video(paths[2], [np.zeros((48, 64, 3), np.uint8)] * 5, 12.5)
  summary = predict(loaded, paths, tmp_path / 'out')
  assert summary.images == 1 and list(summary.left_out) == [str(paths[0]), str(paths[2])]
  assert (
    'memory is too short for 20 x 90 pixels (height x width), 4 images at once: give a smaller --batch_size'
    in (summary.left_out[str(paths[0])])
  )
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['b.png', 'detections.json', 'predict.json']
  (row,) = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  assert row['image'] == str(paths[1])


@pytest.mark.parametrize(
  'error',
  [
    MemoryError('no room'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes'),
    jax.errors.JaxRuntimeError('INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.'),
  ],
)
@pytest.mark.parametrize('is_late', [False, True])
def test_a_batch_that_memory_is_too_short_for(error, is_late, monkeypatch):
  """Its images are told; those of the batches before and behind are done."""
  empty = Detections(np.zeros((2, 0, 4)), np.zeros((2, 0)), np.zeros((2, 0), np.int32), np.zeros((2, 0), bool))

  def launch(canvases, images):
    if canvases == 1 and not is_late:
      raise error
    return (canvases, empty)

  def wait(result):
    if isinstance(result, tuple) and result[0] == 1:
      raise error
    return result[1] if isinstance(result, tuple) else result

  monkeypatch.setattr(jax, 'device_get', wait)
  given = [(n, [(f'{n}{one}', IMAGE) for one in 'ab']) for n in range(3)]
  told = []
  found = [key for key, _ in launching.detect(given, launch, SETTINGS, lambda *what: told.append(what))]
  assert found == ['0a', '0b', '2a', '2b'] and told == [('1a', str(error)), ('1b', str(error))]
  with pytest.raises(type(error)):
    list(launching.detect(given, launch, SETTINGS))


def test_another_error_of_the_device_is_no_matter_of_memory():
  def launch(canvases, images):
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')

  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    list(launching.detect([(0, [('a', IMAGE)])], launch, SETTINGS, lambda *what: None))


def test_a_program_larger_than_the_machine(monkeypatch):
  program = jax.jit(lambda x: (x[:, None] + x).sum(axis=0)).lower(np.zeros(9, np.float32)).compile()
  compiler.check_room(program)
  monkeypatch.setattr(compiler, '_memory_here', lambda: -1)
  with pytest.raises(MemoryError, match=r'the program takes .* GiB, there are'):
    compiler.check_room(program)
