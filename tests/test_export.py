"""A detector in one file: norms folded, programs without the network's code, the checkpoint's boxes."""

import dataclasses
import io
import itertools
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from jax import export as jax_export

import triplet_det
from tests import forks
from tests.tiny_detector import SETTINGS, write_run
from triplet_det import export
from triplet_det.data import shapes_dataset
from triplet_det.detection import batches, exported_file, loading
from triplet_det.models import detector, layers
from triplet_det.models.batch_norm import EPSILON
from triplet_det.prediction import over_files


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def two_scales(run_folder, tmp_path_factory):
  """An exported file of two canvases, two scales and batches of two."""
  out = tmp_path_factory.mktemp('file') / 'tiny.zip'
  sizes = ((40, 50), (60, 33), (33, 60), (70, 60))
  export.export(str(run_folder), out, sizes=sizes, batch_size=2, scales=(1.0, 0.5))
  return out


@pytest.fixture(scope='module')
def demo_file(tmp_path_factory):
  """The shipped detector for all platforms, and a scene that fits its canvas."""
  folder = tmp_path_factory.mktemp('demo')
  export.export('demo', folder / 'demo.zip', sizes=((127, 127),), platforms=('cpu', 'cuda', 'tpu'))
  scene = next(
    s for s in (shapes_dataset.draw_scene(7, 'validation', i) for i in range(99)) if max(s.image.shape) <= 127
  )
  cv2.imwrite(str(folder / 'scene.png'), scene.image[..., ::-1])
  return folder / 'demo.zip', folder / 'scene.png'


def test_folded_norms_give_the_same_maps():
  config = dict(detector.VARIANTS['tiny'], dims=(8, 12), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8)
  module = detector.build(dict(config, stacks=2))
  rng = np.random.default_rng(0)
  images = rng.normal(0, 1, (1, 39, 47, 3)).astype(np.float32)
  shapes_of = jax.eval_shape(module.init, jax.random.key(0), images)

  def draw(path, leaf):
    name = path[-1].key
    low, high = {'kernel': (-1, 1), 'bias': (-1, 1)}.get(name, (0.3, 2.0))
    fan_in = np.prod(leaf.shape[:-1]) if name == 'kernel' else 1
    return (rng.uniform(low, high, leaf.shape) / np.sqrt(fan_in / 3 if fan_in > 1 else 1)).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, shapes_of)
  folded = layers.fold_norms(variables)
  expected = jax.jit(module.apply)(variables, images)[-1]
  found = jax.jit(module.clone(norm_folded=True).apply)(folded, images)[-1]
  for name, value in vars(expected).items():
    if value is not None:
      scale = np.abs(value).max()
      assert scale > 0.01 and np.abs(getattr(found, name) - value).max() <= 1e-4 * scale, name
  leaves = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(folded)}
  assert set(folded) == {'params'} and not any('scale' in name for name in leaves)
  with pytest.raises(ValueError, match='folded into its convolutions'):
    module.clone(norm_folded=True).apply(folded, images, train=True)


def test_fold_by_hand():
  rng = np.random.default_rng(2)
  kernel, scale, bias, mean = rng.normal(size=(1, 1, 3, 2)), *rng.normal(size=(3, 2))
  var = rng.uniform(0.5, 2, 2)
  params = {'a': {'conv': dict(kernel=kernel), 'norm': dict(scale=scale, bias=bias)}, 'b': dict(kernel=kernel)}
  folded = layers.fold_norms({'params': params, 'batch_stats': {'a': {'norm': dict(mean=mean, var=var)}}})['params']
  x = rng.normal(size=3)
  expected = (x @ kernel[0, 0] - mean) / np.sqrt(var + EPSILON) * scale + bias
  result = x @ folded['a']['conv']['kernel'][0, 0] + folded['a']['norm']['bias']
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert folded['b'] is params['b']
  with pytest.raises(ValueError, match='no convolution takes the norm of params/a'):
    layers.fold_norms({'params': {'a': {'norm': {}}}, 'batch_stats': {'a': {'norm': {}}}})


FIRST_BOXES = """
import json, sys, triplet_det
(found,) = triplet_det.load(sys.argv[1])([sys.argv[2]])
print(json.dumps([found.boxes.tolist(), list(sys.modules)]))
"""


