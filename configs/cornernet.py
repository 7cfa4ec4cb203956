"""The baseline, CornerNet511 (Law and Deng; [20] of the paper), by its own release: pairs of corners without centers.

  python -m triplet_det.main --config configs/cornernet.py:hg=104 --workdir gs://bucket/cornernet
  python -m triplet_det.main --config configs/cornernet.py:small=1 --workdir runs/cornernet

Variants: hg=104 (default; AP 40.5 on test-dev) or hg=52 (37.8); scales=multi tests at CornerNet's five scales (42.1 and
39.4); small=1 is the embedded data set with the small network of configs/shapes.py; test=mmdetection tests weights of
mmdetection as it does. Row 1 of Table 4 is configs/ablation.py:row=1, which trains it by CenterNet's recipe.
"""

from ml_collections import ConfigDict

from triplet_det.configs import shapes, triplet
from triplet_det.detection.settings import (
  PUBLISHED_CORNERNET,
  PUBLISHED_CORNERNET_MULTI_SCALE,
  PUBLISHED_MMDETECTION,
  Settings,
)

TESTS = 'authors', 'mmdetection'


def get_config(variant: str = 'hg=104') -> ConfigDict:
  chosen = triplet.parse_variant(
    variant, hg=triplet.HOURGLASSES, scales=triplet.SCALES, small=triplet.SMALL, test=TESTS
  )
  if chosen['small'] == '1' and 'hg' in variant:
    raise ValueError(f'variant {variant!r}: small=1 has a small network of its own, leave hg out')
  if chosen['test'] == 'mmdetection' and (chosen['scales'], chosen['small']) != ('single', '0'):
    raise ValueError(
      f'variant {variant!r}: test=mmdetection has one scale and no small network, leave scales, small out'
    )
  config = shapes.for_comparisons() if chosen['small'] == '1' else triplet.get_config(f'hg={chosen["hg"]}')
  config.model.update(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
  if chosen['small'] == '0':
    # Published: batch 49, on 10 GPUs in unequal chunks of 4 and 5; 8 groups of 6 come nearest and fit 8 devices.
    config.min_overlap = 0.3
    config.published_radius = False
    config.total_steps = 500_000
  own = dict(top_k=PUBLISHED_CORNERNET.top_k, outside_margin=PUBLISHED_CORNERNET.outside_margin)
  config.test = triplet.overridable(Settings(**{**config.test, **own}))
  if chosen['test'] == 'mmdetection':
    config.test = triplet.overridable(PUBLISHED_MMDETECTION)
    config.result_decimals = -1
  if chosen['scales'] == 'multi':
    triplet.test_at_scales_of(PUBLISHED_CORNERNET_MULTI_SCALE, config)
  return config
