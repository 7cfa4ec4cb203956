"""Image files to pixels, by OpenCV."""

import cv2
import numpy as np

# The input pipeline runs one thread or process per core already.
cv2.setNumThreads(0)

JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'


def suffixes() -> tuple[str, ...]:
  """How the names of images end that can be decoded here, in lower case."""
  usual = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.jpe', '.jfif', '.dib', '.pbm', '.pgm', '.ppm')
  return (*usual, *(one for one in ('.gif', '.avif', '.jp2') if cv2.haveImageWriter(f'a{one}')))


def decode_image(encoded: bytes, file_name: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
  """Decodes any format that OpenCV reads (grey, alpha, palette, CMYK, 16 bit) to [H, W, 3] uint8 RGB.

  The orientation in the EXIF data is ignored: COCO's boxes, and TFDS, ignore it too. Transparency is dropped.

  Args:
    encoded: the bytes of the file.
    file_name: for the message.
    size: (height, width) that the annotations claim, if known.

  Raises:
    ValueError: not an image, cut short, or not of that size.
  """
  # Some releases of OpenCV fill what is missing of a JPEG with grey. A complete one has an end marker after its last
  # scan (thumbnails in the header have both markers before it).
  is_cut = encoded.startswith(JPEG_START) and encoded.rfind(JPEG_END) < encoded.rfind(JPEG_SCAN)
  image = None
  if encoded and not is_cut:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
      image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as e:
      raise ValueError(f'{file_name}: OpenCV cannot decode its {len(encoded)} bytes: {e}') from None
  if image is None:
    what = 'is a JPEG cut short, without its end marker' if is_cut else 'is not an image, or is cut short'
    raise ValueError(f'{file_name}: {what} ({len(encoded)} bytes); replace the file or take it out of the annotations')
  if size is not None and image.shape[:2] != tuple(size):
    hint = ' (annotated after turning it by its EXIF orientation?)' if image.shape[1::-1] == tuple(size) else ''
    raise ValueError(
      f'{file_name}: the file has {image.shape[0]} x {image.shape[1]} pixels (height x width), '
      f'its annotations say {size[0]} x {size[1]}{hint}'
    )
  return image
