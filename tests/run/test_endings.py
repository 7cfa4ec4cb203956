"""How a training ends before its end, in processes of their own: what is kept, said, and the exit code.

The network is one number, so a run takes as long as its input. What happens to it happens in the middle of it.
"""

import json
import shutil
import subprocess
import sys

import pytest

from tests import forks, tiny_run
from triplet_det.run import endings

AT = 5  # the step after which it happens
STEPS = 40

# As on a full disk, but for small files: what is said, and the log.
NO_ROOM = """
while not (Path(main._WORKDIR.value) / 'checkpoints/3').exists():
  time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (4 * WEIGHTS // 2,) * 2)
"""
# What is done to the process, by names.
ACCIDENTS = {
  'nothing': 'pass',
  'SIGTERM': 'os.kill(os.getpid(), signal.SIGTERM)',
  'Ctrl-C': 'os.kill(os.getpid(), signal.SIGINT)',
  'closed terminal': """
os.dup2(BROKEN, 1), os.dup2(BROKEN, 2)
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGHUP)""",
  'nohup': 'os.kill(os.getpid(), signal.SIGHUP)',
  'broken pipe': 'os.dup2(BROKEN, 1), os.dup2(BROKEN, 2)',
  'full log': "os.dup2(os.open('/dev/full', os.O_WRONLY), 1), os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
  'closed streams': 'pass',
  'killed worker': 'os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)',
  'signals to all': """
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
  os.kill(multiprocessing.active_children()[0].pid, number)""",
  'broken image': """
for path in [*Path(CONFIG.value.data.train.images).iterdir()]:
  # At once: a file that is being written is one of 0 bytes to who reads it meanwhile.
  short = path.with_suffix('.short')
  short.write_bytes(path.read_bytes()[:300])
  short.replace(path)""",
  'hanging read': """
sources.Record.decode = lambda *_: threading.Event().wait()
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()""",
  'hanging worker': """
os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()""",
  'full disk': "train.MetricWriter.write_scalars = lambda *_: Path('/dev/full').write_text('x')",
  'no room for a state': NO_ROOM,
  'SIGTERM without room': NO_ROOM + 'os.kill(os.getpid(), signal.SIGTERM)',
}
BEFORE = {
  'nohup': 'signal.signal(signal.SIGHUP, signal.SIG_IGN)',
  'hanging worker': 'pipeline._PATIENCE = 1.0',
  'closed streams': """
for number in range(3):
  os.close(number)
sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None""",
}
RUN = """
import multiprocessing, os, resource, signal, sys, threading, time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app

from triplet_det import main, train
from triplet_det.data import pipeline, sources
from triplet_det.models import layers
from triplet_det.run import progress
from triplet_det.run.config_flag import CONFIG, parse
from triplet_det.training import built_step
from triplet_det.training.train_step import TrainState


def make_train_step(*_, **__):
  def step(state, batch):
    return TrainState(state.step + 1, state.params, state.batch_stats, state.opt_state), dict(loss=jnp.ones(()))

  return step


def update(line, step, **told):
  show(line, step, **told)
  time.sleep(0.02)
  if step == {at}:
    exec(ACCIDENT)


def init_state(*_, **__):
  weights = jax.random.normal(jax.random.key(0), (WEIGHTS,))  # zeros would be packed
  return TrainState(jnp.zeros((), jnp.int32), dict(w=weights), dict(), dict())


built_step.init_state, WEIGHTS = init_state, 30_000
built_step.make_train_step = make_train_step
show, progress.ProgressLine.update = progress.ProgressLine.update, update
for number in (signal.SIGINT, signal.SIGHUP):
  signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
read, BROKEN = os.pipe()
os.close(read)
ACCIDENT = {accident!r}
exec({before!r})
app.run(main.main, flags_parser=parse)
"""


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
  """Name of an accident -> its run folder, and how the run ended."""
  folder = tmp_path_factory.mktemp('endings')
  data = tiny_run.coco_data(folder / 'coco')
  commands = []
  for name, accident in ACCIDENTS.items():
    own = {**data, 'mode': 'train', 'total_steps': STEPS, 'checkpoint_every': 3 if NO_ROOM in accident else 100}
    if name == 'broken image':
      own['data.train.images'] = shutil.copytree(data['data.train.images'], folder / 'images')
    if 'active_children' in accident:
      own['data.num_workers'] = 1
    code = RUN.format(at=AT, accident=accident, before=BEFORE.get(name, ''))
    typed = tiny_run.command(folder / name, tiny_run.PAGE, own)
    commands.append(forks.Command(('-c', code, *typed[3:])))
  return {name: (folder / name, end) for name, end in zip(ACCIDENTS, forks.run(commands, folder))}


