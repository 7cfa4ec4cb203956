"""Image files to pixels: by OpenCV, by Pillow where OpenCV cannot, and what a file's header says before that."""

import collections
import contextlib
import functools
import io
import os
import re
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from absl import logging
from etils import epath
from PIL import Image, ImageOps, features

# The input pipeline runs one thread or process per core already.
cv2.setNumThreads(0)

MAX_PIXELS = 100_000_000  # of an image in a prediction, unless it is said otherwise: a file of 17 KB can claim them

# Format, as Pillow calls it -> how its files begin, and their suffixes. AVIF is a HEIF of other brands.
_FORMATS = {
  'JPEG': (rb'\xff\xd8\xff', '.jpg .jpeg .jpe .jfif .mpo'),
  'PNG': (rb'\x89PNG', '.png .apng'),
  'BMP': (rb'BM', '.bmp .dib'),
  'WEBP': (rb'RIFF.{4}WEBP', '.webp'),
  'TIFF': (rb'II[*+]\0|MM\0[*+]', '.tif .tiff'),
  'GIF': (rb'GIF8', '.gif'),
  'PPM': (rb'P[1-6Ff]\s', '.ppm .pgm .pbm .pnm .pfm'),
  'JPEG2000': (rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51', '.jp2 .j2k .jpx'),
  'AVIF': (rb'.{4}ftyp.{0,56}?avi[fs]', '.avif'),
  'HEIF': (rb'.{4}ftyp(hei|hev|mif1|msf1)', '.heic .heif .hif'),
  'JPEG XL': (rb'\xff\x0a|\0\0\0\x0cJXL ', '.jxl'),
}
_DEEP = ('PNG', 'TIFF', 'PPM', 'JPEG2000')  # formats whose channels of 16 bits OpenCV would cut to the upper 8
_DEPTHS = (8, 10, 12, 14, 16)  # bits per channel that cameras have
_STARTS = {kind: re.compile(start, re.DOTALL) for kind, (start, _) in _FORMATS.items()}
_NAMES, _PACKAGES = {'HEIF': 'HEIC'}, {'HEIF': 'pillow-heif'}  # as people call a format; what it takes
# A marker of a JPEG that ends it or has a length; in the data of a scan there is none.
_JPEG_MARKER, _JPEG_END = re.compile(rb'\xff[^\x00\x01\xd0-\xd8\xff]'), 0xD9

_said = collections.Counter()  # images of more than 8 bits per channel, by what was done with them


class Header(NamedTuple):
  """What a file claims."""

  size: tuple[int, int]  # (height, width) of the pixels as they are stored
  orientation: int  # 1 to 8: how they have to be turned to stand upright, as EXIF numbers it

  @property
  def upright_size(self) -> tuple[int, int]:
    return self.size[::-1] if self.orientation >= 5 else self.size


def decode_image(
  encoded: bytes,
  file_name: str,
  *,
  size: tuple[int, int] | None = None,
  upright: bool | None = False,
  max_pixels: int | None = None,
) -> np.ndarray:
  """Decodes any format that OpenCV or Pillow reads (grey, alpha, palette, CMYK, more bits) to [H, W, 3] uint8 RGB.

  Transparency is dropped. Channels of more than 8 bits are scaled by their own range, see `_to_8_bits`.

  Args:
    encoded: the bytes of the file.
    file_name: for the message.
    size: (height, width) that the annotations claim, if known.
    upright: whether to turn the image by its EXIF orientation, as people see it. False is as it is stored, as COCO's
      boxes and TFDS have it. None is whichever `size` fits, as it is stored if both do.
    max_pixels: larger images are refused before they are decoded; None has OpenCV's own limit.

  Raises:
    ValueError: not an image, of an unknown format, cut short, too large or not of that size.
  """
  if max_pixels is not None and (header := read_header(io.BytesIO(encoded))):
    check_pixels(header.size, file_name, max_pixels)
  image = _decode(encoded, file_name)
  if upright or (upright is None and image.shape[:2] != tuple(size)):
    image = _turn(image, orientation(encoded))
  if size is not None and image.shape[:2] != tuple(size):
    hint = ''
    if image.shape[1::-1] == tuple(size):
      turned = orientation(encoded) >= 5 and not upright
      setting = "then say orientation='upright' for the split, --config.data.train.orientation or data.eval.orientation"
      hint = f' (annotated after turning it by its EXIF orientation? {setting if turned else "It has none"})'
    raise ValueError(
      f'{file_name}: the file has {image.shape[0]} x {image.shape[1]} pixels (height x width), '
      f'its annotations say {size[0]} x {size[1]}{hint}'
    )
  return image


def not_readable(kind: str) -> str:
  """'HEIC, which cannot be decoded here: pip install pillow-heif'."""
  package = f': pip install {_PACKAGES[kind]}' if kind in _PACKAGES else ''
  return f'{_NAMES.get(kind, kind)}, which cannot be decoded here{package}'


def foreign_suffixes() -> dict[str, str]:
  """Suffix of a format that cannot be decoded here -> `not_readable`."""
  return {
    suffix: not_readable(kind)
    for kind, (_, names) in _FORMATS.items()
    if not _is_known(kind)
    for suffix in names.split()
  }


def check_regular(path: epath.PathLike) -> None:
  """Raises ValueError for what is there and is no file: a pipe, which epath takes for one, would be waited for."""
  if '://' not in str(path) and os.path.exists(path) and not os.path.isfile(path):
    raise ValueError(f'{path}: is no regular file but a folder, a pipe or a device; give a file')


def check_pixels(size: tuple[int, int], file_name: str, max_pixels: int, what: str = '') -> None:
  """Raises ValueError if (height, width) `size` has more pixels; `what` says of what, if not of the file."""
  height, width = size
  if height * width > max_pixels:
    raise ValueError(
      f'{file_name}: {height} x {width} pixels (height x width){what} are {height * width:,}, the limit is '
      f'{max_pixels:,}: make it smaller, or raise the limit (predict --max_pixels N, load(..., max_pixels=N))'
    )


def is_pillow(image) -> bool:
  """Whether it is a Pillow image, known by its methods: other modules of its kind have them as well."""
  return hasattr(image, 'convert') and hasattr(image, 'getbands')


def from_pillow(image: Image.Image) -> np.ndarray:
  """[H, W, 3] uint8 RGB of a Pillow image of any mode, upright: the pixels that its file would give."""
  return _pillow_pixels(ImageOps.exif_transpose(image), getattr(image, 'filename', '') or 'a Pillow image')


def read_header(file: BinaryIO) -> Header | None:
  """What the file claims, without decoding it; None if Pillow does not know."""
  kind = _kind(file.read(64))
  opener = _pillow_opener(kind)
  if opener is None:
    return None
  try:
    file.seek(0)
    image = opener(file, '')  # `Image.open` has a limit of its own, and warns
    return Header(image.size[::-1], _orientation(image, kind, file))
  except Exception:  # Pillow raises a dozen kinds for what is no image
    return None


def header_of(path: epath.Path) -> Header | None:
  """`read_header` of a file; None if it is not there, or no regular file."""
  try:
    check_regular(path)
    with path.open('rb') as file:
      return read_header(file)
  except (OSError, ValueError):
    return None


def orientation(encoded: bytes) -> int:
  """How the decoded image has to be turned to stand upright, 1 (not at all) to 8 as EXIF numbers it; 1 if unknown.

  1 for a TIFF: OpenCV and Pillow turn these, whatever they are told.
  """
  header = read_header(io.BytesIO(encoded))
  return header.orientation if header else 1


@functools.cache
def suffixes() -> tuple[str, ...]:
  """Those of the image formats that can be decoded here: '.jpg', ..."""
  return tuple(suffix for kind, (_, names) in _FORMATS.items() if _is_known(kind) for suffix in names.split())


def _orientation(image: Image.Image, kind: str, file: BinaryIO) -> int:
  if kind == 'TIFF':
    return 1
  if kind == 'PNG':  # where Pillow decodes all pixels to look for EXIF data behind them
    file.seek(0)
    content = file.read()
    if b'eXIf' not in content and b'rientation' not in content:
      return 1
  try:
    found = image.getexif().get(0x0112, 1)
  except Exception:  # of EXIF data that are damaged; the image may be sound
    return 1
  return found if found in range(1, 9) else 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
  """The image as it stands upright."""
  if orientation >= 5:
    image = image.transpose(1, 0, 2)
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return np.ascontiguousarray(image)


def _decode(encoded: bytes, file_name: str) -> np.ndarray:
  """The image as it is stored."""
  kind = _kind(encoded)
  # Some releases of OpenCV fill what is missing of a JPEG with grey.
  is_cut = kind == 'JPEG' and not _has_jpeg_end(encoded)
  image = None
  if encoded and not is_cut:
    # OpenCV 5 fills a TIFF of 16 bits with whatever is in memory if it is asked for RGB.
    order = cv2.IMREAD_COLOR_BGR if kind == 'TIFF' else cv2.IMREAD_COLOR_RGB
    flags = order | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if kind in _DEEP else 0)
    try:
      image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
      if image is not None and kind == 'TIFF' and image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    except cv2.error as e:
      header = read_header(io.BytesIO(encoded))
      sides = f', which claim {header.size[0]} x {header.size[1]} pixels (height x width)' if header else ''
      reason = f'{e.err or e}; replace the file, or take it out'
      raise ValueError(f'{file_name}: OpenCV cannot decode its {len(encoded)} bytes{sides}: {reason}') from None
    if image is None and (kind in ('TIFF', 'JPEG2000') or not _opencv_has(kind)):  # these have rare kinds of pixels
      image = _by_pillow(encoded, kind, file_name)
  if image is None:
    what = 'is not an image, or is cut short'
    if is_cut:
      what = 'is a JPEG cut short, without its end marker'
    elif kind and not _is_known(kind):
      what = f'is {not_readable(kind)}'
    raise ValueError(f'{file_name}: {what} ({len(encoded)} bytes); replace the file, or take it out')
  return image if image.dtype == np.uint8 and image.ndim == 3 else _to_8_bits(image, file_name)


