"""From a source to batches (grain): batch k is a pure function of (seed, k).

It is the same after a restart, with any number of workers, and on any number of hosts: the b rows of host h are rows
h * b to (h + 1) * b of the batch that one host would make. So a checkpoint needs no state of the input.
"""

import functools
import inspect
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import logging

from triplet_det.data import augmentation, shapes_dataset
from triplet_det.data.sources import JsonSource, Record, Source, TfdsSource, read_ahead

_FORMATS: Mapping[str, Callable[..., Source]] = {
  'coco_json': JsonSource,
  'tfds': TfdsSource,
  'shapes': shapes_dataset.open_split,
}
_SHARED_MEMORY = '/dev/shm'  # through which processes hand batches over
_PATIENCE = 10.0  # seconds for the processes to end
_BATCHES_OF_A_PROCESS = 6  # made, in the queue, taken from it, in use, not yet given back; measured: 5


class BrokenInput(ValueError):
  """An image cannot be read, any more perhaps."""


class WorkerLost(RuntimeError):
  """A process of the input was killed."""


def open_source(format: str, **settings) -> Source:
  """Opens a data set.

  Args:
    format: 'coco_json' (settings: images, annotations, split, require_boxes, orientation), 'tfds' (name,
      data_dir, split, annotations, require_boxes) or 'shapes' (data_dir, split, train_images, validation_images, seed).
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


def _augmented(
  record: Record,
  rng: np.random.Generator,
  *,
  input_size: int,
  max_objects: int,
  train_on_crowd: bool,
  image_side: int,
  scales: Sequence[float],
  border: int,
  flip: bool,
) -> dict[str, np.ndarray]:
  """One row of a batch."""
  image = record.decode()
  height, width = image.shape[:2]
  keep = ~record.crowd | train_on_crowd
  boxes = record.boxes[keep] * np.array([width, height, width, height], np.float64)
  own = augmentation.scale_to(image_side, height, width)
  draws = augmentation.draw(
    rng, height, width, scales=[scale / own for scale in scales], border=round(border / own), flip=flip
  )
  example = augmentation.apply(image, boxes, record.classes[keep], draws, input_size)
  if len(example.boxes) > max_objects:
    logging.log_first_n(
      logging.WARNING,
      '%s: %d objects for %d slots (max_objects); the smallest are left out, here and in images to come',
      1,
      *(record.file_name, len(example.boxes), max_objects),
    )
  boxes, classes, valid = augmentation.pad(example, max_objects)
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
  image_side: int = 0,
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
    image_side: pixels that the longer side of every image is scaled to before anything else; 0 leaves it as it is.
    scales, border, flip: `augmentation.draw`.
    max_objects: N, slots per image; the N largest objects stay (the published program ends at the 129th object).
    train_on_crowd: quirk: the published programs take a crowd box for one object (True); False leaves crowds out.

  Yields:
    dict of images [b, S, S, 3] uint8 RGB, boxes [b, N, 4] float32 in input pixels, classes [b, N] int32 and
    valid [b, N] bool, with b = batch_size // host_count.

  Raises:
    ValueError: the source is empty, a size or a scale is not positive, or batch_size is not divisible by host_count.
      `next()` raises BrokenInput for an image that cannot be read, and WorkerLost.
  """
  if len(source) == 0:
    raise ValueError('the data set has 0 images')
  if batch_size < 1 or host_count < 1 or batch_size % host_count:
    raise ValueError(f'batch size {batch_size} cannot be divided among {host_count} hosts')
  if not 0 <= host_index < host_count:
    raise ValueError(f'host {host_index} of {host_count} hosts')
  if input_size < 1 or max_objects < 1 or not scales or min(scales) <= 0:
    raise ValueError(f'must be positive: input_size {input_size}, max_objects {max_objects}, scales {tuple(scales)}')
  transform = functools.partial(
    _augmented,
    input_size=input_size,
    image_side=image_side,
    scales=tuple(scales),
    border=border,
    flip=flip,
    max_objects=max_objects,
    train_on_crowd=train_on_crowd,
  )
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
  # Batches are made before the workers' turn: behind them, rows would be dealt by the number of workers.
  shares = examples.batch(batch_size // host_count, drop_remainder=True)
  batches = shares[host_index::host_count][start_step:]
  batch_bytes = batch_size // host_count * (3 * input_size**2 + 21 * max_objects)
  if num_workers and not _fit_into_shared_memory(num_workers, batch_bytes):
    num_workers, num_threads = 0, max(num_threads, num_workers)
  read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
  dataset = batches.to_iter_dataset(read)
  if num_workers:
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), _begin_worker)
  return _Batches(iter(dataset))


def _fit_into_shared_memory(num_workers: int, batch_bytes: int) -> bool:
  """Whether so many processes can hand over their batches; one that finds no room is killed by SIGBUS."""
  if sys.platform != 'linux':
    return True
  free = shutil.disk_usage(_SHARED_MEMORY).free if os.access(_SHARED_MEMORY, os.W_OK) else 0
  need = _BATCHES_OF_A_PROCESS * num_workers * batch_bytes
  if free < need:
    logging.warning(
      '%s has %d MB free, batches of %d processes (data.num_workers) take up to %d MB: as many threads read instead, '
      'slower perhaps; give a container more (docker run --shm-size=%dm)',
      *(_SHARED_MEMORY, free >> 20, num_workers, need >> 20, (2 * need >> 20) + 1),
    )
  return free >= need


def _begin_worker(index: int, count: int) -> None:
  """In a process of the input: signals for all processes are the first one's to answer; without that one it ends."""
  del index, count
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)

  def end_with_the_first() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_the_first, daemon=True).start()


class _Batches(Iterator):
  """grain's, with errors that tell what to do."""

  def __init__(self, batches: Iterator):
    self._batches = batches

  def close(self) -> None:
    """Ends threads and processes; a process that does not end, as it hangs in a read, is killed after a while."""
    closing = threading.Thread(target=self._batches.close, daemon=True)
    closing.start()
    closing.join(_PATIENCE)
    if closing.is_alive():
      for process in multiprocessing.active_children():
        if process.name.startswith('grain-'):
          process.kill()
      closing.join(_PATIENCE)

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      return next(self._batches)
    except (ValueError, OSError) as error:
      raise BrokenInput(str(error)) from error
    except RuntimeError as error:
      if not (match := re.search(r'Worker process .*exit code (-?\d+)', str(error))):
        raise
      ended = int(match[1])
      how = f'ended with exit code {ended}' if ended >= 0 else f'was killed by {signal.Signals(-ended).name}'
      advice = f'{_SHARED_MEMORY} is full' if ended == -signal.SIGBUS else 'the system does that when memory is short'
      raise WorkerLost(
        f'a process of the input {how} ({advice}): give fewer data.num_workers, or more memory'
      ) from error


def load_images(source: Source, indices: Iterable[int]) -> Iterator[tuple[int, Record, np.ndarray]]:
  """Whole decoded images for evaluation, in order, read ahead.

  Yields:
    index, record, image [H, W, 3] uint8 RGB.

  Raises:
    BrokenInput: an image cannot be read or decoded.
  """

  def load(index: int) -> tuple[int, Record, np.ndarray]:
    record = source[index]
    return index, record, record.decode()

  try:
    yield from read_ahead(load, indices)
  except (ValueError, OSError) as error:
    raise BrokenInput(str(error)) from error
