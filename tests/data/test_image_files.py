"""Image files to pixels: every format, as many bits as it has, the right way up, whole, and not too large."""

import io
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.data.test_bad_input import _folder
from triplet_det.data import image_files, pipeline

PIXELS = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8), (90, 61))
PHOTO = Image.fromarray(PIXELS)
MOVED = {  # tag -> where the pixels go, by the definition of EXIF
  1: lambda a: a,
  2: np.fliplr,
  3: lambda a: np.rot90(a, 2),
  4: np.flipud,
  5: lambda a: np.swapaxes(a, 0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
  8: lambda a: np.rot90(a, 1),
}


def encode(image: Image.Image, kind: str, tag: int | None = None, **settings) -> bytes:
  buffer = io.BytesIO()
  exif = Image.Exif()
  if tag is not None:
    exif[0x0112] = tag
    settings['exif'] = exif
  image.save(buffer, kind, **settings)
  return buffer.getvalue()


def big_endian_exif(tag: int) -> bytes:
  return b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01' + tag.to_bytes(2, 'big') + b'\0\0\0\0\0\0'


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'AVIF'])
@pytest.mark.parametrize('tag', MOVED)
def test_orientation(kind, tag):
  if kind == 'AVIF' and not features.check('avif'):
    pytest.skip('this Pillow writes no AVIF')
  lossless = dict(lossless=True) if kind == 'WEBP' else {}
  encoded = encode(PHOTO, kind, tag, **lossless)
  assert image_files.orientation(encoded) == tag
  stored = image_files.decode_image(encoded, 'x')
  assert stored.shape == PIXELS.shape
  upright = image_files.decode_image(encoded, 'x', upright=True)
  np.testing.assert_array_equal(upright, MOVED[tag](stored))
  pillow = Image.open(io.BytesIO(encoded))
  np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(pillow).convert('RGB')))
  np.testing.assert_array_equal(upright, image_files.from_pillow(pillow))
  assert image_files.read_header(io.BytesIO(encoded)) == ((61, 90), tag)
  assert image_files.read_header(io.BytesIO(encoded)).upright_size == upright.shape[:2]


def test_orientation_in_other_places():
  big = encode(PHOTO, 'JPEG', exif=big_endian_exif(8))
  assert image_files.orientation(big) == 8
  png = encode(PHOTO, 'PNG', 6)
  at = png.index(b'eXIf') - 4
  size = int.from_bytes(png[at : at + 4], 'big') + 12
  behind = (
    png[:at] + png[at + size : -12] + png[at : at + size] + png[-12:]
  )  # behind the pixels, as some tools write it
  assert image_files.orientation(behind) == 6


def test_a_tiff_is_turned_by_its_decoder():
  encoded = encode(PHOTO, 'TIFF', tiffinfo={0x0112: 6})
  for upright in (False, True):
    np.testing.assert_array_equal(image_files.decode_image(encoded, 'x', upright=upright), np.rot90(PIXELS, -1))
  assert image_files.orientation(encoded) == 1


@pytest.mark.parametrize(
  'encoded',
  [
    b'',
    b'\xff',
    b'\xff\xd8\xff\xe1',
    b'\x89PNG',
    b'II*\0',
    b'RIFF\0\0\0\0WEBP',
    b'no image at all',
    bytes(99),
    encode(PHOTO, 'JPEG', 0),
    encode(PHOTO, 'JPEG', 9),
    encode(PHOTO, 'JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\xff'),
    encode(PHOTO, 'JPEG', exif=b'Exif\0\0rubbish'),
    encode(PHOTO, 'PNG'),
  ],
)
def test_garbage_stands_upright(encoded):
  assert image_files.orientation(encoded) == 1


def test_the_size_decides_where_annotations_are_given():
  encoded = encode(PHOTO, 'JPEG', 6)
  stored = image_files.decode_image(encoded, 'a.jpg')
  given = dict(upright=None)
  np.testing.assert_array_equal(image_files.decode_image(encoded, 'a.jpg', size=(61, 90), **given), stored)
  turned = image_files.decode_image(encoded, 'a.jpg', size=[90, 61], **given)
  np.testing.assert_array_equal(turned, np.rot90(stored, -1))
  with pytest.raises(ValueError, match=r'a\.jpg: the file has 90 x 61 pixels .* say 50 x 40$'):
    image_files.decode_image(encoded, 'a.jpg', size=(50, 40), **given)
  with pytest.raises(ValueError, match=r"61 x 90 .* say 90 x 61 .*EXIF.*orientation='upright'.*data\.train\.orient"):
    image_files.decode_image(encoded, 'a.jpg', size=(90, 61))
  with pytest.raises(ValueError, match='It has none'):
    image_files.decode_image(encode(PHOTO, 'JPEG'), 'a.jpg', size=(90, 61))


def segment(marker: int, content: bytes) -> bytes:
  return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, 'big') + content


