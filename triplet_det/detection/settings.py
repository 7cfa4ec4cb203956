"""How images are tested: `Settings`, and those of the published programs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from triplet_det.detection import nms_rule
from triplet_det.run import config_limits

CENTER_RULES = ('best', 'first')
# Type of a setting -> what is taken for it; true is no number.
_POSSIBLE = {bool: bool, int: int, float: float | int, float | None: float | int | None, str: str}
SMALL_BOX = 150.0  # pixels (Sec. 3.1)
CANVAS_COLOURS = ('black', 'imagenet')  # the second: `input_pixels.STATISTICS`


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are tested. The defaults are sound; `PUBLISHED_*` repeat the programs behind the papers' tables."""

  image_side: int = 0  # pixels that the longer side of an image is scaled to before `scales`; 0: as it is
  scales: tuple[float, ...] = (1.0,)
  center_scale: float = 1.0  # the one of the scales whose centers serve the boxes of all
  mirror: bool = True  # each image together with its mirror image: even the paper's "single-scale" does
  canvas_multiple: int = 128  # of canvas sides + 1; a power of two that the network fits. Larger: fewer programs
  top_k: int = 70  # peaks per heatmap
  num_pairs: int = 1000  # pairs of corners per image, mirror image and scale
  window: int = 3  # side of the window of a local maximum, cells
  embedding_threshold: float = 0.5
  outside_margin: float | None = 5.0  # pixels a box may reach out of the resized image; None lets all be clipped
  center_rule: str = 'best'  # of the centers in a box's region; 'first' is the published one, first in the list
  small_box: float = SMALL_BOX  # side, in pixels of the image, up to which a central region is 1/3 of its box, else 1/5
  nms_method: str = 'gaussian'  # this one and the next eight: `nms_rule.Rule`
  sigma: float = 0.5
  overlap_threshold: float = 0.5
  score_threshold: float = 0.001
  max_detections: int = 100
  merge_exponent: float | None = None  # published: 10 with several scales
  inclusive: bool = False  # published: True
  drop_untouched: bool = False  # mmdetection: True
  class_shift: bool = False  # mmdetection: True
  stale_rows: bool = False  # published: True, `nms.soft_nms_in_place` on the host, slower
  nominal_scale: bool = False  # published: True, boxes are divided by the scale asked for, not by the rounded one
  mirror_shift: bool = False  # published: True, what the mirror image shows is turned back a pixel too far right
  cut_last_line: bool = False  # published: True, an image as large as its canvas loses its last row or column
  canvas_colour: str = 'black'  # around the image; mmdetection: 'imagenet', the mean of ImageNet
  # mmdetection: True, boxes are cut at the left and top edge alone, before the best pairs are chosen and the mirror
  # image is turned back, and what then has no width or height is no pair.
  near_edges: bool = False
  mirror_in_image: bool = False  # mmdetection: True, what the mirror image shows is turned back there, x -> w - x

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, possible = getattr(self, field.name), _POSSIBLE.get(field.type)
      if possible and (not isinstance(value, possible) or (isinstance(value, bool) and field.type is not bool)):
        raise ValueError(f'{field.name} must be {getattr(field.type, "__name__", field.type)}, got {value!r}')
      if isinstance(value, float) and math.isnan(value):
        raise ValueError(f'{field.name} must be a number, got {value!r}')
    are_numbers = isinstance(self.scales, tuple) and all(isinstance(scale, float | int) for scale in self.scales)
    if not (are_numbers and self.scales and all(0 < scale < math.inf for scale in self.scales)):
      raise ValueError(f'scales must be one or more positive numbers, such as (1.0, 1.5), got {self.scales!r}')
    if self.max_detections < 1 or self.top_k < 1 or self.num_pairs < 1 or not self.sigma > 0:
      raise ValueError(
        f'max_detections {self.max_detections}, top_k {self.top_k}, num_pairs {self.num_pairs} must be at least 1, '
        f'sigma {self.sigma} above 0'
      )
    if self.image_side < 0:
      raise ValueError(f'image_side must be 0 or pixels of the longer side, got {self.image_side}')
    if self.canvas_multiple < 1 or self.canvas_multiple & (self.canvas_multiple - 1):
      raise ValueError(f'canvas_multiple must be a power of two, got {self.canvas_multiple}')
    if self.center_rule not in CENTER_RULES:
      raise ValueError(f'unknown center_rule {self.center_rule!r}; possible: {", ".join(CENTER_RULES)}')
    if self.canvas_colour not in CANVAS_COLOURS:
      raise ValueError(f'unknown canvas_colour {self.canvas_colour!r}; possible: {", ".join(CANVAS_COLOURS)}')
    if self.stale_rows and (self.drop_untouched or self.class_shift):
      raise ValueError('stale_rows is of one program, drop_untouched and class_shift are of another: leave one out')
    nms_rule.Rule(**self.nms_settings())

  def nms_settings(self) -> dict[str, Any]:
    """The fields of `nms_rule.Rule`."""
    names = [field.name for field in dataclasses.fields(nms_rule.Rule) if field.name != 'method']
    return dict(method=self.nms_method, **{name: getattr(self, name) for name in names})


