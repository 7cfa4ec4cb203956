"""scripts/import_torch_checkpoint.py and back: files as the authors wrote them, and files that should be refused."""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import triplet_det
from tests import link_server, torch_files
from tests.golden_state import MMDETECTION, NETWORKS, drawn_weights, read, state_dict
from tests.released_keys import mmdetection_shapes
from triplet_det.detection import trained_network
from triplet_det.detection.settings import PUBLISHED_CENTERNET, PUBLISHED_CORNERNET, PUBLISHED_MMDETECTION, settings_for
from triplet_det.models import detector, torch_import
from triplet_det.run import checkpoints

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = dict(
  images=[dict(id=1, file_name='a.jpg', height=9, width=9)],
  categories=[dict(id=i, name=f'class {i}') for i in range(1, 6)],
)


def run(script, *arguments):
  command = [sys.executable, f'scripts/{script}.py', *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(params=NETWORKS)
def released(request):
  """Name, weights and model config of a small published network."""
  return request.param, state_dict(read(f'small_net_{request.param}')), NETWORKS[request.param]


def of_mmengine(weights):
  """What mmcv and mmengine write around a state dict, objects of NumPy and of their own among it."""
  counters = {'backbone.stem.0.bn.num_batches_tracked': np.array(9)}
  meta = dict(mmdet_version='2.3.0', epoch=210, CLASSES=('person', 'bicycle'), config='model = dict()', seed=None)
  meta |= dict(score=np.float64(0.4), rows=np.float32)  # no tensors: pickled as NumPy does it
  return dict(meta=meta, state_dict={key: np.array(value) for key, value in weights.items()} | counters)


@pytest.fixture
def annotations(tmp_path):
  path = tmp_path / 'five_classes.json'
  path.write_text(json.dumps(CATEGORIES))
  return path


def test_from_a_link(annotations, tmp_path, monkeypatch):
  monkeypatch.setenv('TRIPLET_DET_DOWNLOADS', str(tmp_path / 'downloads'))
  weights = state_dict(read('small_net_cornernet'))
  arrays = {key: np.array(value) for key, value in weights.items()}
  content = torch_files.write(tmp_path / 'a.pth', arrays, zipped=True).read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  with link_server.started() as server:
    server.files['/net_500000.pth'] = link_server.Served(content, breaks=[999])
    link = f'{server.url}/net_500000.pth#sha256={digest[:8]}'
    done = run('import_torch_checkpoint', link, tmp_path / 'run', '--annotations', annotations)
  assert done.returncode == 0, done.stderr
  assert f'SHA-256 of net_500000.pth: {digest}' in done.stdout and 'step 500000' in done.stdout
  assert checkpoints.load_weights(tmp_path / 'run')[1].step == 500_000


@pytest.mark.parametrize('zipped', [True, False])
def test_there_and_back(released, annotations, tmp_path, zipped):
  name, weights, config = released
  given = tmp_path / f'{name}_480000.pkl'
  arrays = {f'module.{key}': np.array(value) for key, value in weights.items()}
  torch_files.write(given, arrays, zipped=zipped)

  digest = hashlib.sha256(given.read_bytes()).hexdigest()
  refused = run('import_torch_checkpoint', given, tmp_path / 'run', '--sha256', '0' * 64)
  assert refused.returncode == 2 and digest in refused.stderr and not (tmp_path / 'run').exists()
  command = ('import_torch_checkpoint', given, tmp_path / 'run', '--annotations', annotations, '--sha256', digest)
  done = run(*command)
  assert done.returncode == 0, done.stderr
  assert f'SHA-256 of {given.name}: {digest}' in done.stdout
  assert f'2 stack(s), 5 classes, step 480000 -> {tmp_path / "run"}' in done.stdout
  assert 'top_left_0' in done.stdout and 'tl_cnvs.0' in done.stdout
  variables, record = checkpoints.load_weights(tmp_path / 'run')
  assert record.step == 480_000 and record.categories.names == tuple(f'class {i}' for i in range(1, 6))
  built, wanted = detector.build(record.model).config, detector.build(config).config
  for field in ('stacks', 'dims', 'blocks', 'stem_width', 'head_width', 'pool_width', 'num_classes', 'center_branch'):
    assert getattr(built, field) == getattr(wanted, field), field
  expected = torch_import.import_state_dict(weights, config)
  np.testing.assert_array_equal(
    variables['params']['top_left_1']['pooling']['vertical']['conv']['kernel'],
    expected['params']['top_left_1']['pooling']['vertical']['conv']['kernel'],
  )
  assert record.test['stale_rows'] and record.test['top_k'] == (70 if name == 'centernet' else 100)

  back = tmp_path / 'back.pth'
  torch = pytest.importorskip('torch', reason='the way back needs the extra `torch`')
  done = run('export_torch_checkpoint', tmp_path / 'run', back)
  assert done.returncode == 0, done.stderr
  returned = torch.load(back, weights_only=True)
  kept = {key for key in arrays if not key.endswith('num_batches_tracked')}
  assert returned.keys() == kept
  for key in kept:
    np.testing.assert_array_equal(returned[key].numpy(), arrays[key], err_msg=key)


@pytest.mark.parametrize('zipped', [True, False])
def test_mmdetection_there_and_back(annotations, tmp_path, zipped):
  """A file as on its server: state dict and `meta`; digits at the end of the name that are a digest's, no step."""
  weights = drawn_weights(mmdetection_shapes(MMDETECTION))
  given = tmp_path / 'cornernet_hourglass104_mstest_8x6_210e_coco_20200825_150618-79b44c30.pth'
  torch_files.write(given, of_mmengine(weights), zipped=zipped)
  done = run('import_torch_checkpoint', given, tmp_path / 'run', '--annotations', annotations)
  assert done.returncode == 0, done.stderr
  assert "mmdetection's CornerNet, 2 stack(s), 5 classes, step 0 ->" in done.stdout
  assert 'bbox_head.tl_pool.1' in done.stdout and 'left out: 1 counters' in done.stdout
  variables, record = checkpoints.load_weights(tmp_path / 'run')
  assert settings_for(record.test) == PUBLISHED_MMDETECTION
  back = torch_import.export_state_dict(variables, record.model)
  assert back.keys() == weights.keys()
  for key, array in weights.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)

  torch = pytest.importorskip('torch', reason='the way back needs the extra `torch`')
  done = run('export_torch_checkpoint', tmp_path / 'run', tmp_path / 'back.pth')
  assert done.returncode == 0, done.stderr
  assert torch.load(tmp_path / 'back.pth', weights_only=True).keys() == weights.keys()  # no `module.` before them


