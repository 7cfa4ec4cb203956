"""Which values which steps are trained with: what counts as a change, and what becomes of a run that left no state."""

import json

import pytest

from triplet_det.run import config_history

CONFIG = {
  'mode': 'train',
  'seed': 0,
  'batch_size': 8,
  'log_every': 20,
  'init_from': '',
  'data': {'train': {'images': 'a', 'annotations': 'a.json'}, 'eval': {'images': 'b'}, 'num_workers': 8},
  'optimizer': {'base': 2.5e-4, 'schedule': 'step'},
  'augment': {'scales': [0.6, 1.0]},
  'model': {'dtype': 'float32', 'remat': 'none'},
  'test': {'mirror': True},
}
DATA = {'data.train.contents': '6 images', 'data.eval.contents': '3 images'}


def config(**changes) -> str:
  """CONFIG as JSON, with other values: `optimizer__base=1`."""
  made = json.loads(json.dumps(CONFIG))
  for name, value in changes.items():
    *path, key = name.split('__')
    place = made
    for part in path:
      place = place[part]
    place[key] = value
  return json.dumps(made)


def keep(folder, step, data=DATA, **changes):
  return config_history.keep(folder, config(**changes), step, data, 'abc1234')


def test_what_counts_as_a_change(tmp_path):
  assert keep(tmp_path, 0) == []
  counted = dict(seed=1, batch_size=4, data__train__images='c', optimizer__base=1e-4, optimizer__schedule='cosine')
  counted |= dict(augment__scales=[0.6], model__dtype='bfloat16', data__eval__images='d')
  harmless = dict(mode='train_and_eval', log_every=1, init_from='x', data__num_workers=0, model__remat='blocks')
  assert keep(tmp_path, 5, **harmless, test__mirror=False) == []
  assert json.loads((tmp_path / 'config.json').read_text())['log_every'] == 1
  said = keep(tmp_path, 6, DATA | {'data.train.contents': '7 images'}, **counted, **harmless)
  assert said == [
    'augment.scales: [0.6, 1.0] -> [0.6]',
    'batch_size: 8 -> 4',
    "data.eval.images: 'b' -> 'd'",
    "data.train.contents: '6 images' -> '7 images'",
    "data.train.images: 'a' -> 'c'",
    "model.dtype: 'float32' -> 'bfloat16'",
    'optimizer.base: 0.00025 -> 0.0001',
    "optimizer.schedule: 'step' -> 'cosine'",
    'seed: 0 -> 1',
  ]
  lines = config_history.read(tmp_path)
  assert [(line['step'], line['commit']) for line in lines] == [(0, 'abc1234'), (6, 'abc1234')]
  assert lines[1]['changed']['seed'] == [0, 1] and lines[1]['values']['seed'] == 1


def test_a_change_that_left_no_state_is_void(tmp_path):
  keep(tmp_path, 0)
  assert keep(tmp_path, 6, seed=1) == keep(tmp_path, 6, seed=1) == ['seed: 0 -> 1']
  assert keep(tmp_path, 6, seed=2) == ['seed: 0 -> 2']
  assert keep(tmp_path, 9, seed=2) == []
  assert keep(tmp_path, 3) == []  # the newer states could not be read
  assert [line['step'] for line in config_history.read(tmp_path)] == [0]
  assert keep(tmp_path, 0, seed=3) == []  # none could be used: it begins anew
  assert [line['values']['seed'] for line in config_history.read(tmp_path)] == [3]


def test_data_that_were_not_there_are_not_compared(tmp_path):
  """Mode train has no evaluation data; what they were is remembered."""
  keep(tmp_path, 0)
  assert keep(tmp_path, 3, {'data.train.contents': '6 images'}, seed=1) == ['seed: 0 -> 1']
  assert keep(tmp_path, 6, DATA | {'data.eval.contents': '2 images'}, seed=1) == [
    "data.eval.contents: '3 images' -> '2 images'"
  ]


def test_a_run_of_an_older_version(tmp_path):
  """It has its config alone."""
  (tmp_path / 'config.json').write_text(config(optimizer__base=1.0))
  assert keep(tmp_path, 6) == ['optimizer.base: 1.0 -> 0.00025']
  assert [(line['step'], line['values']['optimizer.base']) for line in config_history.read(tmp_path)] == [
    (0, 1.0),
    (6, 2.5e-4),
  ]


@pytest.mark.parametrize('text', ['{"step": 0', '{"step": 0}', '[]', '{"step": "x", "changed": {}, "values": {}}'])
def test_a_broken_file_is_named(tmp_path, text):
  keep(tmp_path, 0)
  (tmp_path / 'config_history.jsonl').write_text(text + '\n')
  with pytest.raises(ValueError, match=rf'{tmp_path}/config_history\.jsonl is broken .*: move it, and it is made anew'):
    keep(tmp_path, 6)
