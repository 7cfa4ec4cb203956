"""The loop: what a run leaves behind, and that a run killed at any moment ends with the same numbers, to the bit."""

import json
import math
import random
import signal
import time

import numpy as np
import pytest

from tests import tiny_run
from triplet_det.data import shapes

STEPS = tiny_run.STEPS


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_run.coco_data(tmp_path_factory.mktemp('data') / 'coco')


@pytest.fixture(scope='module')
def reference(data, tmp_path_factory):
  """A run that nothing interrupted, and what it said."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  code, said = tiny_run.run(workdir, data, JAX_LOG_COMPILES='1')
  assert code == 0, said
  return workdir, said


def wait_for(condition, process, seconds=120):
  """Waits until the condition holds; fails if the process ends before."""
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, f'the run ended early with exit code {process.returncode}'
    assert time.monotonic() < end, f'waited {seconds} s in vain'
    time.sleep(0.002)


def windows(reference, every):
  """What the log of an uninterrupted run with log_every=`every` must hold: step -> means of the losses of each step."""
  rows = [row for row in tiny_run.rows(reference) if 'train/loss' in row]
  ends = [step for step in range(1, STEPS + 1) if step % every == 0 or step == STEPS]
  found, begin = [], 0
  for end in ends:
    names = [name for name in rows[0] if name not in ('step', 'train/learning_rate')]
    means = {name: np.mean([row[name] for row in rows[begin:end]]) for name in names}
    found.append({'step': end, **means, 'train/learning_rate': rows[end - 1]['train/learning_rate']})
    begin = end
  return found


def test_a_run_leaves_log_results_curves_drawings_and_events(reference):
  workdir, said = reference
  rows = tiny_run.rows(workdir)
  assert [row['step'] for row in rows] == [*range(1, STEPS + 1), STEPS]
  terms = ['focal_corner', 'pull', 'push', 'offset']
  for row in rows[:-1]:
    assert sum(row[f'train/{term}'] for term in terms) == pytest.approx(row['train/loss'], rel=1e-5)
    assert row['train/gradient_norm'] > 0
    done = row['step'] - 1  # base 1e-3, cosine over the run, linear rise over 2 steps
    rate = 1e-3 * (1 + math.cos(math.pi * done / STEPS)) / 2 * min((done + 1) / 2, 1)
    assert row['train/learning_rate'] == pytest.approx(rate, rel=1e-5)
  assert 0 <= rows[-1]['eval/AP'] <= rows[-1]['eval/AP50'] <= 1
  evaluation = workdir / f'eval/step_{STEPS:06d}'
  assert {row['image_id'] for row in json.loads((evaluation / 'results.json').read_text())} <= {100, 107, 114}
  for picture in ('loss.png', 'ap.png', f'eval/{evaluation.name}/best.png', f'eval/{evaluation.name}/worst.png'):
    assert (workdir / picture).read_bytes().startswith(b'\x89PNG')
  assert len(list(workdir.glob('events.out.tfevents.*'))) == 1
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {str(STEPS - 1), str(STEPS)}
  assert [p.name for p in (workdir / 'best').iterdir()] == [str(STEPS)]
  assert f'step {STEPS}/{STEPS}  100%' in said


def test_the_step_is_compiled_once(reference):
  _, said = reference
  assert said.count('Finished XLA compilation of jit(train_step)') == 1
  assert said.count('Finished tracing train_step') == 1


def test_a_finished_run_started_again_prints_its_metrics_and_does_nothing(reference, data):
  workdir, before = reference
  rows, checkpoints = tiny_run.rows(workdir), sorted((workdir / 'checkpoints').iterdir())
  written = (workdir / f'eval/step_{STEPS:06d}/results.json').stat().st_mtime_ns
  code, said = tiny_run.run(workdir, data)
  assert code == 0, said
  table = said[said.index('COCO metrics') :]
  assert table == before[before.index('COCO metrics') :].split('everything')[0] + f'everything is in {workdir}\n'
  assert f'AP      {rows[-1]["eval/AP"]:.3f}' in table
  assert 'compiling' not in said
  assert tiny_run.rows(workdir) == rows
  assert sorted((workdir / 'checkpoints').iterdir()) == checkpoints
  assert (workdir / f'eval/step_{STEPS:06d}/results.json').stat().st_mtime_ns == written


def test_stopped_by_sigterm_and_continued(reference, data, tmp_path):
  workdir = tmp_path / 'run'
  process = tiny_run.start(workdir, data)
  wait_for((workdir / 'checkpoints' / '3').exists, process)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=120) == 75
  rows = tiny_run.rows(workdir)
  stopped = rows[-1]['step']
  assert 3 <= stopped < STEPS
  assert (workdir / 'checkpoints' / str(stopped)).exists()
  assert f'stopped by a signal after step {stopped}' in tiny_run.said(workdir).read_text()
  code, said = tiny_run.run(workdir, data)
  assert code == 0, said
  assert f'continuing at step {stopped} of {STEPS}' in said
  assert tiny_run.rows(workdir)[: len(rows)] == rows
  assert tiny_run.rows(workdir) == tiny_run.rows(reference[0])
  results = f'eval/step_{STEPS:06d}/results.json'
  assert (workdir / results).read_bytes() == (reference[0] / results).read_bytes()


def test_killed_in_a_save_and_at_a_random_moment_and_continued(reference, data, tmp_path):
  """With log_every=4 the losses since the last line of the log are in the checkpoint."""
  workdir, overrides = tmp_path / 'run', {**data, 'log_every': 4, 'mode': 'train'}
  process = tiny_run.start(workdir, overrides)
  unfinished = lambda: [p for p in (workdir / 'checkpoints').glob('*') if not p.name.isdigit()]  # noqa: E731
  wait_for(lambda: (workdir / 'checkpoints' / '3').exists() and unfinished(), process)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert unfinished(), 'the kill came too late to be inside a save'
  newest = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())

  process = tiny_run.start(workdir, overrides)
  wait_for(lambda: f'continuing at step {newest} of {STEPS}' in tiny_run.said(workdir).read_text(), process)
  time.sleep(random.uniform(0, 2))
  process.kill()
  process.wait()

  code, said = tiny_run.run(workdir, overrides)
  assert code == 0, said
  assert tiny_run.rows(workdir) == windows(reference[0], 4)


def test_the_embedded_data_set_end_to_end(tmp_path):
  """configs/shapes.py with its whole triplet network, on a few of its scenes."""
  directory = shapes.prepare(tmp_path / 'data', train_images=6, validation_images=2)
  overrides = {'total_steps': 3, 'model.center_branch': True, 'model.center_pooling': True}
  for split in ('train', 'eval'):
    overrides |= {f'data.{split}.format': 'tfds', f'data.{split}.data_dir': directory}
  workdir = tmp_path / 'run'
  code, said = tiny_run.run(workdir, {**overrides, 'model.cascade_corner_pooling': True}, 'configs/shapes.py')
  assert code == 0, said
  rows = tiny_run.rows(workdir)
  assert [row['step'] for row in rows] == [1, 2, 3, 3]
  assert all(row['train/focal_center'] > 0 for row in rows[:-1])
  assert {name for name in rows[-1] if '/AP/' in name} == {f'eval/AP/{name}' for name in shapes.CLASS_NAMES}
  detected = json.loads((workdir / 'eval/step_000003/results.json').read_text())
  assert len(detected) <= 2 * 100 and {row['image_id'] for row in detected} <= {1, 2}
  assert all((workdir / picture).exists() for picture in ('loss.png', 'ap.png', 'eval/step_000003/worst.png'))
