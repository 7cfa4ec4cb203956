"""Every command in the documentation is executed: here, by .ci/run, or by another test that is named.

A new command needs a row in EXECUTED, and a row without its command is an error too. What is executed here is typed as
it stands in the documentation, in a folder with files of the very names that it has (DIR, PHOTO...), with options
behind it that make it small.
"""

import contextlib
import dataclasses
import functools
import json
import operator
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from scripts.checks import full_size, kill_test
from scripts.paper import table_runs
from tests import documented, forks
from tests.documented import ROOT
from tests.tiny_coco import write_tiny_coco
from triplet_det.data.shapes_dataset import CATEGORIES
from triplet_det.models import detector

# All commands of the program train and test one and the same small network, so that it is compiled once.
SMALL = {
  **{'total_steps': 2, 'log_every': 1, 'checkpoint_every': 2, 'eval_every': 2, 'batch_size': 2, 'eval_batch_size': 1},
  **{'model.stacks': 1, 'model.dims': (8, 8), 'model.blocks': (1, 1), 'model.stem_width': 8, 'model.head_width': 8},
  **{'model.pool_width': 8, 'model.norm_running': 'all', 'model.center_branch': False, 'model.center_pooling': False},
  **{'model.cascade_corner_pooling': False, 'group_size': 0, 'input_size': 31, 'image_scale': 1.0},
  **{'augment.border': 16, 'augment.max_objects': 8, 'colour_jitter': 0.2, 'lighting': 0.05, 'min_overlap': 0.3},
  **{'published_radius': False, 'optimizer.base': 1e-3, 'optimizer.schedule': 'cosine', 'optimizer.warmup_steps': 0},
  **{'optimizer.reference_batch': 0, 'data.num_workers': 0},
  **{f'test.{quirk}': False for quirk in ('inclusive', 'stale_rows', 'nominal_scale', 'mirror_shift', 'cut_last_line')},
  **{'test.canvas_multiple': 128, 'test.top_k': 100, 'test.center_rule': 'best', 'test.outside_margin': 5.0},
  **{'test.max_detections': 10, 'test.embedding_threshold': 9.0},  # so that a network that knows nothing finds boxes
}
SCENES = {
  f'data.{split}.{name}': value
  for split in ('train', 'eval')
  for name, value in {'data_dir': '{folder}/SCENES', 'train_images': 4, 'validation_images': 2}.items()
}
COCO = {f'data.{split}.data_dir': 'TFDS' for split in ('train', 'eval')}
BRIEF = {'mode': 'train'}


def overrides(*settings: dict) -> tuple[str, ...]:
  return tuple(f'--config.{name}={value}' for one in (SMALL, *settings) for name, value in one.items())


@dataclasses.dataclass(frozen=True)
class Here:
  """Executed by this file, with `more` behind it, and words of it replaced by others."""

  more: tuple[str, ...] = ()
  instead: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ByCi:
  """Executed by .ci/run, which has it in itself or takes it from the README."""


@dataclasses.dataclass(frozen=True)
class ByTest:
  """Needs what is not here (gcloud, SLURM, libtpu, torch, hours): executed in small by another test."""

  test: str  # file::function


@dataclasses.dataclass(frozen=True)
class Extra:
  """Installs an extra of setup.py, or packages that a message of this file names."""

  named_in: str = 'setup.py'


SLURM = 'tests/scripts/test_cluster_scripts.py::test_the_slurm_job'
TPU = 'tests/scripts/test_cluster_scripts.py::test_what_would_be_run_for_a_tpu'
TORCH = 'tests/scripts/test_import_torch_checkpoint.py::test_there_and_back'
AHEAD = 'tests/devices/test_dry_run.py::test_the_script_s_arguments'
SPEED = 'tests/scripts/test_tables.py::test_speed_of_a_tiny_network'
TABLES = 'tests/scripts/test_tables.py::test_what_is_missing_is_trained'
PAPER = 'tests/scripts/test_tables.py::test_the_paper_s_networks'
GIVEN = 'tests/scripts/test_tables.py::test_given_checkpoints_are_tested_only'
PAGE = 'tests/scripts/test_tables.py::test_a_config_of_the_user_s_own'
KILLS = 'tests/test_docs.py::test_kill_test'
FULL = 'tests/test_docs.py::test_full_size'
DEMO = 'tests/detection/test_demo.py::test_packing_measures_what_it_ships'
TABLE_4 = ('--rows', '1', '--seeds', '0', *overrides(SCENES))
MAIN = 'python -m triplet_det.main --config'
PREDICT = 'python -m triplet_det.predict'
MINE = (
  f'{MAIN} configs/coco_json.py --workdir runs/mine --config.data.train.images=TRAIN_IMAGES '
  '--config.data.train.annotations=train.json --config.data.eval.images=VAL_IMAGES '
  '--config.data.eval.annotations=val.json'
)

