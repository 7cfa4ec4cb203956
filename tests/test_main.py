"""The command line: whatever is wrong with it ends in exit code 2 and one message that helps.

One process imports the program and forks a child per command, because the imports take longer than the commands.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_coco import write_tiny_coco

ROOT = Path(__file__).parent.parent

FORKS = """
import json, os, runpy, sys
from triplet_det import predict, train

commands = json.load(open('commands.json'))
sys.path.insert(0, os.environ['ROOT'])
for number, arguments in enumerate(commands):
  child = os.fork()
  if child == 0:
    os.chdir(os.environ['ROOT'])
    out = os.open(f'{os.environ["OUT"]}/{number}', os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ['main', *arguments]
    code = 0
    try:
      runpy.run_module('triplet_det.main', run_name='__main__', alter_sys=False)
    except SystemExit as stopped:
      code = stopped.code
    except BaseException as error:
      print(repr(error), file=sys.stderr)
      code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
  print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

SHAPES = ['--config', 'configs/shapes.py', '--workdir', '{tmp}/run', '--compilation_cache=']
COCO = ['--config=configs/coco_json.py', '--workdir={tmp}/run', '--compilation_cache=', '--config.batch_size=8']
DATA = [
  '--config.data.train.images={coco}/train2017',
  '--config.data.train.annotations={coco}/annotations/instances_train2017.json',
  '--config.data.eval.images={coco}/val2017',
  '--config.data.eval.annotations={coco}/annotations/instances_val2017.json',
]

# Name -> command, what the message must match. {tmp} is a folder, {coco} a tiny COCO download; there are 8 devices.
COMMANDS = {
  'misspelled_key': (
    [*SHAPES, '--config.totl_steps=5'],
    r"unknown key 'totl_steps' in config; did you mean 'total_steps'\? Known keys: accumulate, augment, average_decay,",
  ),
  'misspelled_nested_key': (
    [*SHAPES, '--config.total_steps=7', '--config.model.center_poling=false'],
    r"unknown key 'center_poling' in config\.model; did you mean 'center_pooling'\? Known keys: blocks, ",
  ),
  'misspelled_switch': (
    [*SHAPES, '--noconfig.model.centre_branch'],
    r"unknown key 'centre_branch' in config\.model; did you mean 'center_branch'\?",
  ),
  'misspelled_section': (
    [*SHAPES, '--config.optimiser.base=1'],
    r"unknown key 'optimiser' in config; did you mean 'optimizer'\?",
  ),
  'key_like_none': ([*SHAPES, '--config.zzz=1'], r"unknown key 'zzz' in config\. Known keys: accumulate, augment"),
  'wrong_type': ([*SHAPES, '--config.total_steps=abc'], r"--config\.total_steps=abc: .*'abc'"),
  'no_value': ([*SHAPES, '--config.total_steps'], r'Missing value for flag --config\.total_steps'),
  'unknown_mode': (
    [*SHAPES, '--config.mode=fly'],
    r"config\.mode is 'fly'; possible: train_and_eval, train, eval, error_analysis, report",
  ),
  'unknown_flag': ([*SHAPES, '--wrkdir=x'], r"Unknown command line flag 'wrkdir'. Did you mean: workdir \?"),
  'stray_word': ([*SHAPES, 'eval'], r"not understood: \['eval'\]"),
  'no_workdir': (SHAPES[:2], r'--workdir must have a value'),
  'no_config': (['--workdir=x'], r'--config must have a value'),
  'missing_config_file': (
    ['--config', 'configs/shaeps.py', '--workdir=x'],
    r"config file cannot be opened: .*No such file or directory: 'configs/shaeps\.py'",
  ),
  'unknown_variant': (
    ['--config=configs/triplet.py:hg=105', '--workdir=x'],
    r'--config=configs/triplet\.py:hg=105: ValueError: unknown variant .*hg=104.*\(File .*triplet\.py", line \d+',
  ),
  'unknown_optimizer_schedule': (
    [*COCO, *DATA, '--config.optimizer.schedule=linear'],
    r"unknown schedule 'linear'; possible: step, cosine",
  ),
  'missing_images': (
    [*COCO, *DATA, '--config.data.train.images={coco}/nowhere'],
    r'no folder of images at .*/nowhere',
  ),
  'missing_annotations': (
    [*COCO, *DATA, '--config.data.eval.annotations={coco}/no.json'],
    r'no annotations at .*/no\.json',
  ),
  'data_not_named': (COCO, r"'coco_json' needs the settings \['images', 'annotations'\]; not given: \['images'"),
  'coco_not_prepared': (
    ['--config=configs/triplet.py', '--workdir={tmp}/run', '--config.data.train.data_dir={tmp}'],
    r"no prepared data set 'coco/2017' in .*prepare_coco",
  ),
  'batch_over_devices': (
    [*COCO, *DATA, '--config.batch_size=12'],
    r'batch_size 12 cannot be split over 8 devices: give a multiple of 8, for example 16',
  ),
  'batch_over_groups': (
    [*COCO, *DATA, '--config.batch_size=16', '--config.group_size=6'],
    r'batch_size 16 is not a multiple of group_size 6: give a multiple of 6, or group_size=0',
  ),
  'levels_that_do_not_fit': (
    [*COCO, *DATA, '--config.model.dims=(8,8)', '--config.model.blocks=(1,)'],
    r'dims and blocks need one entry per level.*2 dims \(8, 8\), 1 blocks \(1,\)',
  ),
  'input_that_does_not_fit': (
    [*COCO, *DATA, '--config.model.dims=(8,8)', '--config.model.blocks=(1,1)', '--config.input_size=64'],
    r'input_size 64 does not fit the network: it must be a multiple of 8 minus 1, for example 63',
  ),
  'nothing_to_evaluate': (
    [*COCO, *DATA, '--config.mode=eval'],
    r'no checkpoint in .*run: expected a run folder with best/ or checkpoints/ in it',
  ),
  'nothing_to_analyse': (
    [*COCO, *DATA, '--config.mode=error_analysis'],
    r'no checkpoint in .*run: expected a run folder with best/ or checkpoints/ in it',
  ),
  'nothing_to_report': (
    [*COCO, *DATA, '--config.mode=report', '--workdir={tmp}/nowhere'],
    r'there is no run folder .*/nowhere',
  ),
  'unknown_checkpoint': (
    [*COCO, *DATA, '--config.mode=eval', '--config.eval_checkpoint=newest'],
    r"'newest' is not known; possible: best, checkpoints",
  ),
}


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
  """Name of a command -> its exit code, and all it said."""
  folder = tmp_path_factory.mktemp('commands')
  coco = write_tiny_coco(folder / 'coco', train=2, val=2)
  places = dict(tmp=folder, coco=coco.root)
  commands = [[argument.format(**places) for argument in arguments] for arguments, _ in COMMANDS.values()]
  (folder / 'commands.json').write_text(json.dumps(commands))
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    'ROOT': str(ROOT),
    'OUT': str(folder),
  }
  done = subprocess.run(
    [sys.executable, '-c', FORKS], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  codes = [int(line.split()[1]) for line in done.stdout.splitlines()]
  assert len(codes) == len(COMMANDS)
  texts = [(folder / str(number)).read_text() for number in range(len(codes))]
  return dict(zip(COMMANDS, zip(codes, texts)))


@pytest.mark.parametrize('name', COMMANDS)
def test_a_wrong_command(outcomes, name):
  code, said = outcomes[name]
  assert re.search(COMMANDS[name][1], said), said
  assert code == 2, said
  assert 'Traceback' not in said
  assert sum('error: ' in line for line in said.splitlines()) == (0 if name == 'stray_word' else 1)