def test_a_fresh_process_finds_the_same_boxes_without_the_network(demo_file):
  file, scene = map(str, demo_file)
  (expected,) = triplet_det.load('demo')([scene])
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(jax.config.jax_compilation_cache_dir),
    'PYTHONPATH': forks.IMPORTS,
  }
  command = [sys.executable, '-c', FIRST_BOXES, file, scene]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  boxes, modules = json.loads(done.stdout)
  assert len(expected) == len(boxes) > 10
  np.testing.assert_allclose(boxes, expected.boxes, rtol=0, atol=1e-3)
  # Of the models' room only how pixels are normalised: no network.
  assert {name for name in modules if name.startswith('triplet_det.models.')} <= {'triplet_det.models.input_pixels'}


def test_several_scales_and_images_per_batch(run_folder, two_scales):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 50), (95, 63), (60, 33), (41, 52), (64, 40))]
  reference, file = triplet_det.load(run_folder, scales=(1.0, 0.5)), triplet_det.load(two_scales)
  assert file.categories == reference.categories
  for found, expected in zip(file(images), reference(images), strict=True):
    assert len(found) == 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes, expected.classes)
  assert file.tester.num_programs == 2


def test_a_small_image_goes_to_the_middle_of_the_smallest_canvas_that_holds_it(two_scales):
  tester = exported_file.ExportedDetector(two_scales)
  every = [((63, 63), (31, 31)), ((95, 63), (63, 31))]
  assert [one.canvases for one in tester.sidecar.programs] == every
  image = np.full((20, 11, 3), 7, np.uint8)
  assert tester.canvases_for(image, 'x') == every[0]
  assert tester.canvases_for(np.zeros((64, 5, 3), np.uint8), 'x') == every[1]
  placed, placement = batches.place_batch([image], 1.0, tester.settings, 2, (95, 63))
  np.testing.assert_array_equal(placed[0], placed[1])  # a row without an image repeats the first
  placed, border, size, scale = placed[0], placement.border[0], placement.size[0], placement.scale[0]
  inside = np.argwhere(placed[..., 0] == 7)
  assert placed.shape == (95, 63, 3) and (placed > 0).sum() == image.size
  np.testing.assert_array_equal(border, inside.min(0)[::-1])
  np.testing.assert_array_equal(size, (11, 20))
  np.testing.assert_array_equal(scale, (1, 1))
  assert np.abs(inside.min(0) + inside.max(0) - (94, 62)).max() <= 1  # as far from one side as from the other


def test_the_file_describes_itself(demo_file):
  with zipfile.ZipFile(demo_file[0]) as archive:
    content = json.loads(archive.read('detector.json'))
    program = jax_export.deserialize(bytearray(archive.read(content['programs'][0]['file'])))
    with archive.open('weights.npz') as weights:
      names = np.load(weights).files
  assert [one['name'] for one in content['categories']] == list(triplet_det.load(demo_file[0]).categories.names)
  assert content['programs'] == [dict(file='programs/127x127', canvases=[[127, 127]])]
  assert list(program.platforms) == content['platforms'] == ['cpu', 'cuda', 'tpu']
  given, results = jax.tree.unflatten(program.in_tree, program.in_avals)[0], program.out_tree
  assert [list(given[0]), len(given)] == [sorted(names), len(content['arguments'])]
  assert {one.dtype for one in program.in_avals} == {np.dtype('float32'), np.dtype('uint8')}
  assert set(jax.tree.unflatten(results, program.out_avals)) == set(content['results'])
  assert not any('batch_stats' in name or name.endswith('norm/scale') for name in names)
  assert content['checkpoint']['step'] == 2000 and content['settings']['mirror']
  assert content['versions']['jax'] == jax.__version__
  assert len(program.mlir_module_serialized) < 200_000  # the weights are not baked in


def test_published_soft_nms_cannot_be_exported(tmp_path):
  run = write_run(tmp_path / 'run', dataclasses.replace(SETTINGS, stale_rows=True))
  with pytest.raises(ValueError, match=r'test\.stale_rows.*--sound_nms'):
    export.export(str(run), tmp_path / 'a.zip', sizes=((40, 40),))
  sidecar = export.export(str(run), tmp_path / 'a.zip', sizes=((40, 40),), sound_nms=True)
  assert sidecar.settings['stale_rows'] is False