# In the order in which they are executed; a command whose run folder is that of an earlier one continues it.
EXECUTED = {
  # README: set up and go
  'python -m venv .venv': ByCi(),
  'pip install -q -e .': Extra(),
  "pip install -q -e '.[test]'": ByCi(),
  'python -m pytest -q': ByCi(),
  f'{MAIN} configs/shapes.py --workdir runs/shapes': Here(overrides(SCENES)),
  f'{PREDICT} --checkpoint runs/shapes --out boxes PHOTO_OR_FOLDER_OR_VIDEO...': Here(),
  f'{PREDICT} --checkpoint runs/shapes --out boxes PATH...': Here(),
  'python -m triplet_det.export --checkpoint runs/shapes --out detector.zip --sizes 512x512': Here(),
  'python -m triplet_det.export --checkpoint runs/shapes --out shapes.zip': Here(('--sizes', '64x64')),
  f'{PREDICT} --figures --checkpoint RUN --out DIR PHOTO...': Here(instead={'RUN': 'runs/shapes', 'DIR': 'figures'}),
  # Your own data
  f'{MINE} --config.mode=check_data': Here(overrides()),
  MINE: Here(overrides()),
  f'{PREDICT} --checkpoint runs/mine --out boxes PHOTO_OR_FOLDER...': Here(),
  f'{MAIN} configs/coco_json.py --workdir runs/mine --config.data.train.images=DIR '
  '--config.data.train.annotations=FILE --config.data.eval.images=DIR --config.data.eval.annotations=FILE': Here(
    overrides()
  ),
  'scripts/overfit.py --images DIR --annotations FILE --out runs/overfit': Here(
    ('--count', '4', '--steps', '2', *overrides())
  ),
  # The paper's run
  'scripts/prepare_coco.py --coco COCO --data_dir TFDS': Here(),
  'scripts/prepare_coco.py --coco /data/coco --data_dir /data/tfds': Here(
    instead={'/data/coco': 'COCO', '/data/tfds': 'TFDS'}
  ),
  f'{MAIN} configs/triplet.py:hg=104 --workdir WORKDIR --config.data.train.data_dir=TFDS '
  '--config.data.eval.data_dir=TFDS': Here(overrides()),
  f'{MAIN} configs/triplet.py:hg=104 --workdir WORKDIR': Here(overrides(COCO)),
  f'{MAIN} configs/triplet.py:hg=104 --workdir gs://bucket/run': Here(overrides(COCO), {'gs://bucket/run': 'WORKDIR'}),
  f'{MAIN} configs/triplet.py:scales=multi --workdir gs://bucket/run --config.mode=eval': Here(
    overrides(COCO), {'gs://bucket/run': 'WORKDIR'}
  ),
  f'{MAIN} configs/cornernet.py:hg=104 --workdir gs://bucket/cornernet': Here(
    overrides(COCO), {'gs://bucket/cornernet': 'WORKDIR'}
  ),
  f'{MAIN} configs/cornernet.py:small=1 --workdir runs/cornernet': Here(overrides(SCENES, BRIEF)),
  f'{MAIN} configs/ablation.py:row=5 --workdir runs/row_5': Here(overrides(COCO), {'runs/row_5': 'WORKDIR'}),
  f'{MAIN} configs/ablation.py:row=5,small=1 --workdir runs/small': Here(overrides(SCENES, BRIEF)),
  # Models: the weights come from a tiny run instead of from the authors
  "pip install -e '.[torch]'": Extra(),
  'scripts/import_torch_checkpoint.py CenterNet-104_480000.pkl runs/centernet_104': ByTest(TORCH),
  'scripts/export_torch_checkpoint.py runs/mine CenterNet-104_480000.pkl': ByTest(TORCH),
  f'{PREDICT} --checkpoint runs/centernet_104 --out boxes PHOTO_OR_FOLDER...': Here(
    instead={'runs/centernet_104': 'WORKDIR'}
  ),
  f'{PREDICT} --checkpoint runs/centernet_104 --out boxes photo.jpg': Here(instead={'runs/centernet_104': 'WORKDIR'}),
  f'{MAIN} configs/triplet.py:hg=104 --workdir runs/centernet_104 --config.mode=eval '
  '--config.data.eval.data_dir=TFDS': Here(overrides(), {'runs/centernet_104': 'WORKDIR'}),
  f'{MAIN} configs/triplet.py:hg=104 --workdir runs/centernet_104 --config.mode=eval ...': Here(
    overrides(COCO), {'runs/centernet_104': 'WORKDIR', '...': '--config.eval_name=again'}
  ),
  'scripts/make_demo_weights.py --run runs/shapes': ByTest(DEMO),
  # The paper's experiments
  'scripts/paper/tables.py table4 --runs runs/tables': Here(TABLE_4),
  'scripts/paper/tables.py table4 --runs runs/tables --rows 1 5': ByTest(TABLES),
  'scripts/paper/tables.py table3 --runs runs/tables': Here(
    ('--rows', 'cornernet', '--seeds', '0', *overrides(SCENES))
  ),
  'scripts/paper/tables.py table5 --runs runs/tables': ByTest(
    'tests/scripts/test_tables.py::test_table_5_each_output_replaced'
  ),
  'scripts/paper/tables.py table2 --runs runs/coco --full --config.data.eval.data_dir=TFDS ...': ByTest(PAPER),
  'scripts/paper/tables.py table5 --runs runs/coco --full --rows centernet-104 --checkpoint centernet-104=IMPORTED': (
    ByTest(GIVEN)
  ),
  'scripts/paper/tables.py table4 --runs runs/mine --config configs/coco_json.py --config.data...': (ByTest(PAGE)),
  'scripts/paper/tables.py speed --hg 104': ByTest(SPEED),
  'scripts/paper/tables.py speed --hg 104 --rounds 5': ByTest(SPEED),
  'scripts/paper/false_boxes.py --config configs/shapes.py runs/tables/row_1_seed_0 runs/tables/row_3_seed_0': Here(
    instead={'configs/shapes.py': '{folder}/small.py', 'runs/tables/row_3_seed_0': 'runs/shapes'}
  ),
  'scripts/paper/published_quirks.py --checkpoint runs/shapes --config configs/shapes.py': Here(
    instead={'configs/shapes.py': '{folder}/small.py'}
  ),
  # Measured, scaled and contributed
  'scripts/benchmark.py network --hg 52 --against torch --json network.json': (
    ByTest('tests/scripts/test_benchmark.py::test_against_the_twin')
  ),
  'scripts/benchmark.py network --hg 52 --against torch --compare network.json': (
    ByTest('tests/scripts/test_benchmark.py::test_a_verdict_and_a_warning_are_exit_codes')
  ),
  'scripts/benchmark.py network --hg 104 --against torch': ByTest(
    'tests/scripts/test_benchmark.py::test_against_the_twin'
  ),
  'scripts/benchmark.py startup': ByTest('tests/scripts/test_benchmark.py::test_startup'),
  'scripts/benchmark.py train_step --hg 52 --batch 2 --against torch': (
    ByTest('tests/scripts/test_benchmark.py::test_against_the_twin')
  ),
  'scripts/benchmark.py decode': ByTest('tests/scripts/test_benchmark.py::test_decoding_is_the_librarys'),
  'scripts/benchmark.py image --hg 52': ByTest('tests/scripts/test_benchmark.py::test_a_whole_image_and_its_parts'),
  'scripts/benchmark.py input --images DIR --annotations FILE': (
    ByTest('tests/scripts/test_benchmark.py::test_the_input_pipeline')
  ),
  'scripts/benchmark.py startup --hg 104': ByTest('tests/scripts/test_benchmark.py::test_startup'),
  'scripts/benchmark.py memory --images 1000': ByTest('tests/scripts/test_benchmark.py::test_memory_of_predictions'),
  'python -m scripts.timing.first_detection RUN_FOLDER HEIGHT WIDTH $(date +%s.%N)': (
    ByTest('tests/scripts/test_benchmark.py::test_startup')
  ),
  'python -m scripts.timing.own_process scripts.timing.torch_twin:network \'{"side": 127, ...}\'': (
    ByTest('tests/scripts/test_benchmark.py::test_a_process_of_its_own')
  ),
  'scripts/checks/full_size.py hourglass-52': ByTest(FULL),
  'scripts/checks/full_size.py hourglass-104': ByTest(FULL),
  'scripts/checks/full_size.py hourglass-52 hourglass-104': ByTest(FULL),
  'scripts/checks/kill_test.py --out DIR': ByTest(KILLS),
  'scripts/checks/kill_test.py --out /tmp/kill_test': ByTest(KILLS),
  "pip install -e '.[tpu]'": Extra(),
  'pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt': Extra('scripts/aot_compile.py'),
  'scripts/aot_compile.py --config configs/triplet.py:hg=104 --topology v5e:2x4': ByTest(AHEAD),
  'scripts/aot_compile.py --config configs/triplet.py:hg=104 --topology v5e:2x4 --config.model.dtype=bfloat16': (
    ByTest(AHEAD)
  ),
  'scripts/aot_compile.py --config configs/triplet.py:hg=104 --topology v5e:2x4 --only step '
  '--config.model.dtype=bfloat16': ByTest(AHEAD),
  'scripts/checks/pool_gradient.py --shape 8,32,32,32': Here(('--pairs', '1', '--max_load', '99')),
  'scripts/checks/pool_gradient.py --topology v5e:2x2 --shape 6,128,128,128 --dtype bfloat16': Here(
    # Without the compiler for a TPU: for the device that is here.
    ('--max_load', '99'),
    {'--topology': '--pairs', 'v5e:2x2': '1', '6,128,128,128': '1,8,8,8'},
  ),
  'scripts/tpu_pod.sh --name centernet --zone us-central1-a --type v5litepod-16 --spot -- --config '
  'configs/triplet.py:hg=104 --workdir gs://BUCKET/run --config.data.train.data_dir=gs://BUCKET/tfds '
  '--config.data.eval.data_dir=gs://BUCKET/tfds': ByTest(TPU),
  'scripts/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 --sbatch=--partition=gpu -- --config configs/triplet.py:hg=104 '
  '--workdir /shared/run --config.batch_size=96': ByTest(SLURM),
  '.ci/run': ByCi(),
  'ruff check': ByCi(),
  'ruff format --check': ByCi(),
}


