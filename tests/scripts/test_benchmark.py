"""scripts/benchmark.py: turns, medians and verdicts with clocks of our own; each command on a tiny network."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import math
import runpy
import subprocess
import sys
import types
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

from scripts.paper import side_by_side
from scripts.timing import benchmark_table, commands, detection_parts, first_detection, own_process, quiet_pairs
from tests import golden_state
from tests.golden_state import relative_error
from tests.tiny_coco import write_tiny_coco
from triplet_det import evaluate, export
from triplet_det.detection import inference
from triplet_det.detection.settings import Settings
from triplet_det.models import detector

TINY = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)
QUICK = ('--max_load', '99', '--min_seconds', '0', '--compilation_cache', '')


class Machine:
  """Clocks that a program moves by working; `others` cores are busy with something else, by number of the run."""

  def __init__(self, monkeypatch, others=()):
    self.now = self.busy = self.ours = 0.0
    self.calls, self._others = [], dict(others)
    monkeypatch.setattr(quiet_pairs, 'time', types.SimpleNamespace(perf_counter=lambda: self.now))
    monkeypatch.setattr(quiet_pairs, 'cpu_time', lambda: quiet_pairs.CpuTime(100 + self.busy, 50 + self.ours))

  def program(self, name, seconds):
    """Takes the next of `seconds`, the last one for ever."""
    left = list(seconds)

    def run():
      took = left.pop(0) if len(left) > 1 else left[0]
      self.calls.append(name)
      self.now += took
      self.ours += 2 * took
      self.busy += (2 + self._others.get(len(self.calls), 0.0)) * took
      return took

    return run


def test_programs_take_turns_and_ratios_are_formed_within_a_round(monkeypatch):
  machine = Machine(monkeypatch)
  # The first two warm up; that a whole round is slow does not change the ratio.
  programs = {'a': machine.program('a', [9, 9, 2, 20, 6]), 'b': machine.program('b', [9, 9, 4, 50, 10])}
  turns = quiet_pairs.take_turns(programs, pairs=3, min_seconds=1)
  assert machine.calls == [*'aabb', *'ab' * 3]
  assert turns.seconds('a') == pytest.approx([2, 20, 6]) and turns.seconds('b') == pytest.approx([4, 50, 10])
  monkeypatch.setattr(quiet_pairs, 'GEMM_SIDE', 2)
  with_gemm = {i: {'a': one['a'], benchmark_table.GEMM: one['b']} for i, one in turns.rounds.items()}
  turns = dataclasses.replace(turns, rounds=with_gemm)
  row = benchmark_table.timed_row('x', turns, 'a', flops=2)
  here = row.here()
  assert here['ms'] == pytest.approx(6000) and here['ours / GEMM'] == pytest.approx(0.5)  # of medians it is 0.6
  assert here['of GEMM peak'] == pytest.approx(2 / 6 / (2 * 2**3 / 4))  # the best GEMM: 4 seconds
  by_whose = dict(row.lines('ms'))
  assert by_whose['smallest']['ms'] == pytest.approx(2000) and by_whose['largest']['ms'] == pytest.approx(20000)
  here = benchmark_table.timed_row('x', turns, 'a', images=3, first=benchmark_table.GEMM).here()
  assert here['ms'] == pytest.approx(2000) and here['ours / GEMM'] == pytest.approx(0.5 / 3)
  assert here['images/s'] == pytest.approx(0.5) and here['to the first'] == pytest.approx(0.5)


def test_rounds_with_other_load_are_left_out_and_counted(monkeypatch):
  # Runs 1 to 4 warm up. Round 1 ends at its first sample (run 5), round 3 at its second (run 9).
  machine = Machine(monkeypatch, others={5: 0.5, 9: 0.25, 7: 0.09})
  programs = {'a': machine.program('a', [1]), 'b': machine.program('b', [2])}
  turns = quiet_pairs.take_turns(programs, pairs=2, max_load=0.1, min_seconds=1)
  assert machine.calls == [*'aabb', 'a', *'ab' * 3]
  assert list(turns.rounds) == [2, 4] and turns.left_out == pytest.approx({1: 0.5, 3: 0.25})
  assert turns.rounds[2]['b'].others == pytest.approx(0.09) and turns.rounds[4]['a'].others == 0
  assert turns.note() == (
    '2 rounds in which others kept at most 0.09 cores busy; 2 with up to 0.50 were left out (0.10 are allowed)'
  )


def test_too_few_quiet_rounds(monkeypatch):
  machine = Machine(monkeypatch, others={i: 1.0 for i in range(3, 9) if i != 5})
  program = {'a': machine.program('a', [1])}
  turns = quiet_pairs.take_turns(program, pairs=2, min_seconds=1)
  assert list(turns.rounds) == [3] and len(turns.left_out) == 5  # three times as many are tried as wanted
  assert turns.note().startswith('WARNING: 2 rounds were wanted, 1 rounds in which')
  with pytest.raises(ValueError, match=r'none of 3 rounds was quiet: others kept 1.00 to 1.00 cores busy, 0.10 are'):
    loud = Machine(monkeypatch, others=dict.fromkeys(range(99), 1.0))
    quiet_pairs.take_turns({'a': loud.program('a', [1])}, pairs=1, min_seconds=1)
  with pytest.raises(ValueError, match='at least one round, got 0'):
    quiet_pairs.take_turns(program, pairs=0)


def test_quick_programs_run_several_times_in_a_sample(monkeypatch):
  machine = Machine(monkeypatch)

  @contextlib.contextmanager
  def opened():
    machine.calls.append('open')
    machine.now += 100  # is not timed
    yield
    machine.now += 100

  programs = {'quick': machine.program('quick', [7, 0.25])}  # the compiler's time does not count
  turns = quiet_pairs.take_turns(programs, pairs=1, min_seconds=1, opened={'quick': opened})
  assert machine.calls == ['open', 'quick'] * 2 + ['open', *['quick'] * 4]
  assert turns.seconds('quick') == [0.25] and turns.rounds[1]['quick'].result == 0.25


def test_the_clocks_of_this_machine():
  """Work of our own, of threads, of children and of those that have ended is ours; the children of others are not."""
  spin = 'import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass'
  before = quiet_pairs.cpu_time()
  subprocess.run([sys.executable, '-c', spin], check=True)
  after = quiet_pairs.cpu_time()
  ours, busy = after.ours - before.ours, after.busy - before.busy
  assert 0.28 <= ours < 5 and busy >= ours - 0.1
  with subprocess.Popen([sys.executable, '-c', f'{spin}\nprint(flush=True)\ninput()'], stdin=-1, stdout=-1) as child:
    child.stdout.readline()
    assert 0.28 <= quiet_pairs.cpu_time().ours - after.ours < 5
    child.communicate(b'\n')


def measured(name='network', ratio=0.8, peak=1000.0, row='HG', **settings):
  """As a --json file has it."""
  recipe = {'commit': peak, **{f'settings.{key}': value for key, value in settings.items()}}
  here = {'ms': 5.0, 'ours / GEMM': 7.0, 'ours / torch': ratio, 'peak MB': peak}
  return dict(table=name, recipe=recipe, rows=[dict(row=row, here=here)])


@pytest.mark.parametrize('now, verdict', [(0.81, 'same'), (0.825, 'slower'), (0.776, 'faster'), (0.777, 'same')])
def test_verdicts(now, verdict):
  changes = benchmark_table.compare(measured(hg='52'), measured(ratio=now, hg='52', against='torch'))
  assert [one.column for one in changes] == ['ours / torch', 'peak MB']
  assert str(changes[0]) == f'{verdict:7} {now / 0.8:.3f}  HG: ours / torch 0.8 -> {now:.4g}'
  (_, memory) = benchmark_table.compare(measured(), measured(peak=1100.0))
  assert str(memory) == 'larger  1.100  HG: peak MB 1000 -> 1100'


def test_without_the_twin_the_yardstick_is_compared():
  new = measured()
  new['rows'][0]['here'].update({'ours / torch': None, 'ours / GEMM': 7.7})
  assert [str(one)[:14] for one in benchmark_table.compare(measured(), new)] == ['slower  1.100 ', 'same    1.000 ']


@pytest.mark.parametrize(
  'new, message',
  [
    (measured('decode'), 'not the same measurement: settings.command network there, decode here'),
    (measured(hg='104'), 'not the same measurement: settings.hg 52 there, 104 here'),
    (measured(hg='52', row='other'), 'the two measurements have no figure in common'),
  ],
)
def test_what_cannot_be_compared(new, message):
  with pytest.raises(ValueError, match=message):
    benchmark_table.compare(measured(hg='52'), new)


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(detector.VARIANTS, 'tiny', TINY)
  monkeypatch.setattr(quiet_pairs, 'GEMM_SIDE', 32)
  monkeypatch.setattr(commands, 'IMAGES_PER_RUN', 8)
  monkeypatch.setattr(commands, 'SETTLED', 2)


def run(capsys, *arguments, pairs='1'):
  """Exit code, the JSON, what was printed."""
  code = commands.main('what is measured', [*arguments, '--pairs', pairs, *QUICK])
  return code, capsys.readouterr().out


def test_decoding_is_the_librarys(tiny, tmp_path, capsys):
  settings = dataclasses.replace(Settings(), top_k=20, canvas_multiple=32)
  found = detection_parts.decoding(settings, 60, 90, 3, centers=True)()
  maps = detection_parts.decoding_maps(63, 95, 3, centers=True)
  whole = inference.Detector(lambda maps, images: maps, maps, settings, batch_size=1)
  (expected,) = whole([np.zeros((60, 90, 3), np.uint8)])
  assert len(found.scores) > 5
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(ours, theirs)

  json_file = tmp_path / 'decode.json'
  sizes = ('--top_k', '20', '10', '--classes', '3', '2', '--sizes', '90x60', '--json', str(json_file))
  code, printed = run(capsys, 'decode', *sizes, pairs='2')
  content = json.loads(json_file.read_text())
  titles = ['K 20, 3 classes, 90 x 60', 'K 10, 3 classes, 90 x 60', 'K 20, 2 classes, 90 x 60']
  assert code == 0 and [row['row'] for row in content['rows']] == titles
  recipe = content['recipe']
  assert (
    recipe['settings.sizes'] == [[60, 90]]
    and recipe['settings.classes'] == [3, 2]
    and recipe['versions.jax'] == jax.__version__
  )
  assert recipe['machine.cores'] >= 1 and recipe['machine.memory_gib'] > 0 and recipe['machine.cpu']
  for row in content['rows']:
    assert len(row['runs']) == 2  # rounds that others disturb are left out
    for label, values in row['runs'].items():
      base = content['rows'][0]['runs'][label]['ms']
      assert values['to the first'] == pytest.approx(values['ms'] / base) and values['boxes'] > 0
  assert 'GEMM: side 32, at best' in printed and '2 rounds in which others kept at most' in printed


def test_a_whole_image_and_its_parts(tiny, tmp_path, capsys):
  json_file = tmp_path / 'image.json'
  code, printed = run(capsys, 'image', '--hg', 'tiny', '--size', '120x110', '--json', str(json_file))
  rows = {row['row']: row['here'] for row in json.loads(json_file.read_text())['rows']}
  assert code == 0 and list(rows) == list(detection_parts.PARTS)
  assert rows['network']['of GEMM peak'] > 0 and 'of GEMM peak' not in rows['decoding']
  assert 'An image and its mirror image, from pixels' in printed
  assert ' 0 boxes' not in printed and 'canvas 127 x 127' in printed


def test_memory_of_predictions(tiny, tmp_path, capsys):
  code, printed = run(capsys, 'memory', '--images', '4', '--largest', '130', '--json', str(tmp_path / 'memory.json'))
  ((row,), recipe) = (json.loads((tmp_path / 'memory.json').read_text())[key] for key in ('rows', 'recipe'))
  here = row['here']
  assert code == 0 and recipe['settings.images'] == 4
  assert here['growth %'] == pytest.approx(100 * (here['MB at the end'] / here['MB after 2'] - 1))
  assert 10 < here['MB at the end'] < 1e5 and 1 <= here['programs'] <= 4
  assert 'any images up to 130 x 130 take at most 4 programs' in printed  # canvases of 127 or 255 pixels


def test_the_input_pipeline(tiny, tmp_path, capsys):
  coco = write_tiny_coco(tmp_path / 'coco')
  given = ('--images', str(coco.images()), '--annotations', str(coco.annotations()), '--size', '63', '--batch', '2')
  code, printed = run(capsys, 'input', *given, '--json', str(tmp_path / 'input.json'))
  (row,) = json.loads((tmp_path / 'input.json').read_text())['rows']
  sent = 63 * 63 * 3 + 128 * (4 * 4 + 4 + 1)  # image, boxes, classes, which slots are in use
  assert code == 0 and row['here']['KB per image'] == pytest.approx(sent / 1e3)
  assert row['here']['images/s'] == pytest.approx(1e3 / row['here']['ms'])
  assert '7 images; KB per image' in printed


def test_startup(tiny, tmp_path, capsys, monkeypatch):
  """What the fresh processes do, here in this one."""

  def start(command, *, env, **_):
    assert command[1:3] == ['-m', 'scripts.timing.first_detection']
    assert env['JAX_COMPILATION_CACHE_DIR'].endswith('/cache')
    monkeypatch.setattr(sys, 'argv', command[2:])
    with contextlib.redirect_stdout(io.StringIO()) as said:
      first_detection.main()
    return subprocess.CompletedProcess(command, 0, said.getvalue())

  monkeypatch.setattr(subprocess, 'run', start)
  monkeypatch.setattr(evaluate, 'fingerprint', lambda *_, **about: dict(about, versions={}, test={}))

  def rows(*arguments):
    code, printed = run(capsys, 'startup', '--size', '63', *arguments, '--json', str(tmp_path / 'startup.json'))
    assert code == 0 and 'the first, with an empty cache: imports ' in printed
    content = json.loads((tmp_path / 'startup.json').read_text())
    return {row['row']: row['here']['ms'] for row in content['rows']}

  found = rows('--hg', 'tiny')
  parts = ['imports', 'weights', 'network: cache or compiler', 'first image']
  assert list(found) == ['whole process', *parts, 'start to first boxes']
  assert found['start to first boxes'] == pytest.approx(sum(found[part] for part in parts))
  assert found['whole process'] >= found['start to first boxes'] > found['network: cache or compiler'] > 0
  export.export('demo', tmp_path / 'detector.zip', sizes=((63, 63),))
  monkeypatch.chdir(tmp_path)
  of_file = rows('--checkpoint', 'detector.zip')  # compiles nothing before its first image
  assert list(of_file) == ['whole process', 'imports', 'weights', 'first image', 'start to first boxes']

  monkeypatch.setattr(subprocess, 'run', lambda command, **_: subprocess.CompletedProcess(command, 1, ''))
  with pytest.raises(SystemExit):
    run(capsys, 'startup', '--checkpoint', 'nowhere', '--hg', 'tiny')
  assert 'no first detection from nowhere' in capsys.readouterr().err


def test_a_process_of_its_own():
  peaks = {}
  for megabytes in (50, 250):
    with contextlib.closing(own_process.OwnProcess('tests.big_array:fill', megabytes=megabytes)) as filled:
      filled()
      before = filled.peak  # since the first run: without its array
      filled()
      peaks[megabytes] = filled.peak
      assert peaks[megabytes] - before == pytest.approx(1e6 * megabytes, rel=0.1)
  assert peaks[250] - peaks[50] == pytest.approx(200e6, rel=0.1)
  with pytest.raises(AttributeError, match=r"'tests.big_array' has no attribute 'nobody'"):
    own_process.OwnProcess('tests.big_array:nobody')


def test_the_script_imports_nothing_that_counts(monkeypatch):
  """Processes of its own import it too."""
  names = set(sys.modules)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  runpy.run_path(str(Path(__file__).parents[2] / 'scripts/benchmark.py'))
  assert set(sys.modules) - names == set()
  code = 'import sys, scripts.timing.own_process; print("jax" in sys.modules or "numpy" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'False\n'


REFUSED = {
  'no torch': (['network', '--against', 'torch'], "PyTorch is not installed; pip install -e '.[torch]'"),
  'no folder': (['input', '--images', 'nowhere', '--annotations', 'none.json'], 'none.json'),
  'no figures': (['decode', '--compare', 'nowhere.json'], 'nowhere.json'),
  'no pair': (['decode', '--pairs', '0', '--classes', '2', '--top_k', '5', '--sizes', '60x60'], 'one round, got 0'),
  'no growth': (['memory', '--images', '1'], 'at least 2 images, got 1'),
  'no twin': (['decode', '--against', 'torch'], 'unrecognized arguments: --against torch'),
  'no command': ([], 'the following arguments are required: COMMAND'),
}


@pytest.mark.parametrize('arguments, message', REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured(arguments, message, tiny, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit) as ended:
    commands.main('', [*arguments, *(QUICK if arguments else ())])
  assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_verdict_and_a_warning_are_exit_codes(tmp_path, capsys, monkeypatch):
  notes = []

  def measure(options, take_turns):
    """Nothing."""
    assert (options.pairs, options.max_load, options.min_seconds) == (1, 99, 0)
    row = side_by_side.Row('x', {'run': {'MB at the end': 200.0}}, {})
    return benchmark_table.Figures([row], notes=notes)

  monkeypatch.setitem(commands.COMMANDS, 'memory', measure)
  now, before = tmp_path / 'now.json', tmp_path / 'before.json'
  assert run(capsys, 'memory', '--json', str(now))[0] == 0
  for megabytes, code, verdict in ((100.0, 1, 'larger  2.000'), (200.0, 0, 'same '), (300.0, 0, 'smaller 0.667')):
    old = json.loads(now.read_text())
    old['rows'][0]['here']['MB at the end'] = megabytes
    before.write_text(json.dumps(old))
    found = run(capsys, 'memory', '--compare', str(before))
    assert found[0] == code and found[1].splitlines()[-1].startswith(verdict)
  notes.append('WARNING: 5 rounds were wanted')
  assert run(capsys, 'memory')[0] == 1
  with pytest.raises(SystemExit) as ended:
    run(capsys, 'memory', '--images', '3', '--compare', str(before))
  assert ended.value.code == 2
  assert 'not the same measurement: settings.images 1000 there, 3 here' in capsys.readouterr().err


@pytest.fixture
def torch(monkeypatch):
  module = pytest.importorskip('torch', reason='the twin is a network of PyTorch (extra `torch`)')
  module.set_num_threads(1)  # several would wait for each other beside other tests
  monkeypatch.setattr(module, 'set_num_threads', lambda count: None)
  return module


@pytest.mark.parametrize('name', golden_state.NETWORKS)
def test_the_twin_is_the_published_network(name, parity, torch):
  from scripts.timing import torch_twin

  parity(f'PyTorch twin of the benchmark: maps of small {name}', torch_twin.golden_error(name), torch_twin.BOUND)


@pytest.mark.parametrize('name', golden_state.NETWORKS)
def test_the_twins_loss_is_the_published_one(name, torch):
  """Loss and the norm of every gradient, in float64 as the golden ones."""
  from scripts.timing import torch_twin

  golden = golden_state.read(f'small_net_{name}')
  weights = {key: torch.from_numpy(array).double() for key, array in golden_state.state_dict(golden).items()}
  learnt = {key: array.requires_grad_() for key, array in weights.items() if '.running_' not in key}
  twin = torch_twin.Twin(weights, training=True)
  goal = golden_state.under(golden, 'tgt/')
  targets = {'valid': torch.from_numpy(goal['mask'].astype(bool))}
  for kind in twin.kinds:
    for part, name_here in dict(heat='heat', tags='cell', regr='offset').items():
      array = torch.from_numpy(goal[f'{kind}_{part}'])
      targets[f'{kind}_{name_here}'] = array if part == 'tags' else array.double()
  terms = torch_twin.loss(twin(torch.from_numpy(golden['x'].astype(np.float64))), targets)
  total = sum(terms.values())
  total.backward()
  expected = golden['train/loss64']
  assert relative_error(total.item(), expected[0]) < 1e-5
  for term, value in zip(terms.values(), expected[1:]):  # CornerNet's program gives the total alone
    assert relative_error(term.item(), value) < 1e-5
  norms = {key: array.grad.norm().item() for key, array in learnt.items()}
  golden_norms = dict(zip(golden['param_names'].tolist(), golden['train/gradnorm64']))
  assert norms.keys() == golden_norms.keys()
  errors = [relative_error(norms[key], golden_norms[key]) for key in norms]
  assert np.median(errors) < 1e-5


@pytest.mark.parametrize('dim, from_last', [(2, True), (2, False), (3, True), (3, False)])
def test_the_twins_running_maximum(dim, from_last, torch):
  from scripts.timing import torch_twin

  x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
  ours = torch_twin.RunningMax.apply(x, dim, from_last)
  theirs = x.flip(dim).cummax(dim).values.flip(dim) if from_last else x.cummax(dim).values
  assert torch.equal(ours, theirs)
  g = torch.randn_like(ours)
  torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)))


@pytest.mark.parametrize('name', golden_state.NETWORKS)
def test_the_twins_weights_have_the_released_shapes(name):
  released = golden_state.state_dict(golden_state.read(f'small_net_{name}'))
  assert commands.released_shapes(golden_state.NETWORKS[name]) == {key: a.shape for key, a in released.items()}


class Here:
  """Stands for a process of its own, whose start takes seconds."""

  makers: typing.ClassVar[list] = []
  peak = 5_000_000

  def __init__(self, maker, environment=None, **given):
    module, _, function = maker.partition(':')
    self._run = getattr(importlib.import_module(module), function)(**given)
    self.makers.append((maker, given.get('channels_last')))

  def __call__(self):
    self._run()

  def close(self):
    self.makers.append('closed')


def test_against_the_twin(tiny, tmp_path, capsys, monkeypatch, torch):
  """Both programs of a training step, the twin in both memory formats."""
  monkeypatch.setattr(commands, 'OwnProcess', Here)
  monkeypatch.setattr(Here, 'makers', [])
  from scripts.timing import torch_twin

  monkeypatch.setattr(torch_twin, 'golden_error', lambda name, device: 3e-5)
  with pytest.raises(SystemExit):
    run(capsys, 'network', '--hg', 'tiny', '--size', '63', '--against', 'torch')
  assert 'the twin is not the published centernet: its maps differ by 3.0e-05' in capsys.readouterr().err
  monkeypatch.setattr(torch_twin, 'golden_error', lambda name, device: 0.0)  # another test has it
  Here.makers.clear()
  json_file = tmp_path / 'step.json'
  given = ('train_step', '--hg', 'tiny', '--size', '63', '--batch', '2', '--against', 'torch', '--json', str(json_file))
  code, printed = run(capsys, *given)
  content = json.loads(json_file.read_text())
  ((row,), recipe) = content['rows'], content['recipe']
  here = row['here']
  assert code == 0 and row['row'] == 'CenterNet tiny, batch 2'
  assert here['ours / torch'] == pytest.approx(here['ms'] / here['torch ms'])
  assert here['peak MB'] == here['torch peak MB'] == 5 and here['of GEMM peak'] > 0
  twin = 'scripts.timing.torch_twin:train_step'
  ours = ('scripts.timing.training_step:train_step', None)
  assert Here.makers == [(twin, True), (twin, False), 'closed', ours, 'closed', 'closed']
  assert recipe['settings.against'] == 'torch' and recipe['versions.torch']
  assert 'twin: checked against the golden network; form: ' in printed


def test_on_an_accelerator(tiny, tmp_path, capsys, monkeypatch):
  """Nothing is left out for what else the machine does; ours has the device, so that it stays in this process."""
  assert math.isnan(commands.device_peak())  # of a CPU
  monkeypatch.setattr(commands, '_on_cpu', lambda: False)
  monkeypatch.setattr(quiet_pairs, 'allowed_load', lambda: math.inf)
  monkeypatch.setattr(commands, 'OwnProcess', None)
  monkeypatch.setattr(commands, 'device_peak', lambda: 7_000_000)
  given = ['network', '--hg', 'tiny', '--size', '63', '--dtype', 'bfloat16', '--pairs', '1', '--min_seconds', '0']
  json_file = tmp_path / 'network.json'
  assert commands.main('', [*given, '--compilation_cache', '', '--json', str(json_file)]) == 0
  ((row,), recipe) = (json.loads(json_file.read_text())[key] for key in ('rows', 'recipe'))
  assert row['here']['peak MB'] == 7 and row['here']['ms'] > 0 and recipe['settings.dtype'] == 'bfloat16'
  assert '; none is left out' in capsys.readouterr().out


def test_no_twin_without_its_gpu(tiny, capsys, monkeypatch, torch):
  monkeypatch.setattr(commands, '_on_cpu', lambda: False)
  monkeypatch.setattr(commands, 'OwnProcess', Here)
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  with pytest.raises(SystemExit) as ended:
    run(capsys, 'network', '--hg', 'tiny', '--size', '63', '--against', 'torch')
  assert ended.value.code == 2 and 'sees no GPU' in capsys.readouterr().err


def test_the_twin_in_bfloat16(torch):
  """Its maps are near those of float32, and are float32, as the loss wants them."""
  from scripts.timing import torch_twin

  golden = golden_state.read('small_net_cornernet')
  weights = {key: torch.from_numpy(array) for key, array in golden_state.state_dict(golden).items()}
  images, twin = torch.from_numpy(golden['x'].astype(np.float32)), torch_twin.Twin(weights, training=False)
  expected = golden_state.under(golden, 'eval/map/')
  for dtype, least, most in (('float32', 0, 2e-5), ('bfloat16', 1e-3, 0.1)):
    with torch.inference_mode():
      (maps,) = torch_twin.How(channels_last=True, dtype=dtype).forward(twin)(images)
    assert all(array.dtype == torch.float32 for array in maps.values())
    error = max(relative_error(array, expected[f'{name}/1']) for name, array in maps.items())
    assert least <= error <= most


def test_the_network_alone(tiny, tmp_path, capsys, monkeypatch):
  flops = detection_parts.network_flops(TINY, 63, 63)
  module, images = detector.build(TINY), jax.ShapeDtypeStruct((2, 63, 63, 3), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  counted = jax.jit(module.apply).lower(variables, images).cost_analysis()['flops']
  assert flops == pytest.approx(counted, rel=0.1)  # norms and pools are not in ours

  monkeypatch.setattr(commands, 'OwnProcess', Here)
  code, printed = run(capsys, 'network', '--hg', 'tiny', '--size', '63', '--json', str(tmp_path / 'network.json'))
  ((row,), recipe) = (json.loads((tmp_path / 'network.json').read_text())[key] for key in ('rows', 'recipe'))
  assert code == 0 and row['here']['peak MB'] == 5 and math.isfinite(row['here']['ours / GEMM'])
  assert 'settings.against' not in recipe and f'{flops / 1e9:.1f} GFLOP' in printed
