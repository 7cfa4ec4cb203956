"""The image size that a data set asks for: small objects must not vanish, and no cell is computed for nothing."""

import numpy as np
from absl import logging

from triplet_det.data.annotations import Annotations
from triplet_det.data.sources import Source

FROM_DATA = -1  # as config.image_side
_SMALL = 10  # percentile of the objects that is held to be small
_PIXELS = 16  # root of width x height that a small object shall have at least: four cells of the output
_STEP = 64  # of the sides + 1: canvases that the images fill, and few of them
_LEAST, _MOST = 319, 639  # pixels; below, large objects get coarse, above, an image takes too long on a CPU


def settled(image_side: int, source: Source) -> int:
  """`image_side`, or if it is `FROM_DATA` what the objects of the training data ask for; says so.

  Only then are the annotations read, which TFDS's data sets may lack and which takes a minute for COCO's.

  Raises:
    FileNotFoundError: they are asked for and are not there.
  """
  if image_side != FROM_DATA:
    return image_side
  side = side_for(source.annotations)
  logging.info('image_side %d, from the sizes of the objects in %s', side, source.annotations.path)
  return side


def side_for(annotations: Annotations) -> int:
  """Pixels that the longer side of the images shall have, a multiple of 64 minus 1 from 319 to 639.

  So many that nine tenths of the objects have at least 16 x 16 pixels, crowds not counted.
  """
  image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))[~annotations.crowd]
  sizes = annotations.image_sizes[image_of]
  boxes = annotations.boxes[~annotations.crowd].astype(np.float64)
  if not len(boxes):
    return _LEAST
  # Of the longer side; boxes are shares of width and height.
  sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * sizes.prod(axis=1)) / sizes.max(axis=1)
  wanted = _PIXELS / np.percentile(sides, _SMALL)
  return int(np.clip(np.ceil((wanted + 1) / _STEP) * _STEP - 1, _LEAST, _MOST))
