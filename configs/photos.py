"""Your own photos: a folder of images and labels, whatever tool made it; classes, names and sizes come from the data.

  python -m triplet_det.main --config configs/photos.py --workdir runs/mine --config.data.root=FOLDER

FOLDER holds COCO JSON, YOLO or Pascal VOC (docs/own_data.md), or `--config.data.train.images=DIR`,
`--config.data.train.annotations=FILE` and the same of `data.eval` name the images and the COCO JSON of each split.

Variants: encoder=efficientnet_lite0 (default; 3.6 M parameters, an encoder that starts with what it has learnt from
ImageNet's photos, extra `pretrained`; images get the size that their objects ask for, `image_side`, and the run the
length that their number asks for, `total_steps`),
encoder=hourglass (0.7 M parameters, the network of the detector that comes with the package, so that
--config.init_from=demo starts from what that one has learned; it works at half the images' resolution: if your objects
are small or your images are, say --config.image_scale=1), hg=52 and hg=104 (the paper's, at 511 pixels). The first two
are for a CPU.
"""

from ml_collections import ConfigDict

from triplet_det.configs import triplet
from triplet_det.data import augmentation, from_data
from triplet_det.detection.settings import Settings
from triplet_det.models.detector import VARIANTS

NETWORKS = {  # variant of this page -> the network's
  'encoder=hourglass': 'tiny',
  'encoder=efficientnet_lite0': 'photos',
  'hg=52': 'hourglass-52',
  'hg=104': 'hourglass-104',
}


def get_config(variant: str = 'encoder=efficientnet_lite0') -> ConfigDict:
  if variant not in NETWORKS:
    raise ValueError(f'unknown variant {variant!r}; possible: {", ".join(NETWORKS)}')
  small = variant.startswith('encoder=')
  config = triplet.get_config('hg=104' if small else variant)
  config.data.root = ''  # a folder whose layout is found out by looking; or the images and the JSON of each split:
  config.data.layout = 'auto'  # coco, yolo or voc, if the folder has several
  config.data.train = dict(format='coco_json', images='', annotations='', split='train')
  config.data.train.orientation = 'stored'  # upright: the boxes were drawn on photos turned by their EXIF orientation
  config.data.eval = dict(config.data.train, split='validation', require_boxes=True)  # False: a set without annotations
  config.augment.update(scales=augmentation.SCALES, train_on_crowd=False)
  config.data.num_workers = 0

  config.model.norm_running = 'all'
  config.batch_size = 8
  config.group_size = 0
  config.min_overlap = 0.3
  config.published_radius = False
  config.keypoint_reach = 1
  config.total_steps = 3_000
  config.average_decay = 0.998  # few images: without averages AP of one run goes up and down by 0.1 between evaluations
  config.optimizer.update(base=1e-3, schedule='cosine', warmup_steps=200, reference_batch=8)
  if small:
    # More is learnt from many steps than from good ones (docs/own_data.md).
    config.batch_size = config.optimizer.reference_batch = 4
    config.input_size = 255
    config.augment.border = 64
    config.model.update({key: value for key, value in VARIANTS[NETWORKS[variant]].items() if key != 'num_classes'})

  if variant == 'encoder=hourglass':
    config.image_scale = 0.5

  config.log_every = 20
  config.checkpoint_every = 500
  config.eval_every = 500
  # The loss pushes objects 1 apart; after a short run the corners of one are often more than the published 0.5 apart.
  config.test = triplet.overridable(Settings(embedding_threshold=0.8))
  if variant == 'encoder=efficientnet_lite0':
    _start_from_imagenet(config)
  config.eval_batch_size = 4
  config.result_decimals = -1
  config.draw_threshold = 0.3
  return config


def _start_from_imagenet(config: ConfigDict) -> None:
  """For an encoder that has seen photos (docs/measured.md has the figures)."""
  config.init_from = 'imagenet'
  config.image_side = from_data.FROM_DATA
  config.test.canvas_multiple = 64
  # The first layers are good as they are, and their gradients would cost half of a step; norms are fixed, see
  # `detector.ENCODER_NORMS`. What is trained of the encoder goes slower than the rest, which starts from nothing.
  config.freeze = 'encoder/(stem|stage_[01]_|.*/norm/)'
  config.optimizer.update(encoder_factor=0.3, warmup_steps=50)
  config.total_steps = config.eval_every = from_data.FROM_DATA
  config.patience = 4
  config.checkpoint_every = 200
