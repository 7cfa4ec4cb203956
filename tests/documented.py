"""What the documentation says: commands, options, Python blocks, links and the tree of files, and where it does."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/**/*.md'))]
MODULES = [
  *sorted(ROOT.glob('scripts/**/*.py')),
  *sorted(ROOT.glob('configs/*.py')),
  *(ROOT / f'triplet_det/{name}.py' for name in ('main', 'predict', 'export')),
]
_FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r'`([^`]+)`')
_COMMAND = re.compile(r'(python -m \S+ |pip |ruff |scripts/[\w/]+\.(py|sh) |\.ci/run$)')


@dataclasses.dataclass(frozen=True)
class Text:
  """A piece of code in the documentation."""

  path: Path
  code: str


def commands() -> dict[str, set[str]]:
  """Normalised command -> names of the files that have it."""
  found = {}
  for text in [*_of_blocks('bash'), *_of_docstrings(), *_inline()]:
    for line in _lines(text.code):
      line = normalised(line)
      if _COMMAND.match(line):
        found.setdefault(line, set()).add(str(text.path.relative_to(ROOT)))
  return found


def python_blocks() -> list[Text]:
  return list(_of_blocks('python'))


def spans() -> list[Text]:
  """Inline code that is no command, on one line."""
  return [t for t in _inline() if not _COMMAND.match(normalised(t.code))]


def links() -> list[Text]:
  """Targets of Markdown links and pictures that are files."""
  found = []
  for path in PAGES:
    targets = re.findall(r'\]\(([^)\s]+)\)', _without_blocks(path))
    found += [Text(path, target) for target in targets if not re.match(r'\w+://|#', target)]
  return found


def anchors(page: Path) -> set[str]:
  """What links to the headings of a page end with: 'Your own data' -> 'your-own-data'."""
  headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


def tree(page: Path) -> tuple[list[str], list[str]]:
  """The paths of the files in the page's block that is a tree, indented by two per folder, and its lines."""
  (block,) = (code for kind, code in _FENCED.findall(page.read_text()) if not kind)
  found, folders = [], []
  for line in block.splitlines():
    name = line.split()[0]
    folders = folders[: (len(line) - len(line.lstrip())) // 2]
    if name.endswith('/'):
      folders.append(name)
    else:
      found.append(''.join([*folders, name]))
  return found, block.splitlines()


def normalised(command: str) -> str:
  """'.venv/bin/python scripts/a.py  x  # why' -> 'scripts/a.py x'."""
  command = re.sub(r'\s#\s.*', '', ' '.join(command.split()))
  command = re.sub(r'^python3 ', 'python ', command.replace('.venv/bin/', ''))
  return re.sub(r'^python (?=scripts/)', '', command)


def _lines(code: str) -> Iterator[str]:
  """Single commands: continued lines joined, variables put in, `&&` taken apart."""
  values = {}
  for line in re.sub(r'\\\n\s*', '', code).splitlines():
    for command in re.split(r'\s&&\s', line.strip()):
      if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', command):
        values[assigned[1]] = assigned[2]
        continue
      yield re.sub(r'\$([A-Z]+)', lambda match: values[match[1]], command)


def _of_blocks(language: str) -> Iterator[Text]:
  for path in PAGES:
    for kind, code in _FENCED.findall(path.read_text()):
      if kind == language:
        yield Text(path, code)


def _of_docstrings() -> Iterator[Text]:
  """The lines of docstrings that begin as commands do."""
  for path in MODULES:
    lines = re.sub(r'\\\n\s*', '', ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()
    yield from (Text(path, line.strip()) for line in lines if re.match(r'\s*(python|pip) ', line))


def _inline() -> Iterator[Text]:
  texts = {path: _without_blocks(path) for path in PAGES}
  texts |= {path: ast.get_docstring(ast.parse(path.read_text())) or '' for path in MODULES}
  for path, text in texts.items():
    yield from (Text(path, ' '.join(code.split())) for code in _INLINE.findall(text))


def _without_blocks(path: Path) -> str:
  return _FENCED.sub('', path.read_text())
