"""The loop: what a run leaves behind, and that a run killed at any moment ends with the same numbers, to the bit."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_run
from triplet_det import evaluate, main, report, train
from triplet_det.configs import photos
from triplet_det.data import pipeline, shapes_dataset
from triplet_det.detection import trained_network
from triplet_det.models import layers
from triplet_det.run import checkpoints
from triplet_det.run.stop_signal import stop_signal
from triplet_det.training import built_step
from triplet_det.training.train_step import TrainState

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
  assert {name: rows[-1][f'eval/{name}'] for name in ('AP', 'FD', 'FD50')} == {
    name: json.loads((evaluation / 'metrics.json').read_text())['metrics'][name] for name in ('AP', 'FD', 'FD50')
  }
  assert len(json.loads((evaluation / 'curves.json').read_text())['false_discovery']) == 10
  gallery = json.loads((evaluation / 'gallery.json').read_text())
  assert {entry['image_id'] for entry in gallery} <= {100, 107, 114}
  assert all((evaluation / entry['image']).read_bytes().startswith(b'\xff\xd8') for entry in gallery)
  config = json.loads((workdir / 'config.json').read_text())
  assert (config['total_steps'], config['model']['dims'], config['optimizer']['base']) == (STEPS, [8, 8], 1e-3)
  assert f'{rows[-1]["eval/FD"]:.3f}' in said
  assert f'to look at: {workdir / "report.html"}' in said
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


def test_mode_eval_gives_the_metrics_of_the_training_s_last_evaluation(reference, data):
  workdir, _ = reference
  code, said = tiny_run.run(workdir, {**data, 'mode': 'eval'})
  assert code == 0, said
  there, here = (workdir / 'eval' / f'{name}_{STEPS:06d}' for name in ('step', 'validation_step'))
  assert (here / 'results.json').read_bytes() == (there / 'results.json').read_bytes()
  written, fingerprint = (json.loads((here / 'metrics.json').read_text())[key] for key in ('metrics', 'fingerprint'))
  assert written == json.loads((there / 'metrics.json').read_text())['metrics']
  assert (fingerprint['step'], fingerprint['split'], fingerprint['images']) == (STEPS, 'validation', 3)
  assert f'AP      {written["AP"]:.3f}' in said


def test_mode_error_analysis_and_mode_report(reference, data):
  """Of CornerNet, which has no centers to replace; the run's own metrics are the first row."""
  workdir, _ = reference
  code, said = tiny_run.run(workdir, {**data, 'mode': 'error_analysis', 'eval_name': 'other'})
  assert code == 0, said
  written = json.loads((workdir / f'eval/validation_step_{STEPS:06d}_other/error_analysis.json').read_text())
  rows = {row['replaced']: row['metrics'] for row in written['rows']}
  assert list(rows) == ['nothing', 'corners', 'embeddings', 'offsets', 'everything']
  trained = json.loads((workdir / f'eval/step_{STEPS:06d}/metrics.json').read_text())
  assert rows['nothing'] == {name: trained['metrics'][name] for name in ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')}
  assert (written['fingerprint']['split'], written['fingerprint']['images']) == ('validation', 3)
  assert written['fingerprint']['test'] == trained['fingerprint']['test']
  assert rows['everything']['AP'] > rows['nothing']['AP']
  assert f'everything    {100 * rows["everything"]["AP"]:7.1f}' in said

  page = workdir / 'report.html'
  page.unlink()
  log = tiny_run.rows(workdir)
  code, said = tiny_run.run(workdir, {**data, 'mode': 'report'})
  assert code == 0, said
  assert f'to look at: {page}' in said and '<html' in page.read_text()
  assert tiny_run.rows(workdir) == log


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


LAST_CROPS = {'last_crops.share': 0.4, 'last_crops.input_size': 63, 'last_crops.border': 20}


def test_the_last_steps_take_crops_of_another_size(reference, data, tmp_path):
  workdir = tmp_path / 'run'
  code, said = tiny_run.run(workdir, {**data, **LAST_CROPS, 'mode': 'train'}, JAX_LOG_COMPILES='1')
  assert code == 0, said
  assert 'crops of 63 pixels after step 6' in said
  assert said.count('Finished XLA compilation of jit(train_step)') == 2
  ours, others = tiny_run.rows(workdir), tiny_run.rows(reference[0])
  assert ours[:6] == others[:6] and [row['step'] for row in ours] == [*range(1, STEPS + 1)]
  for mine, other in zip(ours[6:], others[6:]):
    assert mine['train/loss'] != other['train/loss'] and mine['train/learning_rate'] == other['train/learning_rate']


@pytest.mark.parametrize('start_step', [5, 6, 8])
def test_last_crops_are_the_same_wherever_a_run_continues(start_step, config):
  config.update_from_flattened_dict(LAST_CROPS)
  source = pipeline.open_source(**config.data.train)

  def batches(start):
    with contextlib.closing(train.training_batches(config, source, start_step=start)) as made:
      return list(itertools.islice(made, STEPS - start))

  whole, rest = batches(0), batches(start_step)
  assert [batch['images'].shape[1] for batch in whole] == [31] * 6 + [63] * 4
  for mine, other in zip(rest, whole[start_step:], strict=True):
    for name in other:
      np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_the_embedded_data_set_end_to_end(tmp_path):
  """configs/shapes.py with its whole triplet network, on a few of its scenes."""
  overrides = {'total_steps': 3, 'model.center_branch': True, 'model.center_pooling': True}
  for split in ('train', 'eval'):
    settings = dict(data_dir=tmp_path / 'data', train_images=6, validation_images=2)
    overrides |= {f'data.{split}.{name}': value for name, value in settings.items()}
  workdir = tmp_path / 'run'
  code, said = tiny_run.run(workdir, {**overrides, 'model.cascade_corner_pooling': True}, 'configs/shapes.py')
  assert code == 0, said
  rows = tiny_run.rows(workdir)
  assert [row['step'] for row in rows] == [1, 2, 3, 3]
  assert all(row['train/focal_center'] > 0 for row in rows[:-1])
  assert {name for name in rows[-1] if '/AP/' in name} == {f'eval/AP/{name}' for name in shapes_dataset.CLASS_NAMES}
  detected = json.loads((workdir / 'eval/step_000003/results.json').read_text())
  assert len(detected) <= 2 * 100 and {row['image_id'] for row in detected} <= {1, 2}
  assert all((workdir / picture).exists() for picture in ('loss.png', 'ap.png', 'eval/step_000003/worst.png'))
  events = b''.join(path.read_bytes() for path in workdir.glob('events.out*'))
  assert all(name in events for name in (b'train/loss', b'eval/AP', b'eval/best', b'eval/worst', b'total_steps'))


@pytest.fixture
def config(data):
  """The configuration of the tiny run, for runs inside this process."""
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict({**tiny_run.OVERRIDES, **data, 'mode': 'train'})
  return config


@pytest.fixture
def losses(monkeypatch):
  """Replaces the network by one number that grows by 1 a step; the loss of step k is what the test puts at [k]."""
  losses = {}

  def init_state(module, optimizer, seed, **_):
    return TrainState(jnp.zeros((), jnp.int32), {'w': jnp.zeros(3)}, {'m': jnp.ones(2)}, {'n': jnp.zeros(())})

  def make_train_step(*_, **__):
    def step(state, batch):
      del batch
      value = jnp.asarray([losses.get(k, 1.0) for k in range(STEPS + 1)])[state.step + 1]
      state = dataclasses.replace(state, step=state.step + 1, params={'w': state.params['w'] + 1})
      return state, {'loss': value, 'pull': value, 'push': jnp.ones(())}

    return step

  monkeypatch.setattr(built_step, 'init_state', init_state)
  monkeypatch.setattr(built_step, 'make_train_step', make_train_step)
  monkeypatch.setattr(layers, 'fold_norms', lambda variables: variables)  # there are no norms
  return losses


@pytest.mark.parametrize('log_every, at', [(1, 5), (100, 6), (100, 4)])
def test_a_loss_that_is_not_finite_stops_the_run(config, losses, tmp_path, log_every, at):
  """Step 6 is one of a checkpoint (every 3): it must not be saved, whether step 6 went wrong or step 4 unnoticed."""
  losses[at] = float('nan')
  config.log_every = log_every
  with pytest.raises(train.NonFiniteLoss, match=rf"step {at}: {{'loss': nan, 'pull': nan}}; the checkpoints in"):
    train.train(config, tmp_path)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['3']
  assert [row['step'] for row in tiny_run.rows(tmp_path)] == ([1, 2, 3, 4] if log_every == 1 else [])
  losses.clear()
  assert train.train(config, tmp_path) == {}
  variables, record = checkpoints.load_weights(tmp_path, which='checkpoints')
  assert record.step == STEPS
  np.testing.assert_array_equal(variables['params']['w'], np.full(3, STEPS))
  assert [row['step'] for row in tiny_run.rows(tmp_path)] == ([*range(1, STEPS + 1)] if log_every == 1 else [STEPS])


def test_a_state_that_is_not_finite_is_not_kept(config, losses, tmp_path, monkeypatch):
  """The loss of step 6 is of the parameters before its update, which makes them infinite; step 7 never comes."""
  make_train_step = built_step.make_train_step

  def overflowing(*arguments, **settings):
    step = make_train_step(*arguments, **settings)

    def with_overflow(state, batch):
      state, metrics = step(state, batch)
      return dataclasses.replace(state, opt_state={'n': jnp.where(state.step == 6, jnp.inf, 0.0)}), metrics

    return with_overflow

  with monkeypatch.context() as patch:
    patch.setattr(built_step, 'make_train_step', overflowing)
    with pytest.raises(train.NonFiniteLoss, match=r'step 6: 1 numbers of opt_state/n are not finite; the checkpoin'):
      train.train(config, tmp_path)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['3']
  assert train.train(config, tmp_path) == {}
  np.testing.assert_array_equal(checkpoints.load_weights(tmp_path)[0]['params']['w'], np.full(3, STEPS))


def test_a_state_whose_next_loss_is_not_finite_gives_way(config, losses, tmp_path, caplog):
  """Its numbers are finite, but no learning rate leads on from it: step 6 has none, whatever is done after it."""
  losses[7] = float('nan')
  with pytest.raises(train.NonFiniteLoss, match=r'step 7: '):
    train.train(config, tmp_path)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'3', '6'}
  losses.clear()
  with caplog.at_level(logging.INFO):
    train.train(config, tmp_path)
  assert f'the loss of the step after {tmp_path}/checkpoints/6 was not finite' in caplog.text
  assert f'continuing at step 3 of {STEPS}' in caplog.text
  assert (tmp_path / 'checkpoints_diverged/6/state').exists()
  assert checkpoints.load_weights(tmp_path)[1].step == STEPS


