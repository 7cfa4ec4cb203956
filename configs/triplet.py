"""The paper's run: CenterNet511 on COCO, 480,000 steps of batch 48 (Sec. 3.4); AP 44.9 on test-dev with hg=104.

  python -m triplet_det.main --config configs/triplet.py:hg=104 --workdir gs://bucket/run
  python -m triplet_det.main --config configs/triplet.py:scales=multi --workdir gs://bucket/run --config.mode=eval

Variants: hg=104 (default) or hg=52, AP 41.6; scales=multi tests at five scales, AP 47.0 and 43.5, beside the results of
scales=single. configs/shapes.py is the same with a small network on the embedded data set. COCO comes from
`scripts/prepare_coco.py`. Every value can be overridden, `--config.total_steps=1000`. Values marked "published" are
quirks of the released code that its AP was reached with.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from triplet_det.data import augmentation
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CENTERNET_MULTI_SCALE, Settings
from triplet_det.models.detector import VARIANTS

HOURGLASSES, SCALES, SMALL = ('104', '52'), ('single', 'multi'), ('0', '1')  # variants, the default first


def get_config(variant: str = 'hg=104') -> ConfigDict:
  chosen = parse_variant(variant, hg=HOURGLASSES, scales=SCALES)
  config = ConfigDict()
  config.mode = 'train_and_eval'  # or train, eval, check_data, show_data, ...: triplet_det/main.py lists them
  config.dry_run = False  # True: say what a step takes of memory and time, and do nothing
  config.seed = 0

  # Data. The images of train2017 are those of the paper's trainval35k, val2017 is minival.
  config.data = ConfigDict()
  source = dict(format='tfds', name='coco/2017', data_dir='~/tensorflow_datasets', annotations='')
  config.data.train = dict(source, split='train')
  config.data.eval = dict(source, split='validation', require_boxes=True)  # False: a test set without annotations
  config.data.num_workers = 8  # processes that decode and augment, per host; 0: threads of this process
  config.data.num_threads = 2  # per process

  # Images are worked on at this share of their resolution, in training and testing; boxes stay those of the originals.
  config.image_scale = 1.0
  config.image_side = 0  # before that, every image is scaled so that its longer side has so many pixels; 0: as it is

  # Augmentation on the host ...
  config.input_size = 511
  config.augment = ConfigDict()
  config.augment.scales = augmentation.PUBLISHED_SCALES
  config.augment.border = 128  # crop centers keep this many pixels from the image's edge, if it is large enough
  config.augment.flip = True
  config.augment.max_objects = 128
  config.augment.train_on_crowd = True  # published
  # Crops of another size in this share of the steps, the last: whole objects, where small crops have parts of them.
  config.last_crops = dict(share=0.0, input_size=511, border=128)
  # ... and on the device.
  config.colour_jitter = 0.4
  config.lighting = 0.1

  # Network: sizes and switches of Table 4; the number of classes comes from the data.
  config.model = dict(VARIANTS[f'hourglass-{chosen["hg"]}'])
  del config.model.num_classes
  config.model.encoder = 'hourglass'  # the paper's; configs/photos.py has another
  config.model.encoder_norms = 'batch'  # statistics of its norms in training, or fixed as it brings them
  config.model.pixels = 'coco'  # whose statistics pixels are normalised by; mmdetection's weights: imagenet
  # On an accelerator, of float32: default is TF32 or bfloat16, the paper's GPUs had neither: highest (accelerators.md).
  config.model.precision = 'default'
  config.model.update(center_branch=True, center_pooling=True, cascade_corner_pooling=True)
  config.model.update(dtype='float32', remat='none', norm_running='first')  # norm_running: published

  # Eq. (2). Norm statistics and losses are per group of 6 images: the published 8 GPUs x 6; 0 is the whole batch.
  config.batch_size = 48
  config.group_size = 6
  config.min_overlap = 0.7  # of the Gaussians' radius; CornerNet has 0.3 and the right roots
  config.published_radius = True  # published
  config.keypoint_reach = 0  # published; cells around a keypoint whose offset and embedding are trained as its own

  config.accumulate = 1  # parts of a batch that go through the network one after the other, if memory is short
  config.state_shards = 1  # devices that share one copy of parameters and optimizer, if memory is short
  config.average_decay = 0.0  # of moving averages of the weights, which are then tested with; 0.999 for example

  # Adam, 2.5e-4 for 450,000 steps and a tenth of it for 30,000.
  config.total_steps = 480_000
  config.optimizer = dict(
    base=2.5e-4, schedule='step', drop_step=450_000, drop_factor=0.1, warmup_steps=0, clip_norm=0.0, reference_batch=48
  )
  config.optimizer.encoder_factor = 1.0  # of the rate, for an encoder that starts with the weights of ImageNet

  # Fine-tuning. Of a run with other classes the rows of those with equal names are taken over.
  config.init_from = ''  # run folder, checkpoint or link whose weights a new run starts from; demo: the package's;
  # imagenet: those of an encoder (model.encoder) that knows photos
  config.freeze = ''  # parameters that are not trained: 'stem|hourglass_0', '.*/norm/', see optimizer.frozen_share;
  # the running statistics of frozen norms still follow the data

  config.log_every = 100
  config.checkpoint_every = 5_000
  config.eval_every = 25_000
  config.patience = 0  # evaluations without a better AP after which the run ends; 0: it goes to its end

  # Testing (Sec. 3.4): the image and its mirror image at the original resolution, top 70, soft-NMS, best 100.
  config.test = overridable(PUBLISHED_CENTERNET)
  config.eval_batch_size = 8
  config.eval_checkpoint = 'best'  # of mode eval, in the workdir: best or checkpoints (the newest)
  config.eval_name = ''  # at the end of the evaluation's folder, to keep it beside another of the same step
  config.result_decimals = 2  # published: scores and boxes in the results JSON; -1 keeps all digits
  config.draw_threshold = 0.5  # scores of the boxes drawn, Fig. 7
  if chosen['scales'] == 'multi':
    test_at_scales_of(PUBLISHED_CENTERNET_MULTI_SCALE, config)
  return config


def overridable(settings: Settings) -> ConfigDict:
  """The fields of `Settings`, those that may be None included, as overridable values."""
  values = dataclasses.asdict(settings)
  del values['image_side']  # the config's own, of training and testing
  return ConfigDict({k: config_dict.placeholder(float) if v is None else v for k, v in values.items()})


def test_at_scales_of(multi_scale: Settings, config: ConfigDict) -> None:
  """scales=multi: the scales and the merging of boxes of `multi_scale`, every other test setting as it is."""
  config.test.update(scales=multi_scale.scales, merge_exponent=multi_scale.merge_exponent)
  config.eval_name = 'multi_scale'


def parse_variant(variant: str, **possible: tuple[str, ...]) -> dict[str, str]:
  """'hg=52' -> {'hg': '52'}; what is not given takes the first possible value. ValueError lists what is possible."""
  given = dict(pair.partition('=')[::2] for pair in variant.split(',') if pair)
  chosen = {key: given.pop(key, values[0]) for key, values in possible.items()}
  if given or any(chosen[key] not in values for key, values in possible.items()):
    listed = '; '.join(f'{key}={"|".join(values)}' for key, values in possible.items())
    raise ValueError(f'unknown variant {variant!r}; possible, separated by commas: {listed}')
  return chosen
