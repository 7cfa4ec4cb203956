"""One line that says how far a long job is: rewritten in place on a terminal, one line per interval in a log file."""

import collections
import logging as stdlib_logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

from absl import logging

_WINDOW_SECONDS = 60.0  # rates and ETA are means over this much of the recent past


class _Mark(NamedTuple):
  """The totals at one moment."""

  seconds: float
  step: int
  images: int
  waited: float


class ProgressLine:
  """`train  step 1,200/2,600  46%  loss 3.214  31.2 img/s  input wait 2%  ETA 4:31`.

  Rates start with the first `update`, so the compilation inside the first step does not spoil the ETA.
  """

  def __init__(
    self,
    total: int | None,
    start_step: int = 0,
    *,
    prefix: str = '',
    unit: str = 'step',
    interval: float | None = None,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the line; nothing is written before the first `update`.

    Args:
      total: steps of the whole job, those before `start_step` included; None if not known (no percentage, no ETA).
      start_step: the step from which the job continues.
      prefix: what is running, such as 'train' or 'eval'.
      unit: what is counted; 'image' for an evaluation.
      interval: seconds between lines; None is 0.5 on a terminal and 30 elsewhere.
      stream: where to write; None is standard error.
      clock: seconds since any fixed moment.
    """
    self._total, self._prefix, self._unit, self._clock = total, prefix, unit, clock
    self._stream = sys.stderr if stream is None else stream
    self._terminal = self._stream.isatty()
    self._interval = (0.5 if self._terminal else 30.0) if interval is None else interval
    self._step, self._images, self._waited = start_step, 0, 0.0
    self._loss = None
    self._marks = collections.deque()  # the newest is of the last written line
    self._written_step = None

  def update(self, step: int, *, loss=None, images: int = 0, wait_seconds: float = 0.0) -> None:
    """Records that `step` steps are done; writes a line if the interval is over, or the job is.

    Args:
      step: steps done since the beginning of the job.
      loss: latest loss, anything `float` takes. Converted only when a line is written, so a value that is still being
        computed on a device is waited for once per interval and not at every step. None keeps the one before.
      images: images processed since the last call.
      wait_seconds: seconds since the last call in which the job waited for its input.
    """
    self._step = step
    self._loss = self._loss if loss is None else loss
    self._images += images
    self._waited += wait_seconds
    mark = _Mark(self._clock(), step, self._images, self._waited)
    if not self._marks or step == self._total or mark.seconds - self._marks[-1].seconds >= self._interval:
      self._marks.append(mark)
      while len(self._marks) > 2 and mark.seconds - self._marks[0].seconds > _WINDOW_SECONDS:
        self._marks.popleft()
      self._write()

  def clear(self) -> None:
    """Wipes the line off a terminal, so that something else can be printed; the next `update` writes it again."""
    if self._terminal:
      self._stream.write('\r\x1b[K')
      self._stream.flush()

  def close(self) -> None:
    """Writes the last state if it was not written yet, and ends the line."""
    if not self._marks:
      return
    if self._written_step != self._step:
      self._marks.append(_Mark(self._clock(), self._step, self._images, self._waited))
      self._write()
    if self._terminal:
      self._stream.write('\n')
      self._stream.flush()

  def _write(self) -> None:
    text = '  '.join(self._parts())
    if self._terminal:
      # A line longer than the terminal is wide wraps, and can then no longer be rewritten in place.
      text = '\r' + text[: shutil.get_terminal_size().columns - 1] + '\x1b[K'
    self._stream.write(text if self._terminal else text + '\n')
    self._stream.flush()
    self._written_step = self._step

  def _parts(self) -> list[str]:
    total = self._total
    parts = [self._prefix] if self._prefix else []
    parts.append(f'{self._unit} {self._step:,}' + ('' if total is None else f'/{total:,}'))
    if total:
      parts.append(f'{math.floor(100 * self._step / total)}%')
    if self._loss is not None:
      parts.append(f'loss {float(self._loss):.4g}')
    oldest, newest = self._marks[0], self._marks[-1]
    seconds, steps, images, waited = (after - before for after, before in zip(newest, oldest))
    if seconds <= 0 or steps <= 0:
      return parts
    if self._unit == 'image' or images:
      parts.append(f'{(images or steps) / seconds:.1f} img/s')
    else:
      parts.append(f'{steps / seconds:.2f} {self._unit}/s')
    if waited:
      parts.append(f'input wait {round(100 * waited / seconds)}%')
    if total is not None:
      parts.append(f'ETA {duration((total - self._step) * seconds / steps)}')
    return parts


def duration(seconds: float) -> str:
  """4:31, 1:02:03 (hours, minutes, seconds) or 2d 03:04 (days, hours, minutes)."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d {hours:02d}:{minutes:02d}'
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def show_messages() -> None:
  """Lets this package's log messages through, and of others (Orbax reports every file) the warnings only."""
  logging.use_absl_handler()
  logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
  here = os.path.dirname(os.path.abspath(__file__)) + os.sep
  logging.get_absl_handler().addFilter(lambda r: r.levelno >= stdlib_logging.WARNING or r.pathname.startswith(here))