def test_an_export_that_is_killed_leaves_no_detector(run_folder, tmp_path, monkeypatch):
  out = tmp_path / 'a.zip'
  out.write_text('an older one')
  monkeypatch.setattr(export, 'lower', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    export.export(str(run_folder), out, sizes=((40, 40),))
  assert out.read_text() == 'an older one' and sorted(path.name for path in tmp_path.iterdir()) == [
    'a.zip',
    'a.zip.tmp',
  ]
  assert not loading.is_exported(tmp_path / 'a.zip.tmp')
  monkeypatch.undo()
  monkeypatch.setattr(export, 'lower', lambda *_: b'')
  export.export(str(run_folder), out, sizes=((40, 40),))
  assert [path.name for path in tmp_path.iterdir()] == ['a.zip'] and zipfile.is_zipfile(out)


def test_mistakes_are_named(run_folder, two_scales, tmp_path):
  run, out = str(run_folder), tmp_path / 'a.zip'
  for match, path, given in (
    ('must end in .zip or .onnx', tmp_path / 'a.bin', {}),
    ('unknown platform gpu; possible: cpu, cuda', out, dict(platforms=('cpu', 'gpu'))),
    ('at least one size', out, dict(sizes=())),
    ('one image per batch, got 1 and 0', out, dict(sizes=((9, 9),), batch_size=0)),
    ('canvas_multiple is 4, the network needs a multiple of 8', out, dict(canvas_multiple=4)),
    ("unknown setting 'scale'", out, dict(scale=2)),
  ):
    with pytest.raises(ValueError, match=match):
      export.export(run, path, **given)
  with pytest.raises(ValueError, match='exported already'):
    export.export(str(two_scales), out)
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match=r'is exported, and its settings with it'):
    triplet_det.load(two_scales, mirror=False)
  file = triplet_det.load(two_scales)
  with pytest.raises(
    ValueError, match=r'image 1 of 97 x 20 pixels needs .*127 x 31.*63 x 63 \+ 31 x 31, .*--sizes 97x20'
  ):
    file([np.zeros((20, 20, 3), np.uint8), np.zeros((20, 97, 3), np.uint8)])
  with pytest.raises(ValueError, match='boxes only'):
    file.heatmaps(np.zeros((20, 20, 3), np.uint8))
  with pytest.raises(ValueError, match=r'uint8 RGB array'):
    file([np.zeros((20, 20), np.uint8)])


def rewritten(file: Path, out: Path, **changes) -> Path:
  """The file with other entries in its sidecar."""
  with zipfile.ZipFile(file) as there, zipfile.ZipFile(out, 'w') as copy:
    for name in there.namelist():
      content = there.read(name)
      if name == 'detector.json':
        content = json.dumps(json.loads(content) | changes)
      copy.writestr(name, content)
  return out


def test_images_of_one_size(run_folder, tmp_path):
  """With an image_side the canvas is that of the scaled image, whatever its resolution; files of before have none."""
  rng, file = np.random.default_rng(0), tmp_path / 'one.zip'
  images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((60, 40), (120, 80), (30, 20), (200, 133))]
  export.export(str(run_folder), file, sizes=((60, 40),), image_side=45)
  reference, detector = triplet_det.load(run_folder, image_side=45), triplet_det.load(file)
  assert [one.canvases for one in detector.tester.sidecar.programs] == [((63, 31),)]  # of 45 x 30
  for found, expected in zip(detector(images), reference(images), strict=True):
    assert len(found) == 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
  with pytest.raises(ValueError, match=r'30 x 20 pixels needs a canvas of 63 x 31; .* again with --sizes 30x20$'):
    detector([np.zeros((20, 30, 3), np.uint8)])

  settings = dataclasses.asdict(detector.tester.settings)
  assert settings.pop('image_side') == 45
  before = triplet_det.load(rewritten(file, tmp_path / 'before.zip', settings=settings))
  assert before.tester.settings.image_side == 0
  ((found,), (expected,)) = (one([images[0][:45, :30]]) for one in (before, triplet_det.load(run_folder)))
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
  with pytest.raises(ValueError, match=r'40 x 60 pixels needs a canvas of 63 x 63; .* or make the image smaller'):
    before(images[:1])


