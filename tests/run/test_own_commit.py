"""The commit that results are marked with: that of this program's own checkout, or none."""

import os
import shutil
import subprocess
import time

import pytest

from triplet_det.run import own_commit as module
from triplet_det.run.own_commit import own_commit


def git(folder, *words):
  me = ('-c', 'user.name=a', '-c', 'user.email=a@example.org', '-c', 'commit.gpgsign=false')
  environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
  done = subprocess.run(['git', *me, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
  return done.stdout.strip()


@pytest.fixture
def package(tmp_path):
  """A checkout with one commit; what is in it."""
  if not shutil.which('git'):
    pytest.skip('git is not there')
  package = tmp_path / 'checkout' / 'triplet_det'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('')
  git(package.parent, 'init', '--quiet')
  git(package.parent, 'add', 'triplet_det')
  git(package.parent, 'commit', '--quiet', '-m', 'first')
  return package


def head(package):
  return git(package.parent, 'rev-parse', '--short', 'HEAD')


def test_the_commit_of_a_checkout_and_of_a_second_working_tree(package, tmp_path, monkeypatch):
  assert own_commit(package) == head(package)
  git(package.parent, 'tag', 'v1')
  git(package.parent, 'worktree', 'add', '--quiet', str(tmp_path / 'second'))
  assert own_commit(tmp_path / 'second/triplet_det') == head(package)  # there .git is a file
  (package / '__init__.py').write_text('changed = True\n')
  assert own_commit(package) == f'{head(package)}-dirty'
  monkeypatch.setenv('GIT_DIR', str(module.PACKAGE.parent / '.git'))  # as inside a hook of another repository
  monkeypatch.setenv('GIT_INDEX_FILE', str(tmp_path / 'index'))
  assert own_commit(package) == f'{head(package)}-dirty'


@pytest.mark.parametrize('place', ['.venv/lib/site-packages/triplet_det', 'copy'])
def test_no_commit_inside_somebody_else_s_repository(package, place):
  """Installed below it, or lying at its top without being part of it."""
  here = package.parent / place
  here.mkdir(parents=True)
  (here / '__init__.py').write_text('')
  assert own_commit(here) is None
  git(package.parent, 'rm', '--quiet', '--cached', '-r', 'triplet_det')
  assert own_commit(package) is None


def test_nothing_of_the_repository_s_configuration_is_run(package, tmp_path):
  program = tmp_path / 'hook'
  program.write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
  program.chmod(0o755)
  git(package.parent, 'config', 'core.fsmonitor', str(program))
  git(package.parent, 'config', 'core.hooksPath', str(tmp_path))
  program.with_name('post-index-change').symlink_to(program)
  os.utime(package / '__init__.py', (0, 0))  # what git knows of the file is out of date, and written anew
  expected = git(package.parent, '-c', 'core.fsmonitor=false', 'rev-parse', '--short', 'HEAD')
  (tmp_path / 'ran').unlink(missing_ok=True)
  assert own_commit(package) == expected
  assert not (tmp_path / 'ran').exists()


def test_a_child_that_outlives_git_is_not_waited_for(package, tmp_path, monkeypatch):
  folder = tmp_path / 'bin'
  folder.mkdir()
  (folder / 'git').write_text('#!/bin/sh\nPATH=/usr/bin:/bin; sleep 20 & echo 1a2b3c4\n')
  (folder / 'git').chmod(0o755)
  monkeypatch.setenv('PATH', str(folder))
  start = time.monotonic()
  assert own_commit(package) == '1a2b3c4'
  assert time.monotonic() - start < 10


@pytest.mark.parametrize(
  'script', [None, 'echo odd; exit 1', 'echo a word that is no commit', 'printf "\\377"', 'sleep 30 & sleep 30']
)
def test_a_git_that_is_not_there_fails_talks_or_hangs(package, tmp_path, monkeypatch, script):
  folder = tmp_path / 'bin'
  folder.mkdir()
  if script:
    (folder / 'git').write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin; {script}\n')
    (folder / 'git').chmod(0o755)
  monkeypatch.setenv('PATH', str(folder))
  monkeypatch.setattr(module, '_PATIENCE', 0.2)
  start = time.monotonic()
  assert own_commit(package) is None
  assert time.monotonic() - start < 5