def test_after_a_divergence_a_saner_rate_continues(config, tmp_path):
  """The network itself, with the state of every step kept: that of the first one is finite, and worth nothing."""
  config.checkpoint_every, config.optimizer.base, config.optimizer.warmup_steps = 1, 1e20, 0
  with pytest.raises(train.NonFiniteLoss):
    train.train(config, tmp_path)
  with pytest.raises(FileNotFoundError, match=r'the loss after each state in .*checkpoints was not finite'):
    checkpoints.load_weights(tmp_path)
  config.optimizer.base = 1e-3
  train.train(config, tmp_path)
  variables, record = checkpoints.load_weights(tmp_path)
  assert record.step == STEPS
  assert all(np.abs(x).max() < 100 for x in jax.tree.leaves(variables['params']))


def test_exit_code_of_a_loss_that_is_not_finite(config, losses, tmp_path, monkeypatch, capsys):
  losses[2] = float('inf')
  alone = dict.fromkeys(('_COORDINATOR', '_NUM_HOSTS', '_HOST_INDEX'))
  for name, value in dict(alone, _CONFIG=config, _WORKDIR=str(tmp_path), _CACHE='').items():
    monkeypatch.setattr(main, name, SimpleNamespace(value=value))
  with pytest.raises(SystemExit) as stopped:
    main.main(['main'])
  assert stopped.value.code == 3
  assert "error: step 2: {'loss': inf, 'pull': inf}" in capsys.readouterr().err


