"""The checks that take too long for a test, scripts/checks/, in small."""

import contextlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from scripts.checks import full_size, host_share, kill_test, pool_gradient
from tests import tiny_run
from triplet_det.models import detector


def test_full_size(monkeypatch, capsys):
  """scripts/checks/full_size.py with a small network under the large one's name, and a step that takes no compiler."""
  small = dict(detector.VARIANTS['tiny'], dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8)
  small |= dict(center_branch=False, center_pooling=False, cascade_corner_pooling=False)
  monkeypatch.setitem(detector.VARIANTS, 'hourglass-52', small)
  shapes = jax.eval_shape(detector.build(small).init, jax.random.key(0), np.zeros((1, 31, 31, 3), np.float32))
  count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes['params']))
  monkeypatch.setitem(full_size.PARAMETERS, 'hourglass-52', count)
  step = lambda state, batch: (state, {'loss': 1.5 * batch.valid.sum()})  # noqa: E731
  monkeypatch.setattr(full_size.train_step, 'make_train_step', lambda module, adam, seed: step)
  monkeypatch.setattr(sys, 'argv', ['full_size.py', 'hourglass-52'])
  full_size.main()
  said = capsys.readouterr().out
  assert said.startswith('hourglass-52\n') and f'{count:,} parameters, published {count:,}\n' in said
  assert "{'loss': 4.5}" in said and 'all numbers finite: True' in said
  monkeypatch.setitem(full_size.PARAMETERS, 'hourglass-52', count + 1)
  with pytest.raises(SystemExit, match='1'):
    full_size.main()


# A run without JAX: 6 steps, every third of them saved; if it is broken, only the uninterrupted one has its losses.
STAND_IN = """
import pathlib, sys, time

def put(path, text):  # whole or not at all
  path.with_suffix('.tmp').write_text(text)
  path.with_suffix('.tmp').replace(path)

folder = pathlib.Path(sys.argv[1])
broken = sys.argv[2:] == ['broken'] and folder.name != 'reference'
log, saved = folder / 'metrics.jsonl', folder / 'saved'
folder.mkdir(exist_ok=True)
first = int(saved.read_text()) if saved.exists() else 0
put(log, ''.join(line + '\\n' for line in log.read_text().splitlines()[:first]) if log.exists() else '')
print(f'{"continuing" if first else "starting"} at step {first} of 6', flush=True)
for step in range(first + 1, 7):
  print('train  step', step, flush=True)
  time.sleep(0.05)
  with log.open('a') as file:
    file.write(f'{{"step": {step}, "train/loss": {step + broken}}}\\n')
  if step % 3 == 0:
    put(saved, str(step))
"""


@pytest.mark.parametrize('broken', [False, True])
def test_kill_test(broken, tmp_path, monkeypatch, capsys):
  """kill_test.py with a stand-in for the program: kills are counted, and a log that differs is noticed."""

  def start(workdir, life):
    text = workdir.parent / f'{workdir.name}_{life}.txt'
    with open(text, 'w') as output:
      command = [sys.executable, '-c', STAND_IN, str(workdir), *['broken'] * broken]
      process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    return kill_test.Life(process, workdir, text, 0.0)

  monkeypatch.setattr(kill_test, 'start', start)
  monkeypatch.setattr(kill_test, 'SECONDS', 0.2)
  monkeypatch.setattr(sys, 'argv', ['kill_test.py', '--out', str(tmp_path / 'DIR'), '--kills', '6'])
  with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(sys.stdout):
    kill_test.main()
  said = capsys.readouterr().out
  assert stopped.value.code == broken, said
  assert re.search(r'6 kills, [1-6] corrupted' if broken else r'6 kills, 0 corrupted', said)


# As the TPU's compiler prints it, shortened: a loop of 31 turns and one operation before it.
LOOP = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %fusion.1 = f32[4]{0} fusion(%p), kind=kLoop, calls=%x, backend_config={"estimated_cycles":"100","a":{"b":1}}
  ROOT %t = (s32[], f32[4]) tuple(%p, %fusion.1), backend_config={"estimated_cycles":"20"}
}

%cond.1 (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  %constant.7 = s32[]{:T(128)} constant(31)
  ROOT %lt = pred[] compare(%p, %constant.7), direction=LT
}

ENTRY %main.5 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %copy = f32[4]{0} copy(%a), backend_config={"estimated_cycles":"7"}
  %while.1 = (s32[], f32[4]) while(%copy), condition=%cond.1, body=%body.1
  ROOT %r = f32[4]{0} get-tuple-element(%while.1), index=1
}
"""


def test_what_a_loop_costs():
  assert pool_gradient.estimated_cycles(LOOP) == 7 + 31 * 120
  assert pool_gradient.started(LOOP) == 31
  with pytest.raises(ValueError, match=r'condition cond\.1 has no single limit: \[\]'):
    pool_gradient.estimated_cycles(LOOP.replace('constant(31)', 'parameter(31)'))
  known = 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}'  # as other compilers print it
  assert pool_gradient.started(LOOP.replace('body=%body.1', known)) == 5


def test_the_table_for_a_device_that_is_not_here(monkeypatch, capsys):
  """What it prints of a device of which nobody tells times, with the compiler that is here."""
  monkeypatch.setattr(pool_gradient.aot_compile, 'devices_of', lambda topology: jax.devices('cpu'))
  monkeypatch.setattr(sys, 'argv', ['pool_gradient.py', '--topology', 'h100:1', '--shape', '1,8,8,4'])
  pool_gradient.main()
  title, head, *rows = capsys.readouterr().out.splitlines()
  assert title == 'cpu, [1, 8, 8, 4] float32'
  assert head.split() == ['HLO,', 'kB', 'loops', 'started', 'temporary,', 'MiB', 'counted,', 'MB']
  found = {row[:16].strip(): row[16:].split() for row in rows}
  assert found.keys() == {f'{n}, {f}' for n in ('top', 'left') for f in (*pool_gradient.pooling.FORMS, 'automatic')}
  assert all(len(numbers) == 5 for numbers in found.values())
  assert [found[f'top, {form}'][1] for form in ('walking', 'leaping')] == ['2', '0']


def test_covered_time():
  """Of intervals that touch, overlap, lie within others and reach over both ends, against a clock of ticks."""
  intervals = [(0, 12), (20, 30), (25, 27), (29, 35), (35, 40), (50, 51), (95, 120), (130, 140)]
  ticks = sum(any(begin <= tick + 0.5 < end for begin, end in intervals) for tick in range(10, 100))
  assert host_share.covered(intervals[::-1], 10, 100) == ticks == 28
  assert host_share.covered([], 10, 100) == 0


def test_host_share(tmp_path):
  """A run of the tiny network; there is time between its steps, and not only that."""
  values = {**tiny_run.OVERRIDES, **tiny_run.coco_data(tmp_path)}
  command = [sys.executable, 'scripts/checks/host_share.py', '--config', tiny_run.PAGE]
  command += [f'--config.{name}={value}' for name, value in values.items()]
  found = subprocess.run(
    command, cwd=tiny_run.ROOT, env=tiny_run.environment(), capture_output=True, text=True, timeout=300
  )
  assert found.returncode == 0, found.stderr
  said = re.search(r'(\d+) steps of \d+ ms: no program runs in ([\d.]+)% of the time', found.stdout)
  assert 1 <= int(said[1]) <= 40 and 0 < float(said[2]) < 100
