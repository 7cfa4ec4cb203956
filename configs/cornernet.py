"""The baseline, CornerNet511 (Law and Deng; [20] of the paper), by its own release: pairs of corners without centers.

  python -m triplet_det.main --config configs/cornernet.py:hg=104 --workdir gs://bucket/cornernet

Variants: hg=104 (default; AP 40.5 on test-dev) or hg=52 (37.8). Row 1 of Table 4 is configs/ablation.py:row=1, which
trains it by CenterNet's recipe.
"""

from ml_collections import ConfigDict

from configs import triplet
from triplet_det import inference


def get_config(variant: str = 'hg=104') -> ConfigDict:
  config = triplet.get_config(variant)
  config.model.update(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
  # Published: batch 49, on 10 GPUs in unequal chunks of 4 and 5; 8 groups of 6 come nearest and fit 8 devices.
  config.min_overlap = 0.3
  config.published_radius = False
  config.total_steps = 500_000
  config.test = triplet.overridable(inference.PUBLISHED_CORNERNET)
  return config
