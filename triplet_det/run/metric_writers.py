"""Metrics of a run, written as TensorBoard events and as JSON lines; clu's method names without TensorFlow.

`metrics.jsonl` has one line per `write_scalars` call, {"step": 100, "loss": 3.25}. Numbers are written with all their
digits, so two runs can be compared to the bit. JSON has no NaN and no infinity: they are the strings "NaN",
"Infinity" and "-Infinity", which `read_metrics` turns back into floats.
"""

import json
import os
import pathlib
import socket
import struct
import tempfile
import time
from collections.abc import Mapping

import numpy as np
from absl import logging
from etils import epath
from tensorboardX import summary as tensorboard_summary
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

from triplet_det.run import output_paths
from triplet_det.run.json_files import json_safe

METRICS_FILE = 'metrics.jsonl'
_RGB = 3  # the colour space number of summary_pb2.Summary.Image


class MetricWriter:
  """Writes the metrics of one run; `MetricWriter(None)`, for all hosts but the first, takes the calls and does nothing.

  A line of `metrics.jsonl` is with the operating system when `write_scalars` returns, so a killed process loses none;
  everything is on disk after `flush`. A directory behind a URL (gs://...) is written locally and copied there by
  `flush` and `close`, because object stores cannot append.
  """

  def __init__(self, directory: epath.PathLike | None, *, resume_step: int | None = None):
    """Opens `metrics.jsonl` for appending and a new event file.

    Args:
      directory: created if missing. None: write nothing.
      resume_step: the step of the checkpoint from which the run continues. Lines of later steps, written before the
        run was killed, are dropped and TensorBoard hides their events; 0 starts over. None keeps everything.
    """
    self._lines = self._events = None
    if directory is None:
      return
    self._destination = epath.Path(directory)
    self._scratch = tempfile.TemporaryDirectory(prefix='metrics_') if '://' in str(directory) else None
    self._local = pathlib.Path(self._scratch.name if self._scratch else directory)
    self._destination.mkdir(parents=True, exist_ok=True)
    if self._scratch and (self._destination / METRICS_FILE).exists():
      (self._local / METRICS_FILE).write_bytes((self._destination / METRICS_FILE).read_bytes())
    _repair(self._local / METRICS_FILE, resume_step)
    self._lines = open(self._local / METRICS_FILE, 'a', encoding='utf-8')  # noqa: SIM115 (closed by `close`)
    # tensorboardX names its files by the second and truncates: a restart within a second would erase the first.
    self._events = RecordWriter(str(self._local / f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}'))
    self._write_event(file_version='brain.Event:2')
    if resume_step is not None:  # TensorBoard hides earlier events of later steps
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write_event(step=resume_step + 1, session_log=start)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes named numbers (Python, NumPy or JAX scalars) of one step. ValueError for what is not a single number."""
    if self._lines is None:
      return
    values = {name: _number(name, value) for name, value in scalars.items()}
    if 'step' in values:
      raise ValueError('a metric may not be called "step": that is the name of the step number in metrics.jsonl')
    # One write per line and a flush: a killed process leaves at most one incomplete line, the last.
    self._lines.write(json.dumps({'step': int(step)} | {n: json_safe(v) for n, v in values.items()}) + '\n')
    self._lines.flush()
    self._write_values(step, [summary_pb2.Summary.Value(tag=name, simple_value=v) for name, v in values.items()])

  def write_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
    """Writes named pictures, each the bytes of an RGB PNG file. ValueError for what is none."""
    if self._events is None:
      return
    for name, png in pictures.items():
      if not png.startswith(b'\x89PNG'):
        raise ValueError(f'picture {name!r} must be a PNG file, it begins with {png[:8]!r}')
      width, height = struct.unpack('>II', png[16:24])
      image = summary_pb2.Summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=png)
      self._write_values(step, [summary_pb2.Summary.Value(tag=name, image=image)])

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes named texts, which TensorBoard shows as Markdown."""
    if self._events is None:
      return
    for name, text in texts.items():
      self._write_values(step, tensorboard_summary.text(name, text).value)

  def flush(self) -> None:
    """Brings everything written so far to disk, or to the URL."""
    if self._lines is None:
      return
    os.fsync(self._lines.fileno())
    self._events.flush()
    if self._scratch:
      for file in self._local.iterdir():
        (self._destination / file.name).write_bytes(file.read_bytes())

  def close(self) -> None:
    """Flushes and closes the files; calling it again does nothing."""
    if self._lines is None:
      return
    self.flush()
    self._lines.close()
    self._events.close()
    self._lines = self._events = None
    if self._scratch:
      self._scratch.cleanup()

  def _write_values(self, step: int, values: list) -> None:
    self._write_event(step=int(step), summary=summary_pb2.Summary(value=values))

  def _write_event(self, **fields) -> None:
    # Written at once: tensorboardX's SummaryWriter queues events, and its `flush` does not wait for the queue.
    self._events.write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())


def read_metrics(path: epath.PathLike) -> list[dict]:
  """The lines of a `metrics.jsonl`, in order; an incomplete last line (the run is writing, or was killed) is left out.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if another line is unreadable, with the file and the line's number.
  """
  lines = epath.Path(path).read_bytes().split(b'\n')
  rows = [_parsed(line) for line in lines[:-1]]  # what follows the last newline is incomplete, or empty
  if None in rows:
    number = rows.index(None) + 1
    raise ValueError(f'{path}: line {number} of {len(rows)} is not a line of metrics: {lines[number - 1][:80]!r}')
  return rows


def _repair(path: pathlib.Path, resume_step: int | None) -> None:
  """Drops unreadable lines and lines of steps after `resume_step`; the file is replaced as a whole or not at all."""
  if not path.exists():
    return
  lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
  incomplete = lines.pop()
  rows = [_parsed(line) for line in lines]
  unreadable = rows.count(None) + bool(incomplete)
  readable = [(line, row) for line, row in zip(lines, rows) if row is not None]
  kept = [line for line, row in readable if resume_step is None or row['step'] <= resume_step]
  if unreadable:
    logging.warning('%s: dropped %d unreadable line(s), left by a killed run', path, unreadable)
  if len(kept) < len(readable):
    logging.info('%s: dropped %d line(s) of steps after %d', path, len(readable) - len(kept), resume_step)
  if unreadable or len(kept) < len(readable):
    output_paths.write_whole(path, ''.join(line + '\n' for line in kept))


def _parsed(line: str | bytes) -> dict | None:
  """The metrics of one line, or None if it is not a line of metrics."""
  try:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get('step'), int):
      return None
    return {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
  except ValueError:
    return None


def _number(name: str, value) -> float:
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind in 'OSUMmc':  # objects, texts, times, complex; bfloat16 is of kind V
    raise ValueError(f'metric {name!r} must be a single real number, got {array.dtype} of shape {array.shape}')
  return array.astype(np.float64).item()