def test_every_command_is_executed_and_every_row_is_a_command():
  commands = documented.commands()
  new = {command: sorted(places) for command, places in commands.items() if command not in EXECUTED}
  listed = '\n'.join(f'  {command}  ({", ".join(places)})' for command, places in new.items())
  assert not new, f'commands without a row in EXECUTED, which says who executes them:\n{listed}'
  gone = '\n  '.join(set(EXECUTED) - set(commands))
  assert not gone, f'rows of EXECUTED that no documentation has:\n  {gone}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the commands are typed: the files that their words name, small."""
  folder = tmp_path_factory.mktemp('typed')
  for name in ('configs', 'scripts'):
    (folder / name).symlink_to(ROOT / name)
  coco = write_tiny_coco(folder / 'COCO', train=8, val=2)
  for split in ('train2017', 'val2017'):
    path = coco.annotations(split)
    data = json.loads(path.read_text()) | {'categories': CATEGORIES.to_coco()}
    for number, annotation in enumerate(data['annotations']):
      annotation |= {'category_id': CATEGORIES.ids[number % len(CATEGORIES)], 'iscrowd': 0}
    path.write_text(json.dumps(data))
  for name, target in {
    'TRAIN_IMAGES': coco.images(),
    'train.json': coco.annotations(),
    'DIR': coco.images(),
    'FILE': coco.annotations(),
    'VAL_IMAGES': coco.images('val2017'),
    'val.json': coco.annotations('val2017'),
  }.items():
    (folder / name).symlink_to(target)
  (folder / 'photos').mkdir()
  cv2.imwrite(str(folder / 'photos/photo.jpg'), np.full((90, 120, 3), 99, np.uint8))
  for name in ('PHOTO_OR_FOLDER_OR_VIDEO...', 'PHOTO_OR_FOLDER...', 'PATH...', 'PHOTO...'):
    (folder / name).symlink_to('photos')
  (folder / 'photo.jpg').symlink_to('photos/photo.jpg')
  settings = {k: v for k, v in SCENES.items() if k.startswith('data.eval')} | {
    'data.eval.data_dir': str(folder / 'SCENES')
  }
  (folder / 'small.py').write_text(
    'from configs import shapes\n\ndef get_config():\n  config = shapes.get_config()\n'
    f'  config.update_from_flattened_dict({settings})\n  return config\n'
  )
  return folder