@pytest.fixture
def evaluations(config, losses, monkeypatch):
  """Replaces the evaluation, at steps 2, 4, ..., 10: the AP of step k is what the test puts at [k]."""
  config.mode, config.eval_every = 'train_and_eval', 2
  found = dict.fromkeys(range(2, STEPS + 1, 2), 0.0)
  done = []

  def fake(detector, source, categories, directory, **settings):
    step = settings['about']['step']
    done.append(step)
    if isinstance(found[step], Exception):
      raise found[step]
    if found[step] is signal.SIGTERM:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    return {'AP': found[step], 'AP50': found[step], 'AP_L': float('nan')}

  monkeypatch.setattr(trained_network, 'make_detector', lambda *_, **__: SimpleNamespace(use=lambda variables: None))
  monkeypatch.setattr(evaluate, 'evaluate', fake)
  return SimpleNamespace(found=found, done=done)


def best(workdir):
  variables, record = checkpoints.load_weights(workdir)
  return record.step, record.metrics['AP'], variables['params']['w'].tolist()


def test_the_best_weights_are_kept_by_ap(config, evaluations, tmp_path):
  evaluations.found |= {2: 0.2, 4: 0.5, 6: float('nan'), 8: 0.5, 10: 0.3}
  metrics = train.train(config, tmp_path)
  assert metrics['AP'] == 0.3
  assert math.isnan(metrics['AP_L'])
  assert (tmp_path / 'report.html').exists()
  assert best(tmp_path) == (4, 0.5, [4, 4, 4])
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'9', '10'}
  assert evaluations.done == [2, 4, 6, 8, 10]


