"""The paper's pictures of one image: what the heatmaps show, which pairs of corners the central region keeps.

`heatmaps` and `draw_heatmaps` are Figs. 6e and 6f, `draw_pairs` is Figs. 1 and 6a-d; Fig. 7, detections over a
threshold, is `drawing.draw_boxes`. Pictures are uint8 [H, W, 3] RGB, at least `drawing.MIN_SIDE` pixels long.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import cv2
import jax
import numpy as np

from triplet_det.detection import nms_rule
from triplet_det.detection.batches import place_batch
from triplet_det.detection.canvas import check_image
from triplet_det.detection.central_region import centers_inside, central_region
from triplet_det.detection.inference import Proposals, network_input
from triplet_det.detection.settings import SMALL_BOX, Settings
from triplet_det.pictures import drawing
from triplet_det.structs import KeypointMaps, Pairs

NEAR_DUPLICATE = 0.5  # overlap above which the weaker of two pairs of one class is not shown
MOST_PAIRS = 30  # in a picture


@dataclasses.dataclass(frozen=True)
class Heatmaps:
  """How sure the network is that a pixel of an image is a keypoint, of whichever class."""

  top_left: np.ndarray  # [h, w] float32 in [0, 1], pixels of the image
  bottom_right: np.ndarray  # [h, w] float32
  center: np.ndarray | None  # [h, w] float32; None for CornerNet


@dataclasses.dataclass(frozen=True)
class Panel:
  """One picture of a figure."""

  picture: np.ndarray  # uint8 [H, W, 3] RGB
  caption: str


def heatmaps(
  apply_fn: Callable[..., KeypointMaps],
  variables,
  image: np.ndarray,
  *,
  scale: float = 1.0,
  canvas_multiple: int = 128,
  canvas_colour: str = 'black',
) -> Heatmaps:
  """The network's heatmaps of an image, without its mirror image, cropped from the canvas back to the image.

  Args:
    apply_fn: (variables, images [1, H, W, 3] float32 normalised) -> KeypointMaps; compiled once per canvas size as
      long as it is the same object.
    image: uint8 [h, w, 3] RGB.
    scale: of the image on its canvas.
    canvas_multiple, canvas_colour: see `Settings`.
  """
  image = check_image(image, 'to draw on')
  settings = Settings(mirror=False, canvas_multiple=canvas_multiple, canvas_colour=canvas_colour)
  canvases, placement = place_batch([image], scale, settings, 1)
  (left, top), (width, height) = placement.border[0].astype(int), placement.size[0].astype(int)

  def on_image(heat: np.ndarray) -> np.ndarray:
    """Output cells [H, W] -> pixels of the image [h, w]."""
    on_canvas = cv2.resize(heat, canvases.shape[2:0:-1], interpolation=cv2.INTER_LINEAR)
    cropped = on_canvas[top : top + height, left : left + width]
    return cv2.resize(cropped, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)

  hottest = jax.device_get(_hottest_class(apply_fn, settings, variables, canvases, placement))
  return Heatmaps(*(None if heat is None else on_image(heat[0]) for heat in hottest))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hottest_class(apply_fn, settings, variables, canvases, placement):
  """Top-left, bottom-right, center heat [1, H, W] in [0, 1], the maximum over the classes."""
  maps = apply_fn(variables, network_input(canvases, settings, placement))
  heats = maps.tl_heat, maps.br_heat, maps.center_heat
  return jax.tree.map(lambda logits: jax.nn.sigmoid(logits.max(axis=-1)), heats)


def draw_heatmaps(image: np.ndarray, maps: Heatmaps) -> list[Panel]:
  """The image under each heatmap: top-left corners, bottom-right corners, and, except for CornerNet, centers.

  The hottest colour is the map's own maximum, which the caption says.
  """
  kinds = {'top-left corners': maps.top_left, 'bottom-right corners': maps.bottom_right, 'centers': maps.center}
  return [
    Panel(drawing.draw_heatmap(image, heat), f'{kind} (red: {heat.max():.2f})')
    for kind, heat in kinds.items()
    if heat is not None
  ]


def strongest_pairs(proposals: Proposals, *, kept: bool, threshold: float) -> Pairs:
  """The best pairs that the central region keeps, or else rejects, for a person to look at.

  At most `MOST_PAIRS` Pairs [P] of one image with scores (means of their two corners) over the threshold, best first,
  none overlapping a better one of its class by `NEAR_DUPLICATE`.
  """
  pairs = proposals.pairs
  candidates = np.flatnonzero((proposals.kept == kept) & pairs.valid & (pairs.scores > threshold))
  candidates = candidates[np.argsort(-pairs.scores[candidates], kind='stable')]
  chosen = []
  while candidates.size and len(chosen) < MOST_PAIRS:
    best, others = candidates[0], candidates[1:]
    chosen.append(best)
    same = pairs.classes[others] == pairs.classes[best]
    iou, _ = nms_rule.overlap(np, pairs.boxes[best], pairs.boxes[others])
    candidates = others[~(same & (iou > NEAR_DUPLICATE))]
  return jax.tree.map(lambda a: a[np.array(chosen, int)], pairs)


def draw_pairs(
  image: np.ndarray, proposals: Proposals, names: Sequence[str], *, threshold: float, small_box: float = SMALL_BOX
) -> list[Panel]:
  """The `strongest_pairs` that the central region keeps, and those that it rejects; of CornerNet, which keeps all, one.

  Boxes have the colour of their class, and so do their central regions, shaded, and the centers, dots: those over the
  threshold and the best one of each pair that is kept. The threshold is on the scores of pairs and of centers;
  `small_box` is that of the `Settings` which the proposals were made with.
  """
  kept = strongest_pairs(proposals, kept=True, threshold=threshold)
  centers = proposals.centers
  if centers is None:
    return [Panel(_draw(image, kept, names), f'{_counted(kept)}: no centers in this network to reject any')]
  rejected = strongest_pairs(proposals, kept=False, threshold=threshold)
  inside = np.asarray(centers_inside(kept, centers, small_box))
  keeping = np.where(inside, centers.scores, 0).argmax(axis=1)[inside.any(axis=1)]
  shown = np.union1d(keeping, np.flatnonzero(centers.scores > threshold))
  centers = jax.tree.map(lambda a: a[shown], centers)
  return [
    Panel(
      _draw(image, kept, names, centers, small_box), f'kept: {_counted(kept)} with a center of their class in the shade'
    ),
    Panel(_draw(image, rejected, names, centers, small_box), f'rejected: {_counted(rejected)} without one'),
  ]


def _counted(pairs: Pairs) -> str:
  count = len(pairs.scores)
  return f'the best {count} pairs' if count == MOST_PAIRS else '1 pair' if count == 1 else f'{count} pairs'


def _draw(image, pairs, names, centers=None, small_box=SMALL_BOX):
  """Boxes; with centers also the shaded central regions, and all the centers on top, the best last."""
  picture, factor = drawing.enlarge(image)
  labels, colors = [names[c] for c in pairs.classes], [drawing.class_color(c) for c in pairs.classes]
  if centers is not None:
    regions = np.asarray(central_region(pairs.boxes, small_box=small_box))
    picture = drawing.shade_boxes(picture, regions * factor, colors)
  picture = drawing.draw_boxes(picture, pairs.boxes * factor, labels, scores=pairs.scores, colors=colors)
  if centers is None:
    return picture
  order = np.argsort(-centers.scores, kind='stable')
  points = np.stack([centers.x, centers.y], axis=-1)[order] * factor
  colors = [drawing.class_color(c) for c in centers.classes[order]]
  return drawing.draw_keypoints(picture, points, scores=centers.scores[order], colors=colors)


def side_by_side(panels: Sequence[Panel]) -> np.ndarray:
  """One picture of the panels with their captions."""
  pictures, captions = [panel.picture for panel in panels], [panel.caption for panel in panels]
  return drawing.contact_sheet(pictures, len(panels), captions, cell_width=max(p.shape[1] for p in pictures))


def sheet(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
  """Rows of as many panels each in one picture, one row per image."""
  panels = [panel for row in rows for panel in row]
  return drawing.contact_sheet([p.picture for p in panels], len(rows[0]), [p.caption for p in panels])
