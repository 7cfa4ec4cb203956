"""Evaluation with detectors whose answers are known: every image once, files that other programs can read."""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import shutil

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.tiny_coco import write_tiny_coco
from triplet_det import __version__, evaluate
from triplet_det.categories import CategoryTable
from triplet_det.data import pipeline
from triplet_det.detection import inference, trained_network
from triplet_det.detection.settings import Settings
from triplet_det.evaluators import best_and_worst
from triplet_det.models import detector
from triplet_det.report import run_folder
from triplet_det.run import json_files
from triplet_det.structs import Detections, KeypointMaps, Pairs

KINDS = ('png', 'jpg')  # of the pictures of an image
TINY = dict(stacks=1, dims=(8, 8, 8), blocks=(1, 1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)


class FakeDetector:
  """Answers with the detections it was given per image id, last image first; notes what it was shown."""

  settings = Settings()

  def __init__(self, answers):
    self.answers = answers
    self.shown = []

  def stream(self, images):
    for image_id, image in images:
      self.shown.append((image_id, image.shape))
    for image_id, _ in self.shown[::-1]:
      yield image_id, self.answers[image_id]

  def proposals(self, images):
    none = np.zeros(0, np.float32)
    pairs = Pairs(np.zeros((0, 4), np.float32), none, none, none, np.zeros(0, np.int32), np.zeros(0, bool))
    return [inference.Proposals(pairs, None, pairs.valid)] * len(images)


run_evaluation = functools.partial(evaluate.evaluate, split='train', run_name='run')


def found(boxes, classes, scores=None):
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else np.asarray(scores)
  return Detections(boxes, scores.astype(np.float32), np.asarray(classes, np.int32), np.ones(len(boxes), bool))


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  return write_tiny_coco(tmp_path_factory.mktemp('coco') / 'data', train=7, val=1)


@pytest.fixture(scope='module')
def source(coco):
  return pipeline.open_source('coco_json', images=coco.images(), annotations=coco.annotations())


def perfect(source):
  """Image id -> the boxes of the annotations that are not crowds."""
  answers = {}
  for image_id in source.image_ids:
    rows = [a for a in source.ground_truth['annotations'] if a['image_id'] == image_id and not a['iscrowd']]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (row['bbox'] for row in rows)]
    answers[image_id] = found(boxes, [source.categories.class_of(row['category_id']) for row in rows])
  return answers


@pytest.fixture(scope='module')
def evaluated(source, tmp_path_factory):
  """A perfect detector's evaluation: the detector, the metrics, the folder."""
  judged = FakeDetector(perfect(source))
  folder = tmp_path_factory.mktemp('evaluated') / 'eval' / 'step_000007'
  metrics = run_evaluation(judged, source, source.categories, folder, about=dict(step=7))
  return judged, metrics, folder


def test_every_image_once_by_canvas(source, evaluated):
  judged, _, _ = evaluated
  sizes = {image['id']: (image['height'], image['width'], 3) for image in source.ground_truth['images']}
  assert len(judged.shown) == 7 and dict(judged.shown) == sizes


def test_images_of_one_canvas_follow_each_other(source):
  judged = FakeDetector(perfect(source))
  judged.settings = Settings(canvas_multiple=32)
  assert list(evaluate.detect(judged, source)) == [image_id for image_id, _ in judged.shown[::-1]]
  canvases = [(height | 31, width | 31) for _, (height, width, _) in judged.shown]
  assert len(set(canvases)) > 1 and canvases == sorted(canvases)


def test_an_image_that_got_lost(source):
  judged = FakeDetector(perfect(source))
  judged.stream = lambda images: [(image_id, found([], [])) for image_id, _ in images][1:]
  with pytest.raises(RuntimeError, match=r'6 different images were evaluated, this host has 7 of the split'):
    evaluate.detect(judged, source)


def test_a_perfect_detector(evaluated):
  _, metrics, _ = evaluated
  assert metrics['AP'] == metrics['AP50'] == metrics['AR100'] == 1.0
  assert math.isnan(metrics['AP_L'])


