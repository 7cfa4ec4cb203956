"""The JSON lines and the event files, read back; the event file by its record framing, not by TensorBoard."""

import json
import logging
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from triplet_det.run import metric_writers
from triplet_det.run.metric_writers import MetricWriter, read_metrics


def crc32c(data: bytes) -> int:
  """Castagnoli's CRC bit by bit, masked as record files want it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_of(path) -> list:
  """Records of [length u64][crc u32][data][crc u32], little-endian."""
  data, events = path.read_bytes(), []
  while data:
    (length,), (crc,) = struct.unpack('<Q', data[:8]), struct.unpack('<I', data[8:12])
    assert crc == crc32c(data[:8])
    record, (crc,) = data[12 : 12 + length], struct.unpack('<I', data[12 + length : 16 + length])
    assert crc == crc32c(record)
    events.append(event_pb2.Event.FromString(record))
    data = data[16 + length :]
  return events


def event_files(directory):
  return sorted(directory.glob('events.out.tfevents.*'))


def write_lines(directory, text):
  directory.mkdir(exist_ok=True)
  (directory / 'metrics.jsonl').write_text(text)
  return directory / 'metrics.jsonl'


def test_scalars_to_the_bit(tmp_path):
  third = np.float32(1) / np.float32(3)
  writer = MetricWriter(tmp_path / 'run')
  writer.write_scalars(1, {'loss': third, 'rate': 2.5e-4, 'count': 7})
  writer.write_scalars(np.int64(2), {'loss': jnp.float32(3.25), 'AP/traffic light': jnp.bfloat16(0.5)})
  # Read while the run goes on: no line waits in a buffer.
  rows = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  writer.close()
  assert rows == [
    {'step': 1, 'loss': float(third), 'rate': 2.5e-4, 'count': 7.0},
    {'step': 2, 'loss': 3.25, 'AP/traffic light': 0.5},
  ]
  assert np.float32(rows[0]['loss']) == third and rows[0]['loss'] == 0.3333333432674408
  (file,) = event_files(tmp_path / 'run')
  version, first, second = events_of(file)
  assert version.file_version == 'brain.Event:2'
  assert (first.step, second.step) == (1, 2)
  assert {v.tag: v.simple_value for v in first.summary.value} == {'loss': third, 'rate': np.float32(2.5e-4), 'count': 7}
  assert {v.tag: v.simple_value for v in second.summary.value} == {'loss': 3.25, 'AP/traffic light': 0.5}


def test_nan_and_infinity_are_json(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write_scalars(5, {'a': float('nan'), 'b': np.float32(np.inf), 'c': -math.inf})
  writer.close()

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(text, parse_constant=refuse) == {'step': 5, 'a': 'NaN', 'b': 'Infinity', 'c': '-Infinity'}
  (row,) = read_metrics(tmp_path / 'metrics.jsonl')
  assert math.isnan(row['a']) and row['b'] == math.inf and row['c'] == -math.inf


def test_pictures_and_texts(tmp_path):
  rng = np.random.default_rng(0)
  pictures = {'one': rng.integers(0, 256, (5, 7, 3), np.uint8), 'wide': rng.integers(0, 256, (4, 300, 3), np.uint8)}
  writer = MetricWriter(tmp_path)
  writer.write_pictures(3, {name: cv2.imencode('.png', one[..., ::-1])[1].tobytes() for name, one in pictures.items()})
  writer.write_texts(4, {'config': '# steps 10'})
  writer.close()
  (file,) = event_files(tmp_path)
  _, *events, text = events_of(file)
  values = {v.tag: v.image for event in events for v in event.summary.value}
  assert list(values) == ['one', 'wide'] and {e.step for e in events} == {3}
  for tag, picture in pictures.items():
    decoded = cv2.imdecode(np.frombuffer(values[tag].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], picture)
    assert (values[tag].height, values[tag].width, values[tag].colorspace) == picture.shape
  (value,) = text.summary.value
  assert (text.step, value.tensor.string_val[0]) == (4, b'# steps 10')
  assert value.metadata.plugin_data.plugin_name == 'text' and value.tag.startswith('config')
  assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_resume_drops_later_steps(tmp_path):
  for resume_step, steps in ((None, (10, 20, 30)), (20, (30, 40))):
    writer = MetricWriter(tmp_path, resume_step=resume_step)
    for step in steps:
      writer.write_scalars(step, {'loss': step + (0.5 if resume_step else 0)})
    writer.close()
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  assert [(r['step'], r['loss']) for r in rows] == [(10, 10), (20, 20), (30, 30.5), (40, 40.5)]
  first, second = event_files(tmp_path)  # restarted within a second, and still two files
  assert [e.step for e in events_of(first)] == [0, 10, 20, 30]
  _, start, *rest = events_of(second)
  assert start.session_log.status == event_pb2.SessionLog.START and start.step == 21
  assert [e.step for e in rest] == [30, 40]
  assert sorted(p.name for p in tmp_path.iterdir())[-1] == 'metrics.jsonl'  # no temporary file is left


def test_without_resume_step_everything_stays(tmp_path):
  path = write_lines(tmp_path, '{"step": 9, "AP": 0.25}\n')
  MetricWriter(tmp_path).close()
  assert read_metrics(path) == [{'step': 9, 'AP': 0.25}]


def test_half_written_last_line_is_repaired_and_logged(tmp_path, caplog):
  path = write_lines(tmp_path, '{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert read_metrics(path) == [{'step': 1, 'loss': 2.0}]
  with caplog.at_level(logging.WARNING):
    writer = MetricWriter(tmp_path, resume_step=1)
  assert 'dropped 1 unreadable line' in caplog.text and str(path) in caplog.text
  writer.write_scalars(2, {'loss': 1.5})
  writer.close()
  assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'


def test_a_complete_number_without_newline_is_not_trusted(tmp_path):
  """`2.1` may be the beginning of `2.125`."""
  path = write_lines(tmp_path, '{"step": 1, "loss": 2.1}')
  assert read_metrics(path) == []
  MetricWriter(tmp_path).close()
  assert path.read_text() == ''


def test_a_failed_repair_leaves_the_file(tmp_path, monkeypatch):
  text = '{"step": 1}\n{"step": 2}\n'
  path = write_lines(tmp_path, text)

  def killed(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    MetricWriter(tmp_path, resume_step=1)
  assert path.read_text() == text


def test_unreadable_line_in_the_middle(tmp_path):
  path = write_lines(tmp_path, '{"step": 1}\n[2]\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl: line 2 of 3'):
    read_metrics(path)
  MetricWriter(tmp_path).close()
  assert [row['step'] for row in read_metrics(path)] == [1, 3]
  path.write_bytes(b'{"step": 1}\n{"step": 2, "a": \xff}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl: line 2 of 2'):
    read_metrics(path)


def test_a_killed_process_loses_no_line(tmp_path):
  program = (
    'import os, signal, sys\n'
    'from triplet_det.run.metric_writers import MetricWriter\n'
    'writer = MetricWriter(sys.argv[1])\n'
    'for step in range(5): writer.write_scalars(step, {"loss": step / 7})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  ended = subprocess.run([sys.executable, '-c', program, str(tmp_path)], env=environment, check=False)
  assert ended.returncode == -signal.SIGKILL
  assert [row['loss'] for row in read_metrics(tmp_path / 'metrics.jsonl')] == [step / 7 for step in range(5)]


def test_flush_brings_events_to_disk(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write_scalars(1, {'loss': 1.0})
  writer.flush()
  assert [e.step for e in events_of(*event_files(tmp_path))] == [0, 1]
  writer.close()


def test_no_directory_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  writer = MetricWriter(None, resume_step=3)
  writer.write_scalars(1, {'loss': 1.0})
  writer.write_pictures(1, {'a': b'\x89PNG'})
  writer.write_texts(1, {'a': 'b'})
  writer.flush()
  writer.close()
  assert list(tmp_path.iterdir()) == []


def test_a_url_is_a_mirror(tmp_path, monkeypatch):
  """A stand-in for epath that maps memory://run to a directory; appending there is impossible by construction."""
  store = tmp_path / 'store'
  monkeypatch.setattr(
    metric_writers.epath, 'Path', lambda path: pathlib.Path(str(path).replace('memory://run', str(store)))
  )
  for resume_step, step in ((None, 1), (1, 2)):
    writer = MetricWriter('memory://run', resume_step=resume_step)
    writer.write_scalars(step, {'loss': step})
    writer.flush()
    scratch = writer._local
    assert [row['step'] for row in read_metrics(store / 'metrics.jsonl')] == list(range(1, step + 1))
    writer.close()
    assert not scratch.exists()
  assert [[e.step for e in events_of(file)] for file in event_files(store)] == [[0, 1], [0, 2, 2]]


def test_errors(tmp_path):
  writer = MetricWriter(tmp_path)
  with pytest.raises(ValueError, match=r"'loss' must be a single real number, got float64 of shape \(2,\)"):
    writer.write_scalars(1, {'loss': np.zeros(2)})
  with pytest.raises(ValueError, match="'loss' must be a single real number"):
    writer.write_scalars(1, {'loss': '3'})
  with pytest.raises(ValueError, match='may not be called "step"'):
    writer.write_scalars(1, {'step': 3})
  with pytest.raises(ValueError, match=r"'a' must be a PNG file, it begins with b'GIF89a'"):
    writer.write_pictures(1, {'a': b'GIF89a'})
  writer.close()
  writer.close()
  assert (tmp_path / 'metrics.jsonl').read_text() == ''
