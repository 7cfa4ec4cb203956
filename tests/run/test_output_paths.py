"""Outputs against inputs in the commands that convert, and paths that mean the same wherever they are used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from tests.tiny_coco import write_tiny_coco
from triplet_det import export, main
from triplet_det.configs import photos
from triplet_det.run import checkpoints, output_paths

ROOT = Path(__file__).resolve().parents[2]


def script(name, *words, **environment):
  command = [sys.executable, f'scripts/{name}.py', *map(str, words)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def files(tmp_path):
  for name in ('in/a.txt', 'in/deep/b.txt', 'out/c.txt'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  return tmp_path


@pytest.mark.parametrize(
  ('output', 'given'),
  [
    ('in/a.txt', 'in/a.txt'),
    ('in/../in/a.txt', 'in/a.txt'),
    ('linked/a.txt', 'in/a.txt'),
    ('hard.txt', 'in/a.txt'),
    ('in/a.txt', 'link.txt'),
    ('link.txt', 'in/a.txt'),
    ('in/deep/b.txt', 'in'),  # what is read is a folder
    ('linked/deep/b.txt', 'in/deep'),
    ('in', 'in/deep/b.txt'),  # what is written is a folder
    ('linked', 'in/deep/b.txt'),
    ('in', 'in'),
  ],
)
def test_outputs_and_inputs_are_compared_behind_links(files, output, given):
  (files / 'linked').symlink_to(files / 'in')
  (files / 'link.txt').symlink_to(files / 'in' / 'a.txt')
  os.link(files / 'in' / 'a.txt', files / 'hard.txt')
  with pytest.raises(ValueError) as refused:
    output_paths.check_apart([files / 'out' / 'c.txt', files / output], [files / 'out' / 'd.txt', files / given])
  assert f'{files / output} would be written over the input {files / given}: give another' in str(refused.value)


def test_what_is_apart_is_accepted(files):
  outputs = [files / 'out', files / 'new.txt', files / 'in' / 'new.txt', files / 'out' / 'c.txt']
  output_paths.check_apart(outputs, [files / 'in', files / 'in' / 'a.txt', 'gs://bucket/a.txt', '', 'x\0y'])


def test_the_place_of_a_file_is_tried_before_the_work(tmp_path):
  output_paths.make_place('--json', tmp_path / 'new' / 'a.json')
  assert (tmp_path / 'new').is_dir()
  with pytest.raises(ValueError, match=rf'--json={tmp_path}/new is a folder: give the name of a file'):
    output_paths.make_place('--json', tmp_path / 'new')
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'the folder of --json=.*/file cannot be a folder for results'):
    output_paths.make_place('--json', tmp_path / 'file' / 'a.json')


def test_an_export_spares_its_checkpoint(tmp_path):
  inside = tmp_path / 'run' / 'best' / '4' / 'state.zip'
  inside.parent.mkdir(parents=True)
  inside.write_text('weights')
  (tmp_path / 'link.zip').symlink_to(inside)
  for out in (inside, tmp_path / 'link.zip'):
    with pytest.raises(ValueError, match=rf'{out} would be written over the input {tmp_path}/run/best'):
      export.export(tmp_path / 'run', out)
  (tmp_path / 'out.zip.tmp').symlink_to(inside)
  with pytest.raises(ValueError, match=r'out\.zip\.tmp is a link to .*state\.zip: it is not followed'):
    export.export(tmp_path / 'run', tmp_path / 'out.zip')
  assert inside.read_text() == 'weights'
  # The file of an earlier export may lie in the run folder.
  (tmp_path / 'run' / 'mine.zip').write_text('older')
  with pytest.raises(checkpoints.Unreadable):
    export.export(tmp_path / 'run', tmp_path / 'run' / 'mine.zip')


def test_weights_for_pytorch_spare_their_checkpoint(tmp_path):
  inside = tmp_path / 'run' / 'best' / '4' / 'state'
  inside.parent.mkdir(parents=True)
  inside.write_text('weights')
  (tmp_path / 'out.pth').symlink_to(inside)
  done = script('export_torch_checkpoint', tmp_path / 'run', tmp_path / 'out.pth')
  assert (
    done.returncode == 2 and f'{tmp_path}/out.pth would be written over the input {tmp_path}/run/best' in done.stderr
  )
  assert inside.read_text() == 'weights'


def test_coco_is_not_prepared_over_itself(tmp_path):
  home = tmp_path / 'tfds/coco/2017'
  write_tiny_coco(home / '1.1.0', train=2, val=1)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  done = script('prepare_coco', '--coco', home / '1.1.0', '--data_dir', tmp_path / 'tfds')
  assert done.returncode == 2
  assert f'{home}/1.1.0 would be written over the input {home}/1.1.0/train2017' in done.stderr
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_the_home_is_the_home_in_the_check_and_in_the_write(tmp_path):
  """~ that no shell has replaced, as in --flag=~/x."""
  write_tiny_coco(tmp_path / 'coco', train=2, val=2)
  done = script('prepare_coco', '--coco=~/coco', '--data_dir=~/tfds', HOME=str(tmp_path))
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'tfds/coco/2017/1.1.0/dataset_info.json').exists()
  done = script('overfit', '--images=~/coco', '--annotations=~/nothing.json', '--out=~/out', HOME=str(tmp_path))
  assert f'no annotations at {tmp_path}/nothing.json' in done.stderr
  assert not (ROOT / '~').exists()


@pytest.mark.parametrize(
  ('images', 'annotations', 'there'),
  [
    ('in', 'run/config.json', 'run/config.json'),
    ('in', 'link.json', 'run/config.json'),
    ('run', 'in/a.json', 'run/loss.png'),
    ('~/run', 'in/a.json', 'run/ap.png'),
  ],
)
def test_a_run_is_not_written_over_its_data(tmp_path, monkeypatch, images, annotations, there):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'run').mkdir()
  (tmp_path / there).write_text('mine')
  (tmp_path / 'link.json').symlink_to(tmp_path / 'run' / 'config.json')
  config = photos.get_config('encoder=hourglass')
  for split in (config.data.train, config.data.eval):
    split.images = images if images.startswith('~') else str(tmp_path / images)
    split.annotations = str(tmp_path / annotations)
  with pytest.raises(ValueError, match=f'{tmp_path / there} would be written over the input '):
    main.run(config, str(tmp_path / 'run'))
  assert (tmp_path / there).read_text() == 'mine' and len(list((tmp_path / 'run').iterdir())) == 1
  # What a run has written into such a folder is its own.
  if images == 'run':
    (tmp_path / 'run' / 'config.json').write_text('{}')
    main.check_apart(config, epath.Path(tmp_path / 'run'))