def test_results_json_is_what_coco_s_server_takes(source, evaluated):
  _, _, folder = evaluated
  rows = json.loads((folder / 'results.json').read_text())
  assert all(set(row) == {'image_id', 'category_id', 'bbox', 'score'} for row in rows)
  want = [a for a in source.ground_truth['annotations'] if not a['iscrowd']]
  key = lambda row: (row['image_id'], row['category_id'], round(row['bbox'][0], 2))  # noqa: E731
  rows, want = sorted(rows, key=key), sorted(want, key=key)
  assert [(r['image_id'], r['category_id']) for r in rows] == [(a['image_id'], a['category_id']) for a in want]
  np.testing.assert_allclose([r['bbox'] for r in rows], [a['bbox'] for a in want], atol=1e-4)
  assert all(0.6 <= row['score'] <= 0.91 for row in rows)


def test_rounded_results(source, tmp_path):
  run_evaluation(FakeDetector(perfect(source)), source, source.categories, tmp_path, decimals=1)
  rows = json.loads((tmp_path / 'results.json').read_text())
  assert all(value == round(value, 1) for row in rows for value in (*row['bbox'], row['score']))


def strict(text):
  """JSON as other programs understand it, without Python's NaN."""

  def refuse(constant):
    raise ValueError(f'{constant} is not JSON')

  return json.loads(text, parse_constant=refuse)


def read_metrics(folder):
  metrics = strict((folder / 'metrics.json').read_text())['metrics']
  return {name: float(value) for name, value in metrics.items()}  # JSON has no NaN: it is the string "NaN"


def test_metrics_json(evaluated):
  _, metrics, folder = evaluated
  written = strict((folder / 'metrics.json').read_text())
  assert written['metrics']['AP'] == 1.0 and written['metrics']['AP_L'] == 'NaN'
  again = read_metrics(folder)
  assert all(isinstance(value, float) for value in again.values())
  assert {k: v for k, v in again.items() if v == v} == {k: v for k, v in metrics.items() if v == v}
  assert [k for k, v in again.items() if v != v] == [k for k, v in metrics.items() if v != v] != []
  assert evaluate.evaluation_folder(folder.parent.parent, 7) == folder


