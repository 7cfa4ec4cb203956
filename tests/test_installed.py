"""The wheel in an environment of its own, used from an empty folder, as somebody without a checkout would."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import jax
import pytest

from tests import tiny_run
from tests.tiny_coco import write_tiny_coco
from triplet_det.data import prepare_tfds

ROOT = Path(__file__).parent.parent
BRIEF = {
  name: tiny_run.OVERRIDES[name] for name in tiny_run.OVERRIDES if name.startswith(('model.', 'input', 'augment'))
}
BRIEF |= {'total_steps': 2, 'eval_every': 2, 'batch_size': 2, 'eval_batch_size': 2}


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
  """The Python of a fresh environment with the wheel, which was built from the source distribution."""
  folder = tmp_path_factory.mktemp('installed')
  tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
  if tracked.returncode:
    pytest.skip('not a git checkout: what a clean copy of the sources is, is not known')
  sources = folder / 'sources'
  for name in filter(None, tracked.stdout.split('\0')):  # without what an earlier build may have left
    if not name.startswith(('docs/', 'tests/')) and (ROOT / name).exists():
      (sources / name).parent.mkdir(parents=True, exist_ok=True)
      (sources / name).write_bytes((ROOT / name).read_bytes())
  build = [sys.executable, '-m', 'build', '--outdir', str(folder / 'dist'), str(sources)]
  subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
  (wheel,) = (folder / 'dist').glob('*.whl')
  venv.create(folder / 'env', with_pip=True)
  python = folder / 'env/bin/python'
  subprocess.run([python, '-m', 'pip', 'install', '-q', str(wheel)], check=True)
  return python


def said(python: Path, *words: str, folder: Path, code: int = 0) -> str:
  """What a command says that is typed in `folder`, on both streams."""
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  environment |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'HOME': str(folder)}
  command = [str(python), '-m', *words, f'--compilation_cache={jax.config.jax_compilation_cache_dir}']
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == code, f'{words}: {done.returncode}\n{done.stderr[-3000:]}'
  return done.stdout + done.stderr


def overrides(values: dict) -> list[str]:
  return [f'--config.{name}={value}' for name, value in values.items()]


def test_the_embedded_data_set(installed, tmp_path):
  scenes = {f'data.{split}.{n}_images': 4 for split in ('train', 'eval') for n in ('train', 'validation')}
  run = ['triplet_det.main', '--config', 'shapes', '--workdir', 'runs/shapes', *overrides(BRIEF | scenes)]
  text = said(installed, *run, folder=tmp_path)
  assert 'everything is in runs/shapes' in text
  assert (tmp_path / 'runs/shapes/report.html').exists() and (tmp_path / 'runs/shapes/loss.png').exists()
  best = next((tmp_path / 'runs/shapes/eval/step_000002').glob('best/*.jpg'))
  for checkpoint in ('demo', 'runs/shapes'):
    text = said(
      installed, 'triplet_det.predict', '--checkpoint', checkpoint, '--out', 'boxes', str(best), folder=tmp_path
    )
    assert 'in 1 images above 0.3: boxes' in text and (tmp_path / f'boxes/{best.stem}.png').exists()


def test_pages_by_name(installed, tmp_path):
  """Own data, COCO by TFDS, a page of the user's own that starts from one of ours, and a path that is not there."""
  coco = write_tiny_coco(tmp_path / 'coco')
  data = {
    f'data.{s}.{k}': str(getattr(coco, k)(f))
    for s, f in (('train', 'train2017'), ('eval', 'val2017'))
    for k in ('images', 'annotations')
  }
  check = ['--workdir', 'w', '--config.mode=check_data']
  photos = ['--config', 'photos:encoder=hourglass']
  text = said(installed, 'triplet_det.main', *photos, *check, *overrides(data), folder=tmp_path)
  assert '7 images' in text
  prepare_tfds.prepare(prepare_tfds.official_splits(coco.root), tmp_path / 'tfds')
  data = {f'data.{split}.data_dir': tmp_path / 'tfds' for split in ('train', 'eval')}
  text = said(installed, 'triplet_det.main', '--config=triplet:hg=104', *check, *overrides(data), folder=tmp_path)
  assert '7 images' in text
  (tmp_path / 'mine.py').write_text(
    'from triplet_det.configs import triplet\n\n'
    'def get_config():\n  config = triplet.get_config("hg=52")\n  config.mode = "nonsense of mine"\n  return config\n'
  )
  text = said(installed, 'triplet_det.main', '--config', 'mine.py', '--workdir', 'w', folder=tmp_path, code=2)
  assert "config.mode is 'nonsense of mine'" in text
  text = said(installed, 'triplet_det.main', '--config', 'configs/triplet.py:hg=52', *check, folder=tmp_path, code=2)
  assert 'there is no config file configs/triplet.py in this folder: give --config=triplet:hg=52' in text