JPEG, PROGRESSIVE = encode(PHOTO, 'JPEG'), encode(PHOTO, 'JPEG', progressive=True)
WITH_THUMBNAIL = JPEG[:2] + segment(0xE1, b'Exif\0\0' + encode(PHOTO.resize((9, 6)), 'JPEG')) + JPEG[2:]


@pytest.mark.parametrize(
  'behind',
  [
    b'\0\0\0\x18ftypmp42' + bytes(9000),
    np.random.default_rng(0).bytes(100_000),
    b'\xff\xda\0\x08' + bytes(40),  # a scan's marker by chance
    JPEG,
    JPEG[:-50],  # a second picture that is cut short
    b'\xff\xd9',
  ],
)
@pytest.mark.parametrize('photo', [JPEG, PROGRESSIVE, WITH_THUMBNAIL])
def test_data_behind_a_jpeg(photo, behind):
  pixels = image_files.decode_image(photo, 'a.jpg')
  np.testing.assert_array_equal(image_files.decode_image(photo + behind, 'a.jpg'), pixels)


@pytest.mark.parametrize('photo', [JPEG, PROGRESSIVE, WITH_THUMBNAIL])
def test_a_jpeg_without_its_end(monkeypatch, photo):
  """With an OpenCV that decodes it without a word."""
  monkeypatch.setattr(cv2, 'imdecode', lambda *_: PIXELS)
  assert image_files.decode_image(photo, 'a.jpg') is PIXELS
  for cut in range(3, len(photo)):
    with pytest.raises(ValueError, match=rf'a\.jpg: is a JPEG cut short, without its end marker \({cut} bytes\)'):
      image_files.decode_image(photo[:cut], 'a.jpg')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'JPEG2000', 'AVIF', 'PPM'])
def test_cut_short(kind):
  if kind == 'AVIF' and not features.check('avif'):
    pytest.skip('this Pillow writes no AVIF')
  encoded = encode(PHOTO, kind)
  whole = image_files.decode_image(encoded, 'x')
  assert whole.shape == (61, 90, 3)
  for share in (0.02, 0.3, 0.6, 0.9, 0.97):
    with pytest.raises(ValueError, match=r'cut short|cannot decode'):
      image_files.decode_image(encoded[: int(share * len(encoded))], 'x')


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('suffix', ['.png', '.tiff', '.ppm', '.jp2'])
@pytest.mark.parametrize('channels', [1, 3])
def test_more_than_8_bits(bits, suffix, channels):
  """The picture of 8 bits, whichever of the 16 bits the camera used."""
  eight = PIXELS[..., :channels]
  deep = eight.astype(np.uint16) << (bits - 8)
  deep[0, 0] = 2**bits - 1
  suffix = '.pgm' if suffix == '.ppm' and channels == 1 else suffix
  lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if suffix == '.jp2' else []
  encoded = cv2.imencode(suffix, deep[..., ::-1], lossless)[1].tobytes()
  expected = np.broadcast_to(eight, PIXELS.shape).copy()
  expected[0, 0] = 255
  np.testing.assert_array_equal(image_files.decode_image(encoded, 'x'), expected)
  if channels == 1:
    np.testing.assert_array_equal(image_files.from_pillow(Image.open(io.BytesIO(encoded))), expected)


def test_bits_are_said_once_and_counted(caplog, monkeypatch):
  monkeypatch.setattr(image_files, '_said', image_files.collections.Counter())
  encoded = encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 16 + 15), 'PNG')
  with caplog.at_level(logging.WARNING, logger='absl'):
    for n in range(10):
      image_files.decode_image(encoded, f'{n}.png')
  assert [record.getMessage() for record in caplog.records] == [
    f'{name}: pixels are uint16 of 12 bits, the upper 8 are taken; image {n} of this kind'
    for name, n in (('0.png', 1), ('9.png', 10))
  ]


@pytest.mark.parametrize('top', [1, 255, 1000])
def test_floats(top):
  values = PIXELS[..., 0].astype(np.float32) / 255 * top
  values[0, :4] = 0, top, np.nan, np.inf
  expected = PIXELS.copy()[..., :1].repeat(3, axis=2)
  expected[0, :4] = np.array([0, 255, 0, 0])[:, None]
  image = Image.fromarray(values)
  np.testing.assert_array_equal(image_files.decode_image(encode(image, 'TIFF'), 'x'), expected)
  np.testing.assert_array_equal(image_files.from_pillow(image), expected)
  color = PIXELS.astype(np.float32) / 255 * top
  color[0, 0] = top
  no_compression = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
  encoded = cv2.imencode('.tiff', color[..., ::-1], no_compression)[1].tobytes()
  np.testing.assert_array_equal(image_files.decode_image(encoded, 'x')[1:], PIXELS[1:])