@pytest.fixture(scope='module')
def ended(folder, tmp_path_factory):
  """Command of the documentation -> how it ended; the last is the README's Python."""
  typed = {}
  for command, how in EXECUTED.items():
    if isinstance(how, Here):
      words = [how.instead.get(word, word) for word in shlex.split(command)] + list(how.more)
      words = [word.replace('{folder}', str(folder)) for word in (words[1:] if words[0] == 'python' else words)]
      typed[command] = forks.Command(tuple(words), folder=str(folder))
  for block in documented.python_blocks():
    typed[block.code] = forks.Command(('-c', block.code), folder=str(folder))
  compiled = str(jax.config.jax_compilation_cache_dir)
  home = folder / 'home'  # whatever the commands keep in ~
  (home / '.cache').mkdir(parents=True)
  (home / '.cache/triplet_det').symlink_to(compiled)
  environment = dict(HOME=str(home), JAX_COMPILATION_CACHE_DIR=compiled)
  said = tmp_path_factory.mktemp('said')
  return dict(zip(typed, forks.run(list(typed.values()), said, timeout=600, **environment)))


@pytest.mark.parametrize('command', [command for command, how in EXECUTED.items() if isinstance(how, Here)])
def test_a_command_that_is_executed_here(ended, command):
  assert ended[command].code == 0, ended[command].err[-3000:]


