"""Crop, resize, clip and flip against numbers of the published program, and the decoding of every kind of image."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from triplet_det.data import augmentation, image_files

GOLDEN = np.load(Path(__file__).parents[1] / 'golden/augment.npz')
IMAGE = GOLDEN['img']  # blue-green-red; every step but the decoding is blind to that
BOXES, CLASSES = GOLDEN['dets'][:, :4], GOLDEN['dets'][:, 4].astype(np.int32)

# Of the published normalisation, blue-green-red.
MEAN = np.array([0.40789654, 0.44719302, 0.47026115])
STD = np.array([0.28863828, 0.27408164, 0.27809835])
EIGENVALUES = np.array([0.2141788, 0.01817699, 0.00341571])
EIGENVECTORS = np.array(
  [
    [-0.58752847, -0.69563484, 0.41340352],
    [-0.5832747, 0.00994535, -0.81221408],
    [-0.56089297, 0.71832671, 0.41158938],
  ]
)


@pytest.mark.parametrize('n', range(5))
def test_random_crop_is_the_published_one(n, parity):
  scale, x, y, border = GOLDEN[f'crop/{n}/param']
  golden = {key: GOLDEN[f'crop/{n}/{key}'] for key in ('img', 'resized', 'clipped_dets', 'limits')}
  side = len(golden['img'])
  assert int(127 * scale) == side
  cropped = augmentation.crop(IMAGE, int(x), int(y), side, side)
  parity('augmentation: cropped pixels, of 255', np.abs(cropped.astype(int) - golden['img']).max(), 0)

  example = augmentation.apply(IMAGE, BOXES, CLASSES, augmentation.Draws(scale, int(x), int(y), flip=False), 127)
  assert example.image.shape == golden['resized'].shape and example.boxes.shape == golden['clipped_dets'][:, :4].shape
  parity('augmentation: resized pixels, of 255', np.abs(example.image.astype(int) - golden['resized']).max(), 1)
  parity('augmentation: boxes, pixels', np.abs(example.boxes - golden['clipped_dets'][:, :4]).max(), 1e-4)
  np.testing.assert_array_equal(example.classes, golden['clipped_dets'][:, 4])

  flipped = augmentation.apply(IMAGE, BOXES, CLASSES, augmentation.Draws(scale, int(x), int(y), flip=True), 127)
  np.testing.assert_array_equal(flipped.image, example.image[:, ::-1])
  np.testing.assert_allclose(flipped.boxes[:, 0], 126 - example.boxes[:, 2], atol=1e-4)
  np.testing.assert_allclose(flipped.boxes[:, 2], 126 - example.boxes[:, 0], atol=1e-4)

  height, width = IMAGE.shape[:2]
  drawn = [
    augmentation.draw(np.random.default_rng(i), height, width, scales=(scale,), border=int(border)) for i in range(2000)
  ]
  for centers, (low, high) in zip(([d.center_x for d in drawn], [d.center_y for d in drawn]), golden['limits']):
    assert (min(centers), max(centers)) == (low, high - 1)


def test_border_is_halved_until_it_fits():
  for border, size, result in GOLDEN['get_border']:
    assert augmentation.fitting_border(int(border), int(size)) == result


@pytest.mark.parametrize('n', range(3))
def test_crop_of_any_shape(n):
  y, x, height, width = (int(v) for v in GOLDEN[f'crop_image/{n}/param'])
  np.testing.assert_array_equal(augmentation.crop(IMAGE, x, y, height, width), GOLDEN[f'crop_image/{n}/img'])


def test_full_image_crop():
  height, width = IMAGE.shape[:2]
  golden = GOLDEN['full/img']
  np.testing.assert_array_equal(augmentation.crop(IMAGE, width // 2, height // 2, *golden.shape[:2]), golden)
  example = augmentation.apply(IMAGE, BOXES, CLASSES, augmentation.Draws(1.0, width // 2, height // 2, False), 150)
  np.testing.assert_allclose(example.boxes, GOLDEN['full/dets'][:, :4], atol=1e-4)


@pytest.mark.parametrize('n', range(3))
def test_whole_sampler(n):
  """The published sampler's network input: our crop and flip, then its colours by a transcription in NumPy."""
  g = {key.removeprefix(f'pipe/{n}/'): GOLDEN[key] for key in GOLDEN.files if key.startswith(f'pipe/{n}/')}
  draws = augmentation.Draws(float(g['scale']), *(int(v) for v in g['center_xy']), flip=bool(g['flip_u'] > 0.5))
  example = augmentation.apply(IMAGE, BOXES, CLASSES, draws, 127)

  pixels = example.image / 255.0
  grey = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_BGR2GRAY)
  for kind, change in zip(g['order'], g['alphas_minus1']):
    alpha = 1 + change
    other = (0.0, grey.mean(), grey[..., None])[kind]
    pixels = alpha * pixels + (1 - alpha) * other
  pixels = pixels + EIGENVECTORS @ (EIGENVALUES * g['normal_unit'] * 0.1)
  pixels = (pixels - MEAN) / STD
  # One step of 255, times the largest gain of the jitter, over the smallest deviation.
  np.testing.assert_allclose(pixels.transpose(2, 0, 1), g['image'], atol=1.4**2 / 255 / 0.274)

  count = int(g['num'])
  assert len(example.boxes) == count
  for corner, (x, y) in (('tl', (0, 1)), ('br', (2, 3))):
    cells = (example.boxes * (32 / 127)).astype(int)
    np.testing.assert_array_equal(cells[:, y] * 32 + cells[:, x], g[f'{corner}_tags'][:count])


