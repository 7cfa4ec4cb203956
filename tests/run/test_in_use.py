"""A folder for one job at a time."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from triplet_det.run.in_use import in_use

HOLD = """
import sys, time
from triplet_det.run.in_use import in_use
with in_use({path!r}, 'none'):
  {meanwhile}
  print('held', flush=True)
  time.sleep(60)
"""


def start(path, meanwhile='pass'):
  """A process that holds the folder."""
  code = HOLD.format(path=str(path), meanwhile=meanwhile)
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'held\n'
  return process


def is_free(path):
  try:
    with in_use(path, 'none'):
      return True
  except ValueError:
    return False


def test_the_second_is_told_of_the_first(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path)
  with in_use(tmp_path, 'none'):
    said = rf'{tmp_path}/link is in use by {socket.gethostname()}, process {os.getpid()}, since 2\d+-\d\d-\d\d .*: wait'
    said += ' until that has ended, or give another'
    with pytest.raises(ValueError, match=said), in_use(tmp_path / 'link', 'give another'):
      pass
  assert is_free(tmp_path)


@pytest.mark.parametrize(
  'meanwhile',
  ['pass', 'import os; os.fork() or time.sleep(5)', 'import subprocess; subprocess.Popen(["sleep", "5"])'],
  ids=['alone', 'fork', 'command'],
)
def test_a_killed_process_holds_nothing(tmp_path, meanwhile):
  """Neither do processes that it started, and that outlive it."""
  process = start(tmp_path, meanwhile)
  assert not is_free(tmp_path)
  process.send_signal(signal.SIGKILL)
  process.wait()
  # A fork lets go as its first act, which may take a moment on a busy machine.
  deadline = time.monotonic() + 3
  while not (free := is_free(tmp_path)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert free
  process.stdout.close()


def test_a_child_that_ends_lets_nothing_go(tmp_path):
  with in_use(tmp_path, 'none'):
    if (child := os.fork()) == 0:
      os._exit(0)
    os.waitpid(child, 0)
    assert not is_free(tmp_path)


def test_shards_share_a_folder_and_merge_has_it_alone(tmp_path):
  with in_use(tmp_path, '', shared=True), in_use(tmp_path, '', part='part_1_of_2'):
    assert not is_free(tmp_path)
    said = re.escape(f'{tmp_path}, part_1_of_2, is in use by ')
    with in_use(tmp_path, '', shared=True), in_use(tmp_path, '', part='part_2_of_2'):
      pass
    with pytest.raises(ValueError, match=said), in_use(tmp_path, '', part='part_1_of_2'):
      pass
    assert (tmp_path / '.in_use').exists()  # one of those that share it has ended, the other has not
  assert is_free(tmp_path)


def test_who_waits_for_it(tmp_path):
  """Threads open the file on their own, as processes do. The next one holds another file than the one before."""
  inside, most = [], []

  def hold():
    for _ in range(20):
      with in_use(tmp_path, part='begins', wait=True):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()

  threads = [threading.Thread(target=hold) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(most) == 80 and set(most) == {1}
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_it(tmp_path):
  with in_use(tmp_path, ''), in_use(tmp_path, '', part='part_1_of_1'):
    assert not is_free(tmp_path)
    assert (tmp_path / '.in_use').exists()
  assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_removed_file_is_none(tmp_path, monkeypatch):
  """Who opened the file before the holder removed it must not take it for the folder's lock."""
  flock, removed = fcntl.flock, []

  def remove_first(file, how):
    if not removed:
      removed.append((tmp_path / '.in_use').unlink())
    flock(file, how)

  monkeypatch.setattr('triplet_det.run.in_use.fcntl.flock', remove_first)
  with in_use(tmp_path, ''):
    assert removed and (tmp_path / '.in_use').exists() and not is_free(tmp_path)


def test_what_is_not_held(tmp_path):
  for path in (None, 'gs://bucket/run', tmp_path / 'nowhere'):
    with in_use(path, ''), in_use(path, ''):
      pass
  assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
  mine = tmp_path / 'mine.txt'
  mine.write_text('mine')
  (tmp_path / '.in_use').symlink_to(mine)
  with pytest.raises(OSError), in_use(tmp_path, ''):
    pass
  assert mine.read_text() == 'mine'


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def flock(file, how):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr('triplet_det.run.in_use.fcntl.flock', flock)
  assert is_free(tmp_path)
