"""scripts/accelerator.py: every part on a CPU with the tiny network, what its file keeps, and what goes wrong."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import psutil
import pytest

from scripts.timing import accelerator_parts
from tests import forks, golden_networks
from tests.golden_state import nhwc
from tests.released_keys import released_shapes
from triplet_det.devices import roofline
from triplet_det.run.metric_writers import read_metrics


def run(folder, *all_words, **variables):
  """Commands one after the other, with the tests' compiled programs."""
  cache = {'JAX_COMPILATION_CACHE_DIR': str(jax.config.jax_compilation_cache_dir)}
  cache['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  return forks.run([forks.Command(words) for words in all_words], folder, **cache, **variables)


@pytest.fixture(scope='module')
def twice(tmp_path_factory):
  """How the command ended when it was given twice, and what its file had after each."""
  folder = tmp_path_factory.mktemp('accelerator')
  file = folder / 'results.json'
  command = ('scripts/accelerator.py', '--part', 'all', '--json', str(file))
  copy = ('-c', f'import shutil; shutil.copy({str(file)!r}, {str(folder / "first.json")!r})')
  first, _, second = run(folder, command, copy, command)
  return folder, first, second, json.loads(file.read_text())


def rows(content, part):
  """Title -> row."""
  return {
    name or title: row for title, one in content['parts'][part].items() for name, row in one.get('rows', {}).items()
  }


def test_every_part_is_measured(twice):
  _, first, _, content = twice
  assert first.code == 0, first.err
  assert list(content['parts']) == list(accelerator_parts.PARTS)
  assert content['about']['device'] == 'cpu' and content['about']['size'] == 'tiny'
  for part, what in accelerator_parts.PARTS.items():
    assert f'\n{part}: {what}\n\n|' in first.out
  assert 'failed' not in first.out and 'not done' not in first.out


def test_what_is_finished_is_taken_from_the_file(twice):
  folder, first, second, content = twice
  assert second.code == 0 and second.out == first.out
  assert json.loads((folder / 'first.json').read_text()) == content
  assert second.seconds < first.seconds / 2
  assert set(re.findall(r'^  (\S+), float32, ', second.err, re.MULTILINE)) == {'tiny'}  # what is missing is asked again
  assert all(line.endswith('0 s ') for line in second.err.splitlines() if line.startswith('  '))


def test_products(twice):
  for row in rows(twice[3], 'chip').values():
    assert row['least'] <= row['ms'] <= row['most']
    assert row['TFLOP/s'] * 1e12 == pytest.approx(2 * 256**3 / (row['ms'] / 1e3))


def test_errors_are_within_their_bounds(twice):
  found = rows(twice[3], 'right')
  for title, row in found.items():
    assert row['within'] == 'yes' and row['error'] <= row['bound'], title
    if 'bfloat16' in title:
      assert row['error'] > 1e-3, title  # so that it was
  for name in ('centernet', 'cornernet'):
    assert found[f'small {name}, float32, highest precision: maps in testing']['bound'] == 2e-5
  assert found['pools, float32, highest precision: forward']['error'] == 0


def test_errors_of_training(monkeypatch):
  """Against the golden step itself, and with each part of it changed; tests/models/test_networks.py takes the step."""
  network = golden_networks.opened('cornernet')
  golden = network.golden
  fields = golden_networks.MAPS.items()
  stacks = [{ours: golden.get(f'train/map/{theirs}/{stack}') for theirs, ours in fields} for stack in (0, 1)]
  maps = [{name: array if array is None else nhwc(array) for name, array in one.items()} for one in stacks]
  maps = [types.SimpleNamespace(**one) for one in maps]
  norms = dict(zip(golden['param_names'].tolist(), golden['train/gradnorm64']))
  step = golden_networks.Step(golden['train/loss'][0], {}, maps, {k: np.array([v]) for k, v in norms.items()}, {})
  changed = dataclasses.replace(
    step,
    loss=1.5 * step.loss,
    maps=[types.SimpleNamespace(**{k: a if a is None else 1.25 * a for k, a in vars(m).items()}) for m in maps],
    gradients={key: 3 * norm for key, norm in step.gradients.items()},
  )
  broken = dataclasses.replace(step, loss=np.float32(np.nan))
  steps = {'float32': step, 'bfloat16': changed, 'nan': broken}
  monkeypatch.setattr(golden_networks, 'training_step', lambda network, dtype: steps[dtype])
  parts = 'maps in training', 'loss', 'norms of gradients, median'
  assert golden_networks.training_errors('cornernet', 'float32') == dict.fromkeys(parts, 0)
  found = golden_networks.training_errors('cornernet', 'bfloat16')
  assert [found[part] for part in parts] == pytest.approx([0.25, 0.5, 2.0])
  items = accelerator_parts.items(accelerator_parts.SIZES['paper'], None)['right']
  rows = items['small cornernet in training, bfloat16'](1).values()
  assert [(row['bound'], row['within']) for row in rows] == [(0.5, 'yes'), (0.02, 'NO'), (0.1, 'NO')]
  monkeypatch.setitem(accelerator_parts.MODES, accelerator_parts.HIGHEST, ('nan', 'highest'))
  items = accelerator_parts.items(accelerator_parts.SIZES['paper'], None)['right']
  rows = items['small cornernet in training, float32, highest precision'](1).values()
  assert [(row['bound'], row['within']) for row in rows] == [(1e-4, 'yes'), (1e-5, 'NO'), (5e-4, 'yes')]


def test_the_step(twice):
  ((title, row),) = rows(twice[3], 'step').items()
  assert title == 'tiny, float32, batch 2' and row['least'] <= row['ms'] <= row['most']
  shapes = released_shapes(accelerator_parts.SIZES['tiny'].networks['tiny'])
  assert row['parameters'] == sum(math.prod(shape) for key, shape in shapes.items() if 'running' not in key)
  assert row['images/s'] == pytest.approx(2 / (row['ms'] / 1e3))
  assert row['days, 1 device'] * 24 * 3600 == pytest.approx(480_000 * 48 * row['ms'] / 1e3 / 2)
  assert row['days, 8 devices'] == pytest.approx(row['days, 1 device'] / 8)
  assert 3 * 4 * row['parameters'] < row['GiB by plan'] * 2**30 < 100 * 4 * row['parameters']  # Adam has two moments
  assert row['compiled in s'] > 0 and 'GiB in use' not in row and '% of peak' not in row  # nobody knows them of a CPU


def test_detection(twice):
  found = rows(twice[3], 'detection')
  assert list(found) == [f'tiny, float32, 63 x 63, batch {batch}' for batch in (1, 2)]
  for row in found.values():
    assert row['canvas'] == '63 x 63' and row['boxes'] > 0
    assert 0 < row['network'] < 2 * row['whole image'] and row['decoding'] > 0 and row['post-processing'] > 0
  rates = [row['TFLOP/s'] * row['network'] for row in found.values()]
  assert rates[0] == pytest.approx(rates[1])  # of an image, however many there are


def test_pools(twice):
  found = rows(twice[3], 'pools')
  pools = {f'{name}, {form}' for name in ('top', 'left') for form in ('walking', 'cummax', 'leaping', 'automatic')}
  modules = {'column', 'row', 'corner pooling', 'cascade corner pooling', 'center pooling'}
  assert {title.removesuffix(', float32') for title in found} == pools | modules
  assert all(row.keys() == {'forward, ms', 'and backward, ms'} for row in found.values())
  assert all(value > 0 for row in found.values() for value in row.values())


def test_the_twin_is_missed_in_one_line(twice):
  assert {one['missing'] for one in twice[3]['parts']['twin'].values()} == {'the twin is for a GPU; this is cpu'}
  assert '| missing: the twin is for a GPU; this is cpu |' in twice[1].out


def test_the_run(twice):
  folder, _, _, content = twice
  (row,) = rows(content, 'run').values()
  *_, last = read_metrics(folder / 'results.run/run/metrics.jsonl')
  assert (row['steps'], row['AP'], row['AP50']) == (4, last['eval/AP'], last['eval/AP50'])
  assert 0 < row['minutes'] * 60 < twice[1].seconds


# Items that fail in every way, until a file `well` is there; each notes that it was executed.
FAULTS = """
import os, runpy, sys, time
from pathlib import Path
from scripts.timing import accelerator_parts as parts

here = Path(sys.argv[-1]).parent

def item(title, fails=lambda: None):
  def execute(seconds):
    with open(here / 'executed.txt', 'a') as file:
      file.write(title + '\\n')
    if not (here / 'well').exists():
      fails()
    return {'': {'value': 1.5}}
  return execute

def raises(error):
  def fails():
    raise error
  return fails

def full():
  raise RuntimeError('RESOURCE_EXHAUSTED: 9 GiB are wanted')

def items(size, folder):
  found = {part: {} for part in parts.PARTS}
  found['chip'] = {'missing': item('missing', raises(parts.Missing('no torch')))}
  found['right'] = {
    'broken': item('broken', raises(ValueError('broken on purpose'))),
    'killed': item('killed', lambda: os.kill(os.getpid(), 9)),
    'sound': item('sound'),
    'off': lambda seconds: parts._errors('off', parts.BFLOAT16, {'boxes, pixels': 2.0}),
  }
  found['step'] = {f'net, batch {n}': item(f'net, batch {n}', full if n > 6 else lambda: None) for n in (6, 12, 24)}
  found['pools'] = {'slow': item('slow', lambda: time.sleep(9)), 'next': item('next')}
  found['run'] = {'saved': item('saved', raises(TimeoutError('stopped and saved')))}
  return found

parts.items = items
runpy.run_path('scripts/accelerator.py', run_name='__main__')
"""


def test_what_fails_is_said_and_the_others_run(tmp_path):
  file, executed = tmp_path / 'results.json', tmp_path / 'executed.txt'
  command = ('-c', FAULTS, '--minutes', '0.03', '--json', str(file))
  well = ('-c', f'import pathlib; pathlib.Path({str(tmp_path / "well")!r}).touch()')
  kept = tmp_path / 'executed_first.txt'
  move = ('-c', f'import os; os.rename({str(executed)!r}, {str(kept)!r})')
  first, _, _, second = run(tmp_path, command, well, move, command)
  # `next` has no time left, and what did not fit makes larger batches superfluous.
  names = ['missing', 'broken', 'killed', 'sound', 'net, batch 6', 'net, batch 12', 'slow', 'saved']
  assert kept.read_text().split('\n')[:-1] == names
  assert first.code == 1 and 'broken on purpose' in first.err
  said = first.out[first.out.index('\nfailed:') :]
  for line in (
    'right, broken: ValueError: broken on purpose',
    'right, killed: its process ended with -9',
    'right, off, bfloat16: boxes, pixels: 2, the bound is 1',
    'pools, slow: not done after 2 s',
    'not done yet, by the same command:\n  pools, next\n  run, saved\n',
  ):
    assert line in said
  assert said.count('\n  ') == 6
  assert 'full: does not fit: RESOURCE_EXHAUSTED: 9 GiB are wanted' in first.out
  assert 'full: not tried: a smaller batch did not fit' in first.out and 'missing: no torch' in first.out
  assert executed.read_text().split('\n')[:-1] == ['missing', 'broken', 'killed', 'slow', 'next', 'saved']
  assert second.code == 1 and second.out.endswith('failed:\n  right, off, bfloat16: boxes, pixels: 2, the bound is 1\n')


# Items that note when they compile and when they are timed; `broken` cannot be compiled beside others.
AHEAD = """
import os, runpy, sys, time
from pathlib import Path
from scripts.timing import accelerator_parts as parts

here = Path(sys.argv[-1]).parent

def item(title, seconds=0.0):
  def execute(_):
    with open(here / 'executed.txt', 'a') as file:
      file.write(f'{title} {os.environ.get("XLA_CLIENT_MEM_FRACTION")}\\n')
    if title == 'broken' and parts.compile_only:
      raise ValueError('no memory')
    time.sleep(seconds * parts.compile_only)
    parts._compiled(seconds=seconds)
    with open(here / 'executed.txt', 'a') as file:
      file.write(f'{title} timed\\n')
    return {'': {'value': 1.5, 'seconds': 0.0}}
  return execute

def items(size, folder):
  found = {part: {} for part in parts.PARTS}
  found['chip'] = {'products': item('products')}
  found['right'] = {'whole': lambda _: {'': {'error': 0.0, 'bound': 1.0, 'within': 'yes'}}}
  found['step'] = {name: item(name, seconds) for name, seconds in (('long', 4), ('short', 1), ('broken', 0))}
  return found

parts.items = items
runpy.run_path('scripts/accelerator.py', run_name='__main__')
"""


def test_programs_are_compiled_at_once_before_any_is_timed(tmp_path):
  file = tmp_path / 'results.json'
  (ended,) = run(tmp_path, ('-c', AHEAD, '--at_once', '2', '--part', 'chip', 'right', 'step', '--json', str(file)))
  assert ended.code == 0, ended.err
  executed = (tmp_path / 'executed.txt').read_text().splitlines()
  # Two at once with a share of the memory each: `long` runs until `short` and `broken` have ended beside it.
  assert set(executed[:2]) == {'long 0.45', 'short 0.45'} and executed[2] == 'broken 0.45'
  assert executed[3:] == [
    line for name in ('products', 'long', 'short', 'broken') for line in (f'{name} .92', f'{name} timed')
  ]
  content = json.loads(file.read_text())
  assert content['ahead'] == {'step': {'long': {'seconds': 4.0}, 'short': {'seconds': 1.0}}}
  assert rows(content, 'step')['long'] == {'value': 1.5, 'seconds': 4.0}
  assert rows(content, 'step')['broken'] == {'value': 1.5, 'seconds': 0.0}
  assert rows(content, 'right')['whole']['within'] == 'yes' and 'ValueError: no memory' in ended.err


def test_items_are_chosen_by_their_titles(tmp_path):
  file = tmp_path / 'results.json'
  (ended,) = run(tmp_path, ('-c', AHEAD, '--only', '^(long|whole)$', '--json', str(file)))
  assert ended.code == 0, ended.err
  parts = json.loads(file.read_text())['parts']
  assert {title for part in parts.values() for title in part} == {'long', 'whole'}
  assert 'short' not in ended.out


def test_ctrl_c_ends_the_compilers(tmp_path):
  code = AHEAD.replace("('long', 4)", "('long', 60)")
  command = [sys.executable, '-c', code, '--at_once', '2', '--part', 'step', '--json', str(tmp_path / 'results.json')]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': forks.IMPORTS}
  process = subprocess.Popen(command, cwd=forks.ROOT, env=environment, stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 60
  while not (tmp_path / 'executed.txt').exists() and time.monotonic() < deadline:
    time.sleep(0.1)
  started = psutil.Process(process.pid).children()
  assert started
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode and not any(child.is_running() for child in started)


INTERRUPTED = """
import os, signal, threading
from scripts import accelerator

threading.Thread(target=threading.Event().wait, daemon=True).start()  # the signal may come to any thread
os.register_at_fork(after_in_parent=lambda: (os.kill(os.getpid(), signal.SIGINT), sum(range(10**5))))
try:
  with accelerator.no_interrupt():
    if not os.fork():
      os._exit(0)
    print('whole', end=' ')
  print('lost')
except KeyboardInterrupt:
  print('interrupted')
"""


def test_ctrl_c_within_a_fork_is_not_lost(tmp_path):
  (ended,) = run(tmp_path, ('-c', INTERRUPTED))
  assert ended.out == 'whole interrupted\n' and 'Exception ignored' not in ended.err


def test_only_what_there_is(tmp_path):
  broken, nothing = run(
    tmp_path, *(('scripts/accelerator.py', '--part', 'step', '--only', text) for text in ('(', 'no such'))
  )
  assert broken.code == nothing.code == 2
  assert "'(' is no regular expression: " in broken.err and 'no item of step has that' in nothing.err


def test_unfinished_is_no_failure(tmp_path):
  code = FAULTS.replace('return found', "return {part: found['run'] for part in found}")
  (ended,) = run(tmp_path, ('-c', code, '--part', 'run', '--json', str(tmp_path / 'results.json')))
  assert ended.code == 75 and ended.out.endswith('not done yet, by the same command:\n  run, saved\n')
  assert json.loads((tmp_path / 'results.json').read_text())['parts'] == {'run': {}}


def test_a_file_of_another_device_is_refused(tmp_path):
  file, text = tmp_path / 'results.json', tmp_path / 'text.json'
  file.write_text(json.dumps({'about': {'platform': 'gpu', 'device': 'NVIDIA H100'}, 'parts': {}}))
  text.write_text('{')
  files = file, text, tmp_path / 'nowhere/results.json'
  of_another, broken, nowhere = run(tmp_path, *(('scripts/accelerator.py', '--json', str(one)) for one in files))
  assert {of_another.code, broken.code, nowhere.code} == {2}
  assert 'is of platform gpu, here cpu; device NVIDIA H100, here cpu; ' in of_another.err
  assert 'text.json is no file of this command: give another --json' in broken.err and text.read_text() == '{'
  assert '--json cannot be written: ' in nowhere.err
  assert json.loads(file.read_text())['parts'] == {}


# Trains until it is told to stop; the second time it ends by itself.
TRAINS = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if not (run / 'begun').exists():
  (run / 'begun').touch()
  time.sleep(60)
(run / 'metrics.jsonl').write_text('{"step": 7, "eval/AP": 0.25, "eval/AP50": 0.5}\\n')
"""


def test_the_run_is_stopped_and_continued(tmp_path, monkeypatch):
  start, typed = subprocess.Popen, []

  def popen(command, **how):
    typed.append(command)
    return start([sys.executable, '-c', TRAINS, command[4].removeprefix('--workdir=')], **how)

  monkeypatch.setattr(accelerator_parts.subprocess, 'Popen', popen)
  size = accelerator_parts.SIZES['paper']
  with pytest.raises(TimeoutError, match=r'stopped and saved after 0\.0 minutes'):
    accelerator_parts.trained(size, tmp_path, 61)
  spent = float((tmp_path / 'seconds.txt').read_text())
  assert 1 <= spent < 30
  row = accelerator_parts.trained(size, tmp_path, 99)['']
  assert (row['steps'], row['AP'], row['AP50']) == (7, 0.25, 0.5) and row['minutes'] > spent / 60
  assert typed[0] == typed[1] and typed[0][1:4] == ['-m', 'triplet_det.main', '--config=configs/shapes.py']
  monkeypatch.setattr(accelerator_parts.subprocess, 'Popen', lambda command, **how: start(['false'], **how))
  with pytest.raises(RuntimeError, match='exit code 1'):
    accelerator_parts.trained(size, tmp_path, 99)


def test_a_known_chip_and_the_paper_s_sizes(monkeypatch, tmp_path):
  (chip,) = (one for one in roofline.CHIPS if one.name == 'A100 40 GB')
  monkeypatch.setattr(roofline, 'chip_of', lambda device: chip)
  assert accelerator_parts._of_peak(78e12, 1000, 'float32') == {'TFLOP/s': 78, '% of peak': 50}
  assert accelerator_parts._of_peak(78e12, 1000, 'bfloat16') == {'TFLOP/s': 78, '% of peak': 25}
  items = accelerator_parts.items(accelerator_parts.SIZES['paper'], tmp_path)
  steps = [
    f'Hourglass-{hg}, {dtype}, batch {n}'
    for hg in (52, 104)
    for dtype in ('bfloat16', 'float32')
    for n in (6, 12, 24, 48)
  ]
  assert list(items['step']) == steps
  assert len(items['detection']) == 2 * 2 * 3 * 2 and len(items['right']) == 6 + 6 + 3 + 3
  item = items['detection']['Hourglass-104, bfloat16, 640 x 480, batch 8']
  monkeypatch.setattr(accelerator_parts.detection_parts, 'random_weights', lambda model: (model,))
  parts = {part: None for part in accelerator_parts.detection_parts.PARTS}
  compiled = accelerator_parts.detection_parts.CompiledParts(parts, 3, 4, 5.0)
  monkeypatch.setattr(accelerator_parts.detection_parts, 'compile_parts', lambda *_, **how: compiled)
  monkeypatch.setattr(
    accelerator_parts, '_take_turns', lambda size, programs: {name: {'ms': 80.0} for name in programs}
  )
  monkeypatch.setattr(accelerator_parts.detection_parts, 'network_flops', lambda *_: 39e10)
  row = item(1)['']
  assert row['whole image'] == 10 and row['paper, P100'] == 340 and row['times faster'] == 34
  assert row['canvas'] == '767 x 511' and row['% of peak'] == pytest.approx(12.5)  # 39 TFLOP/s of 312
