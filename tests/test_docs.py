"""Every command in the documentation is executed: here, by .ci/run, or by another test that is named.

A new command needs a row in HERE, BY_CI, INSTALLED or BY_TEST, and a row without its command is an error too. What is
executed here is typed as it stands in the documentation, in a folder with files of the very names that it has (DIR,
PHOTO...), with options behind it that make it small. What the documentation says of files, options and tables is held
against what is there.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import triplet_det
from scripts import docs_pictures
from scripts.paper import table_runs
from tests import documented, forks, link_server, tiny_detector
from tests.documented import ROOT
from tests.tiny_coco import write_tiny_coco
from triplet_det.data.shapes_dataset import CATEGORIES
from triplet_det.pictures import drawing

# All commands of the program train and test one and the same small network, so that it is compiled once.
SMALL = {
  **{'total_steps': 2, 'log_every': 1, 'checkpoint_every': 2, 'eval_every': 2, 'batch_size': 2, 'eval_batch_size': 1},
  **{'model.stacks': 1, 'model.dims': (8, 8), 'model.blocks': (1, 1), 'model.stem_width': 8, 'model.head_width': 8},
  **{'model.pool_width': 8, 'model.norm_running': 'all', 'model.center_branch': False, 'model.center_pooling': False},
  **{'model.cascade_corner_pooling': False, 'group_size': 0, 'input_size': 31, 'image_scale': 1.0},
  **{'augment.border': 16, 'augment.max_objects': 8, 'colour_jitter': 0.2, 'lighting': 0.05, 'min_overlap': 0.3},
  **{'published_radius': False, 'optimizer.base': 1e-3, 'optimizer.schedule': 'cosine', 'optimizer.warmup_steps': 0},
  **{'optimizer.reference_batch': 0, 'data.num_workers': 0, 'model.encoder': 'hourglass', 'init_from': ''},
  **{'model.encoder_norms': 'batch', 'freeze': '', 'image_side': 0},
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
class Typed:
  """Executed by this file, with `more` behind it, and words of it replaced by others."""

  more: tuple[str, ...] = ()
  instead: dict[str, str] = dataclasses.field(default_factory=dict)


MAIN = 'python -m triplet_det.main --config'
PREDICT = 'python -m triplet_det.predict'
EXPORT = 'python -m triplet_det.export --checkpoint runs/shapes --out'
TABLES = 'scripts/paper/tables.py'
BENCHMARK = 'scripts/benchmark.py'
AOT = 'scripts/aot_compile.py --config configs/triplet.py:hg=104 --topology v5e:2x4'
MINE = f'{MAIN} photos --workdir runs/mine --config.data.root=FOLDER'
IMPORTED = {'runs/centernet_104': 'WORKDIR'}  # of a tiny run instead of from the authors
BUCKET = {'gs://bucket/run': 'WORKDIR', 'gs://bucket/cornernet': 'WORKDIR'}
MMDETECTION = 'https://download.openmmlab.com/mmdetection/v2.0/cornernet/'
LINK = 'https://example.com/mine.tar.gz#sha256=0123456789abcdef'
SMALL_PAGE = {'configs/shapes.py': '{folder}/small.py'}
# Their encoder is what tests/test_encoder_run.py trains; here the small network, which compiles in less time.
SMALL_PHOTOS = {page: f'{page}:encoder=hourglass' for page in ('photos', 'configs/photos.py')}

# In the order in which they are executed; a command whose run folder is that of an earlier one continues it.
HERE = {
  f'{MAIN} configs/shapes.py --workdir runs/shapes': Typed(overrides(SCENES)),
  f'{MAIN} shapes --workdir runs/shapes': Typed(overrides(SCENES)),
  f'{PREDICT} --checkpoint runs/shapes --out boxes PHOTO_OR_FOLDER_OR_VIDEO...': Typed(),
  f'{PREDICT} --checkpoint runs/shapes --out boxes PATH...': Typed(),
  f'{PREDICT} --checkpoint demo --out boxes PHOTO_OR_FOLDER...': Typed(),
  f'{EXPORT} detector.zip --sizes 512x512': Typed(),
  f'{EXPORT} shapes.zip': Typed(('--sizes', '64x64')),
  f'{PREDICT} --figures --checkpoint RUN --out DIR PHOTO...': Typed(instead={'RUN': 'runs/shapes', 'DIR': 'figures'}),
  'scripts/docs_pictures.py --shapes runs/shapes': Typed(('--out', 'PICTURES')),
  # Your own data
  f'{MINE} --config.mode=check_data': Typed(overrides(), SMALL_PHOTOS),
  MINE: Typed(overrides(), SMALL_PHOTOS),
  f'{MAIN} photos:encoder=hourglass --workdir runs/mine --config.data.root=FOLDER --config.init_from=demo': Typed(
    overrides()
  ),
  f'{PREDICT} --checkpoint runs/mine --out boxes PHOTO_OR_FOLDER...': Typed(),
  f'{MAIN} configs/photos.py --workdir runs/mine --config.data.root=FOLDER': Typed(overrides(), SMALL_PHOTOS),
  f'{MAIN} photos --workdir runs/mine --config.data.train.images=TRAIN_IMAGES '
  '--config.data.train.annotations=train.json --config.data.eval.images=VAL_IMAGES '
  '--config.data.eval.annotations=val.json': Typed(overrides(), SMALL_PHOTOS),
  'scripts/convert_data.py FOLDER OUT': Typed(),
  'scripts/overfit.py --images DIR --annotations FILE --out runs/overfit': Typed(
    ('--count', '4', '--steps', '2', *overrides())
  ),
  # The paper's run
  'scripts/prepare_coco.py --coco COCO --data_dir TFDS': Typed(),
  'scripts/prepare_coco.py --coco /data/coco --data_dir /data/tfds': Typed(
    instead={'/data/coco': 'COCO', '/data/tfds': 'TFDS'}
  ),
  f'{MAIN} triplet:hg=104 --workdir WORKDIR --config.data.train.data_dir=TFDS --config.data.eval.data_dir=TFDS': Typed(
    overrides()
  ),
  f'{MAIN} triplet:hg=104 --workdir WORKDIR': Typed(overrides(COCO)),
  f'{MAIN} configs/triplet.py:hg=104 --workdir gs://bucket/run': Typed(overrides(COCO), BUCKET),
  f'{MAIN} configs/triplet.py:scales=multi --workdir gs://bucket/run --config.mode=eval': Typed(
    overrides(COCO), BUCKET
  ),
  f'{MAIN} configs/cornernet.py:hg=104 --workdir gs://bucket/cornernet': Typed(overrides(COCO), BUCKET),
  f'{MAIN} configs/cornernet.py:small=1 --workdir runs/cornernet': Typed(overrides(SCENES, BRIEF)),
  f'{MAIN} configs/ablation.py:row=5 --workdir runs/row_5': Typed(overrides(COCO), {'runs/row_5': 'WORKDIR'}),
  f'{MAIN} configs/ablation.py:row=5,small=1 --workdir runs/small': Typed(overrides(SCENES, BRIEF)),
  # Models
  f'{PREDICT} --checkpoint runs/centernet_104 --out boxes PHOTO_OR_FOLDER...': Typed(instead=IMPORTED),
  f'{PREDICT} --checkpoint runs/centernet_104 --out boxes photo.jpg': Typed(instead=IMPORTED),
  f'{MAIN} triplet:hg=104 --workdir runs/centernet_104 --config.mode=eval --config.data.eval.data_dir=TFDS': Typed(
    overrides(), IMPORTED
  ),
  f'{MAIN} configs/triplet.py:hg=104 --workdir runs/centernet_104 --config.mode=eval ...': Typed(
    overrides(COCO), {**IMPORTED, '...': '--config.eval_name=again'}
  ),
  # The paper's experiments
  f'{TABLES} table4 --runs runs/tables': Typed(('--rows', '1', '--seeds', '0', *overrides(SCENES))),
  f'{TABLES} table3 --runs runs/tables': Typed(('--rows', 'cornernet', '--seeds', '0', *overrides(SCENES))),
  'scripts/paper/false_boxes.py --config configs/shapes.py runs/tables/row_1_seed_0 runs/tables/row_3_seed_0': Typed(
    instead={**SMALL_PAGE, 'runs/tables/row_3_seed_0': 'runs/shapes'}
  ),
  'scripts/paper/published_quirks.py --checkpoint runs/shapes --config configs/shapes.py': Typed(instead=SMALL_PAGE),
  'scripts/checks/pool_gradient.py --shape 8,32,32,32': Typed(('--pairs', '1', '--max_load', '99')),
}

# .ci/run has them in itself or takes them from the README.
BY_CI = [
  *('python -m venv .venv', "pip install -q -e '.[test]'", 'python -m pytest -q -n 2 --dist loadfile'),
  *('.ci/run', 'ruff check', 'ruff format --check'),
]

# What installs an extra, or packages -> the file that names these.
INSTALLED = {
  **dict.fromkeys(['pip install -q -e .', "pip install -q -e '.[pretrained]'"], 'setup.py'),
  **dict.fromkeys([f"pip install -e '.[{extra}]'" for extra in ('torch', 'tpu', 'hf', 'onnx')], 'setup.py'),
  'pip install pillow-heif': 'triplet_det/data/image_files.py',
  'pip install onnxruntime': 'setup.py',
  'pip install nox': 'noxfile.py',
  'pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt': 'scripts/aot_compile.py',
}

# What needs something that is not here (gcloud, SLURM, libtpu, torch, hours): a test that executes it in small.
BY_TEST = {
  'tests/detection/test_demo.py::test_packing_measures_what_it_ships': [
    'scripts/make_demo_weights.py --run runs/shapes',
  ],
  'tests/devices/test_dry_run.py::test_the_script_s_arguments': [
    f'{AOT} --config.model.dtype=bfloat16',
    f'{AOT} --only step --config.model.dtype=bfloat16',
    'scripts/aot_compile.py --config configs/triplet.py:hg=52 --topology h100:8 --only step '
    '--config.model.dtype=bfloat16',
  ],
  'tests/scripts/test_accelerator.py::test_every_part_is_measured': [
    'scripts/accelerator.py --json results.json',
    'scripts/accelerator.py --part step --json results.json',
  ],
  'tests/scripts/test_benchmark.py::test_a_verdict_and_a_warning_are_exit_codes': [
    f'{BENCHMARK} network --hg 52 --against torch --compare network.json',
  ],
  'tests/scripts/test_benchmark.py::test_a_whole_image_and_its_parts': [f'{BENCHMARK} image --hg 52'],
  'tests/scripts/test_benchmark.py::test_against_the_twin': [
    f'{BENCHMARK} network --hg 52 --against torch',
    f'{BENCHMARK} network --hg 52 --against torch --json network.json',
    f'{BENCHMARK} network --hg 104 --against torch',
    f'{BENCHMARK} network --hg 104 --detector cornernet --against torch',
    f'{BENCHMARK} train_step --hg 52 --batch 1 --against torch',
    f'{BENCHMARK} train_step --hg 52 --batch 2 --against torch',
  ],
  'tests/scripts/test_benchmark.py::test_decoding_is_the_librarys': [f'{BENCHMARK} decode'],
  'tests/scripts/test_benchmark.py::test_memory_of_predictions': [f'{BENCHMARK} memory --images 1000'],
  'tests/scripts/test_benchmark.py::test_startup': [
    f'{BENCHMARK} startup',
    f'{BENCHMARK} startup --hg 104',
    f'{BENCHMARK} startup --checkpoint detector.zip',
    'python -m scripts.timing.first_detection RUN_OR_FILE SIDE $(date +%s.%N)',
  ],
  'tests/scripts/test_benchmark.py::test_the_input_pipeline': [
    f'{BENCHMARK} input --images DIR --annotations FILE',
    f'{BENCHMARK} input --images DIR --annotations FILE --num_workers 1',
  ],
  'tests/scripts/test_checks.py::test_full_size': [
    'scripts/checks/full_size.py hourglass-52',
    'scripts/checks/full_size.py hourglass-104',
    'scripts/checks/full_size.py hourglass-52 hourglass-104',
  ],
  'tests/scripts/test_checks.py::test_host_share': [
    'scripts/checks/host_share.py --config configs/shapes.py --steps 60',
  ],
  'tests/scripts/test_checks.py::test_kill_test': [
    'scripts/checks/kill_test.py --out DIR',
    'scripts/checks/kill_test.py --out /tmp/kill_test',
  ],
  'tests/scripts/test_checks.py::test_the_table_for_a_device_that_is_not_here': [
    'scripts/checks/pool_gradient.py --topology v5e:2x2 --shape 6,128,128,128 --dtype bfloat16',
    'scripts/checks/pool_gradient.py --topology h100:1 --shape 6,128,128,128 --dtype bfloat16',
  ],
  'tests/scripts/test_peer.py::test_the_same_boxes_and_the_same_score': [
    'scripts/peer.py --root FOLDER --out runs/peer --minutes 60',
    'scripts/peer.py --root FOLDER --out runs/peer --minutes 60 --threads 1',
  ],
  'tests/scripts/test_cluster_scripts.py::test_the_slurm_job': [
    'scripts/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 --sbatch=--partition=gpu -- --config '
    'configs/triplet.py:hg=104 --workdir /shared/run --config.batch_size=96',
  ],
  'tests/scripts/test_cluster_scripts.py::test_what_would_be_run_for_a_tpu': [
    'scripts/tpu_pod.sh --name centernet --zone us-central1-a --type v5litepod-16 --spot -- --config '
    'configs/triplet.py:hg=104 --workdir gs://BUCKET/run --config.data.train.data_dir=gs://BUCKET/tfds '
    '--config.data.eval.data_dir=gs://BUCKET/tfds',
  ],
  'tests/test_export_onnx.py::test_the_checkpoints_boxes': [
    f'{EXPORT} detector.onnx --sizes 640x480 480x640',
  ],
  'tests/scripts/test_import_torch_checkpoint.py::test_there_and_back': [
    'scripts/import_torch_checkpoint.py CenterNet-104_480000.pkl runs/centernet_104',
    'scripts/import_torch_checkpoint.py CenterNet-52_480000.pkl runs/centernet_52',
    'scripts/import_torch_checkpoint.py CornerNet_500000.pkl runs/cornernet_104',
    'scripts/export_torch_checkpoint.py runs/mine CenterNet-104_480000.pkl',
  ],
  'tests/scripts/test_import_torch_checkpoint.py::test_mmdetection_there_and_back': [
    f'scripts/import_torch_checkpoint.py {MMDETECTION}{name}/{name}_{end}.pth#sha256={end[-8:]} runs/mmdet_{batch}'
    for batch, end in {
      '10x5': '20200824_185720-5fefbf1c',
      '8x6': '20200825_150618-79b44c30',
      '32x3': '20200819_203110-1efaea91',
    }.items()
    for name in [f'cornernet_hourglass104_mstest_{batch}_210e_coco']
  ],
  'tests/scripts/test_tables.py::test_a_config_of_the_user_s_own': [
    f'{TABLES} table4 --runs runs/mine --config configs/photos.py --config.data...',
  ],
  'tests/scripts/test_tables.py::test_given_checkpoints_are_tested_only': [
    f'{TABLES} table5 --runs runs/coco --full --rows centernet-104 --checkpoint centernet-104=IMPORTED',
  ],
  'tests/scripts/test_tables.py::test_speed_of_a_tiny_network': [
    f'{TABLES} speed --hg 104',
    f'{TABLES} speed --hg 104 --rounds 5',
  ],
  'tests/scripts/test_tables.py::test_table_5_each_output_replaced': [f'{TABLES} table5 --runs runs/tables'],
  'tests/scripts/test_tables.py::test_the_paper_s_networks': [
    f'{TABLES} table2 --runs runs/coco --full --config.data.eval.data_dir=TFDS ...',
  ],
  'tests/scripts/test_tables.py::test_what_is_missing_is_trained': [f'{TABLES} table4 --runs runs/tables --rows 1 5'],
}
TEST_OF = {command: test for test, commands in BY_TEST.items() for command in commands}


def test_every_command_is_executed_and_every_row_is_a_command():
  rows = [*HERE, *BY_CI, *INSTALLED, *(command for commands in BY_TEST.values() for command in commands)]
  assert len(rows) == len(set(rows))
  commands = documented.commands()
  new = {command: sorted(places) for command, places in commands.items() if command not in rows}
  listed = '\n'.join(f'  {command}  ({", ".join(places)})' for command, places in new.items())
  assert not new, f'commands without a row that says who executes them:\n{listed}'
  gone = '\n  '.join(set(rows) - set(commands))
  assert not gone, f'rows that no documentation has:\n  {gone}'


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
    'FOLDER': coco.root,
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
    'from triplet_det.configs import shapes\n\ndef get_config():\n  config = shapes.get_config()\n'
    f'  config.update_from_flattened_dict({settings})\n  return config\n'
  )
  return folder


@pytest.fixture(scope='module')
def link(tmp_path_factory):
  """Of a server on loopback, to the archive of a run folder."""
  run = tiny_detector.write_run(tmp_path_factory.mktemp('linked') / 'mine')
  archive = Path(shutil.make_archive(str(run), 'gztar', run.parent, run.name))
  with link_server.started() as server:
    server.files['/mine.tar.gz'] = link_server.Served(archive.read_bytes())
    yield f'{server.url}/mine.tar.gz#sha256={hashlib.sha256(archive.read_bytes()).hexdigest()}'


@pytest.fixture(scope='module')
def ended(folder, link, tmp_path_factory):
  """Command of HERE -> how it ended; the last are the blocks of Python."""
  typed = {}
  for command, how in HERE.items():
    words = [how.instead.get(word, word) for word in shlex.split(command)] + list(how.more)
    words = [word.replace('{folder}', str(folder)) for word in (words[1:] if words[0] == 'python' else words)]
    typed[command] = forks.Command(tuple(words), folder=str(folder))
  for block in documented.python_blocks():
    typed[block.code] = forks.Command(('-c', block.code.replace(LINK, link)), folder=str(folder))
  compiled = str(jax.config.jax_compilation_cache_dir)
  home = folder / 'home'  # whatever the commands keep in ~
  (home / '.cache').mkdir(parents=True)
  (home / '.cache/triplet_det').symlink_to(compiled)
  environment = dict(HOME=str(home), XDG_CACHE_HOME='', JAX_COMPILATION_CACHE_DIR=compiled)
  said = tmp_path_factory.mktemp('said')
  return dict(zip(typed, forks.run(list(typed.values()), said, timeout=600, **environment)))


@pytest.mark.parametrize('command', HERE)
def test_a_command_that_is_executed_here(ended, command):
  assert ended[command].code == 0, ended[command].err[-3000:]


def test_what_the_commands_leave(ended, folder):
  """What the documentation says, and nothing in the repository."""
  run = folder / 'runs/shapes'
  assert {path.name for path in run.iterdir()} >= {
    *('checkpoints', 'best', 'metrics.jsonl', 'loss.png', 'ap.png', 'config.json', 'report.html')
  }
  (evaluation,) = (run / 'eval').iterdir()
  assert {path.name for path in evaluation.iterdir()} >= {
    'results.json',
    'metrics.json',
    'curves.json',
    'best',
    'worst',
  }
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


def test_the_pictures_of_the_documentation(ended, folder, monkeypatch):
  """The run's curves, the head of its page, and images beside each other with blue ground truth and red detections."""
  run, pictures = folder / 'runs/shapes', folder / 'PICTURES'
  for name in ('loss', 'ap'):
    assert (pictures / f'shapes_{name}.png').read_bytes() == (run / f'{name}.png').read_bytes()
  if any(map(shutil.which, docs_pictures.BROWSERS)):
    page = cv2.imread(str(pictures / 'report.jpg'))
    assert page.shape[1] == docs_pictures.PAGE_WIDTH and page.std() > 10
  assert cv2.imread(str(pictures / 'detections.jpg')).shape[1] == 2 * (260 + 6) + 6
  demo = triplet_det.load('demo', mirror=False)  # the run of two steps finds nothing
  monkeypatch.setattr(triplet_det, 'load', lambda given: demo if given == run else None)
  sheet = docs_pictures.detections(run).astype(int)
  for half in (sheet[:, :266], sheet[:, 266:]):
    for color in (drawing.GROUND_TRUTH, drawing.DETECTION):
      assert (np.abs(half - color).max(axis=-1) < 30).sum() > 100
  kept = {path.name for path in (ROOT / 'docs').iterdir() if path.suffix in ('.png', '.jpg')}
  copies = {copy for needed in docs_pictures.NEEDED.values() for copy in needed.values() if copy}
  assert kept == copies | {'detections.jpg', 'report.jpg'}


