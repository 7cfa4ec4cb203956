"""A detector as ONNX: what is put in other words for the converter, the checkpoint's boxes, and no JAX to run it."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import forks
from tests.tiny_detector import MODEL, SETTINGS, write_run
from triplet_det import export
from triplet_det.detection import loading, onnx_export, onnx_file
from triplet_det.models import encoder, pooling

ENCODER = dict(encoder=encoder.LITE0_NAME, dims=(8,) * 4, blocks=(1,) * 4, stem_width=0)
SIZES = ((40, 50), (60, 30), (30, 60))


def test_other_words_say_the_same():
  """`_evaluate` against the library's own operations, for all that it replaces and some that it leaves alone."""

  def program(x):
    y = lax.platform_dependent(x, cpu=lambda x: x * 0, default=lambda x: x + 1)
    y = jax.jit(jax.nn.relu)(y) + pooling.column_max(x)
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 3, 5, 1), (1, 1, 1, 1), 'SAME')
    pools = [lax.cummax(y, axis, reverse=last) for axis in (1, 2) for last in (False, True)]
    total, _ = lax.scan(lambda carry, part: (carry + part, None), jnp.zeros(y.shape), jnp.stack(pools))
    return total, lax.top_k(y.reshape(-1), 7)[1]

  x = np.random.default_rng(0).normal(size=(2, 9, 13, 3)).astype(np.float32)
  found = onnx_export._evaluate(jax.make_jaxpr(program)(x), [x])

  def plainly(x):
    y = jax.nn.relu(x + 1) + x.max(1, keepdims=True)
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 3, 5, 1), (1, 1, 1, 1), 'SAME')
    pools = [lax.cummax(y, axis, reverse=last) for axis in (1, 2) for last in (False, True)]
    return sum(pools), lax.top_k(y.reshape(-1), 7)[1]

  for one, expected in zip(found, plainly(x)):
    np.testing.assert_allclose(one, expected, rtol=1e-6)
  left = str(jax.make_jaxpr(lambda x: onnx_export._evaluate(jax.make_jaxpr(program)(x), [x]))(x))
  for name in ('platform_index', 'cond', 'cummax', 'reduce_window', 'custom_vjp', 'jit'):
    assert f' {name}[' not in left


def test_windows_that_move_are_refused():
  traced = jax.make_jaxpr(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), 'VALID'))(np.zeros((4, 4)))
  with pytest.raises(NotImplementedError, match='a maximum over windows'):
    onnx_export._evaluate(traced, [np.zeros((4, 4), np.float32)])


def test_without_the_packages(tmp_path, monkeypatch):
  (tmp_path / 'a.onnx').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  with pytest.raises(ImportError, match=r"a\.onnx needs the package onnxruntime .*pip install 'triplet_det\[onnx\]'"):
    loading.load(tmp_path / 'a.onnx')
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(ImportError, match=r"needs jax2onnx .*pip install 'triplet_det\[onnx\]'"):
    export.export('demo', tmp_path / 'b.onnx', sizes=((127, 127),))
  assert not (tmp_path / 'b.onnx').exists()


def test_a_converter_that_does_not_fit_jax(monkeypatch):
  def taken_away(*_, **__):
    raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

  jax2onnx = pytest.importorskip('jax2onnx', reason='the extra `onnx` is not installed')
  monkeypatch.setattr(jax2onnx, 'to_onnx', taken_away)
  with pytest.raises(ImportError, match=rf"jax2onnx \S+ jax {jax.__version__} do not fit .*ClosedJaxpr.*det\[onnx\]'"):
    onnx_export.convert(lambda x: x + 1, [jax.ShapeDtypeStruct((2,), np.float32)], (['x'], ['y']))


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'), dataclasses.replace(SETTINGS, top_k=20, num_pairs=50))


