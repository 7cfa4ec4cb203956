"""The paper's tables on run folders with known numbers, and the commands for those that are missing."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.paper import published, side_by_side, speed, table_runs, tables
from scripts.timing import detection_parts, quiet_pairs
from triplet_det.detection import inference
from triplet_det.detection.settings import Settings
from triplet_det.models import detector

SMALL = dataclasses.asdict(Settings(canvas_multiple=64))
MULTI = {**SMALL, 'merge_exponent': 10.0}
CORNER_MULTI = {**MULTI, 'scales': (0.5, 0.75, 1.0, 1.25, 1.5)}
CENTER_MULTI = {**MULTI, 'scales': (0.6, 1.0, 1.2, 1.5, 1.8)}
COLUMNS = (*published.AP, *published.AR, *published.FD)
ONE = ('--seeds', '0', '--format', 'json')


def metrics(first: float) -> dict[str, float]:
  """`first` for AP, a thousandth more for each column behind it."""
  return {column: first + 0.001 * i for i, column in enumerate(COLUMNS)}


def write(path: Path, about: dict, **content) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  fingerprint = {'split': 'validation', 'images': 200, 'test': SMALL, 'decimals': -1, 'commit': 'abc', **about}
  path.write_text(json.dumps(dict(content, fingerprint=fingerprint)))


def finished(root: Path, row: int, seed: int, first: float, folder: str = 'step_001500', **about) -> Path:
  """A run of Table 4 as the program leaves it."""
  run = root / f'row_{row}_seed_{seed}'
  write(run / 'eval' / folder / 'metrics.json', about, metrics=metrics(first))
  (run / 'checkpoints' / '1500').mkdir(parents=True, exist_ok=True)
  return run


def imported(folder: Path, *, step: int = 480_000, stacks: int = 1, centers: bool = True) -> Path:
  """The record that lies beside imported weights; enough for everything but the weights."""
  switches = dict(center_branch=centers, center_pooling=centers, cascade_corner_pooling=centers)
  record = folder / 'best' / str(step) / 'record'
  record.mkdir(parents=True)
  (record / 'metadata').write_text(json.dumps(dict(model=dict(switches, stacks=stacks))))
  return folder


@pytest.fixture
def commands(monkeypatch):
  """What would be executed, instead of executing it."""
  given = []
  done = subprocess.CompletedProcess([], 0)
  monkeypatch.setattr(table_runs.subprocess, 'run', lambda command, **settings: given.append(command) or done)
  return given


@pytest.fixture
def table(capsys, commands):
  """table('table4', ...) -> the parsed JSON; nothing may be executed."""

  def printed(*arguments):
    tables.main([str(argument) for argument in (*arguments, '--format', 'json')])
    assert commands == []
    return json.loads(capsys.readouterr().out)

  return printed


@pytest.fixture
def refused(capsys):
  """refused('table4', ...) -> the message; the exit code is 2."""

  def message(*arguments):
    with pytest.raises(SystemExit) as stopped:
      tables.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.rsplit('error: ', 1)[1]

  return message


def by_title(rows):
  return {row['row']: row for row in rows}


def test_table_4_means_differences_and_the_paper(tmp_path, table):
  for row, seed, first in ((1, 0, 0.40), (1, 1, 0.50), (5, 0, 0.70), (5, 1, 0.71)):
    finished(tmp_path, row, seed, first)
  found = table('table4', '--runs', tmp_path, '--rows', 1, 5)
  assert found['columns'] == [*published.AP, *published.AR]
  pairs, triplets = by_title(found['rows']).values()
  assert pairs['here']['AP'] == pytest.approx(45.0) and triplets['here']['AP'] == pytest.approx(70.5)
  assert pairs['here']['AR_L'] == pytest.approx(45.0 + 1.1)  # the 12th column
  assert {run: values['AP'] for run, values in triplets['runs'].items()} == pytest.approx({'seed 0': 70, 'seed 1': 71})
  assert pairs['paper']['COCO']['AP'] == 37.6 and triplets['paper']['COCO']['AR_L'] == 75.1
  (gain,) = found['differences']
  assert gain['row'].startswith('row 5 - row 1')
  assert {run: values['AP'] for run, values in gain['runs'].items()} == pytest.approx({'seed 0': 30, 'seed 1': 21})
  assert gain['here']['AP'] == pytest.approx(25.5) and gain['paper']['COCO']['AP'] == pytest.approx(3.7)
  assert any('ticked under CTP' in note for note in found['notes'])
  assert found['recipe']['images'] == 200 and found['recipe']['test.top_k'] == 70 and found['recipe']['commit'] == 'abc'


def test_text_and_markdown_show_the_same_numbers(tmp_path, capsys):
  for row, seed, first in ((1, 0, 0.40), (1, 1, 0.50), (5, 0, 0.70), (5, 1, 0.71)):
    finished(tmp_path, row, seed, first)
  command = ['table4', '--runs', str(tmp_path), '--rows', '1', '5', '--out', str(tmp_path / 'out')]
  tables.main(command)
  text = capsys.readouterr().out
  lines = text.splitlines()
  heading = lines.index(next(line for line in lines if ' AP50 ' in line))
  shown = {line.strip().split('  ')[0]: line.split()[-12:] for line in lines[heading:] if line.startswith('  ')}
  assert shown['here (AP by run: seed 0 40.0, seed 1 50.0)'][:3] == ['45.0', '45.1', '45.2']
  assert shown['here (AP by run: seed 0 +30.0, seed 1 +21.0)'][::11] == ['+25.5', '+25.5']
  assert [line.split()[2:6] for line in lines if 'paper, COCO ' in line] == [
    ['37.6', '53.3', '40.0', '18.5'],
    ['41.3', '59.2', '43.9', '23.6'],
    ['+3.7', '+5.9', '+3.9', '+5.1'],
  ]
  ends = {len(line) for line in lines[heading:] if ' 4' in line and line.startswith('  ')}
  assert ends == {len(lines[heading])}, 'numbers do not end where their heading does'
  assert 'recipe: split="validation", images=200' in text

  tables.main([*command, '--format', 'markdown'])
  markdown = capsys.readouterr().out
  assert '| row 1: CornerNet | here (AP by run: seed 0 40.0, seed 1 50.0) | 45.0 | 45.1 |' in markdown
  assert '|  | paper, COCO | 37.6 | 53.3 | 40.0 |' in markdown
  assert (
    '| row 5 - row 1, triplets instead of pairs | here (AP by run: seed 0 +30.0, seed 1 +21.0) | +25.5 |' in markdown
  )
  (header,) = [line for line in markdown.splitlines() if 'AP50' in line]
  assert all(line.count('|') == header.count('|') for line in markdown.splitlines() if line.startswith('|'))

  assert (tmp_path / 'out/table4.txt').read_text() == text
  assert (tmp_path / 'out/table4.md').read_text() == markdown
  assert json.loads((tmp_path / 'out/table4.json').read_text())['rows'][0]['here']['AP'] == pytest.approx(45)


def test_table_3_and_table_1_are_the_same_runs(tmp_path, table):
  finished(tmp_path, 1, 0, 0.30)
  finished(tmp_path, 5, 0, 0.10)
  found = table('table3', '--runs', tmp_path, '--seeds', 0)
  corner, center = by_title(found['rows']).values()
  assert list(corner['here']) == list(published.FD)
  assert corner['here']['FD'] == pytest.approx(31.2) and center['here']['FD_L'] == pytest.approx(11.8)
  assert corner['paper']['CornerNet511-104']['FD'] == 37.8 and center['paper']['CenterNet511-52']['FD_S'] == 53.0
  (decrease,) = found['differences']
  assert decrease['here']['FD_S'] == pytest.approx(20.0)

  (only,) = table('table1', '--runs', tmp_path, '--seeds', 0)['rows']
  assert only['here'] == corner['here'] and list(only['paper']) == ['CornerNet511-104']
  assert list(only['paper']['CornerNet511-104'].values()) == [37.8, 32.7, 36.8, 43.8, 60.3, 33.2, 25.1]  # Table 1


def test_table_2_at_one_and_at_five_scales(tmp_path, table):
  for row, first, settings in ((1, 0.30, CORNER_MULTI), (5, 0.50, CENTER_MULTI)):
    finished(tmp_path, row, 0, first)
    finished(tmp_path, row, 0, first + row / 100, 'validation_step_001500_multi_scale', test=settings)
  found = table('table2', '--runs', tmp_path, '--seeds', 0)
  ap = {title: row['here']['AP'] for title, row in by_title(found['rows']).items()}
  wanted = {'CornerNet, single-scale': 30, 'CenterNet, single-scale': 50}
  assert ap == pytest.approx(wanted | {'CornerNet, multi-scale': 31, 'CenterNet, multi-scale': 55})
  single, multi = by_title(found['differences']).values()
  assert single['here']['AP'] == pytest.approx(20) and multi['here']['AP'] == pytest.approx(24)
  assert 'test.merge_exponent' not in found['recipe'] and found['recipe']['test.top_k'] == 70
  assert not any('WARNING' in note for note in found['notes'])
  (told,) = [note for note in found['notes'] if note.startswith('test.scales differs as it should')]
  assert '[0.5, 0.75, 1.0, 1.25, 1.5] (CornerNet, multi-scale, seed 0)' in told


def test_table_5_each_output_replaced(tmp_path, table):
  for seed in (0, 1):
    run = finished(tmp_path, 5, seed, 0.5)
    replaced = {'nothing': 0.5, 'centers': 0.6 + seed / 10, 'offsets': 0.55, 'everything': 1.0}
    rows = [dict(replaced=name, metrics=metrics(ap)) for name, ap in replaced.items()]
    write(run / 'eval/validation_step_001500/error_analysis.json', {}, rows=rows)
  found = table('table5', '--runs', tmp_path)
  rows = by_title(found['rows'])
  assert rows['CenterNet, centers replaced']['here']['AP'] == pytest.approx(65)
  assert rows['CenterNet, everything replaced']['here']['AP'] == pytest.approx(100)
  assert rows['CenterNet, offsets replaced']['paper'] == {}
  assert rows['CenterNet, nothing replaced']['paper']['CenterNet511-104']['AP'] == 44.8
  gains = by_title(found['differences'])
  assert gains['gain of CenterNet, centers']['here']['AP_S'] == pytest.approx(15)
  assert gains['gain of CenterNet, offsets']['here']['AP'] == pytest.approx(5)
  assert 'gain of CenterNet, nothing' not in gains


# Differences as the paper's text gives them, where its tables agree (Sec. 4.2 - 4.6): row, whose, column, points.
TEXT = {
  'table2': [
    ('gain of CenterNet, single-scale', 0, dict(AP=3.8, AP_S=5.5)),
    ('gain of CenterNet, multi-scale', 0, dict(AP=4.1, AP_S=6.4)),
    ('gain of CenterNet, single-scale', 1, dict(AP=4.4, AP_S=6.2, AP_M=4.7, AP_L=3.5)),
    ('gain of CenterNet, multi-scale', 1, dict(AP=4.9, AP_S=8.1)),
  ],
  'table3': [
    ('decrease by CenterNet', 0, dict(FD5=4.5, FD_S=9.5)),
    ('decrease by CenterNet', 1, dict(FD5=4.5, FD_S=9.6)),
  ],
  'table4': [
    ('row 3 - row 1, central region exploration', 0, dict(AP=2.3, AP_S=4.6, AP_L=0.1)),
    ('row 4 - row 3, center pooling', 0, dict(AP=0.9)),
    ('row 2 - row 1, cascade corner pooling of pairs', 0, dict(AP=0.7, AP_L=0.0, AR_L=1.8)),
    ('row 5 - row 4, cascade corner pooling of triplets', 0, dict(AP=0.5, AP_L=2.2)),
  ],
  'table5': [
    ('gain of CenterNet, centers', 0, dict(AP_S=15.5, AP_M=16.5, AP_L=14.5)),
    ('gain of CenterNet, centers', 1, dict(AP_S=14.5, AP_M=14.1, AP_L=13.3)),
  ],
}


@pytest.mark.parametrize('name', TEXT)
def test_differences_are_those_that_the_paper_argues_with(tmp_path, table, name):
  for row in range(1, 6):
    run = finished(tmp_path, row, 0, 0.5)
    multi = CENTER_MULTI if row == 5 else CORNER_MULTI
    finished(tmp_path, row, 0, 0.5, 'validation_step_001500_multi_scale', test=multi)
    rows = [dict(replaced=replaced, metrics=metrics(0.5)) for replaced in ('nothing', 'centers')]
    write(run / 'eval/validation_step_001500/error_analysis.json', {}, rows=rows)
  differences = by_title(table(name, '--runs', tmp_path, '--seeds', 0)['differences'])
  for title, position, points in TEXT[name]:
    told = list(differences[title]['paper'].values())[position]
    assert {column: told[column] for column in points} == pytest.approx(points), title


def test_the_paper_s_tables_3_and_4_are_of_the_same_runs():
  """Why row 1 is CornerNet and row 5 CenterNet in all tables."""
  for row, name in (('1', 'cornernet-52'), ('5', 'centernet-52')):
    ap50 = published.TABLE_4[row][published.AP.index('AP50')]
    assert published.TABLE_3[name][published.FD.index('FD50')] == pytest.approx(100 - ap50)


def test_what_has_no_object_has_no_number(tmp_path, table, capsys):
  run = finished(tmp_path, 1, 0, 0.5)
  path = run / 'eval/step_001500/metrics.json'
  content = json.loads(path.read_text())
  content['metrics']['AP_L'] = 'NaN'
  path.write_text(json.dumps(content))
  (row,) = table('table4', '--runs', tmp_path, '--rows', 1, '--seeds', 0)['rows']
  assert row['here']['AP_L'] is None and row['here']['AP_M'] == pytest.approx(50.4)
  tables.main(['table4', '--runs', str(tmp_path), '--rows', '1', '--seeds', '0'])
  assert ' 50.4      -   50.6' in capsys.readouterr().out


def test_runs_that_should_be_equal_and_are_not(tmp_path, table):
  finished(tmp_path, 1, 0, 0.5)
  run = finished(tmp_path, 5, 0, 0.5, commit='xyz', images=100)
  config = table_runs.load_config('configs/ablation.py:row=5,small=1').to_dict()
  (run / 'config.json').write_text(json.dumps({**config, 'batch_size': 4, 'log_every': 1}))
  notes = table('table4', '--runs', tmp_path, '--rows', 1, 5, '--seeds', 0)['notes']
  five = 'row 5: CRE + CTP + CCP, seed 0'
  assert f'WARNING: {five} was trained with batch_size 4, now 8 is asked for: {run}' in notes
  assert f'WARNING: commit should be equal, but is "abc" (row 1: CornerNet, seed 0); "xyz" ({five})' in notes
  assert any(note.startswith('WARNING: images should be equal, but is 200') for note in notes)
  assert not any('log_every' in note for note in notes)


def arguments_of(command: list[str]) -> list[str]:
  assert command[:3] == [sys.executable, '-m', 'triplet_det.main']
  return command[3:]


@pytest.fixture
def program(tmp_path, monkeypatch):
  """The program as a stub that notes its commands and writes what the real one would."""
  given = []

  def run(command, *, cwd, **settings):
    arguments = arguments_of(command)
    given.append(arguments)
    assert Path(cwd, 'configs').is_dir()
    told = dict(argument.removeprefix('--').split('=', 1) for argument in arguments)
    folder, mode = Path(told['workdir']), told.get('config.mode', 'train_and_eval')
    total = int(told.get('config.total_steps', 1500))
    name = told.get('config.eval_name', '')
    test = SMALL
    if name:
      test = {**MULTI, 'scales': json.loads(told['config.test.scales'].replace('(', '[').replace(')', ']'))}
    (folder / 'checkpoints' / str(total)).mkdir(parents=True, exist_ok=True)
    where = f'step_{total:06d}' if mode == 'train_and_eval' else f'validation_step_{total:06d}' + (name and f'_{name}')
    rows = [dict(replaced='nothing', metrics=metrics(0.5))]
    content = dict(rows=rows) if mode == 'error_analysis' else dict(metrics=metrics(0.5))
    file = 'error_analysis' if mode == 'error_analysis' else 'metrics'
    write(folder / 'eval' / where / f'{file}.json', dict(test=test), **content)
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(table_runs.subprocess, 'run', run)
  return given


def test_what_is_missing_is_trained(tmp_path, program):
  finished(tmp_path, 5, 0, 0.7)
  tables.main(['table4', '--runs', str(tmp_path), '--rows', '1', '5', '--seeds', '0', '3', '--config.batch_size=4'])
  asked = [(1, 0), (1, 3), (5, 3)]
  assert program == [
    [
      f'--config=configs/ablation.py:row={row},small=1',
      f'--workdir={tmp_path}/row_{row}_seed_{seed}',
      f'--config.seed={seed}',
      '--config.batch_size=4',
    ]
    for row, seed in asked
  ]


def test_nothing_is_trained_twice(tmp_path, program):
  for name in ('table3', 'table1', 'table2', 'table5', 'table3'):
    tables.main([name, '--runs', str(tmp_path), *ONE])
  corner, center = (f'--workdir={tmp_path}/row_{row}_seed_0' for row in (1, 5))
  pages = {corner: '--config=configs/ablation.py:row=1,small=1', center: '--config=configs/ablation.py:row=5,small=1'}
  eval_of_newest = ['--config.mode=eval', '--config.eval_checkpoint=checkpoints', '--config.eval_name=multi_scale']
  scales = {corner: '(0.5, 0.75, 1.0, 1.25, 1.5)', center: '(0.6, 1.0, 1.2, 1.5, 1.8)'}
  trained = [[pages[run], run, '--config.seed=0'] for run in (corner, center)]
  tested = [
    [pages[run], run, *eval_of_newest, f'--config.test.scales={scales[run]}', '--config.test.merge_exponent=10']
    for run in (corner, center)
  ]
  analysed = [pages[center], center, '--config.mode=error_analysis', '--config.eval_checkpoint=checkpoints']
  assert program == [*trained, *tested, analysed]


def test_an_evaluation_of_other_settings_or_without_fd_is_made_again(tmp_path, program, capsys):
  older = {key: value for key, value in SMALL.items() if key != 'mirror_shift'}
  finished(tmp_path, 1, 0, 0.9, test=older)
  run = finished(tmp_path, 5, 0, 0.9)
  without = {column: 0.9 for column in (*published.AP, *published.AR)}
  write(run / 'eval/step_001500/metrics.json', {}, metrics=without)
  tables.main(['table3', '--runs', str(tmp_path), *ONE])
  assert [command[2:] for command in program] == [['--config.mode=eval', '--config.eval_checkpoint=checkpoints']] * 2
  found = json.loads(capsys.readouterr().out)
  assert [row['here']['FD'] for row in found['rows']] == pytest.approx([51.2, 51.2])


def test_given_checkpoints_are_tested_only(tmp_path, program):
  folders = [imported(tmp_path / name, step=1500) for name in ('first', 'second')]
  given = [f'centernet={folder}' for folder in folders]
  tables.main(
    ['table3', '--runs', str(tmp_path), '--rows', 'centernet', '--checkpoint', *given, '--config.test.sigma=0.5']
  )
  page = '--config=configs/ablation.py:row=5,small=1'
  rest = ['--config.mode=eval', '--config.test.sigma=0.5']
  assert program == [[page, f'--workdir={folder}', *rest] for folder in folders]


def test_the_paper_s_networks(tmp_path, commands, refused):
  """Every row with --full: what would be executed first."""
  for name, page, folder in (
    ('cornernet-52', 'configs/ablation.py:row=1', 'row_1_seed_7'),
    ('centernet-52', 'configs/ablation.py:row=5', 'row_5_seed_7'),
    ('cornernet-104', 'configs/cornernet.py:hg=104', 'cornernet_104_seed_7'),
    ('centernet-104', 'configs/triplet.py:hg=104', 'centernet_104_seed_7'),
  ):
    refused('table3', '--runs', tmp_path, '--full', '--rows', name, '--seeds', 7, '--config.data.eval.data_dir=x')
    wanted = [f'--config={page}', f'--workdir={tmp_path}/{folder}', '--config.seed=7', '--config.data.eval.data_dir=x']
    assert arguments_of(commands.pop()) == wanted
  folder = imported(tmp_path / 'released', stacks=2)
  refused('table5', '--runs', tmp_path, '--full', '--rows', 'centernet-104', '--checkpoint', f'centernet-104={folder}')
  wanted = ['--config=configs/triplet.py:hg=104', f'--workdir={folder}', '--config.mode=error_analysis']
  assert arguments_of(commands.pop()) == wanted


def test_a_config_of_the_user_s_own(tmp_path, commands, refused):
  own = ['--config', 'configs/photos.py:hg=52', '--config.data.train.images=here']
  refused('table4', '--runs', tmp_path, '--rows', 3, '--seeds', 0, *own)
  switches = ['center_branch=True', 'center_pooling=False', 'cascade_corner_pooling=False']
  assert arguments_of(commands.pop()) == [
    '--config=configs/photos.py:hg=52',
    f'--workdir={tmp_path}/row_3_seed_0',
    '--config.seed=0',
    *(f'--config.model.{switch}' for switch in switches),
    '--config.data.train.images=here',
  ]
  refused('table4', '--runs', tmp_path, '--rows', 3, '--seeds', 0, '--config', 'photos:hg=52')
  assert arguments_of(commands.pop())[0] == '--config=photos:hg=52'
  assert table_runs.load_config('photos:hg=52').model.to_dict() == table_runs.load_config(own[1]).model.to_dict()


RUNS = ('--runs', '{tmp}')
WRONG = {
  'unknown_table': (['table6'], "invalid choice: 'table6'"),
  'unknown_row': (['table4', *RUNS, '--rows', '6'], 'table4 has no row 6; possible: 1, 2, 3, 4, 5'),
  'row_of_full': (
    ['table3', *RUNS, '--rows', 'centernet-52'],
    'table3 has no row centernet-52; possible: cornernet, c',
  ),
  'row_of_small': (
    ['table2', *RUNS, '--full', '--rows', 'centernet'],
    'table2 with --full has no row centernet; possible: cornernet-52, centernet-52, cornernet-104, centernet-104',
  ),
  'unknown_checkpoint': (['table1', *RUNS, '--checkpoint', 'net={tmp}'], 'table1 has no row net; possible: cornernet'),
  'no_pair': (['table1', *RUNS, '--checkpoint', '{tmp}'], 'expected ROW=FOLDER'),
  'idle_checkpoint': (
    ['table3', *RUNS, '--rows', 'cornernet', '--checkpoint', 'centernet={tmp}'],
    '--checkpoint for centernet, but --rows are cornernet',
  ),
  'empty_checkpoint': (['table1', *RUNS, '--checkpoint', 'cornernet={tmp}'], 'no checkpoint in {tmp}: expected'),
  'other_network': (
    ['table1', *RUNS, '--checkpoint', 'cornernet={tmp}/triplets'],
    '/triplets/best/9 is not the network of configs/ablation.py:row=1,small=1: center_branch is True there, False here',
  ),
  'stray_word': (['table1', *RUNS, 'word'], 'not understood: word; overrides of the config are --config.name=value'),
  'unknown_key': (
    ['table1', *RUNS, '--config.totl_steps=3'],
    "unknown key 'totl_steps' in config; did you mean 'total_steps'?",
  ),
  'wrong_value': (['table1', *RUNS, '--config.total_steps=a'], '--config.total_steps=a: invalid literal for int()'),
  'our_own_override': (['table1', *RUNS, '--config.seed=3'], '--config.seed=3: the seeds are given by --seeds'),
  'two_configs': (
    ['table1', *RUNS, '--full', '--config', 'configs/shapes.py'],
    '--full and --config exclude each other',
  ),
  'no_config': (['table1', *RUNS, '--config', 'configs/no.py'], 'No such file or directory'),
  'no_page': (['table1', *RUNS, '--config', 'tripplet:hg=52'], "no config page 'tripplet'; did you mean 'triplet'?"),
  'length_from_data': (
    ['table1', *RUNS, '--config', 'photos'],
    'photos leaves config.total_steps to the data: runs that are compared need one, give --config.total_steps=N',
  ),
  'speed_of_what': (
    ['speed', '--checkpoint', 'net={tmp}'],
    'no network net to measure; possible: cornernet, centernet',
  ),
  'no_round': (['speed', '--rounds', '0'], 'there must be at least one round, got 0'),
  'speed_override': (['speed', '--config.seed=1'], 'not understood: --config.seed=1'),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_command_is_one_clear_message(tmp_path, commands, refused, name):
  imported(tmp_path / 'triplets', step=9)
  arguments, told = WRONG[name]
  message = refused(*(argument.format(tmp=tmp_path) for argument in arguments))
  assert told.format(tmp=tmp_path) in message
  assert commands == []


def test_a_run_that_fails_is_named(tmp_path, monkeypatch, refused):
  failed = subprocess.CompletedProcess([], 3)
  monkeypatch.setattr(table_runs.subprocess, 'run', lambda command, **settings: failed)
  message = refused('table4', '--runs', tmp_path, '--rows', 2, '--seeds', 0)
  assert message.startswith('this ended with exit code 3, see above: ') and 'row=2,small=1' in message


def test_a_split_without_annotations_has_no_table(tmp_path, commands, refused):
  run = finished(tmp_path, 1, 0, 0.5)
  write(run / 'eval/step_001500/metrics.json', {}, metrics={})
  assert 'the results JSON there goes to the server' in refused('table1', '--runs', tmp_path, '--seeds', 0)


def test_the_ratio_is_the_median_of_the_rounds_ratios():
  corner, center = (100.0, 200.0, 400.0), (120.0, 220.0, 520.0)  # medians 200 and 220; ratios 1.2, 1.1, 1.3
  rounds = {
    i: {f'{name}, {part}': quiet_pairs.Sample(value, 0.0, None) for name, value in values for part in speed.PARTS}
    for i, values in enumerate(zip((('cornernet', ms) for ms in corner), (('centernet', ms) for ms in center)))
  }
  row = speed.quotient(quiet_pairs.Turns(rounds, 3, {}, math.inf))
  assert row.here()['whole image'] == pytest.approx(1.2)
  assert row.paper['Hourglass-104']['whole image'] == pytest.approx(340 / 300)
  numbers = {whose: values['whole image'] for whose, values in row.lines('network')}
  assert numbers['smallest'] == pytest.approx(1.1) and numbers['largest'] == pytest.approx(1.3)
  table = side_by_side.Table('speed', '', speed.PARTS, [row], [], {}, [])
  assert side_by_side.as_text(table).splitlines()[3].split()[-1] == '1.200'


@pytest.mark.parametrize('name', speed.NETWORKS)
def test_the_objects_added_to_the_maps_are_found(name):
  """As boxes of the image: whatever the network, 20 of them stand out, the same for both."""
  maps = detection_parts.objects_in_maps(191, 255, 8, centers=name == 'centernet')
  wanted = [
    (c, 4 * np.array([x1, y1, x2, y2]) + 2)  # pixels: cells of 4, offset one half
    for y1, x1, c in zip(*np.nonzero(maps.tl_heat[0] > 0))
    for y2, x2, d in zip(*np.nonzero(maps.br_heat[0] > 0))
    if c == d and maps.tl_embed[0, y1, x1, 0] == maps.br_embed[0, y2, x2, 0]
  ]
  settings = dataclasses.replace(speed.SETTINGS['sound'][name], canvas_multiple=64, nms_method='hard')
  settings = dataclasses.replace(settings, overlap_threshold=0.7)  # only what image and mirror image have in common
  (found,) = inference.Detector(lambda maps, images: maps, maps, settings, batch_size=1)(
    [np.zeros((191, 255, 3), np.uint8)]
  )
  best = found.scores > 0.9
  assert len(wanted) == best.sum() == 20
  for c, box in wanted:
    near = (np.abs(found.boxes[best] - box).max(axis=1) < 2) & (found.classes[best] == c)
    assert near.sum() == 1, (c, box)


def test_speed_of_a_tiny_network(tmp_path, capsys, monkeypatch):
  """CornerNet and CenterNet take turns in each part."""
  sizes = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)
  monkeypatch.setitem(detector.VARIANTS, 'tiny', sizes)
  order, take_turns = [], quiet_pairs.take_turns
  monkeypatch.setattr(
    quiet_pairs, 'take_turns', lambda programs, **how: order.extend(programs) or take_turns(programs, **how)
  )
  tables.main(['speed', '--size', '63', '--rounds', '2', '--settings', 'sound', '--format', 'json'])
  found = json.loads(capsys.readouterr().out)
  assert order == [f'{name}, {part}' for part in speed.PARTS for name in ('cornernet', 'centernet')]
  corner, center = found['rows']
  assert list(center['runs']) == ['round 1', 'round 2'] and list(center['here']) == list(speed.PARTS)
  assert all(math.isfinite(ms) and ms > 0 for ms in center['here'].values())
  first = {part: center['runs']['round 1'][part] / corner['runs']['round 1'][part] for part in speed.PARTS}
  (ratio,) = found['differences']
  assert ratio['runs']['round 1'] == pytest.approx(first)
  assert found['recipe']['hg'] == 'tiny' and found['recipe']['width'] == 63 and 'versions.jax' in found['recipe']
  told = '\n'.join(found['notes'])
  assert 'meanwhile other processes kept' in told and 'CenterNet: random weights, objects added to the maps; ' in told
  assert ' 0 boxes' not in told
