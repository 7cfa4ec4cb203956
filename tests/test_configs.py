"""The configs: the published numbers of each experiment, and what their variants change and leave."""

from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from triplet_det.configs import ablation, coco_json, cornernet, photos, shapes, triplet
from triplet_det.detection.settings import (
  PUBLISHED_CENTERNET,
  PUBLISHED_CENTERNET_MULTI_SCALE,
  PUBLISHED_CORNERNET,
  PUBLISHED_CORNERNET_MULTI_SCALE,
  Settings,
  settings_for,
)
from triplet_det.models import detector

ROOT = Path(__file__).resolve().parent.parent
SWITCHES = ('center_branch', 'center_pooling', 'cascade_corner_pooling')


def network(config, num_classes=80):
  return detector.build(dict(config.model, num_classes=num_classes))


def parameters(module) -> int:
  side = module.config.size_multiple - 1
  image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes['params']))


def differing(a, b) -> dict:
  """Flat name -> (value in a, value in b) of what differs between two configs."""
  flat = [dict(_flat(config.to_dict())) for config in (a, b)]
  return {k: tuple(f.get(k) for f in flat) for k in {*flat[0], *flat[1]} if flat[0].get(k) != flat[1].get(k)}


def _flat(tree, path=''):
  for key, value in tree.items():
    yield from _flat(value, f'{path}{key}.') if isinstance(value, dict) else [(path + key, value)]


@pytest.mark.parametrize('variant, published', [('hg=52', 104_844_152), ('hg=104', 210_062_960)])
def test_the_published_networks(variant, published):
  assert parameters(network(triplet.get_config(variant))) == published


def test_the_recipe_of_section_3_4():
  config = triplet.get_config()
  assert (config.input_size, config.batch_size, config.group_size, config.total_steps) == (511, 48, 6, 480_000)
  rate = config.optimizer
  assert (rate.base, rate.drop_step, rate.base * rate.drop_factor) == (2.5e-4, 450_000, pytest.approx(2.5e-5))
  assert differing(triplet.get_config('hg=52'), triplet.get_config('hg=104')) == {'model.stacks': (1, 2)}
  assert config.eval_name == '' and settings_for(config.test.to_dict()) == PUBLISHED_CENTERNET


@pytest.mark.parametrize(
  'config, wanted',
  [
    (triplet.get_config('scales=multi'), PUBLISHED_CENTERNET_MULTI_SCALE),
    (cornernet.get_config(), PUBLISHED_CORNERNET),
    (cornernet.get_config('scales=multi,hg=52'), PUBLISHED_CORNERNET_MULTI_SCALE),
    (ablation.get_config('row=4'), PUBLISHED_CENTERNET),
    (cornernet.get_config('small=1'), Settings(canvas_multiple=64, top_k=100, outside_margin=None)),
  ],
)
def test_how_each_is_tested(config, wanted):
  assert settings_for(config.test.to_dict()) == wanted


def test_scales_are_shares_of_the_image_scale():
  config = shapes.get_config('scales=multi')
  settings = settings_for(config.test.to_dict(), 0.5)
  assert settings.scales == (0.3, 0.5, 0.6, 0.75, 0.9) and settings.center_scale == 0.5


MULTI = {
  'test.scales': ((1.0,), (0.6, 1.0, 1.2, 1.5, 1.8)),
  'test.merge_exponent': (None, 10),
  'eval_name': ('', 'multi_scale'),
}
CORNERNET_MULTI = {**MULTI, 'test.scales': ((1.0,), (0.5, 0.75, 1.0, 1.25, 1.5))}


@pytest.mark.parametrize(
  'page, variant, changes',
  [
    (triplet, 'hg=52', MULTI),
    (shapes, '', MULTI),
    (cornernet, 'hg=104', CORNERNET_MULTI),
    (cornernet, 'small=1', CORNERNET_MULTI),
  ],
)
def test_multi_scale_changes_the_test_alone(page, variant, changes):
  assert differing(page.get_config(variant), page.get_config(f'{variant},scales=multi')) == changes


