"""scripts/paper/published_quirks.py: what each row of its table is tested with."""

import dataclasses

import pytest

from scripts.paper import published_quirks
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_MMDETECTION, Settings


@pytest.mark.parametrize('own', [PUBLISHED_CENTERNET, PUBLISHED_MMDETECTION])
def test_without_quirks_a_published_checkpoint_is_tested_soundly(own):
  settings = published_quirks.sound_but_for({}, own)
  kept = {'top_k', 'outside_margin'}  # what CenterNet and CornerNet differ by is no quirk
  changed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in kept}
  assert changed == {name: value for name, value in dataclasses.asdict(Settings()).items() if name not in kept}
  assert (settings.top_k, settings.outside_margin) == (own.top_k, own.outside_margin)
  one = published_quirks.sound_but_for({'inclusive': True}, own)
  assert one == dataclasses.replace(settings, inclusive=True)