@pytest.mark.parametrize(
  ('page', 'expected'),
  [
    ('README.md', r'\[\[.*\'({})\''),
    ('docs/links.md', r'http://127\.0\.0\.1:\d+/mine'),
    ('docs/predictions.md', r'([1-9]|1\d|20) boxes, with higher scores \['),
  ],
)
def test_the_python_of_the_documentation(ended, page, expected):
  (block,) = (block for block in documented.python_blocks() if block.path == ROOT / page)
  assert ended[block.code].code == 0, ended[block.code].err[-3000:]
  assert re.match(expected.format('|'.join(CATEGORIES.names)), ended[block.code].out, re.DOTALL)


def test_ci_runs_the_readmes_command():
  """.ci/run takes it from the README, and has the others in itself."""
  script = (ROOT / '.ci/run').read_text()
  assert os.access(ROOT / '.ci/run', os.X_OK)
  (taking,) = re.findall(r'^command=\$\((.*)\)$', script, re.MULTILINE)
  taken = subprocess.run(['bash', '-c', taking], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
  run = {documented.normalised(part) for part in [*taken.split(' && '), *script.splitlines(), '.ci/run']}
  for command in BY_CI:
    assert any(one == command or one == f'{command} .' for one in run), command


@pytest.mark.parametrize('command', ["pip install -q -e '.[test]'", *INSTALLED])
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
  assert named and all(word in (ROOT / INSTALLED[command]).read_text() for word in named)


@pytest.mark.parametrize('command', TEST_OF)
def test_a_command_that_another_test_executes(command):
  """That test exists and is about this script; options are compared with the script's by the tests below."""
  path, _, function = TEST_OF[command].partition('::')
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
  for command in TEST_OF:
    script, first = script_of(command), command.split()[1]
    with_table = script.endswith(('tables.py', 'benchmark.py')) and not first.startswith('-')
    asked[script, first if with_table else ''] = None
  asked |= dict.fromkeys([('-m triplet_det.predict', ''), ('-m triplet_det.export', ''), ('-m triplet_det.main', '')])
  forked = {key: [*key[0].split(), *filter(None, key[1:])] for key in asked if not key[0].endswith('.sh')}
  absl = {'-m triplet_det.main', 'scripts/aot_compile.py'}
  commands = [forks.Command((*words, '--helpfull' if key[0] in absl else '--help')) for key, words in forked.items()]
  said = {key: end.out + end.err for key, end in zip(forked, forks.run(commands, tmp_path_factory.mktemp('helps')))}
  return said | {key: (ROOT / key[0]).read_text() for key in asked if key[0].endswith('.sh')}


@pytest.mark.parametrize('command', TEST_OF)
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
  changes = [word for word in words if word.startswith('--config.') and '=' in word]  # not --config.data...
  assert not changes or script == TABLES or page
  table_runs.load_config(page[1] if page else 'triplet', *changes)


OPTIONS = sorted({t.code for t in documented.spans() if t.code.startswith('--')})


@pytest.mark.parametrize('span', OPTIONS)
def test_an_option_that_is_mentioned(helps, span):
  everything = '\n'.join([*helps.values(), *(path.read_text() for path in ROOT.glob('scripts/*.py'))])
  for option in options(shlex.split(span)):
    assert re.search(rf'{option}\b', everything), f'nothing has {option}'
  changes = [word for word in shlex.split(span) if word.startswith('--config.') and '=' in word]
  for change in changes:
    page = 'triplet' if has('triplet', change[len('--config.') :].partition('=')[0]) else 'photos'
    table_runs.load_config(page, change)
  for page in re.findall(r'--config ([a-z_]+(?::\S+)?)$', span):
    table_runs.load_config(page)
  for name in re.findall(r'--config\.([\w.]+)$', span):
    assert has('triplet', name) or has('photos', name)


def has(page: str, name: str) -> bool:
  """Whether a page has a value, or values, of this name: 'data.root'."""
  values = table_runs.load_config(page).to_dict()
  return functools.reduce(lambda tree, key: tree.get(key, {}), name.split('.'), values) != {}


def test_files_and_configs_that_are_mentioned():
  """In inline code and as links: they exist, with the headings of their anchors; configs with their variants."""
  for text in documented.links():
    name, _, anchor = text.code.partition('#')
    target = text.path.parent / name if name else text.path
    assert target.exists(), f'{text.path}: {text.code}'
    assert not anchor or anchor in documented.anchors(target), f'{text.path}: {text.code}'
  for text in documented.spans():
    if re.fullmatch(r'(scripts|configs|tests|docs|triplet_det)/[\w./]+(:[\w=,]+)?', text.code):
      path = text.code.partition(':')[0]
      assert (ROOT / path).exists(), f'{text.path}: {text.code}'
      if path.endswith('.py') and path.startswith('configs/'):
        table_runs.load_config(text.code)


def test_every_page_is_found():
  """From the README or from the table of contents; and the README stays short enough to be read."""
  linked = {(text.path.parent / text.code.partition('#')[0]).resolve() for text in documented.links()}
  assert {path for path in documented.PAGES if path.parent != ROOT} <= linked | {ROOT / 'docs/README.md'} | {
    *(ROOT / 'docs/aot').iterdir()
  }
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_the_tree_has_one_line_per_file():
  """docs/architecture.md names every file of the program, and none that is gone."""
  listed, lines = documented.tree(ROOT / 'docs/architecture.md')
  there = {
    path.relative_to(ROOT).as_posix()
    for room in ('triplet_det', 'configs', 'scripts')
    for path in (ROOT / room).rglob('*')
    if path.is_file() and '__pycache__' not in path.parts and path.name != '__init__.py'
  }
  without_line, without_file = sorted(there - set(listed)), sorted(set(listed) - there)
  assert (without_line, without_file) == ([], [])
  assert len(listed) == len(set(listed))
  assert all(re.fullmatch(r' *\S+  +\S.*', line) for line in lines)


def test_table_4_is_that_of_the_command():
  """The short table of docs/experiments.md has the figures of docs/tables/table4.md."""
  lines = (ROOT / 'docs/tables/table4.md').read_text().splitlines()
  header, _, *full = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if line.startswith('|')]
  columns, ours, theirs = header[2:], {}, {}
  for (title, here, *figures), (_, _, *paper) in zip(full[::2], full[1::2]):
    if number := re.match(r'row (\d): ', title):
      seeds = ', '.join(re.findall(r'seed \d ([\d.]+)', here))
      ours[number[1]], theirs[number[1]] = dict(zip(columns, figures), seeds=seeds), dict(zip(columns, paper))
  rows = re.findall(r'^\| (\d \|.*)\|$', (ROOT / 'docs/experiments.md').read_text(), re.MULTILINE)
  assert [row[0] for row in rows] == sorted(ours) == list('12345')
  for row in rows:
    number, _, _, _, seeds, *cells = [cell.strip() for cell in row.split('|')]
    assert seeds == ours[number]['seeds']
    names = ('AP', 'AP_S', 'AP_M', 'AP_L', 'AR100')
    assert cells == [f'{ours[number][name]} ({theirs[number][name]})' for name in names], f'row {number}'