PUBLISHED_CENTERNET = Settings(
  center_rule='first', inclusive=True, stale_rows=True, nominal_scale=True, mirror_shift=True, cut_last_line=True
)
PUBLISHED_CENTERNET_MULTI_SCALE = dataclasses.replace(
  PUBLISHED_CENTERNET, scales=(0.6, 1.0, 1.2, 1.5, 1.8), merge_exponent=10
)
PUBLISHED_CORNERNET = dataclasses.replace(PUBLISHED_CENTERNET, top_k=100, outside_margin=None)
PUBLISHED_CORNERNET_MULTI_SCALE = dataclasses.replace(
  PUBLISHED_CORNERNET, scales=(0.5, 0.75, 1.0, 1.25, 1.5), merge_exponent=10
)

# mmdetection's configs/cornernet, version 2.28.2; its flip=True is `mirror`.
PUBLISHED_MMDETECTION = Settings(
  top_k=100,
  outside_margin=None,
  drop_untouched=True,
  class_shift=True,
  cut_last_line=True,
  canvas_colour='imagenet',
  near_edges=True,
  mirror_in_image=True,
)


KNOWN = tuple(field.name for field in dataclasses.fields(Settings))


def settings_for(test: Mapping, image_scale: float = 1.0, image_side: int | None = None) -> Settings:
  """The settings of a config or checkpoint, for images that are worked on at `image_scale` of their resolution.

  `image_side`: see `Settings`; None keeps that of `test`.
  """
  if unknown := sorted(set(test) - set(KNOWN)):
    raise ValueError(
      f'unknown test settings {", ".join(unknown)}; known: {", ".join(KNOWN)}. If a checkpoint brings them, it is of '
      'another version: update triplet_det'
    )
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in test.items()}
  if values['center_scale'] not in values['scales']:
    raise ValueError(f'test.center_scale is {values["center_scale"]}: give one of test.scales, {values["scales"]}')
  values['scales'] = tuple(scale * image_scale for scale in values['scales'])
  values['center_scale'] *= image_scale
  if image_side is not None:
    values['image_side'] = image_side
  return Settings(**values)


def change(settings: Settings, changes: Mapping[str, Any]) -> Settings:
  """Settings with some values replaced; other scales without a center_scale take the one nearest to it.

  Raises:
    ValueError: an unknown name (the nearest known one is named), or a value out of range.
  """
  config_limits.check_names('setting', changes, KNOWN)
  if isinstance(scale := changes.get('scales'), float | int):
    changes = {**changes, 'scales': (float(scale),)}
  elif isinstance(scale, list):
    changes = {**changes, 'scales': tuple(scale)}
  settings = dataclasses.replace(settings, **changes)
  if 'scales' in changes and 'center_scale' not in changes:
    nearest = min(settings.scales, key=lambda scale: abs(scale - settings.center_scale))
    settings = dataclasses.replace(settings, center_scale=nearest)
  return settings
