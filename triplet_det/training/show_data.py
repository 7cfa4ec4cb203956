"""What the network sees in training, for a person to look at: augmented images with their boxes and target heatmaps."""

import functools
from collections.abc import Iterable, Mapping

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from triplet_det.data.pipeline import Source
from triplet_det.pictures import drawing
from triplet_det.structs import Batch, Targets
from triplet_det.training import colour_augmentation, targets

ORIGINALS, SAMPLES = 8, 8  # on the sheet
COLUMNS = 4
ORIGINAL_SIDE = 1024  # pixels of the longer side of an original, at most
RED, BLUE, GREEN = (255, 60, 60), (70, 130, 255), (70, 255, 70)  # light that is added where heatmaps overlap


def write(
  source: Source,
  batches: Iterable[Mapping[str, np.ndarray]],
  folder: epath.PathLike,
  *,
  seed: int,
  colour_jitter: float,
  lighting: float,
  centers: bool = True,
  min_overlap: float = 0.3,
  published_radius: bool = False,
) -> epath.Path:
  """Writes the pictures and a sheet of all of them, and returns the path of the sheet.

  <folder>/data/original_<n>.png: images as they are in the files, with their boxes.
  <folder>/data/sample_<n>.png: images of the first steps after crop, resize, flip and colours, with their boxes, and
    the heatmaps that they are trained towards.
  <folder>/data.png: two rows of originals, the rest samples.

  Args:
    source: the training split.
    batches: of `pipeline.train_batches` from step 0.
    folder: the run's.
    seed, colour_jitter, lighting: as in `train_step.make_train_step`, so that the colours are those of the training.
    centers: False for a network without centers.
    min_overlap, published_radius: see `targets.render`.

  Raises:
    ValueError: an image cannot be decoded.
  """
  folder = epath.Path(folder)
  names = source.categories.names
  panels = []  # picture, caption
  for n, index in enumerate(_spread(source, ORIGINALS), start=1):
    panels.append(_draw_original(source, index))
    drawing.save_png(folder / 'data' / f'original_{n}.png', panels[-1][0])
  panels += [(np.full_like(panels[-1][0], 255), '')] * (-len(panels) % COLUMNS)  # samples begin a row

  radius = dict(min_overlap=min_overlap, published_radius=published_radius)
  prepare = jax.jit(functools.partial(_prepare, num_classes=len(names), **radius))
  legend = 'targets: corners red, blue' + '; centers green' * centers
  taken = 0
  for step, arrays in enumerate(batches):
    batch = Batch(**arrays)
    key = jax.random.fold_in(jax.random.key(seed), step)  # as the training step draws them
    colours = colour_augmentation.draw_colours(key, len(batch.images), jitter=colour_jitter, lighting=lighting)
    images, goal = jax.device_get(prepare(batch, colours))
    for row in range(min(len(images), SAMPLES - taken)):
      taken += 1
      valid = batch.valid[row]
      boxes, classes = batch.boxes[row][valid], batch.classes[row][valid]
      drawn = _draw_boxes(images[row], boxes, classes, names)
      heat = _draw_targets(images[row], jax.tree.map(lambda x, row=row: x[row], goal), centers)
      captions = [f'step {step + 1}, image {row + 1}: {_counted(len(boxes))}', legend]
      sheet = drawing.contact_sheet([drawn, heat], 2, captions, cell_width=drawn.shape[1])
      drawing.save_png(folder / 'data' / f'sample_{taken}.png', sheet)
      panels += zip([drawn, heat], captions)
    if taken == SAMPLES:
      break
  pictures, captions = zip(*panels)
  drawing.save_png(folder / 'data.png', drawing.contact_sheet(pictures, COLUMNS, captions))
  return folder / 'data.png'


def _prepare(batch: Batch, colours: colour_augmentation.ColourDraws, **settings) -> tuple[jax.Array, Targets]:
  """Images [B, S, S, 3] uint8 with the colours of the training, cut to what a picture can show, and the targets."""
  images = colour_augmentation.distort(batch.images.astype(jnp.float32) / 255, colours)
  return jnp.rint(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8), targets.of_batch(batch, **settings)


def _spread(source: Source, count: int) -> list[int]:
  """`count` images with boxes, from all over the source."""
  candidates = np.flatnonzero(np.diff(source.annotations.starts))
  if len(candidates) == 0:
    raise ValueError('the training data have no box to show')
  return candidates[np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)].tolist()


def _draw_original(source: Source, index: int) -> tuple[np.ndarray, str]:
  record = source[index]
  image = record.decode()
  height, width = image.shape[:2]
  shrink = min(1.0, ORIGINAL_SIDE / max(height, width))
  if shrink < 1:
    image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
  boxes = record.boxes * np.tile(image.shape[1::-1], 2)
  picture = _draw_boxes(image, boxes, record.classes, source.categories.names, record.crowd)
  return picture, f'{record.file_name}, {width} x {height}: {_counted(len(boxes))}'


def _draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, names, crowd=None) -> np.ndarray:
  crowd = np.zeros(len(boxes), bool) if crowd is None else crowd
  labels = [names[c] + (' (crowd)' if many else '') for c, many in zip(classes, crowd)]
  return drawing.draw_boxes(image, boxes, labels, colors=[drawing.class_color(c) for c in classes.tolist()])


def _draw_targets(image: np.ndarray, goal: Targets, centers: bool) -> np.ndarray:
  """The heatmaps of all classes, each kind a light of its colour, over the darkened grey image."""
  canvas, _ = drawing.enlarge(image)
  grey = canvas @ colour_augmentation.GREY
  light = np.repeat(0.5 * grey[..., None], 3, axis=2)
  heats = (goal.tl_heat, goal.br_heat, goal.center_heat)[: 2 + centers]
  for heat, color in zip(heats, (RED, BLUE, GREEN)):
    heat = cv2.resize(heat.max(axis=-1), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)  # cells are to be seen
    light += heat[..., None] * np.array(color)
  return np.uint8(np.rint(np.clip(light, 0, 255)))


def _counted(objects: int) -> str:
  return '1 object' if objects == 1 else f'{objects} objects'
