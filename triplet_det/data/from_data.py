"""What a config leaves to the data set: the size of its images, and for how long to train.

Small objects must not vanish, no cell is computed for nothing, and each image is seen often enough.
"""

import numpy as np
from absl import logging

from triplet_det.data.annotations import Annotations
from triplet_det.data.sources import Source

FROM_DATA = -1  # as config.image_side, config.total_steps and config.eval_every
_SMALL = 10  # percentile of the objects that is held to be small
_PIXELS = 8  # root of width x height that a small object shall have at least: two cells of the output
_SIDES = 64  # of the sides + 1: canvases that the images fill, and few of them
_SMALLEST, _LARGEST = 319, 639  # pixels; below, large objects get coarse, above, an image takes too long on a CPU
_EPOCHS = 18  # how often each image is seen; an hour of one core for 450 photos (docs/measured.md)
_SHORTEST, _LONGEST, _STEPS = 1_600, 20_000, 200  # steps
_EVALUATIONS = 8


def settled_side(image_side: int, source: Source) -> int:
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

  So many that nine tenths of the objects have at least 8 x 8 pixels, crowds not counted.
  """
  image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))[~annotations.crowd]
  sizes = annotations.image_sizes[image_of]
  boxes = annotations.boxes[~annotations.crowd].astype(np.float64)
  if not len(boxes):
    return _SMALLEST
  # Of the longer side; boxes are shares of width and height.
  sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * sizes.prod(axis=1)) / sizes.max(axis=1)
  wanted = _PIXELS / np.percentile(sides, _SMALL)
  return int(np.clip(np.ceil((wanted + 1) / _SIDES) * _SIDES - 1, _SMALLEST, _LARGEST))


def settled_length(total_steps: int, eval_every: int, images: int, batch_size: int) -> tuple[int, int]:
  """Both of them, or where they are `FROM_DATA` what the number of training images asks for; says so.

  A multiple of 200 from 1,600 to 20,000 steps, and an evaluation after each eighth.
  """
  if total_steps == FROM_DATA:
    steps = -(-_EPOCHS * images // (batch_size * _STEPS)) * _STEPS
    total_steps = min(max(steps, _SHORTEST), _LONGEST)
    if images:
      seen = total_steps * batch_size / images
      logging.info('total_steps %d: each of %d images is seen %.3g times', total_steps, images, seen)
  if eval_every == FROM_DATA:
    eval_every = max(1, total_steps // _EVALUATIONS)
  return total_steps, eval_every
