"""The embedded data set: makes its scenes, trains a small triplet detector, evaluates it and draws its boxes.

  python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes

About ten minutes on 2 CPU cores, to AP 0.80 and AP50 0.95. Variant: scales=multi tests at the paper's five scales. The
other rows of Table 4 are configs/ablation.py:row=1,small=1 and so on.
"""

from ml_collections import ConfigDict

from triplet_det.configs import triplet
from triplet_det.detection.settings import PUBLISHED_CENTERNET_MULTI_SCALE, Settings
from triplet_det.models.detector import VARIANTS


def get_config(variant: str = 'scales=single') -> ConfigDict:
  chosen = triplet.parse_variant(variant, scales=triplet.SCALES)
  config = triplet.get_config()
  source = dict(format='shapes', data_dir='~/tensorflow_datasets', train_images=2_000, validation_images=200)
  config.data.train = dict(source, split='train')
  config.data.eval = dict(source, split='validation')
  config.data.num_workers = 0

  config.input_size = 127
  config.augment.update(scales=(0.8, 0.9, 1.0, 1.1, 1.2), border=48, train_on_crowd=False)
  config.last_crops = dict(share=0.2, input_size=191, border=64)  # a large object is whole in few crops of 127 pixels
  config.colour_jitter = 0.2
  config.lighting = 0.05

  sizes = dict(VARIANTS['tiny'])
  del sizes['num_classes']
  config.model.update(sizes)
  config.model.norm_running = 'all'

  config.batch_size = 8
  config.group_size = 0
  config.min_overlap = 0.3
  config.published_radius = False
  config.keypoint_reach = 1

  config.total_steps = 2_000
  config.optimizer.update(base=2e-3, schedule='cosine', warmup_steps=100, reference_batch=8)
  config.log_every = 20
  config.checkpoint_every = 400
  config.eval_every = 500

  config.test = triplet.overridable(Settings(canvas_multiple=64, embedding_threshold=0.8, small_box=40.0))
  config.eval_batch_size = 8
  config.result_decimals = -1
  config.draw_threshold = 0.3
  if chosen['scales'] == 'multi':
    triplet.test_at_scales_of(PUBLISHED_CENTERNET_MULTI_SCALE, config)
  return config


def for_comparisons() -> ConfigDict:
  """The same for the paper's comparisons: without what docs/departures.md lists under small networks."""
  config, sound = get_config(), Settings()
  config.last_crops.share = 0.0
  config.total_steps, config.eval_every = 2_400, 600
  config.keypoint_reach = 0
  config.test.update(embedding_threshold=sound.embedding_threshold, small_box=sound.small_box)
  return config
