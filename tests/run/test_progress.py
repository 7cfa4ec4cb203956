"""The progress line with a clock that the test turns."""

import io
import pathlib
import re
import subprocess
import sys

import pytest

from triplet_det.run.progress import ProgressLine, duration


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def shown(terminal):
  """What a terminal displays: a carriage return goes back, text overwrites, ESC [K wipes the rest of the line."""
  lines = ['']
  for piece in re.findall(r'\r|\n|\x1b\[K|[^\r\n\x1b]+', terminal.getvalue()):
    if piece == '\n':
      lines.append('')
    if piece in '\r\n':
      cursor = 0
    elif piece == '\x1b[K':
      lines[-1] = lines[-1][:cursor]
    else:
      lines[-1] = lines[-1][:cursor] + piece + lines[-1][cursor + len(piece) :]
      cursor += len(piece)
  return [line.rstrip() for line in lines]


def test_training_line():
  """From 100 to 1,200 of 2,600 steps in 55 s: 20 steps a second, 1,400 to go in 70 s."""
  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(2600, start_step=99, prefix='train', interval=10, stream=out, clock=clock)
  progress.update(100, loss=9, images=8, wait_seconds=30)  # compilation: not part of any rate
  clock.now += 55
  progress.update(1200, loss=3.2141, images=1716, wait_seconds=1.1)
  assert out.getvalue().splitlines() == [
    'train  step 100/2,600  3%  loss 9',
    'train  step 1,200/2,600  46%  loss 3.214  31.2 img/s  input wait 2%  ETA 1:10',
  ]


def test_one_line_per_interval():
  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(100, interval=10, stream=out, clock=clock)
  for step in range(1, 101):
    progress.update(step)
    clock.now += 1
  steps = [int(step) for step in re.findall(r'step (\d+)/', out.getvalue())]
  assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
  assert '1.00 step/s' in out.getvalue() and out.getvalue().endswith('ETA 0:00\n')
  progress.close()
  assert out.getvalue().count('\n') == 11


def test_rates_forget_the_distant_past():
  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(10_000, interval=10, stream=out, clock=clock)
  for step in range(1, 61):  # 1 step a second, then 10
    progress.update(step)
    clock.now += 1
  for step in range(60, 1501, 10):
    progress.update(step)
    clock.now += 1
  assert '10.00 step/s  ETA 14:' in out.getvalue().splitlines()[-1]


def test_loss_is_converted_only_when_it_is_written():
  class OnDevice:
    waited = 0

    def __float__(self):
      OnDevice.waited += 1
      return 2.0

  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(1000, interval=10, stream=out, clock=clock)
  for step in range(1, 31):
    progress.update(step, loss=OnDevice())
    clock.now += 1
  assert OnDevice.waited == out.getvalue().count('loss 2') == 3


def test_evaluation_line():
  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(5000, prefix='eval', unit='image', interval=1, stream=out, clock=clock)
  progress.update(8)
  clock.now += 40
  progress.update(1208)
  assert out.getvalue().splitlines()[-1] == 'eval  image 1,208/5,000  24%  30.0 img/s  ETA 2:06'


def test_unknown_total_has_no_eta():
  clock, out = Clock(), io.StringIO()
  progress = ProgressLine(None, unit='frame', interval=1, stream=out, clock=clock)
  progress.update(1)
  clock.now += 2
  progress.update(11)
  assert out.getvalue().splitlines()[-1] == 'frame 11  5.00 frame/s'


def terminal_of(columns: int, monkeypatch) -> Terminal:
  monkeypatch.setenv('COLUMNS', str(columns + 1))
  return Terminal()


def test_a_bar_is_rewritten_in_place(monkeypatch):
  clock, out = Clock(), terminal_of(70, monkeypatch)
  progress = ProgressLine(1000, prefix='train', stream=out, clock=clock)
  progress.update(1, loss=1.0)
  assert shown(out) == ['train  step 1/1,000  0% |' + ' ' * 37 + '| loss 1']
  clock.now += 1
  progress.update(501, loss=2.0, images=4)
  (line,) = shown(out)
  done, bar, figures = line.split('|')
  assert (done, figures) == ('train  step 501/1,000  50% ', ' loss 2  4.0 img/s  ETA 0:01')
  assert bar.count('█') == len(bar) // 2 and len(line) == 70
  progress.clear()
  assert shown(out) == ['']
  progress.update(502, images=4)  # within the interval of 0.5 s
  progress.close()
  assert shown(out)[0].startswith('train  step 502/1,000  50% |') and shown(out)[1:] == ['']


def test_a_narrow_terminal_cuts_the_line(monkeypatch):
  """A line that wraps cannot be rewritten in place."""
  clock, out = Clock(), terminal_of(24, monkeypatch)
  progress = ProgressLine(None, prefix='draw', unit='frame', stream=out, clock=clock)
  progress.update(1)
  clock.now += 1
  progress.update(12)
  assert shown(out) == ['draw  frame 12  11.00 fr']
  progress.close()


MESSAGE_ABOVE = """
import sys
from absl import flags, logging
from triplet_det.run import progress
flags.FLAGS.mark_as_parsed()
progress.show_messages()
sys.stderr.isatty = lambda: True
line = progress.ProgressLine(9, prefix='train')
line.update(1)
logging.warning('the disk is full')
line.update(9)
line.close()
"""


def test_a_message_stands_above_the_bar():
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', MESSAGE_ABOVE], cwd=root, capture_output=True, check=True)
  message, bar, end = shown(Terminal(done.stderr.decode(), newline=''))
  assert message.endswith('] the disk is full') and bar.startswith('train  step 9/9  100% |█') and not end


def test_close_before_the_first_update_writes_nothing():
  out = Terminal()
  ProgressLine(10, stream=out).close()
  assert out.getvalue() == ''


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0:00'), (-1, '0:00'), (59.6, '1:00'), (271, '4:31'), (3723, '1:02:03'), (183_840, '2d 03:04')],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


MESSAGES = """
import logging as others
from absl import flags, logging
from triplet_det.run.progress import show_messages
flags.FLAGS.mark_as_parsed()
show_messages()
others.getLogger('orbax').info('a file was written')
logging.info('a note of some script')
others.getLogger('orbax').warning('the disk is full')
from triplet_det.data import sources
sources.log_report(type('', (), dict(path='a.json', report=dict(images=3, crowd=0))), 'train')
"""


def test_own_messages_are_shown_and_only_warnings_of_others():
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', MESSAGES], cwd=root, capture_output=True, text=True, check=True)
  shown = [line.split('] ', 1)[1] for line in done.stderr.splitlines()]
  assert shown == ['the disk is full', 'a.json: split train, images 3']
