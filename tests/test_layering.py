"""Imports go down the list of the house and never up; what runs in the workers of the input pipeline is free of JAX."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'triplet_det'

# From the roof to the ground; modules of one storey do not import each other.
STOREYS = [
  ['__init__'],
  ['main'],
  ['predict', 'export', 'plan'],
  ['train'],
  ['finetune', 'show_data'],
  ['loading', 'merge'],
  ['report', 'evaluate'],
  ['gallery'],
  ['parts', 'image_ids'],
  ['figures', 'predictions'],
  ['evaluators'],
  ['curves'],
  ['drawing', 'progress', 'metric_writers', 'video'],
  ['train_step', 'program'],
  ['demo'],
  ['optimizer', 'sharding', 'checkpoints', 'exported', 'roofline', 'collectives'],
  ['torch_import'],
  ['data'],
  ['testing'],
  ['inference'],
  ['canvas', 'limits', 'places'],
  ['nms', 'decode'],
  ['losses', 'targets', 'photometric'],
  ['models'],
  ['central_region'],
  ['structs'],
  ['categories', 'compiler', 'json_numbers'],
]
STOREY = {name: number for number, names in enumerate(STOREYS) for name in names}


def imported(path: Path) -> set[str]:
  """Full names of all modules that a file imports, also inside functions; `from a import b` gives a and a.b."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
  return names


def part_of(module: str) -> str | None:
  """The storey's name for a module of the package: the file, or the folder it is in; None for what is not a module."""
  first = module.split('.')[1:2]
  return first[0] if first and first[0] in STOREY else None


FILES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_imports_go_down(path):
  here = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  assert here in STOREY, f'{here} has no storey yet'
  used = {part_of(name) for name in imported(path) if name.startswith('triplet_det.')} - {None, here}
  up = {name for name in used if STOREY[name] <= STOREY[here]}
  assert not up, f'{here} imports {sorted(up)}, which are not below it'


def test_the_rule_would_notice():
  assert part_of('triplet_det.models.detector') == 'models'
  assert part_of('triplet_det.__version__') is None
  assert STOREY['data'] < STOREY['inference'] < STOREY['models'] < STOREY['structs']
  assert {'jax', 'triplet_det.categories'} <= imported(PACKAGE / 'structs.py')


@pytest.mark.parametrize('path', sorted((PACKAGE / 'data').glob('*.py')), ids=lambda p: p.name)
def test_the_input_pipeline_is_free_of_jax(path):
  """Directly, or through a module of the package."""
  names = imported(path)
  foreign = {name.split('.')[0] for name in names} & {'jax', 'flax', 'optax', 'orbax'}
  assert not foreign, f'{path.name} imports {foreign}'
  house = {name for name in names if name.startswith('triplet_det.')}
  allowed = ('triplet_det.data', 'triplet_det.categories')
  assert all(name.startswith(allowed) for name in house), f'{path.name} imports {house}'


def test_the_configuration_stops_at_the_door():
  """Only main, plan, train, evaluate and predict know ml_collections; all others take values."""
  knowing = {p.relative_to(PACKAGE).parts[0] for p in FILES if any('ml_collections' in n for n in imported(p))}
  assert knowing <= {'main.py', 'plan.py', 'train.py', 'evaluate.py', 'predict.py'}
