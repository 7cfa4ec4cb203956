"""The commit of this program, if it runs from a checkout of its own."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
_PATIENCE = 10.0  # seconds for a git that hangs, on a network folder for example
# What the configuration of a repository may have git start, which only looks here.
_HARMLESS = ('-c', 'core.fsmonitor=false', '-c', f'core.hooksPath={os.devnull}')


def own_commit(package: Path = PACKAGE) -> str | None:
  """'1a2b3c4', or '1a2b3c4-dirty' with changes; None without git, or outside of a checkout.

  Inside somebody else's repository (a wheel in its `.venv`, a copy that it does not track) there is none either. git is
  asked only where the top of a checkout is the folder above the package.
  """
  top = package.parent
  if not (top / '.git').exists() or not _git(top, 'ls-files', '--', f'{package.name}/__init__.py'):
    return None
  found = _git(top, 'describe', '--always', '--dirty', '--exclude=*')
  return found if re.fullmatch('[0-9a-f]{4,64}(-dirty)?', found) else None


def _git(top: Path, *words: str) -> str:
  """What git says; '' if it fails, or is not there."""
  # GIT_DIR and its kin, which a hook sets, would lead to another repository.
  environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
  command = ['git', *_HARMLESS, f'--git-dir={top / ".git"}', f'--work-tree={top}', *words]
  try:
    with tempfile.TemporaryFile() as said:  # a pipe would be waited for as long as any child of git's holds it
      streams = dict(stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL)
      subprocess.run(command, cwd=top, env=environment, timeout=_PATIENCE, check=True, **streams)
      said.seek(0)
      return said.read().decode(errors='replace').strip()
  except (OSError, ValueError, subprocess.SubprocessError):
    return ''