@pytest.fixture(scope='module')
def file(run_folder, tmp_path_factory):
  """Of three canvases, two scales and batches of two."""
  for package in ('jax2onnx', 'onnxruntime'):
    pytest.importorskip(package, reason='the extra `onnx` is not installed')
  out = tmp_path_factory.mktemp('file') / 'tiny.onnx'
  export.export(str(run_folder), out, sizes=SIZES, batch_size=2, scales=(1.0, 0.5))
  return out


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  sides = [(40, 50), (60, 30), (63, 31), (30, 60), (1, 1)]
  return [rng.integers(256, size=(*side, 3), dtype=np.uint8) for side in sides]


def test_the_checkpoints_boxes(run_folder, file, images):
  """Of images whose canvases the file has; smaller ones go onto a larger canvas."""
  expected = loading.load(run_folder, scales=(1.0, 0.5))(images[:4])
  detector = loading.load(file)
  for found, wanted in zip(detector(images), expected):
    assert len(found) == len(wanted) > 0 and found.names == wanted.names
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
  assert isinstance(detector.tester, onnx_file.OnnxDetector)
  assert detector.about['step'] == 4 and detector.categories.names == ('cat', 'dog', 'cow')


def test_weights_are_there_once(file):
  """A file of three canvases is hardly larger than one with the weights once; those of the network are 0.1 MB."""
  import onnx

  model = onnx.load(file)
  weights = [(one.data_type, tuple(one.dims), one.raw_data) for one in model.graph.initializer]
  assert len(set(weights)) == len(weights) and sum(len(content) for *_, content in weights) > 50_000
  inner = [g for node in model.graph.node if node.op_type == 'If' for g in (a.g for a in node.attribute)]
  assert len(inner) == 2 and all(len(one.raw_data) < 256 for graph in inner for one in graph.initializer)
  onnx.checker.check_model(model)


def test_it_runs_without_jax(file, images, tmp_path):
  np.save(tmp_path / 'a.npy', images[0])
  code = (
    'import sys, numpy, triplet_det\n'
    'found, = triplet_det.load(sys.argv[1])([numpy.load(sys.argv[2])])\n'
    'print(len(found), {"jax", "flax", "orbax", "jax2onnx", "onnx"} & set(sys.modules))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, file, tmp_path / 'a.npy'], cwd=forks.ROOT, capture_output=True, text=True
  )
  assert done.stdout == '5 set()\n', done.stderr


def test_predict_takes_it(file, images, tmp_path):
  from triplet_det.pictures import drawing

  drawing.save_png(tmp_path / 'a.png', images[0])
  words = ['-m', 'triplet_det.predict', '--checkpoint', str(file), '--out', str(tmp_path / 'out'), '--threshold', '0']
  (end,) = forks.run([forks.Command((*words, str(tmp_path / 'a.png')))], tmp_path)
  assert end.code == 0, end.err
  (row,) = json.loads((tmp_path / 'out/detections.json').read_text())
  assert len(row['objects'] if 'objects' in row else row['detections']) == 5


def test_images_of_one_size(run_folder, file, tmp_path):
  """With an image_side the canvas is that of the scaled image, whatever its resolution; files of before have none."""
  import onnx

  rng, out = np.random.default_rng(0), tmp_path / 'one.onnx'
  images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((60, 40), (120, 80), (30, 20), (200, 133))]
  export.export(str(run_folder), out, sizes=((60, 40),), image_side=45)
  reference, detector = loading.load(run_folder, image_side=45), loading.load(out)
  assert [one.canvases for one in detector.tester.sidecar.programs] == [((63, 31),)]  # of 45 x 30
  both = list(zip(detector(images), reference(images), strict=True))
  assert all(len(found) == len(expected) for found, expected in both) and sum(len(found) for found, _ in both) > 5
  for found, expected in both:
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
  with pytest.raises(ValueError, match=r'30 x 20 pixels needs a canvas of 63 x 31; .* again with --sizes 30x20$'):
    detector([np.zeros((20, 30, 3), np.uint8)])

  model = onnx.load(out)
  sidecar = json.loads(model.metadata_props[0].value)
  assert sidecar['settings'].pop('image_side') == 45
  onnx.helper.set_model_props(model, {'detector.json': json.dumps(sidecar)})
  onnx.save(model, tmp_path / 'before.onnx')
  before = loading.load(tmp_path / 'before.onnx')
  assert before.tester.settings.image_side == 0
  ((found,), (expected,)) = (one([images[0][:45, :30]]) for one in (before, loading.load(run_folder)))
  assert len(found) > 0
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)


