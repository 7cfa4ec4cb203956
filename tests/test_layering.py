"""Imports go down the floors of the house and never up, between rooms and inside a room (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'triplet_det'

# From the roof to the ground; what stands on one floor does not import each other.
FLOORS = [
  ['main'],
  ['dry_run', 'train'],
  ['evaluate', 'predict'],
  ['__init__', 'export', 'evaluators', 'prediction', 'training'],
  ['detection', 'report'],
  ['models', 'data'],
  ['run', 'structs'],
  ['categories', 'configs', 'devices', 'pictures'],
]
# The same inside a room; its __init__ is on the roof.
STOREYS = {
  'data': [
    ['doctor_report'],
    ['doctor'],
    ['pipeline'],
    ['shapes_dataset'],
    ['from_data', 'prepare_tfds'],
    ['sources', 'systematic_faults'],
    ['layouts'],
    ['annotations', 'augmentation', 'box_layouts', 'image_files', 'shapes_drawing'],
  ],
  'detection': [
    ['loading'],
    ['exported_file', 'onnx_export', 'onnx_file', 'paper_figures', 'trained_network'],
    ['exported_contents', 'inference', 'sidecar'],
    ['launching'],
    ['batches', 'central_region', 'nms'],
    ['result', 'settings'],
    ['canvas', 'coco_results', 'decode', 'demo', 'nms_rule'],
  ],
  'devices': [['compiled_program', 'sharding'], ['collectives', 'compiler', 'roofline']],
  'evaluators': [['error_analysis', 'false_discovery'], ['best_and_worst', 'coco_ap']],
  'models': [
    ['torch_import'],
    ['detector'],
    ['encoder', 'heads', 'pooling'],
    ['hourglass', 'torch_file'],
    ['layers'],
    ['batch_norm', 'depthwise_convolution', 'fast_convolution', 'input_pixels'],
  ],
  'pictures': [['plots'], ['drawing', 'video']],
  'prediction': [['over_files'], ['find_files', 'merge_parts'], ['result_folder'], ['coco_image_ids', 'parts_on_disk']],
  'report': [['sections'], ['gallery'], ['run_folder']],
  'run': [
    ['config_flag'],
    ['command_line', 'metric_writers'],
    ['checkpoints', 'download', 'progress'],
    ['config_history', 'config_limits', 'endings', 'in_use', 'json_files', 'own_commit', 'run_archive', 'run_record'],
    ['array_digest', 'output_paths', 'standard_streams', 'stop_signal'],
  ],
  'training': [
    ['finetune'],
    ['built_step'],
    ['show_data', 'train_step'],
    ['colour_augmentation', 'losses', 'optimizer', 'targets'],
  ],
}


def heights(floors: list[list[str]]) -> dict[str, int]:
  return {name: number for number, names in enumerate(floors) for name in names}


HEIGHTS = heights(FLOORS)
FILES = sorted(PACKAGE.rglob('*.py'))


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


def above(here: str, used: set[str], at: dict[str, int]) -> set[str]:
  """Those of `used` that are not below `here`."""
  return {name for name in used - {here} if name in at and at[name] <= at[here]}


@pytest.mark.parametrize('path', FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_imports_go_down(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  used = [name.split('.')[1:] for name in imported(path) if name.startswith('triplet_det.')]
  assert parts[0] in HEIGHTS, f'{parts[0]} has no floor yet'
  rooms = {name[0] for name in used}
  assert not above(parts[0], rooms, HEIGHTS), f'{path} imports {above(parts[0], rooms, HEIGHTS)}, not below it'
  if len(parts) > 1 and parts[1] != '__init__':
    inside = heights(STOREYS[parts[0]])
    assert parts[1] in inside, f'{parts[0]}/{parts[1]} has no storey yet'
    modules = {name[1] for name in used if name[0] == parts[0] and len(name) > 1}
    assert not above(parts[1], modules, inside), f'{path} imports {above(parts[1], modules, inside)}, not below it'


def test_the_rule_would_notice():
  assert above('models', {'detection', 'structs'}, HEIGHTS) == {'detection'}
  assert above('models', {'data'}, HEIGHTS) == {'data'}  # nor from the same floor
  assert above('heads', {'layers', 'detector', 'pooling'}, heights(STOREYS['models'])) == {'detector', 'pooling'}
  assert {'jax', 'triplet_det.categories'} <= imported(PACKAGE / 'structs.py')


def test_the_house_stays_small():
  """What a reader can keep in mind: entries of the package, floors, and every room on one of them."""
  entries = {path.relative_to(PACKAGE).parts[0].removesuffix('.py') for path in FILES}
  assert entries == set(HEIGHTS) and len(entries) <= 20 and len(FLOORS) <= 10
  for room, storeys in STOREYS.items():
    modules = {path.relative_to(PACKAGE / room).parts[0].removesuffix('.py') for path in (PACKAGE / room).rglob('*.py')}
    assert modules - {'__init__'} == set(heights(storeys)), room
    purpose = ast.get_docstring(ast.parse((PACKAGE / room / '__init__.py').read_text()))
    assert purpose and len(purpose.splitlines()[0]) > 20, f'{room}/__init__.py does not say what the room is for'


PAGES = sorted((PACKAGE.parent / 'configs').glob('*.py'))


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_the_pages_have_no_circle(page):
  """All start from `triplet`, which starts from none."""
  order = heights([['ablation', 'coco_json', 'cornernet'], ['photos', 'shapes'], ['triplet']])
  used = {name.split('.')[2] for name in imported(page) if name.startswith('triplet_det.configs.')}
  assert not above(page.stem, used, order)


@pytest.mark.parametrize('path', sorted((PACKAGE / 'data').rglob('*.py')), ids=lambda p: p.name)
def test_the_input_pipeline_is_free_of_jax(path):
  """Directly, or through a module of the package."""
  names = imported(path)
  foreign = {name.split('.')[0] for name in names} & {'jax', 'flax', 'optax', 'orbax'}
  assert not foreign, f'{path.name} imports {foreign}'
  house = {name for name in names if name.startswith('triplet_det.')}
  allowed = ('triplet_det.data', 'triplet_det.categories')
  assert all(name.startswith(allowed) for name in house), f'{path.name} imports {house}'


def test_the_configuration_stops_at_the_door():
  """Only main, dry_run, train with the step that it builds, and the flag --config know ml_collections; all others take
  values."""
  knowing = {str(p.relative_to(PACKAGE)) for p in FILES if any('ml_collections' in n for n in imported(p))}
  assert knowing == {'main.py', 'dry_run.py', 'train.py', 'training/built_step.py', 'run/config_flag.py'}