def test_what_the_commands_leave(ended, folder):
  """What the README says, and nothing in the repository."""
  run = folder / 'runs/shapes'
  assert {path.name for path in run.iterdir()} >= {'checkpoints', 'best', 'metrics.jsonl', 'loss.png', 'report.html'}
  (evaluation,) = (run / 'eval').iterdir()
  assert {path.name for path in evaluation.iterdir()} >= {'results.json', 'metrics.json', 'best', 'worst'}
  assert list(run.glob('events.out.tfevents.*'))
  (row,) = json.loads((folder / 'boxes/detections.json').read_text())
  assert row['image'].endswith('photo.jpg')
  assert (folder / 'figures/figures/sheet.png').exists() and (folder / 'detector.zip').exists()
  log = [json.loads(line) for line in (folder / 'runs/mine/metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in log if 'train/loss' in row] == [1, 2]
  assert {path.name for path in (folder / 'WORKDIR/eval').iterdir()} >= {
    'step_000002',
    'validation_step_000002',
    'validation_step_000002_multi_scale',
  }
  assert not {path.name for path in ROOT.iterdir()} & {'SCENES', 'TFDS', 'WORKDIR', 'boxes', 'figures', 'small.py'}


def test_the_python_of_the_readme(ended):
  (block,) = documented.python_blocks()
  assert ended[block.code].code == 0, ended[block.code].err[-3000:]
  boxes = ended[block.code].out
  assert boxes.startswith('[[') and any(name in boxes for name in CATEGORIES.names)


def test_ci_runs_the_readmes_command():
  """.ci/run takes it from the README, and has the others in itself."""
  script = (ROOT / '.ci/run').read_text()
  assert os.access(ROOT / '.ci/run', os.X_OK)
  (taking,) = re.findall(r'^command=\$\((.*)\)$', script, re.MULTILINE)
  taken = subprocess.run(['bash', '-c', taking], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
  run = {documented.normalised(part) for part in [*taken.split(' && '), *script.splitlines(), '.ci/run']}
  for command in [command for command, how in EXECUTED.items() if isinstance(how, ByCi)]:
    assert any(one == command or one == f'{command} .' for one in run), command


@pytest.mark.parametrize('command', [command for command, how in EXECUTED.items() if isinstance(how, Extra)])
def test_what_is_installed(command, monkeypatch):
  """The extra is one of setup.py, which the tests' own installation has executed."""
  given = {}
  monkeypatch.setattr('setuptools.setup', lambda **settings: given.update(settings))
  runpy.run_path(str(ROOT / 'setup.py'))
  extra = re.search(r'-e \'\.\[(\w+)\]\'|-e \.$', command)
  if extra:
    assert extra[1] is None or extra[1] in given['extras_require']
    return
  named = [word for word in command.split()[2:] if not word.startswith('-')]
  assert named and all(word in (ROOT / EXECUTED[command].named_in).read_text() for word in named)


ELSEWHERE = {command: how.test for command, how in EXECUTED.items() if isinstance(how, ByTest)}


@pytest.mark.parametrize('command', ELSEWHERE)
def test_a_command_that_another_test_executes(command):
  """That test exists and is about this script; options are compared with the script's by the tests below."""
  path, _, function = ELSEWHERE[command].partition('::')
  source = (ROOT / path).read_text()
  assert f'\ndef {function}(' in source
  script = script_of(command)
  assert Path(script).stem in source and (ROOT / script).exists()


def script_of(command: str) -> str:
  """'python -m scripts.a x' and 'scripts/a.py x' -> 'scripts/a.py'."""
  module = re.match(r'python -m (\S+)', command)
  return f'{module[1].replace(".", "/")}.py' if module else command.split()[0]


def options(words: list[str]) -> list[str]:
  """['--runs', 'x', '--config.a=1'] -> ['--runs']."""
  return [word.partition('=')[0] for word in words if word.startswith('--') and word[2:] and word[:9] != '--config.']


@pytest.fixture(scope='module')
def helps(tmp_path_factory):
  """Script with its subcommand -> what it says of its options; also those of commands that inline options belong to."""
  asked = {}
  for command in ELSEWHERE:
    script, first = script_of(command), command.split()[1]
    with_table = script.endswith(('tables.py', 'benchmark.py')) and not first.startswith('-')
    asked[script, first if with_table else ''] = None
  asked |= dict.fromkeys([('-m triplet_det.predict', ''), ('-m triplet_det.export', ''), ('-m triplet_det.main', '')])
  forked = {key: [*key[0].split(), *filter(None, key[1:])] for key in asked if not key[0].endswith('.sh')}
  absl = {'-m triplet_det.main', 'scripts/aot_compile.py'}
  commands = [forks.Command((*words, '--helpfull' if key[0] in absl else '--help')) for key, words in forked.items()]
  said = {key: end.out + end.err for key, end in zip(forked, forks.run(commands, tmp_path_factory.mktemp('helps')))}
  return said | {key: (ROOT / key[0]).read_text() for key in asked if key[0].endswith('.sh')}


@pytest.mark.parametrize('command', ELSEWHERE)
def test_its_options_exist(helps, command):
  script, words = script_of(command), shlex.split(command)[1:]
  own, _, of_main = command.partition(' -- ')
  own = shlex.split(own)
  help_text = helps[script, words[0] if (script, words[0]) in helps else '']
  for option in options(own):
    assert re.search(rf'{option}\b', help_text), f'{script} has no {option}'
  for option in options(shlex.split(of_main)):
    assert re.search(rf'{option}\b', helps['-m triplet_det.main', '']), f'triplet_det.main has no {option}'
  page = re.search(r'--config (\S+)', command)
  changes = [word for word in words if word.startswith('--config.')]
  assert not changes or script == 'scripts/paper/tables.py' or page
  table_runs.load_config(page[1] if page else 'configs/triplet.py', *changes)


OPTIONS = sorted({t.code for t in documented.spans() if t.code.startswith('--')})


@pytest.mark.parametrize('span', OPTIONS)
def test_an_option_that_is_mentioned(helps, span):
  everything = '\n'.join([*helps.values(), *(path.read_text() for path in ROOT.glob('scripts/*.py'))])
  for option in options(shlex.split(span)):
    assert re.search(rf'{option}\b', everything), f'nothing has {option}'
  changes = [word for word in shlex.split(span) if word.startswith('--config.') and '=' in word]
  table_runs.load_config('configs/triplet.py', *changes)
  for name in re.findall(r'--config\.([\w.]+)$', span):
    functools.reduce(operator.getitem, name.split('.'), table_runs.load_config('configs/triplet.py'))


def test_files_and_configs_that_are_mentioned():
  """In inline code and as links: they exist, configs with their variants."""
  for text in documented.links():
    assert (text.path.parent / text.code.partition('#')[0]).exists(), f'{text.path}: {text.code}'
  for text in documented.spans():
    if re.fullmatch(r'(scripts|configs|tests|docs|triplet_det)/[\w./]+(:[\w=,]+)?', text.code):
      path = text.code.partition(':')[0]
      assert (ROOT / path).exists(), f'{text.path}: {text.code}'
      if path.startswith('configs/'):
        table_runs.load_config(text.code)


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
  assert f'hourglass-52: {count:,} parameters' in said
  assert "{'loss': 4.5}" in said and 'all numbers finite: True' in said


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