def test_a_network_with_an_encoder(file, tmp_path, monkeypatch):
  """A short one, since the compiler takes minutes for the whole; all its kinds of layers are in it."""
  monkeypatch.setattr(encoder, 'LITE0', tuple(stage._replace(blocks=1, expansion=2) for stage in encoder.LITE0))
  run = write_run(tmp_path / 'run', SETTINGS, model=MODEL | ENCODER)
  export.export(str(run), tmp_path / 'a.onnx', sizes=((40, 50),))
  images = [np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)]
  ((found,), (expected,)) = (loading.load(one)(images) for one in (tmp_path / 'a.onnx', run))
  assert len(found) == len(expected) > 0
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_what_does_not_fit(file, images, tmp_path):
  detector = loading.load(file)
  with pytest.raises(ValueError, match=r'64 x 64 pixels needs a canvas of 95 x 95 \+ 63 x 63; tiny\.onnx has 63 x 63'):
    detector([np.zeros((64, 64, 3), np.uint8)])
  with pytest.raises(ValueError, match='is exported, and its settings with it'):
    loading.load(file, mirror=False)
  with pytest.raises(ValueError, match='gives boxes only'):
    detector.heatmaps(images[0])
  (tmp_path / 'half.onnx').write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(ValueError, match=r'half\.onnx is not a whole ONNX file'):
    loading.load(tmp_path / 'half.onnx')


def test_a_canvas_of_as_many_pixels(file):
  """As any program of others could give it: other sides are an error, not a scrambled image."""
  import onnxruntime

  session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
  sides = [one.canvases for one in loading.load(file).tester.sidecar.programs]
  rng = np.random.default_rng(0)

  def run(canvases):
    given = {}
    for k, (height, width) in enumerate(canvases):
      given[f'canvas_{k}'] = rng.integers(256, size=(2, height, width, 3), dtype=np.uint8)
      given |= {f'border_{k}': np.zeros((2, 2), np.float32), f'scale_{k}': np.ones((2, 2), np.float32)}
      given[f'size_{k}'] = np.tile(np.float32([width, height]), (2, 1))
    return session.run(['valid'], given)

  for canvases in sides:
    run(canvases)
    (height, width), *smaller = canvases
    with pytest.raises(Exception, match='Squeeze'):  # of onnxruntime's own kind
      run([(height * width, 1), *smaller])
  turned = [tuple((width, height) for height, width in canvases) for canvases in sides]
  for canvases in turned:
    if canvases not in sides:
      with pytest.raises(Exception, match='Squeeze'):
        run(canvases)


def test_files_of_others(file, tmp_path):
  import onnx

  model = onnx.load(file)
  (entry,) = model.metadata_props
  sidecar = json.loads(entry.value)
  for name, value, told in (
    ('newer', json.dumps(sidecar | {'format': 2}), 'is of format 2'),
    ('other', json.dumps(sidecar | {'batch_size': 0}), 'batch_size of detector.json is 0'),
    (
      'scales',
      json.dumps(sidecar | {'settings': sidecar['settings'] | {'scales': [1.0]}}),
      'canvases of detector.json',
    ),
    ('none', None, 'not of triplet_det.export: it has no .detector.json'),
  ):
    del model.metadata_props[:]
    if value:
      onnx.helper.set_model_props(model, {'detector.json': value})
    onnx.save(model, tmp_path / f'{name}.onnx')
    with pytest.raises(ValueError, match=told):
      loading.load(tmp_path / f'{name}.onnx')


def test_the_published_soft_nms_is_refused(tmp_path):
  with pytest.raises(ValueError, match='export with --sound_nms'):
    export.export('demo', tmp_path / 'a.onnx', stale_rows=True)
  with pytest.raises(ValueError, match='leave --platforms cuda out'):
    export.export('demo', tmp_path / 'a.onnx', platforms=('cuda',))
  assert not list(tmp_path.iterdir())