def test_the_small_variants_are_the_embedded_data_set():
  small = shapes.for_comparisons()
  assert differing(shapes.get_config(), small) == {
    'last_crops.share': (0.2, 0.0),
    'total_steps': (2_000, 2_400),
    'eval_every': (500, 600),
    'keypoint_reach': (1, 0),
    'test.embedding_threshold': (0.8, PUBLISHED_CENTERNET.embedding_threshold),
    'test.small_box': (40.0, PUBLISHED_CENTERNET.small_box),
  }
  assert small.data.train.format == small.data.eval.format == 'shapes'
  assert differing(small, cornernet.get_config('small=1')) == {
    **{f'model.{switch}': (True, False) for switch in SWITCHES},
    'test.top_k': (70, 100),
    'test.outside_margin': (5.0, None),
  }
  assert differing(small, ablation.get_config('row=5,small=1')) == {
    'total_steps': (2_400, 1_500),
    'eval_every': (600, 1_500),
  }


@pytest.mark.parametrize('small', ['', ',small=1'])
def test_rows_of_table_4_differ_in_their_switches_alone(small):
  # The ticks of Table 4; its second row by the text, which is cascade corner pooling.
  ticks = {1: '', 2: 'cascade_corner_pooling', 3: 'center_branch', 4: 'center_branch center_pooling'}
  full = ablation.get_config('row=5' + small)
  assert all(full.model[switch] for switch in SWITCHES)
  for row, on in ticks.items():
    off = set(SWITCHES) - set(on.split())
    changes = {f'model.{switch}': (False, True) for switch in off}
    assert differing(ablation.get_config(f'row={row}{small}'), full) == changes


def test_row_5_is_the_paper_s_detector():
  assert differing(ablation.get_config('row=5'), triplet.get_config('hg=52')) == {}


@pytest.mark.parametrize('before, now', [('small', 'encoder=hourglass'), ('hg=52', 'hg=52')])
def test_the_former_name_of_a_page(before, now, monkeypatch):
  said = []
  monkeypatch.setattr(coco_json.logging, 'log_first_n', lambda level, text, count, *words: said.append(text % words))
  assert coco_json.get_config(before).to_json() == photos.get_config(now).to_json()
  assert said == [f'coco_json is now photos:{now}, and this name goes with the next version']


def test_the_networks_of_own_photos():
  """The small one is that of the package's detector; the one with an encoder starts with what that has learnt."""
  named = {variant: photos.get_config(variant) for variant in photos.NETWORKS}
  assert photos.get_config().to_json() == named['encoder=efficientnet_lite0'].to_json()
  assert {variant: (config.model.encoder, config.init_from) for variant, config in named.items()} == {
    'encoder=efficientnet_lite0': ('efficientnet_lite0', 'imagenet'),
    **dict.fromkeys(['encoder=hourglass', 'hg=52', 'hg=104'], ('hourglass', '')),
  }
  sizes = {variant: parameters(network(config)) for variant, config in named.items()}
  assert (sizes['hg=52'], sizes['hg=104']) == (104_844_152, 210_062_960)
  assert named['encoder=hourglass'].model == shapes.get_config().model
  # The encoder's published 4,652,008 without what lies behind its last map: 1x1 convolution, norm and classifier.
  encoder = 4_652_008 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)
  assert encoder == 2_958_848 < sizes['encoder=efficientnet_lite0'] < 1.25 * encoder


@pytest.mark.parametrize(
  'page, variant, told',
  [
    (triplet, 'hg=105', r"'hg=105'; possible, separated by commas: hg=104\|52; scales=single\|multi$"),
    (cornernet, 'size=52', r'hg=104\|52; scales=single\|multi; small=0\|1'),
    (ablation, 'row=6', r'row=5\|4\|3\|2\|1; small=0\|1'),
    (
      shapes,
      'small=1',
      r"'small=1'; possible, separated by commas: scales=single\|multi$",
    ),
    (cornernet, 'small=1,hg=104', 'small=1 has a small network of its own, leave hg out'),
    (photos, 'medium', r"'medium'; possible: encoder=hourglass, encoder=efficientnet_lite0, hg=52, hg=104$"),
  ],
)
def test_an_unknown_variant(page, variant, told):
  with pytest.raises(ValueError, match=told):
    page.get_config(variant)


@pytest.mark.parametrize(
  'page', ['cornernet.py', 'cornernet.py:small=1', 'triplet.py', 'shapes.py:scales=multi', 'shapes.py']
)
def test_values_that_are_none_can_be_overridden(page):
  """As the program reads them: a plain None could not be."""
  argv = ['', f'--config={ROOT}/configs/{page}', '--config.test.outside_margin=4.5', '--config.test.merge_exponent=8']
  own = flags.FlagValues()
  config = config_flags.DEFINE_config_file('config', flag_values=own, sys_argv=argv)
  own(argv)
  assert (config.value.test.outside_margin, config.value.test.merge_exponent) == (4.5, 8.0)
