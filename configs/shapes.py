"""The embedded data set: makes its scenes, trains a small triplet detector, evaluates it and draws its boxes.

  python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes

About 11 minutes on 2 CPU cores, to AP 0.78 and AP50 0.96. The same as configs/triplet.py:small=1. For its
other rows of Table 4 see configs/ablation.py.
"""

from ml_collections import ConfigDict

from configs import triplet
from triplet_det import inference
from triplet_det.models.detector import VARIANTS


def get_config() -> ConfigDict:
  config = triplet.get_config()
  source = dict(format='shapes', data_dir='~/tensorflow_datasets', train_images=2_000, validation_images=200)
  config.data.train = dict(source, split='train')
  config.data.eval = dict(source, split='validation')
  config.data.num_workers = 0

  config.input_size = 127
  config.augment.update(scales=(0.8, 0.9, 1.0, 1.1, 1.2), border=48, train_on_crowd=False)
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

  config.total_steps = 2_400
  config.optimizer.update(base=2e-3, schedule='cosine', warmup_steps=100, reference_batch=8)
  config.log_every = 20
  config.checkpoint_every = 400
  config.eval_every = 600

  config.test = triplet.overridable(inference.Settings(canvas_multiple=64))
  config.eval_batch_size = 8
  config.result_decimals = -1
  config.draw_threshold = 0.3
  return config