def test_numbers_below_0():
  values = np.array([[-100, 0, 155]], np.int32)
  np.testing.assert_array_equal(image_files.from_pillow(Image.fromarray(values))[..., 0], [[0, 72, 183]])
  np.testing.assert_array_equal(image_files._to_8_bits(values * 1000, 'x')[..., 0], [[0, 100, 255]])


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I', 'F'])
@pytest.mark.parametrize('tag', [1, 6])
def test_a_pillow_image_is_as_its_file(mode, tag):
  grey = PIXELS[..., 0]
  made = {'I;16': grey.astype(np.uint16) * 16, 'I': grey.astype(np.int32) * 200, 'F': grey / np.float32(255)}
  alpha = PHOTO.copy()
  alpha.putalpha(Image.fromarray(grey))
  image = Image.fromarray(made[mode]) if mode in made else (alpha if 'A' in mode else PHOTO).convert(mode)
  kind = 'TIFF' if mode in ('CMYK', 'I', 'F', 'PA') else 'PNG'
  orientation = dict(tiffinfo={0x0112: tag}) if kind == 'TIFF' else dict(tag=tag)
  encoded = encode(image, kind, **orientation)
  ours = image_files.decode_image(encoded, 'x', upright=True)
  np.testing.assert_array_equal(ours, image_files.from_pillow(Image.open(io.BytesIO(encoded))))
  assert ours.shape == ((90, 61, 3) if tag == 6 else (61, 90, 3)) and ours.max() > 150


def test_palette_with_transparency():
  image = PHOTO.convert('P')
  encoded = encode(image, 'PNG', transparency=3)
  pixels = image_files.from_pillow(Image.open(io.BytesIO(encoded)))
  np.testing.assert_array_equal(pixels, image_files.decode_image(encoded, 'x'))
  np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('brand', [b'heic', b'heix', b'mif1', b'hevc'])
def test_heic_without_its_plugin(monkeypatch, brand):
  monkeypatch.setattr(image_files, '_is_known', lambda kind: False)
  encoded = b'\0\0\0\x18ftyp' + brand + bytes(50)
  with pytest.raises(ValueError, match=r'a\.heic: is HEIC, which cannot be decoded here: pip install pillow-heif'):
    image_files.decode_image(encoded, 'a.heic')


def test_suffixes():
  assert {'.jpg', '.jfif', '.png', '.gif', '.webp', '.tif', '.bmp', '.jp2'} <= set(image_files.suffixes())
  assert all(suffix == suffix.lower() and suffix[0] == '.' for suffix in image_files.suffixes())


def bomb(height: int, width: int) -> bytes:
  """A PNG that claims to be so large."""

  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  head = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def test_too_large_is_refused_before_it_is_decoded(monkeypatch):
  monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
  message = r'a\.png: 30000 x 20000 pixels \(height x width\) are 600,000,000, the limit is 100,000,000: .*--max_pixels'
  with pytest.raises(ValueError, match=message):
    image_files.decode_image(bomb(30_000, 20_000), 'a.png', max_pixels=image_files.MAX_PIXELS)
  for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'JPEG2000', 'PPM'):
    with pytest.raises(ValueError, match=r'x: 61 x 90 pixels .* are 5,490, the limit is 5,489'):
      image_files.decode_image(encode(PHOTO, kind), 'x', max_pixels=61 * 90 - 1)
  monkeypatch.undo()
  assert image_files.decode_image(JPEG, 'x', max_pixels=61 * 90).shape == PIXELS.shape


@pytest.mark.parametrize('tag', [1, 3, 6, 8])
@pytest.mark.parametrize('json_has', ['stored', 'upright', 'fractions of stored'])
def test_boxes_drawn_on_the_upright_photo(tmp_path, tag, json_has):
  """The boxes are where they were drawn, whichever size the JSON has; also as fractions times the stored size."""
  stored = np.zeros((30, 40, 3), np.uint8)
  upright = MOVED[tag](stored).copy()
  x, y, width, height = box = (upright.shape[1] - 10, upright.shape[0] - 12, 9, 8)
  upright[y : y + height, x : x + width] = 255
  back = {6: 8, 8: 6}.get(tag, tag)
  encoded = encode(Image.fromarray(np.ascontiguousarray(MOVED[back](upright))), 'PNG', tag)
  size = upright.shape[:2] if json_has == 'upright' else stored.shape[:2]
  if json_has.startswith('fractions'):
    box = (np.array(box) * np.tile(np.divide(size, upright.shape[:2])[::-1], 2)).tolist()
  folder = _folder(
    tmp_path,
    encoded=encoded,
    size=size,
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=box, area=72, iscrowd=0)],
  )
  source = pipeline.open_source('coco_json', **folder, orientation='upright')
  assert source.image_sizes == [upright.shape[:2]]
  ((_, record, image),) = pipeline.load_images(source, [0])
  np.testing.assert_array_equal(image, upright)
  x1, y1, x2, y2 = np.rint(record.boxes[0] * np.tile(image.shape[1::-1], 2)).astype(int)
  assert (image[y1:y2, x1:x2] == 255).all() and image[y1:y2, x1:x2].size == image.astype(bool).sum()


def test_unknown_orientation(tmp_path):
  with pytest.raises(ValueError, match=r"orientation is 'turned': give 'stored' .* or 'upright'"):
    pipeline.open_source('coco_json', **_folder(tmp_path), orientation='turned')