def _by_pillow(encoded: bytes, kind: str, file_name: str) -> np.ndarray | None:
  """The image as it is stored; None if Pillow cannot decode it."""
  opener = _pillow_opener(kind)
  try:
    return opener and _pillow_pixels(opener(io.BytesIO(encoded), ''), file_name)
  except MemoryError:
    raise
  except Exception:  # a dozen kinds, for what is damaged
    return None


def _pillow_pixels(image: Image.Image, name: str) -> np.ndarray:
  if image.mode[0] in 'IF':  # numbers of more than 8 bits, which Pillow would cut off at 255
    return _to_8_bits(np.asarray(image), name)
  return np.asarray(image.convert('RGB'))


def _to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
  """Numbers [H, W] or [H, W, 3] of more than 8 bits -> [H, W, 3] uint8.

  Whole numbers lose their lowest bits: of 10, 12, 14 or 16 bits, the fewest that hold all values. Others, and those
  below 0 or beyond 16 bits, are scaled from 0, or the least, to 1, 255 or the greatest, whichever holds them all.
  """
  finite = np.isfinite(values)
  low, high = values.min(where=finite, initial=0), values.max(where=finite, initial=0)
  if values.dtype.kind in 'ui' and low >= 0 and high < 2**16:
    depth = next(bits for bits in _DEPTHS if high < 2**bits)
    pixels = (values >> (depth - 8)).astype(np.uint8)
    kind, done = f'{values.dtype} of {depth} bits', 'the upper 8 are taken'
  else:
    top = next((top for top in (1.0, 255.0) if high <= top), float(high))
    pixels = np.where(finite, values, low).astype(np.float64)
    pixels = np.rint((pixels - low) * (255 / (top - low))).astype(np.uint8)
    kind, done = str(values.dtype), f'{low:g} to {top:g} become 0 to 255'
  if values.dtype != np.uint8:
    _said[kind] += 1
    if _said[kind] in (1, 10, 100) or _said[kind] % 1000 == 0:
      logging.warning('%s: pixels are %s, %s; image %d of this kind', name, kind, done, _said[kind])
  return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _has_jpeg_end(encoded: bytes) -> bool:
  """Whether an end marker is behind the scans; those of thumbnails in the header, and data behind it, do not count."""
  at = 2
  while marker := _JPEG_MARKER.search(encoded, at):
    at = marker.end()
    if encoded[at - 1] == _JPEG_END:
      return True
    at += int.from_bytes(encoded[at : at + 2], 'big')
  return False


def _kind(encoded: bytes) -> str:
  """The key of `_FORMATS`, '' if unknown."""
  return next((kind for kind, start in _STARTS.items() if start.match(encoded)), '')


def _is_known(kind: str) -> bool:
  return _opencv_has(kind) or _pillow_opener(kind) is not None


@functools.cache
def _opencv_has(kind: str) -> bool:
  """Whether this build of OpenCV decodes a format: it is asked whether it encodes it, which is built in with that."""
  return kind in _FORMATS and cv2.haveImageWriter(f'x{_FORMATS[kind][1].split()[0]}')


@functools.cache
def _pillow_opener(kind: str) -> Callable[[BinaryIO, str], Image.Image] | None:
  """What reads the header of a format, and the pixels when they are asked for; None if this Pillow cannot."""
  Image.preinit()
  if kind not in Image.OPEN:
    Image.init()
  if kind == 'HEIF':
    with contextlib.suppress(ImportError):
      import pillow_heif

      pillow_heif.register_heif_opener()
  needed = dict(WEBP='webp', AVIF='avif', JPEG2000='jpg_2000').get(kind)
  return Image.OPEN[kind][0] if kind in Image.OPEN and (not needed or features.check(needed)) else None