def test_files_that_cannot_be_run_say_why(two_scales, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no exported detector .*none\.zip'):
    triplet_det.load(tmp_path / 'none.zip')
  (tmp_path / 'text.zip').write_text('no zip')
  with pytest.raises(ValueError, match='not a whole file'):
    triplet_det.load(tmp_path / 'text.zip')
  with zipfile.ZipFile(tmp_path / 'other.zip', 'w') as other:
    other.writestr('a.txt', 'another zip')
  with pytest.raises(ValueError, match=r'detector\.json'):
    triplet_det.load(tmp_path / 'other.zip')
  with pytest.raises(ValueError, match=r'exported for tpu, this process runs on cpu.*--platforms cpu'):
    triplet_det.load(rewritten(two_scales, tmp_path / 'tpu.zip', platforms=['tpu']))
  with pytest.raises(ValueError, match=r'is of format 2 .*reads formats up to 1'):
    triplet_det.load(rewritten(two_scales, tmp_path / 'new.zip', format=2))


def test_a_flipped_bit_in_a_file_is_harmless_or_found(two_scales, tmp_path):
  """In the entries, or in what zip writes around them, where it may go unnoticed without harm."""
  content, draw, found = two_scales.read_bytes(), random.Random(0), set()
  sound = exported_file.ExportedDetector(two_scales)
  with zipfile.ZipFile(two_scales) as archive:
    starts = [*(info.header_offset for info in archive.infolist()), archive.start_dir, len(content) - 22, len(content)]
  regions = [pair for pair in itertools.pairwise(starts) for _ in range(4)]
  for start, end in [*regions, *[(archive.start_dir, len(content))] * 30]:
    bit = draw.randrange(8 * start, 8 * end)
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    (tmp_path / 'flipped.zip').write_bytes(flipped)
    try:
      got = exported_file.ExportedDetector(tmp_path / 'flipped.zip')
    except ValueError as error:
      assert f'{tmp_path}/flipped.zip is not a whole file of triplet_det.export' in str(error)
      found.add(start)
    else:
      assert got.sidecar == sound.sidecar and got._serialised == sound._serialised
      jax.tree.map(np.testing.assert_array_equal, got._weights, sound._weights)
  assert set(starts[:-3]) <= found  # all entries


def test_weights_that_are_not_finite(two_scales, tmp_path):
  with zipfile.ZipFile(two_scales) as there, zipfile.ZipFile(tmp_path / 'nan.zip', 'w') as copy:
    for name in there.namelist():
      content = there.read(name)
      if name == 'weights.npz':
        weights = dict(np.load(io.BytesIO(content)))
        name_of_one = sorted(weights)[3]
        weights[name_of_one] = np.full_like(weights[name_of_one], np.nan)
        content = export._as_npz(weights)
      copy.writestr(name, content)
  size = weights[name_of_one].size
  with pytest.raises(
    ValueError, match=rf'nan\.zip cannot detect: {size} numbers of {name_of_one} are not finite\. Give'
  ):
    triplet_det.load(tmp_path / 'nan.zip')


def test_sizes_are_width_by_height():
  assert export.parse_size('640x480') == (480, 640)
  for wrong in ('640', '640x', 'x480', '0x9', '1x2x3'):
    with pytest.raises(Exception, match='WIDTHxHEIGHT'):
      export.parse_size(wrong)
  assert loading.is_exported('a.zip')


def test_predict_leaves_out_what_is_larger_than_all_canvases(two_scales, tmp_path):
  for name, width in (('a', 50), ('b', 97)):
    cv2.imwrite(str(tmp_path / f'{name}.png'), np.full((40, width, 3), 99, np.uint8))
  outcome = over_files.predict(
    triplet_det.load(two_scales), [tmp_path / 'b.png', tmp_path / 'a.png'], tmp_path / 'out', threshold=0.0
  )
  assert outcome.summary.images == outcome.programs == 1
  assert '--sizes 97x40' in outcome.summary.left_out[str(tmp_path / 'b.png')]
  (row,) = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  assert row['image'] == str(tmp_path / 'a.png') and len(row['detections']) == outcome.summary.boxes