def test_published_scales():
  np.testing.assert_array_equal(augmentation.PUBLISHED_SCALES, GOLDEN['rand_scales'])


def test_draws_cover_scales_and_flips_evenly():
  rng = np.random.default_rng(0)
  drawn = [augmentation.draw(rng, 300, 400, scales=(0.5, 1.0, 2.0), border=128) for _ in range(3000)]
  for scale in (0.5, 1.0, 2.0):
    assert abs(np.mean([d.scale == scale for d in drawn]) - 1 / 3) < 0.03
  assert abs(np.mean([d.flip for d in drawn]) - 0.5) < 0.03
  assert not any(augmentation.draw(rng, 300, 400, scales=(1.0,), flip=False).flip for _ in range(50))


def test_one_pixel_image():
  image = np.full((1, 1, 3), 200, np.uint8)
  draws = augmentation.draw(np.random.default_rng(0), 1, 1, scales=(1.0,))
  example = augmentation.apply(image, np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([2], np.int32), draws, 64)
  assert (example.image == 200).all(axis=-1).sum() == 1
  np.testing.assert_array_equal(example.boxes, [[32, 32, 33, 33]])


def test_more_objects_than_slots_keeps_the_largest_in_order():
  sides = np.array([5, 9, 2, 8, 7], np.float32)
  boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
  example = augmentation.Example(np.zeros((10, 10, 3), np.uint8), boxes, np.arange(5, dtype=np.int32))
  kept, classes, valid = augmentation.pad(example, 3)
  np.testing.assert_array_equal(classes, [1, 3, 4])
  np.testing.assert_array_equal(kept[:, 2], [9, 8, 7])
  assert valid.all()
  padded, classes, valid = augmentation.pad(example, 7)
  np.testing.assert_array_equal(valid, [True] * 5 + [False] * 2)
  np.testing.assert_array_equal(padded[5:], 0)
  np.testing.assert_array_equal(classes, [0, 1, 2, 3, 4, 0, 0])


def _encode(image: Image.Image, format: str, **settings) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, format, **settings)
  return buffer.getvalue()


def _smooth() -> np.ndarray:
  small = np.random.default_rng(1).integers(0, 256, (6, 9, 4), np.uint8)
  return cv2.resize(small, (90, 61), interpolation=cv2.INTER_CUBIC)


_SMOOTH = _smooth()
_RGB = Image.fromarray(_SMOOTH[..., :3])


@pytest.mark.parametrize(
  'encoded',
  [
    pytest.param(_encode(_RGB, 'JPEG'), id='jpeg'),
    pytest.param(_encode(_RGB, 'JPEG', progressive=True), id='progressive'),
    pytest.param(_encode(_RGB.convert('L'), 'JPEG'), id='grey'),
    pytest.param(_encode(Image.fromarray(_SMOOTH, 'CMYK'), 'JPEG', quality=95), id='cmyk'),
    pytest.param(_encode(_RGB, 'PNG'), id='png'),
    pytest.param(_encode(Image.fromarray(_SMOOTH, 'RGBA'), 'PNG'), id='rgba'),
    pytest.param(_encode(_RGB.convert('LA'), 'PNG'), id='grey and alpha'),
    pytest.param(_encode(_RGB.convert('P'), 'PNG'), id='palette'),
    pytest.param(_encode(_RGB.convert('1'), 'PNG'), id='one bit'),
    pytest.param(_encode(_RGB, 'WEBP', lossless=True), id='webp'),
  ],
)
def test_decoding_equals_pillow(encoded):
  ours = image_files.decode_image(encoded, 'x')
  theirs = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
  assert ours.dtype == np.uint8 and ours.shape == theirs.shape
  # Pillow's and OpenCV's roundings of C * K differ.
  assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_16_bit_keeps_the_high_byte():
  values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
  color = cv2.imencode('.png', values)[1].tobytes()
  np.testing.assert_array_equal(image_files.decode_image(color, 'x'), values[..., ::-1] >> 8)
  grey = cv2.imencode('.png', values[..., 0])[1].tobytes()
  np.testing.assert_array_equal(image_files.decode_image(grey, 'x'), (values[..., :1] >> 8).repeat(3, axis=2))


def test_exif_orientation_is_ignored():
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  turned = image_files.decode_image(_encode(_RGB, 'JPEG', exif=exif), 'x')
  np.testing.assert_array_equal(turned, image_files.decode_image(_encode(_RGB, 'JPEG'), 'x'))
