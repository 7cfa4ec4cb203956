"""The detector that comes with the package: small, documented, and good on scenes it has not seen."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import triplet_det
from scripts import make_demo_weights
from triplet_det.categories import CategoryTable
from triplet_det.configs import photos
from triplet_det.configs import shapes as shapes_config
from triplet_det.data import pipeline, shapes_dataset
from triplet_det.detection import demo
from triplet_det.models import detector
from triplet_det.run import checkpoints
from triplet_det.training import finetune

FOLDER = Path(demo.__file__).parent


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
  shared = np.where((sides > 0).all(1), sides.prod(1), 0)
  return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def test_finds_the_objects_of_new_scenes():
  scenes = [shapes_dataset.draw_scene(1234, 'validation', i) for i in range(40)]
  scenes = [scene for scene in scenes if max(scene.image.shape) <= 127][:4]  # of one canvas size
  detector = triplet_det.load('demo', batch_size=1)
  objects = hits = wrong = 0
  for scene, found in zip(scenes, detector([scene.image for scene in scenes])):
    found = found.above(0.3)
    taken = set()
    for item in scene.objects:
      objects += 1
      x, y, width, height = item.box
      same = overlap(np.array([x, y, x + width, y + height]), found.boxes) * (found.classes == item.label)
      best = int(same.argmax()) if len(found) else -1
      if best >= 0 and same[best] > 0.5 and best not in taken:
        taken.add(best)
    hits, wrong = hits + len(taken), wrong + len(found) - len(taken)
  assert objects > 8 and hits >= 0.8 * objects and wrong <= objects


def test_weights_are_small_and_explained():
  assert (FOLDER / demo.WEIGHTS).stat().st_size <= 2_000_000
  provenance = json.loads((FOLDER / demo.PROVENANCE).read_text())
  assert provenance['command'].startswith('python -m triplet_det.main --config configs/shapes.py')
  assert {'date', 'trained_at', 'packed_by', 'fingerprint'} <= set(provenance)
  assert provenance['metrics']['AP'] > 0.75
  assert abs(provenance['metrics']['AP'] - provenance['float32_metrics']['AP']) <= 0.002
  assert provenance['fingerprint']['images'] == 200
  variables, record = demo.load_weights()
  assert set(variables) == {'params', 'batch_stats'} and len(record.categories) == 8
  assert record.test['canvas_multiple'] == 64 and record.metrics['AP'] == pytest.approx(
    provenance['metrics']['AP'], abs=1e-4
  )


def test_float16_of_kernels_alone(tmp_path):
  rng = np.random.default_rng(0)
  kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 4, 5), (5,)))
  variables = {'params': {'a': {'conv': {'kernel': kernel, 'bias': bias}}}}
  demo.save_weights(variables, tmp_path)
  (tmp_path / demo.PROVENANCE).write_text(json.dumps(dict(record=demo.load_weights()[1].to_json())))
  read = demo.load_weights(tmp_path)[0]['params']['a']['conv']
  np.testing.assert_array_equal(read['bias'], bias)
  np.testing.assert_array_equal(read['kernel'], kernel.astype(np.float16).astype(np.float32))
  assert read['kernel'].dtype == np.float32
  variables['params']['a']['conv']['kernel'] = kernel * 1e6
  with pytest.raises(ValueError, match=r'params/a/conv/kernel has weights up to .*65504'):
    demo.save_weights(variables, tmp_path)
  with pytest.raises(FileNotFoundError, match=r'weights\.npz is missing: install'):
    demo.load_weights(tmp_path / 'nothing')


def test_training_on_own_data_can_start_from_it():
  """The small network of configs/photos.py has its sizes: all comes along but the heatmaps' rows of other classes."""
  theirs, record = demo.load_weights()
  mine = CategoryTable(ids=(1, 2, 5), names=('cell', record.categories.names[3], 'platelet'))
  model = {**photos.get_config('encoder=hourglass').model, 'num_classes': len(mine)}
  shapes_of = jax.eval_shape(detector.build(model).init, jax.random.key(0), np.zeros((1, 127, 127, 3), np.float32))
  ours = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes_of)
  merged, transfer = finetune.merge(ours, theirs, mine, record.categories)
  assert transfer.misfits == () and transfer.classes == (record.categories.names[3],)
  rows = 3 * 2 * (model['dims'][0] + 1)  # of three heatmaps, for two classes the demo does not know
  assert transfer.fresh.total() == rows and transfer.share > 0.999
  heat = merged['params']['center_0']['heat']['out']['kernel'][0, 0]
  assert (heat[:, [0, 2]] == 7).all() and (heat[:, 1] != 7).all()
  np.testing.assert_array_equal(
    merged['batch_stats']['stem']['block']['norm']['var'], theirs['batch_stats']['stem']['block']['norm']['var']
  )


@pytest.fixture
def run_and_source(tmp_path, monkeypatch):
  """A run folder with the shipped weights; its evaluation is a stand-in that gives the APs of a list."""
  variables, record = demo.load_weights()
  saved = checkpoints.Checkpoints(tmp_path / 'run')
  saved.save_best(variables, record)
  saved.close()
  source = types.SimpleNamespace(categories=record.categories)
  monkeypatch.setattr(pipeline, 'open_source', lambda **_: source)
  aps, measured = [], []

  def measure(variables, record, source, config):
    measured.append(variables)
    return dict(AP=aps.pop(0), AP50=0.9, AP75=0.8), dict(images=200)

  monkeypatch.setattr(make_demo_weights, 'measure', measure)
  return tmp_path / 'run', aps, measured


def test_packing_measures_what_it_ships(run_and_source, tmp_path):
  run, aps, measured = run_and_source
  aps += [0.78, 0.7785]
  made = make_demo_weights.pack(run, tmp_path / 'demo')
  assert (made['float32_metrics']['AP'], made['metrics']['AP']) == (0.78, 0.7785)
  read, record = demo.load_weights(tmp_path / 'demo')
  for shipped, tested in zip(*(sorted(np.abs(v).sum() for v in flat(tree)) for tree in (read, measured[1]))):
    assert shipped == tested
  config = shapes_config.get_config()
  assert record.test == json.loads(json.dumps(config.test.to_dict())) and record.metrics['AP'] == 0.7785
  aps += [0.78, 0.7779]
  with pytest.raises(ValueError, match=r'not packed: AP 0\.7779 instead of 0\.7800'):
    make_demo_weights.pack(run, tmp_path / 'worse')
  assert not (tmp_path / 'worse').exists()


def flat(tree) -> list[np.ndarray]:
  return [leaf for part in tree.values() for leaf in flat(part)] if isinstance(tree, dict) else [tree]