def test_an_evaluation_that_is_killed_leaves_nothing_that_looks_whole(source, evaluated, tmp_path, monkeypatch):
  _, _, folder = evaluated
  killed = tmp_path / 'eval' / 'step_000007'
  shutil.copytree(folder, killed)
  known = json.loads((folder / 'metrics.json').read_text())['results']
  text = (folder / 'results.json').read_bytes()
  assert known == dict(boxes=len(json.loads(text)), bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
  monkeypatch.setattr(evaluate.best_and_worst, 'write', lambda *_, **__: 1 / 0)
  nothing = FakeDetector({image_id: found([], []) for image_id in source.image_ids})
  with pytest.raises(ZeroDivisionError):
    run_evaluation(nothing, source, source.categories, killed)
  assert json.loads((killed / 'results.json').read_text()) == []
  assert not (killed / 'metrics.json').exists()  # and not those of the perfect detector
  # Files of two evaluations, brought together by hand.
  shutil.copy(folder / 'metrics.json', killed)
  with pytest.raises(
    ValueError, match=rf'metrics\.json is broken.*of results of {len(text)} bytes, results\.json .* has 3'
  ):
    run_folder.read_run(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  json_files.write_json(tmp_path / 'a.json', dict(a=1))
  (tmp_path / 'mine').write_text('mine')
  (tmp_path / 'a.json.tmp').symlink_to(tmp_path / 'mine')
  with pytest.raises(ValueError, match=r'a\.json\.tmp is a link to .*mine: it is not followed; remove it'):
    json_files.write_json(tmp_path / 'a.json', dict(a=9))
  assert (tmp_path / 'mine').read_text() == 'mine'
  (tmp_path / 'a.json.tmp').unlink()
  json_files.write_json(tmp_path / 'a.json', dict(a=2))
  monkeypatch.setattr(type(epath.Path(tmp_path)), 'replace', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    json_files.write_json(tmp_path / 'a.json', dict(a=3))
  assert json.loads((tmp_path / 'a.json').read_text()) == dict(a=2)


def test_the_name_of_the_folder(tmp_path):
  name = lambda **given: evaluate.evaluation_folder(tmp_path, 480_000, **given).relative_to(tmp_path).as_posix()  # noqa: E731
  assert name() == 'eval/step_480000'
  assert name(split='validation') == 'eval/validation_step_480000'
  assert name(split='validation', name='multi_scale') == 'eval/validation_step_480000_multi_scale'
  with pytest.raises(ValueError, match=r"eval_name becomes .*, not 'a/b'"):
    name(name='a/b')
  with pytest.raises(ValueError, match=r"data\.eval\.split becomes .*, not '\.\./x'"):
    name(split='../x')


def test_the_fingerprint_says_how_the_metrics_came_about(evaluated):
  _, _, folder = evaluated
  recipe = strict((folder / 'metrics.json').read_text())['fingerprint']
  assert (recipe['step'], recipe['split'], recipe['images'], recipe['decimals']) == (7, 'train', 7, -1)
  assert recipe['left_out'] == 0
  assert recipe['triplet_det'] == __version__ and recipe['devices'] == 1
  assert set(recipe['versions']) == {'jax', 'flax', 'faster-coco-eval', 'opencv-python-headless'}
  test = recipe['test']
  assert (test['scales'], test['mirror'], test['nms_method'], test['top_k']) == ([1.0], True, 'gaussian', 70)


def test_boxes_without_a_size_are_left_out_and_counted(coco, source, tmp_path, caplog):
  truth = json.loads(coco.annotations().read_text())
  for box in ([9, 9, 0, 0], [30, 9, -9, 9]):
    truth['annotations'].append(truth['annotations'][0] | dict(id=len(truth['annotations']), bbox=box))
  path = tmp_path / 'truth.json'
  path.write_text(json.dumps(truth))
  holed = pipeline.open_source('coco_json', images=coco.images(), annotations=path)
  with caplog.at_level(logging.INFO, logger='absl'):
    metrics = run_evaluation(FakeDetector(perfect(source)), holed, holed.categories, tmp_path / 'out')
  assert metrics['AP'] == 1.0
  assert strict((tmp_path / 'out/metrics.json').read_text())['fingerprint']['left_out'] == 2
  assert '2 boxes without a size inside their image are no objects to find, as in training' in caplog.text


def test_the_fingerprint_without_git_and_with_another_opencv(monkeypatch):
  version = evaluate.metadata.version

  def of_those_installed(name):
    if name.startswith('opencv'):
      raise evaluate.metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.setenv('PATH', '')
  monkeypatch.setattr(evaluate.metadata, 'version', of_those_installed)
  recipe = evaluate.fingerprint(Settings(), step=7)
  assert (recipe['step'], recipe['commit']) == (7, None)
  assert set(recipe['versions']) == {'jax', 'flax', 'faster-coco-eval'}


@pytest.fixture(scope='module')
def imperfect(source, tmp_path_factory):
  """Boxes moved by some pixels, some of the wrong class, and false ones: the metrics, and the folder."""
  rng = np.random.default_rng(1)
  answers = {}
  for image_id, right in perfect(source).items():
    boxes = np.repeat(right.boxes, 3, axis=0) + rng.normal(0, [[2, 2, 6, 6]], (3 * len(right.boxes), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    classes = np.where(rng.random(len(boxes)) < 0.2, 0, np.repeat(right.classes, 3))
    answers[image_id] = found([*boxes, (5, 5, 30, 30)], [*classes, 1], scores=rng.random(len(boxes) + 1))
  folder = tmp_path_factory.mktemp('imperfect')
  return run_evaluation(FakeDetector(answers), source, source.categories, folder), folder


def by_hand(annotations, results, thresholds=None):
  """COCOeval as its authors run it, on the two files."""
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(annotations))
    run = COCOeval(truth, truth.loadRes(str(results)), 'bbox')
    if thresholds is not None:
      run.params.iouThrs = np.array(thresholds)
    run.evaluate()
    run.accumulate()
    if thresholds is None:
      run.summarize()
  return run


def test_ap_is_pycocotools_on_the_written_results(coco, imperfect):
  metrics, folder = imperfect
  run = by_hand(coco.annotations(), folder / 'results.json')
  names = ['AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L']
  assert list(metrics)[:12] == names and 0.1 < metrics['AP'] < 0.9
  written = [read_metrics(folder)[name] for name in names]
  np.testing.assert_allclose(np.nan_to_num(written, nan=-1.0), run.stats, rtol=0, atol=1e-9)


def test_fd_is_pycocotools_on_the_written_results(coco, imperfect):
  """FD = 1 - AP over the IoU thresholds 0.05 : 0.05 : 0.5 (Sec. 3.1)."""
  _, folder = imperfect
  written = read_metrics(folder)
  curve = json.loads((folder / 'curves.json').read_text())['false_discovery']
  thresholds = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50]
  precision = by_hand(coco.annotations(), folder / 'results.json', thresholds).eval['precision'][..., -1]

  def fd(values):
    return 1 - values[values > -1].mean() if (values > -1).any() else math.nan

  want = {name: fd(precision[..., area]) for area, name in enumerate(('FD', 'FD_S', 'FD_M', 'FD_L'))}
  want |= {name: fd(precision[row, ..., 0]) for row, name in ((0, 'FD5'), (4, 'FD25'), (9, 'FD50'))}
  assert {name for name in written if name.startswith('FD')} == set(want)
  assert 0.05 < written['FD5'] < written['FD50'] < 0.95 and math.isnan(want['FD_L'])
  for name, value in want.items():
    np.testing.assert_allclose(written[name], value, rtol=0, atol=1e-9, err_msg=name)
  assert [row['iou'] for row in curve] == thresholds
  for i, row in enumerate(curve):
    for area, name in enumerate(('FD', 'FD_S', 'FD_M', 'FD_L')):
      np.testing.assert_allclose(float(row[name]), fd(precision[i, ..., area]), rtol=0, atol=1e-9)


def test_curves_json_is_pycocotools_precision(coco, imperfect):
  _, folder = imperfect
  curves = strict((folder / 'curves.json').read_text())
  run = by_hand(coco.annotations(), folder / 'results.json')
  precision = run.eval['precision'][..., 0, -1]  # IoU, recall, class
  np.testing.assert_allclose(curves['recall'], np.arange(101) / 100, atol=1e-12)
  assert [curve['iou'] for curve in curves['precision_recall']] == [0.5, 0.75]
  name_of = {1: 'square', 3: 'disc', 90: 'ring'}
  for curve, row in zip(curves['precision_recall'], (0, 5)):
    assert 0 < np.mean(curve['all']) < 1
    np.testing.assert_allclose(curve['all'], precision[row].mean(axis=1), rtol=0, atol=1e-9)
    assert set(curve['classes']) == set(name_of.values())
    for k, category in enumerate(run.params.catIds):
      np.testing.assert_allclose(curve['classes'][name_of[category]], precision[row, :, k], rtol=0, atol=1e-9)


def test_the_best_and_the_worst_are_drawn(source, tmp_path, monkeypatch):
  """One object image is answered with nothing, one with the wrong class; the image without objects is no candidate."""
  monkeypatch.setattr(best_and_worst, 'SHOWN', 2)
  answers = perfect(source)
  name_of = {image['id']: image['file_name'].removesuffix('.jpg') for image in source.ground_truth['images']}
  empty, wrong = 121, 128
  answers[empty] = found([], [])
  answers[wrong] = found(answers[wrong].boxes, (answers[wrong].classes + 1) % 3)
  (tmp_path / 'worst').mkdir()
  (tmp_path / 'worst' / 'of_an_earlier_evaluation.png').write_bytes(b'')
  (tmp_path / 'gallery.json').write_text('[{"image": "worst/of_an_earlier_evaluation.jpg"}]')
  run_evaluation(FakeDetector(answers), source, source.categories, tmp_path)
  assert {p.name for p in (tmp_path / 'worst').iterdir()} == {
    f'{name_of[i]}.{e}' for i in (empty, wrong) for e in KINDS
  }
  assert {p.name for p in (tmp_path / 'best').iterdir()} == {f'{name_of[i]}.{e}' for i in (107, 114) for e in KINDS}
  for picture in ('best.png', 'worst.png', f'worst/{name_of[wrong]}.png'):
    assert cv2.imread(str(tmp_path / picture)).std() > 1


def test_other_categories(source, tmp_path):
  other = CategoryTable((3, 1, 90), ('disc', 'square', 'triangle'))
  message = r"do not fit the checkpoint: 3 categories instead of 3; not known: \['ring'\]; lacking: \['triangle'\]"
  with pytest.raises(ValueError, match=message):
    run_evaluation(FakeDetector({}), source, other, tmp_path / 'out')
  other = CategoryTable((1, 3, 90), ('square', 'disc', 'ring'))
  with pytest.raises(ValueError, match=r'the 3 category names agree, their order or ids differ'):
    run_evaluation(FakeDetector({}), source, other, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['test_set', 'all_crowd'])
def test_a_split_without_an_object_to_find(coco, source, tmp_path, kind):
  """Results and pictures, but no metrics: an AP of 0 or a crash would both be wrong."""
  truth = json.loads(coco.annotations().read_text())
  if kind == 'test_set':
    del truth['annotations']
  else:
    truth['annotations'] = [{**a, 'iscrowd': 1} for a in truth['annotations']]
  path = tmp_path / 'truth.json'
  path.write_text(json.dumps(truth))
  bare = pipeline.open_source('coco_json', images=coco.images(), annotations=path, require_boxes=False)
  folder = tmp_path / 'out'
  judged = FakeDetector(perfect(source))
  where = dict(split='test-dev2017', run_name='my_run')
  assert evaluate.evaluate(judged, bare, bare.categories, folder, **where) == {}
  assert len(json.loads((folder / 'results.json').read_text())) == sum(len(d.boxes) for d in perfect(source).values())
  assert strict((folder / 'metrics.json').read_text())['metrics'] == {}
  assert strict((folder / 'curves.json').read_text()) == {}
  entries = strict((folder / 'gallery.json').read_text())
  assert len(entries) == 14 and all(entry['f1'] is None for entry in entries)
  assert len(list((folder / 'best').iterdir())) == 14
  assert (folder / 'best.png').exists()
  # Only what has no annotations goes to COCO's server, under the name that it wants.
  sent = list(folder.glob('detections_*'))
  assert [path.name for path in sent] == ['detections_test-dev2017_my_run_results.json'] * (kind == 'test_set')
  assert all(path.read_bytes() == (folder / 'results.json').read_bytes() for path in sent)


def test_a_canvas_that_does_not_fit_the_network():
  module = detector.build(TINY)
  with pytest.raises(ValueError, match=r'canvas_multiple is 8, the network needs a multiple of 16'):
    trained_network.make_detector(module, {}, Settings(canvas_multiple=8), batch_size=1)


def test_the_table_for_the_terminal():
  metrics = {'AP': 0.44949, 'AP_L': float('nan'), 'AP/cat': 0.5, 'AP/long name': 0.25, 'FD': 0.1, 'FD5': 0.05}
  assert evaluate.format_metrics(metrics).splitlines() == [
    '  AP      0.449',
    '  AP_L    nan',
    '  FD      0.100  lower is better',
    '  FD5     0.050',
    '  AP of cat        0.500',
    '  AP of long name  0.250',
  ]


def test_the_table_of_the_error_analysis():
  rows = [
    dict(replaced='nothing', metrics=dict(AP=0.4071, AP_S=0.2)),
    dict(replaced='everything', metrics=dict(AP=1.0, AP_S=float('nan'))),
  ]
  assert evaluate.format_error_analysis(rows).splitlines() == [
    '  replaced           AP   AP_S',
    '  nothing          40.7   20.0',
    '  everything      100.0    nan',
  ]


def test_one_cpu_takes_image_after_image():
  rng = np.random.default_rng(0)
  kernel, images = rng.normal(size=(3, 3, 3, 8)).astype(np.float32), rng.normal(size=(4, 16, 12, 3)).astype(np.float32)
  batches = []

  def apply_fn(kernel, images):
    batches.append(len(images))
    y = jax.lax.conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return KeypointMaps(y, y + 1, y[..., :1], y[..., 1:2], y[..., 2:4], y[..., 4:6])

  cpu = jax.devices()[:1]
  found = jax.jit(trained_network.suited(apply_fn, cpu))(kernel, images)
  assert batches == [1]  # traced once
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, apply_fn(kernel, images))
  assert found.center_heat is None
  gpu = type('Gpu', (), {'platform': 'gpu'})()
  assert (
    trained_network.suited(apply_fn, [gpu]) is apply_fn and trained_network.suited(apply_fn, [*cpu, gpu]) is apply_fn
  )
