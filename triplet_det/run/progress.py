"""How far a long job is: a bar that is rewritten in place on a terminal (tqdm), one line per interval in a log file."""

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
from tqdm import tqdm

from triplet_det.run import endings, standard_streams

_WINDOW_SECONDS = 60.0  # rates and ETA are means over this much of the recent past


class _Bar(tqdm):
  """A bar between what is done and the figures; it is drawn when it is told to, not by a clock of its own."""

  monitor_interval = 0
  figures = ''

  @property
  def format_dict(self) -> dict:
    return super().format_dict | {'figures': self.figures}


class _Mark(NamedTuple):
  """The totals at one moment."""

  seconds: float
  step: int
  images: int
  waited: float


class ProgressLine:
  """`train  step 1,200/2,600  46%  loss 3.214  31.2 img/s  input wait 2%  ETA 4:31`, on a terminal with a bar in it.

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
    self._bar = None
    self._interval = (0.5 if self._stream.isatty() else 30.0) if interval is None else interval
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
    """Wipes the bar off a terminal, so that something else can be printed; the next `update` draws it again."""
    if self._bar is not None:
      self._bar.clear()

  def close(self) -> None:
    """Writes the last state if it was not written yet, and ends the line."""
    if self._marks and self._written_step != self._step:
      self._marks.append(_Mark(self._clock(), self._step, self._images, self._waited))
      self._write()
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _write(self) -> None:
    done = '  '.join(self._done())
    figures = '  '.join(self._figures())
    self._written_step = self._step
    if not self._stream.isatty():
      self._stream.write('  '.join(filter(None, [done, figures])) + '\n')
      self._stream.flush()
      return
    width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be rewritten in place
    if self._bar is None:
      shape = '{desc}  {figures}' if self._total is None else '{desc} |{bar}| {figures}'
      ascii = not (self._stream.encoding or 'utf-8').lower().startswith('utf')
      self._bar = _Bar(total=self._total, desc=done, file=self._stream, bar_format=shape, ascii=ascii, ncols=width)
    self._bar.n, self._bar.ncols, self._bar.figures = self._step, width, figures
    self._bar.set_description_str(done, refresh=False)
    self._bar.refresh()

  def _done(self) -> list[str]:
    """Prefix, steps and percentage."""
    parts = [self._prefix] if self._prefix else []
    parts.append(f'{self._unit} {self._step:,}' + ('' if self._total is None else f'/{self._total:,}'))
    return parts + ([f'{math.floor(100 * self._step / self._total)}%'] if self._total else [])

  def _figures(self) -> list[str]:
    """Loss, rate, share of the time that went into waiting for the input, and the time to go."""
    figures = [] if self._loss is None else [f'loss {float(self._loss):.4g}']
    oldest, newest = self._marks[0], self._marks[-1]
    seconds, steps, images, waited = (after - before for after, before in zip(newest, oldest))
    if seconds <= 0 or steps <= 0:
      return figures
    if self._unit == 'image' or images:
      figures.append(f'{(images or steps) / seconds:.1f} img/s')
    else:
      figures.append(f'{steps / seconds:.2f} {self._unit}/s')
    if waited:
      figures.append(f'input wait {round(100 * waited / seconds)}%')
    if self._total is not None:
      figures.append(f'ETA {duration((self._total - self._step) * seconds / steps)}')
    return figures


def duration(seconds: float) -> str:
  """4:31, 1:02:03 (hours, minutes, seconds) or 2d 03:04 (days, hours, minutes)."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d {hours:02d}:{minutes:02d}'
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def show_messages() -> None:
  """Lets this package's log messages through, above a bar, and of others (Orbax tells every file) only warnings.

  From here on no stream that is closed, broken or full ends the command.
  """
  standard_streams.read_names_as_utf8()
  standard_streams.make_lasting()
  endings.say_it_once()
  logging.use_absl_handler()
  logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
  handler = logging.get_absl_handler()
  if handler.python_handler.stream is sys.__stderr__:
    handler.python_handler.stream = sys.stderr
  here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

  def is_told(record: stdlib_logging.LogRecord) -> bool:
    if record.pathname.startswith(here):
      return True
    # What Orbax cannot do, on a full disk for example, it tells a dozen times, and raises.
    orbax = f'{os.sep}orbax{os.sep}' in record.pathname and record.levelno >= stdlib_logging.ERROR
    return record.levelno >= stdlib_logging.WARNING and not orbax

  handler.addFilter(is_told)
  emit = handler.python_handler.emit

  def emit_above_the_bar(record: stdlib_logging.LogRecord) -> None:
    with _Bar.external_write_mode(file=sys.stderr):
      emit(record)

  handler.python_handler.emit = emit_above_the_bar
