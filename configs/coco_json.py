"""The name that configs/photos.py had before its folders of any layout; `coco_json` is `photos:encoder=hourglass`."""

from absl import logging
from ml_collections import ConfigDict

from triplet_det.configs import photos


def get_config(variant: str = 'small') -> ConfigDict:
  now = 'encoder=hourglass' if variant == 'small' else variant
  logging.log_first_n(logging.WARNING, 'coco_json is now photos:%s, and this name goes with the next version', 1, now)
  return photos.get_config(now)