def test_a_run_whose_ap_stands_still_ends(config, evaluations, tmp_path, caplog):
  """Started again it ends at once, with more patience it goes on, and best is what was best."""
  evaluations.found |= {2: 0.2, 4: 0.5, 6: float('nan'), 8: 0.5, 10: 0.6}
  config.patience = 2
  with caplog.at_level(logging.INFO):
    assert train.train(config, tmp_path)['AP'] == 0.5
    assert train.train(config, tmp_path)['AP'] == 0.5
  said = [message for message in caplog.messages if message.startswith('the run ends')]
  assert said[0] == said[1] and len(said) == 2 and evaluations.done == [2, 4, 6, 8]
  assert said[0].startswith('the run ends at step 8: AP was best at step 4, 0.500, and no better in the last 2 eval')
  assert best(tmp_path) == (4, 0.5, [4, 4, 4])
  config.patience = 3
  assert train.train(config, tmp_path)['AP'] == 0.6
  assert best(tmp_path) == (10, 0.6, [10, 10, 10])


def test_an_ap_that_has_not_begun_to_rise_does_not_stand_still(config, evaluations, tmp_path):
  config.patience = 1
  evaluations.found |= {2: 0.004, 4: float('nan'), 8: 0.1, 10: 0.1}
  train.train(config, tmp_path)
  assert evaluations.done == [2, 4, 6, 8, 10]