def test_an_imported_checkpoint_detects(released, annotations, tmp_path):
  _, weights, config = released
  torch_files.write(tmp_path / 'weights.pth', {key: np.array(value) for key, value in weights.items()}, zipped=True)
  done = run('import_torch_checkpoint', tmp_path / 'weights.pth', tmp_path / 'run', '--annotations', annotations)
  assert done.returncode == 0, done.stderr
  image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
  module, variables = detector.build(config), torch_import.import_state_dict(weights, config)
  published = PUBLISHED_CENTERNET if module.config.center_branch else PUBLISHED_CORNERNET
  # Weights that never saw an image give embeddings far apart and few corners and centers that agree.
  settings = dataclasses.replace(published, embedding_threshold=1e3, top_k=300, num_pairs=20_000)
  (found,) = triplet_det.load(tmp_path / 'run', settings=settings)([image])
  (expected,) = trained_network.make_detector(module, variables, settings, batch_size=1)([image])
  assert len(found.scores) > 0
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


class Malicious:
  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('zipped', [True, False, None])
def test_a_pickle_that_acts_is_refused_and_does_not_act(tmp_path, zipped):
  target, given = tmp_path / 'broken_into', tmp_path / 'evil.pkl'
  if zipped is None:
    given.write_bytes(pickle.dumps({'pre.0.conv.weight': Malicious(target)}))
  else:
    torch_files.write(given, {'pre.0.conv.weight': Malicious(target)}, zipped=zipped)
  done = run('import_torch_checkpoint', given, tmp_path / 'run')
  assert done.returncode != 0 and 'refused' in done.stderr and 'Traceback' not in done.stderr
  assert not target.exists() and not (tmp_path / 'run').exists()


def test_files_that_do_not_fit_are_named(released, tmp_path):
  _, weights, _ = released
  given = tmp_path / 'half.pth'
  some = {key: np.array(value) for key, value in weights.items() if not key.startswith('tl_tags.1')}
  torch_files.write(given, some, zipped=False)
  for arguments, message in (
    ((tmp_path / 'none.pkl', tmp_path / 'run'), 'no file'),
    ((given, tmp_path / 'run'), 'tl_tags.1.1.weight'),
  ):
    done = run('import_torch_checkpoint', *arguments)
    assert done.returncode != 0 and message in done.stderr and 'Traceback' not in done.stderr
