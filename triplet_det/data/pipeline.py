"""From a source to batches (grain): batch k is a pure function of (seed, k).

It is the same after a restart, with any number of workers, and on any number of hosts: the b rows of host h are rows
h * b to (h + 1) * b of the batch that one host would make. So a checkpoint needs no state of the input.
"""

import collections
import concurrent.futures
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import grain
import numpy as np
from absl import logging

from triplet_det.categories import CategoryTable
from triplet_det.data import augmentation, image_files, shapes_dataset
from triplet_det.data.annotations import Annotations
from triplet_det.data.sources import JsonSource, Record, TfdsSource


class Source(Protocol):
  """What `JsonSource` and `TfdsSource` have in common; lists are in the order of the records."""

  categories: CategoryTable
  ground_truth: dict
  image_ids: list[int]
  image_sizes: list[tuple[int, int]]
  file_names: list[str]
  report: dict[str, int]
  annotations: Annotations

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


_FORMATS: Mapping[str, Callable[..., Source]] = {
  'coco_json': JsonSource,
  'tfds': TfdsSource,
  'shapes': shapes_dataset.open_split,
}


def open_source(format: str, **settings) -> Source:
  """Opens a data set.

  Args:
    format: 'coco_json' (settings: images, annotations, split, require_boxes), 'tfds' (name, data_dir, split,
      annotations, require_boxes) or 'shapes' (data_dir, split, train_images, validation_images, seed).
    **settings: of the format.

  Raises:
    ValueError: unknown format or setting, or one that is needed is missing or ''; the message lists the possible ones.
    FileNotFoundError: the data are not there.
  """
  if format not in _FORMATS:
    raise ValueError(f'unknown data format {format!r}; possible: {sorted(_FORMATS)}')
  parameters = inspect.signature(_FORMATS[format]).parameters
  if unknown := sorted(set(settings) - set(parameters)):
    raise ValueError(f'data format {format!r} has no setting {unknown}; possible: {sorted(parameters)}')
  needed = [name for name, p in parameters.items() if p.default is p.empty]
  if missing := [name for name in needed if not settings.get(name)]:
    raise ValueError(f'data format {format!r} needs the settings {needed}; not given: {missing}')
  return _FORMATS[format](**settings)


class _Augment(grain.transforms.RandomMap):
  """Record -> one row of a batch."""

  def __init__(
    self,
    *,
    input_size: int,
    scales: Sequence[float],
    border: int,
    flip: bool,
    max_objects: int,
    train_on_crowd: bool,
  ):
    self._input_size = input_size
    self._draw = dict(scales=tuple(scales), border=border, flip=flip)
    self._max_objects = max_objects
    self._train_on_crowd = train_on_crowd

  def random_map(self, element: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    image = image_files.decode_image(element.encoded, element.file_name, size=element.size)
    height, width = image.shape[:2]
    keep = ~element.crowd | self._train_on_crowd
    boxes = element.boxes[keep] * np.array([width, height, width, height], np.float64)
    draws = augmentation.draw(rng, height, width, **self._draw)
    example = augmentation.apply(image, boxes, element.classes[keep], draws, self._input_size)
    if len(example.boxes) > self._max_objects:
      logging.log_first_n(
        logging.WARNING,
        '%s: %d objects for %d slots (max_objects); the smallest are left out, here and in images to come',
        1,
        element.file_name,
        len(example.boxes),
        self._max_objects,
      )
    boxes, classes, valid = augmentation.pad(example, self._max_objects)
    return dict(images=example.image, boxes=boxes, classes=classes, valid=valid)


def train_batches(
  source: Source,
  *,
  batch_size: int,
  input_size: int,
  seed: int,
  start_step: int = 0,
  num_workers: int = 0,
  num_threads: int = 2,
  prefetch: int = 4,
  host_index: int = 0,
  host_count: int = 1,
  scales: Sequence[float] = augmentation.SCALES,
  border: int = 128,
  flip: bool = True,
  max_objects: int = 128,
  train_on_crowd: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """Endless augmented batches; call `close()` on the iterator at the end.

  Args:
    source: the data; shuffled anew in every epoch. It may be smaller than a batch.
    batch_size: images per step over all hosts.
    input_size: S, pixels (511).
    seed: of the order and of the augmentation.
    start_step: the first batch that is given.
    num_workers: processes; 0 works in threads of this one. Processes need parsed absl flags and a `__main__` guard.
    num_threads: threads in each process.
    prefetch: batches that each process makes in advance.
    host_index, host_count: this host's share; see the head of this file.
    scales, border, flip: `augmentation.draw`.
    max_objects: N, slots per image; the N largest objects stay (the published program ends at the 129th object).
    train_on_crowd: quirk: the published programs take a crowd box for one object (True); False leaves crowds out.

  Yields:
    dict of images [b, S, S, 3] uint8 RGB, boxes [b, N, 4] float32 in input pixels, classes [b, N] int32 and
    valid [b, N] bool, with b = batch_size // host_count.

  Raises:
    ValueError: the source is empty, a size or a scale is not positive, or batch_size is not divisible by host_count. An
      image that cannot be decoded raises ValueError from `next()`.
  """
  if len(source) == 0:
    raise ValueError('the data set has 0 images')
  if batch_size < 1 or host_count < 1 or batch_size % host_count:
    raise ValueError(f'batch size {batch_size} cannot be divided among {host_count} hosts')
  if not 0 <= host_index < host_count:
    raise ValueError(f'host {host_index} of {host_count} hosts')
  if input_size < 1 or max_objects < 1 or not scales or min(scales) <= 0:
    raise ValueError(f'must be positive: input_size {input_size}, max_objects {max_objects}, scales {tuple(scales)}')
  transform = _Augment(
    input_size=input_size,
    scales=scales,
    border=border,
    flip=flip,
    max_objects=max_objects,
    train_on_crowd=train_on_crowd,
  )
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
  # Batches are made before the workers' turn: behind them, rows would be dealt by the number of workers.
  shares = examples.batch(batch_size // host_count, drop_remainder=True)
  batches = shares[host_index::host_count][start_step:]
  read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
  dataset = batches.to_iter_dataset(read)
  if num_workers:
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
  return iter(dataset)


def load_images(
  source: Source, indices: Iterable[int], num_threads: int = 2
) -> Iterator[tuple[int, Record, np.ndarray]]:
  """Whole decoded images for evaluation, in order, read ahead by threads.

  Yields:
    index, record, image [H, W, 3] uint8 RGB.

  Raises:
    ValueError: an image cannot be decoded.
  """

  def load(index: int) -> tuple[int, Record, np.ndarray]:
    record = source[index]
    return index, record, image_files.decode_image(record.encoded, record.file_name, size=record.size)

  pool = concurrent.futures.ThreadPoolExecutor(num_threads)
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for index in indices:
      waiting.append(pool.submit(load, index))
      if len(waiting) > 2 * num_threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