def test_a_broken_evaluation_does_not_try_patience(config, evaluations, tmp_path, caplog):
  """And all losses are in the log, whatever `log_every` is."""
  config.patience, config.log_every, config.total_steps = 2, 3, 2
  evaluations.found |= {2: 0.9, 4: 0.5, 6: 0.4, 8: 0.3}
  train.train(config, tmp_path)
  folder = evaluate.evaluation_folder(tmp_path, 2)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.json').write_text('{"fingerp')
  config.total_steps = STEPS
  train.train(config, tmp_path)
  assert 'metrics.json is broken' in caplog.text and 'this evaluation does not count' in caplog.text
  assert evaluations.done == [2, 2, 4, 6, 8]
  assert [row['step'] for row in tiny_run.rows(tmp_path) if 'train/loss' in row] == [2, 3, 6, 8]


def test_evaluations_of_other_data_do_not_try_patience(config, evaluations, tmp_path):
  evaluations.found |= {2: 0.9, 4: 0.8, 6: 0.1, 8: 0.2, 10: 0.2}
  config.total_steps, config.patience = 4, 2
  train.train(config, tmp_path)
  truth = json.loads(Path(config.data.eval.annotations).read_text())
  path = tmp_path / 'fewer.json'
  path.write_text(json.dumps(truth | {'annotations': truth['annotations'][:-1]}))
  config.data.eval.annotations, config.total_steps = str(path), STEPS
  for step in (2, 4):  # as evaluations write it; the digest is that of the data before
    folder = evaluate.evaluation_folder(tmp_path, step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metrics.json').write_text('{"fingerprint": {"annotations": "other"}}')
  train.train(config, tmp_path)
  assert evaluations.done == [2, 4, 4, 6, 8, 10]


def test_the_best_is_compared_between_equal_evaluation_data_only(config, evaluations, tmp_path, caplog):
  """In the middle of a run, and after its end, where the last evaluation is of the data before."""
  config.total_steps, config.checkpoint_every = 6, 2
  evaluations.found |= {2: 0.2, 4: 0.9, 6: 0.5}
  train.train(config, tmp_path)
  assert best(tmp_path) == (4, 0.9, [4, 4, 4])
  config.total_steps = STEPS
  evaluations.found |= {8: 0.1, 10: 0.3}
  path = tmp_path / 'fewer.json'
  with open(config.data.eval.annotations) as file:
    truth = json.load(file)
  path.write_text(json.dumps(truth | {'annotations': truth['annotations'][:-1]}))
  config.data.eval.annotations = str(path)
  with caplog.at_level(logging.INFO):
    train.train(config, tmp_path)
  assert 'the best AP so far, 0.900 of step 4, is of other evaluation data' in caplog.text
  assert re.search(
    r"changed at step 6: data\.eval\.contents: '3 images, \d+ boxes, digest \w{8}' -> '3 im", caplog.text
  )
  assert best(tmp_path) == (10, 0.3, [10, 10, 10])


def test_a_resume_with_other_values_says_so(config, losses, tmp_path, caplog):
  """What the second run changed is void: it left no state."""
  said = []
  for total, rate, diverges in ((6, 1e-3, False), (STEPS, 1e-4, True), (STEPS, 1e-5, False), (STEPS, 1e-5, False)):
    losses[8] = math.nan if diverges else 1.0
    config.total_steps, config.optimizer.base, config.log_every = total, rate, total + diverges
    caplog.clear()
    with caplog.at_level(logging.INFO), contextlib.suppress(train.NonFiniteLoss):
      train.train(config, tmp_path)
    said.append([message for message in caplog.messages if message.startswith('changed at')])
  assert said[0] == said[3] == []
  total = f'changed at step 6: total_steps: 6 -> {STEPS}'
  assert said[1] == ['changed at step 6: optimizer.base: 0.001 -> 0.0001', total]
  assert said[2] == ['changed at step 6: optimizer.base: 0.001 -> 1e-05', total]
  lines = [json.loads(line) for line in (tmp_path / 'config_history.jsonl').read_text().splitlines()]
  assert [(line['step'], line['values']['optimizer.base']) for line in lines] == [(0, 1e-3), (6, 1e-5)]
  assert lines[1]['changed'] == {'optimizer.base': [1e-3, 1e-5], 'total_steps': [6, STEPS]}
  assert lines[0]['values']['data.train.contents'].startswith('6 images, ')
  page = report.write_report(tmp_path).read_text()
  columns = re.findall(r'steps [\d,]+ to [\d,]+', page)
  assert columns == ['steps 1 to 6', f'steps 7 to {STEPS}'] and '<code>1e-05</code>' in page


def test_an_evaluation_that_was_cut_short_is_done_again(config, evaluations, tmp_path, monkeypatch):
  """Whether it was killed before its metrics, or before the best weights were saved."""
  evaluations.found |= {4: RuntimeError('killed'), 6: 0.7}
  with pytest.raises(RuntimeError, match='killed'):
    train.train(config, tmp_path)
  evaluations.found[4] = 0.4
  save_best = checkpoints.Checkpoints.save_best

  def killed_at_6(self, variables, record):
    if record.step == 6:
      raise RuntimeError('killed')
    save_best(self, variables, record)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, 'save_best', killed_at_6)
    with pytest.raises(RuntimeError, match='killed'):
      train.train(config, tmp_path)
  assert best(tmp_path) == (4, 0.4, [4, 4, 4])
  train.train(config, tmp_path)
  assert evaluations.done == [2, 4, 4, 6, 6, 8, 10]
  assert best(tmp_path) == (6, 0.7, [6, 6, 6])
  logged = [(row['step'], row['eval/AP']) for row in tiny_run.rows(tmp_path) if 'eval/AP' in row]
  assert logged == [(2, 0.0), (4, 0.4), (6, 0.7), (8, 0.0), (10, 0.0)]
  assert train.train(config, tmp_path)['AP'] == 0.0
  assert evaluations.done[-1] == 10 and len(evaluations.done) == 7


def test_a_signal_ends_an_evaluation(config, evaluations, tmp_path):
  """It may take longer than the system waits before it kills; the state is saved before it begins."""
  evaluations.found[4] = signal.SIGTERM
  start = time.monotonic()
  with pytest.raises(train.Preempted, match='stopped by a signal after step 4; the same command continues from there'):
    train.train(config, tmp_path)
  assert time.monotonic() - start < 30
  evaluations.found[4] = 0.4
  assert train.train(config, tmp_path)['AP'] == 0.0
  assert evaluations.done == [2, 4, 4, 6, 8, 10]
  assert best(tmp_path) == (4, 0.4, [4, 4, 4])


def test_a_run_folder_of_other_data_or_of_a_longer_run(config, losses, tmp_path):
  train.train(config, tmp_path)
  config.total_steps = STEPS - 1
  with pytest.raises(ValueError, match=rf'is already at step {STEPS}, total_steps is {STEPS - 1}'):
    train.train(config, tmp_path)
  config.total_steps = STEPS
  path = config.data.train.annotations
  renamed = tmp_path / 'renamed.json'
  with open(path) as file:
    truth = json.load(file)
  truth['categories'][0]['name'] = 'ball'
  renamed.write_text(json.dumps(truth))
  config.data.train.annotations = str(renamed)
  with pytest.raises(
    ValueError, match=r"do not fit .*3 categories instead of 3; not known: \['ball'\]; lacking: \['disc'\]"
  ):
    train.train(config, tmp_path)


def test_evaluation_data_with_other_categories(config, tmp_path):
  config.mode = 'train_and_eval'
  renamed = tmp_path / 'renamed.json'
  with open(config.data.eval.annotations) as file:
    truth = json.load(file)
  truth['categories'].reverse()
  renamed.write_text(json.dumps(truth))
  config.data.eval.annotations = str(renamed)
  with pytest.raises(ValueError, match=r'data\.eval does not fit data\.train: the 3 category names agree, their order'):
    train.train(config, tmp_path)


def test_a_second_signal_ends_at_once():
  # A shell starts background jobs with Ctrl-C ignored; then there would be nothing to go back to.
  started_with = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with stop_signal() as stop:
    assert not stop.has_come(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.has_come(2)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  signal.signal(signal.SIGINT, started_with)


def test_a_signal_ends_a_wait():
  with stop_signal() as stop:
    assert stop.unless_it_comes(lambda: 5) == 5
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert stop.unless_it_comes(threading.Event().wait) is None
    assert stop.has_come(1)
    assert stop.unless_it_comes(lambda: 5) is None  # nothing is begun any more


def test_the_log_is_at_its_destination_before_a_checkpoint_is(config, losses, tmp_path, monkeypatch):
  """Behind a URL lines are local until they are flushed, and a killed process takes those with it."""
  flushed, saved, flush, save = [], [], train.MetricWriter.flush, train.Checkpoints.save

  def note_flush(self):
    flush(self)
    flushed.append(tiny_run.rows(tmp_path)[-1]['step'])

  def note_save(self, state, record):
    saved.append((record.step, flushed[-1]))
    save(self, state, record)

  monkeypatch.setattr(train.MetricWriter, 'flush', note_flush)
  monkeypatch.setattr(train.Checkpoints, 'save', note_save)
  train.train(config, tmp_path)
  assert saved == [(step, step) for step in (3, 6, 9, 10)]