def kept(workdir):
  return max(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


@pytest.mark.parametrize('name', ['nothing', 'nohup', 'broken pipe', 'full log', 'closed streams', 'signals to all'])
def test_what_a_run_survives(ended, name):
  workdir, end = ended[name]
  assert end.code == 0, end.err
  assert kept(workdir) == STEPS
  # Nothing else has been written into the files that took the numbers of closed streams.
  assert [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()] == [
    *range(1, STEPS + 1)
  ]


@pytest.mark.parametrize('name', ['SIGTERM', 'Ctrl-C', 'closed terminal'])
def test_a_run_that_is_told_to_stop(ended, name):
  workdir, end = ended[name]
  assert end.code == 75, end.err
  assert kept(workdir) == AT
  assert 'Traceback' not in end.err


@pytest.mark.parametrize(
  'name, code, said',
  [
    ('killed worker', endings.EXIT_WORKER, 'a process of the input was killed by SIGKILL (the system does that when'),
    ('broken image', endings.EXIT_INPUT, '(300 bytes); replace the file, or take it out'),
  ],
)
def test_a_run_that_loses_its_input(ended, name, code, said):
  workdir, end = ended[name]
  assert end.code == code, end.err
  assert AT <= kept(workdir) < STEPS
  assert said in end.err
  assert f'; the state of step {kept(workdir)} is kept: the same command continues from there\n' in end.err
  assert 'Traceback' not in end.err
  assert sum('error: ' in line for line in end.err.splitlines()) == 1


@pytest.mark.parametrize('name', ['hanging read', 'hanging worker'])
def test_a_run_that_is_told_to_stop_while_its_input_hangs(ended, name):
  """Batches that were made before are used up; the one that never comes is not waited for."""
  workdir, end = ended[name]
  assert end.code == 75, end.err
  assert AT <= kept(workdir) < STEPS
  assert f'stopped by a signal after step {kept(workdir)}; the same command continues from there' in end.err
  assert end.seconds < 30
  assert 'leaked' not in end.err  # what a killed process leaves behind goes without a word


def test_an_exit_waits_for_no_thread(tmp_path):
  code = """
import concurrent.futures, sys, threading
from triplet_det.run import endings
concurrent.futures.ThreadPoolExecutor(1).submit(threading.Event().wait)
sys.stderr = None
with endings.ending_in_time(0.5):
  print('flushed')
  sys.exit(75)
"""
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, cwd=forks.ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
  assert (done.returncode, done.stdout) == (75, 'flushed\n')


@pytest.mark.parametrize('name', ['no room for a state', 'SIGTERM without room'])
def test_a_save_on_a_full_disk(ended, name):
  """It is that of step 3 that is whole; of the later one nothing stays behind."""
  workdir, end = ended[name]
  assert end.code == endings.EXIT_DISK, end.err
  assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['3']
  assert '; the state of step 3 is kept: the same command continues from there' in end.err
  assert 'Traceback' not in end.err
  assert sum('error: ' in line for line in end.err.splitlines()) == 1


def test_a_run_on_a_full_disk(ended):
  workdir, end = ended['full disk']
  assert end.code == endings.EXIT_DISK, end.err
  assert kept(workdir) == AT
  said = f'error: the disk is full: [Errno 28] No space left on device; the state of step {AT} is kept: the same'
  assert said in end.err
  assert 'Traceback' not in end.err
  assert sum('error: ' in line for line in end.err.splitlines()) == 1
