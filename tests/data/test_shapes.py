"""The embedded data set: what is drawn is what the ground truth says, the same on every run, and misleads corners."""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from triplet_det.data import shapes_dataset, shapes_drawing

TINY = dict(train_images=12, validation_images=6)
HOLLOW = ('ring', 'frame', 'hollow triangle', 'hollow diamond')
FROZEN_SHAPE = (177, 157, 3)
FROZEN = [
  (0, 91, 67, 65, 82),
  (0, 27, 20, 64, 82),
  (3, 41, 67, 51, 67),
  (3, 2, 21, 50, 67),
  (2, 77, 34, 58, 72),
  (5, 116, 129, 31, 38),
  (3, 0, 84, 68, 72),
]  # class index, x, y, width, height


@pytest.fixture(scope='module')
def drawn():
  """250 scenes and the stencils' shares inside the image, as they were painted."""
  inside = []
  with pytest.MonkeyPatch.context() as patch:
    paint = shapes_drawing.paint_object
    patch.setattr(
      shapes_drawing, 'paint_object', lambda c, stencil, look: (inside.append(stencil.inside), paint(c, stencil, look))
    )
    return [shapes_dataset.draw_scene(0, 'train', i) for i in range(250)], inside


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """(data_dir, directory of the prepared set)."""
  data_dir = tmp_path_factory.mktemp('shapes')
  return data_dir, shapes_dataset.prepare(data_dir, **TINY)


def look_of(name, **changes):
  fields = dict(
    label=shapes_drawing.CLASS_NAMES.index(name),
    side=40.0,
    aspect=1.3,
    hole=0.5,
    color=np.float32([200, 40, 40]),
    pattern='plain',
    period=5.0,
    slant=0.3,
  )
  return shapes_drawing.Look(**(fields | changes))


def digest(scene):
  truth = [(o.label, o.box, o.area, o.mask.tobytes()) for o in scene.objects]
  return hashlib.sha256(scene.image.tobytes() + repr(truth).encode()).hexdigest()


def analytic_mask(name, look, center, angle, height, width, fine=8):
  """[H, W] bool, pixels at least half painted, and the same with the hole filled: from inequalities, not polygons."""
  y, x = (np.mgrid[: height * fine, : width * fine] + 0.5) / fine
  x, y = x - center[0], y - center[1]
  u = (x * np.cos(angle) + y * np.sin(angle)) / look.size[0]
  v = (y * np.cos(angle) - x * np.sin(angle)) / look.size[1]

  def inside(u, v):
    if name in ('disc', 'ring'):
      return u**2 + v**2 <= 0.25
    if name in ('square', 'frame'):
      return np.maximum(abs(u), abs(v)) <= 0.5
    if name in ('diamond', 'hollow diamond'):
      return abs(u) + abs(v) <= 0.5
    return (v <= 0.5) & (v >= 2 * abs(u) - 0.5)  # triangle: apex above, base below

  low = 1 / 6 if 'triangle' in name else 0  # the hole is scaled around the centroid
  whole = inside(u, v)
  paint = whole & ~inside(u / look.hole, (v - low) / look.hole + low) if name in HOLLOW else whole
  return tuple(m.reshape(height, fine, width, fine).mean((1, 3)) >= 0.5 for m in (paint, whole))


def extent(mask):
  """COCO box of a mask."""
  rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
  return columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]


def paste(item, height, width):
  """[H, W] bool: the object's mask in the image."""
  mask = np.zeros((height, width), bool)
  x, y, w, h = item.box
  mask[y : y + h, x : x + w] = item.mask
  return mask


def visible_masks(scene):
  """What shows of each object after all are drawn, from the masks alone."""
  masks = [paste(o, *scene.image.shape[:2]) for o in scene.objects]
  covered = np.zeros(scene.image.shape[:2], bool)
  shows = []
  for mask in reversed(masks):
    shows.append(mask & ~covered)
    covered |= mask
  return shows[::-1]


@pytest.mark.parametrize('name', shapes_drawing.CLASS_NAMES)
@pytest.mark.parametrize('side, center', [(17.0, (30.3, 25.8)), (52.0, (50.5, 55.1)), (60.0, (12.0, 64.4))])
def test_an_object_is_its_shape(name, side, center):
  height, width, angle = 110, 120, 0.0 if 'triangle' in name else 0.17
  look = look_of(name, side=side)
  stencil = shapes_drawing.rasterise(look, center, angle, (height, width))
  item = shapes_drawing.ground_truth(stencil, look.label)
  paint, whole = analytic_mask(name, look, center, angle, height, width)
  mine = paste(item, height, width)
  assert (mine & paint).sum() / (mine | paint).sum() > (0.9 if side < 20 else 0.96)
  np.testing.assert_allclose(item.box, extent(whole), atol=1)
  np.testing.assert_allclose(item.area, whole.sum(), rtol=0.08 if side < 20 else 0.03)


@pytest.mark.parametrize('name', shapes_drawing.CLASS_NAMES)
def test_boxes_come_from_the_painted_pixels(name):
  look = look_of(name, side=45.0)
  for center, angle in (((60.2, 44.7), 0.2), ((14.0, 80.0), -0.1), ((118.0, 10.5), 0.0)):
    canvas = np.full((90, 130, 3), 128, np.float32)
    stencil = shapes_drawing.rasterise(look, center, angle, canvas.shape[:2])
    shapes_drawing.paint_object(canvas, stencil, look)
    item = shapes_drawing.ground_truth(stencil, look.label)
    # The rim is 0.55 x the colour: half a coverage moves the red channel, 128 -> 110, by half of 18.
    painted = np.abs(canvas - 128).max(-1) >= 0.5 * np.abs(0.55 * look.color - 128).max() - 0.5
    assert extent(painted) == item.box
    if name not in HOLLOW:  # the edge of a hole has no rim
      np.testing.assert_array_equal(paste(item, 90, 130), painted)


def test_share_inside_the_image():
  look = look_of('square', side=40.0, aspect=1.0)
  assert shapes_drawing.rasterise(look, (50, 50), 0.0, (100, 100)).inside == pytest.approx(1)
  assert shapes_drawing.rasterise(look, (10, 50), 0.0, (100, 100)).inside == pytest.approx(0.75, abs=0.01)
  corner = shapes_drawing.rasterise(look, (0, 100), 0.0, (100, 100))
  assert corner.inside == pytest.approx(0.25, abs=0.01)
  assert shapes_drawing.ground_truth(corner, 0).box == (0, 80, 20, 20)


def test_masks_and_areas_of_scenes(drawn):
  for scene in drawn[0][:80]:
    height, width, _ = scene.image.shape
    for item in scene.objects:
      x, y, w, h = item.box
      assert x >= 0 and y >= 0 and x + w <= width and y + h <= height and item.mask.shape == (h, w)
      assert item.mask[0].any() and item.mask[-1].any() and item.mask[:, 0].any() and item.mask[:, -1].any()
      if x > 0 and y > 0 and x + w < width and y + h < height:  # a hole that the border opens cannot be filled so
        contours, _ = cv2.findContours(item.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros((h, w), np.uint8), contours, -1, 1, cv2.FILLED)
        assert filled.sum() == item.area
        hollow = shapes_drawing.CLASS_NAMES[item.label] in HOLLOW
        assert (0.55 < item.mask.sum() / item.area < 0.85) if hollow else (item.mask.sum() == item.area)


def test_the_same_seed_draws_the_same_and_others_do_not(drawn):
  again = [shapes_dataset.draw_scene(0, 'train', i) for i in range(20)]
  assert [digest(s) for s in again] == [digest(s) for s in drawn[0][:20]]
  others = [shapes_dataset.draw_scene(0, 'validation', i) for i in range(20)] + [
    shapes_dataset.draw_scene(1, 'train', i) for i in range(20)
  ]
  pictures = {hashlib.sha256(s.image.tobytes()).digest() for s in drawn[0] + others}
  assert len(pictures) == len(drawn[0]) + 40


def test_the_picture_of_version_1(drawn):
  """Whoever changes this must raise ShapesBuilder.VERSION, else old and new pictures share a directory."""
  assert str(shapes_dataset.ShapesBuilder.VERSION) == '1.0.0'
  first = drawn[0][0]
  assert first.image.shape == FROZEN_SHAPE
  assert [o.label for o in first.objects] == [row[0] for row in FROZEN]
  np.testing.assert_allclose([o.box for o in first.objects], [row[1:] for row in FROZEN], atol=1)


def test_sizes_classes_and_groups(drawn):
  objects = [o for s in drawn[0] for o in s.objects]
  sizes = np.array([np.searchsorted([32**2, 96**2], o.area, side='right') for o in objects])
  small, medium, large = np.bincount(sizes, minlength=3) / len(objects)
  assert 0.38 < small < 0.55 and 0.35 < medium < 0.52 and 0.07 < large < 0.15
  assert min(min(o.box[2:]) for o in objects) >= 13
  labels = np.bincount([o.label for o in objects], minlength=8) / len(objects)
  assert labels.min() > 0.08 and labels.max() < 0.17
  # Size must not give the class away.
  for label in range(8):
    assert 0.3 < np.mean([o.area < 32**2 for o in objects if o.label == label]) < 0.62
  counts = [len(s.objects) for s in drawn[0]]
  assert min(counts) == 3 and 8 <= max(counts) <= 10 and 4.5 < np.mean(counts) < 6
  several = [max(collections.Counter(o.label for o in s.objects).values()) >= 2 for s in drawn[0]]
  assert np.mean(several) > 0.85
  heights, widths, _ = np.array([s.image.shape for s in drawn[0]]).T
  assert min(heights.min(), widths.min()) >= 96 and max(heights.max(), widths.max()) <= 191
  assert 0.4 < np.mean(heights > widths) < 0.6
  aspects = [o.box[2] / o.box[3] for o in objects]
  assert np.percentile(aspects, 1) > 0.6 and np.percentile(aspects, 99) < 1.6


def test_objects_stay_visible_and_inside(drawn):
  shares = [
    shows.sum() / item.mask.sum()
    for scene in drawn[0]
    for shows, item in zip(visible_masks(scene), scene.objects, strict=True)
  ]
  assert min(shares) >= shapes_drawing.MIN_VISIBLE
  assert 0.2 < np.mean(np.array(shares) < 0.999) < 0.7  # there is occlusion
  inside = np.array(drawn[1])
  assert inside.min() >= shapes_drawing.MIN_INSIDE and 0.05 < np.mean(inside < 0.99) < 0.4


def test_objects_stand_out_from_the_background(drawn):
  for scene in drawn[0]:
    shows = visible_masks(scene)
    background = np.median(scene.image[~np.any(shows, axis=0)], axis=0)
    for mask in shows:
      inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
      if inner.sum() >= 20:
        assert np.linalg.norm(scene.image[inner].mean(0) - background) > 35


def test_a_crowded_palette_still_differs_from_the_background():
  background = np.float32([128, 128, 128])
  corners = [np.float32(c) for c in itertools.product((40, 130, 220), repeat=3)]
  for seed in range(30):
    color = shapes_drawing._distant_color(np.random.default_rng(seed), [background, *corners])
    assert np.linalg.norm(color - background) >= 85


def test_groups_stand_in_rows_and_columns(drawn):
  def aligned(a, b):
    off = [abs(a.box[i] + a.box[i + 2] / 2 - b.box[i] - b.box[i + 2] / 2) for i in (0, 1)]
    return a.label == b.label and min(off) < 0.12 * min(a.box[2:])

  rows = [any(aligned(a, b) for a, b in itertools.combinations(s.objects, 2)) for s in drawn[0]]
  assert np.mean(rows) > 0.55


def test_corners_alone_mislead_and_centers_tell(drawn):
  """Pairs of corners of one class from two objects are common; most have an empty central region (Eq. 1, n = 3)."""
  false_pairs = rejected = 0
  for scene in drawn[0]:
    for a, b in itertools.permutations(scene.objects, 2):
      x1, y1, x2, y2 = a.box[0], a.box[1], b.box[0] + b.box[2], b.box[1] + b.box[3]
      if a.label != b.label or x2 <= x1 or y2 <= y1:
        continue
      centers = [(o.box[0] + o.box[2] / 2, o.box[1] + o.box[3] / 2) for o in scene.objects if o.label == a.label]
      hit = [
        (2 * x1 + x2) / 3 < x < (x1 + 2 * x2) / 3 and (2 * y1 + y2) / 3 < y < (y1 + 2 * y2) / 3 for x, y in centers
      ]
      false_pairs += 1
      rejected += not any(hit)
  assert false_pairs / len(drawn[0]) > 2
  assert rejected / false_pairs > 0.6


def test_records_and_json_say_the_same(tiny):
  data_dir, directory = tiny
  for split, count in (('train', 12), ('validation', 6)):
    truth = json.loads((directory / 'annotations' / f'instances_{split}.json').read_text())
    images = {image['id']: image for image in truth['images']}
    of_image = collections.defaultdict(list)
    for annotation in truth['annotations']:
      of_image[annotation['image_id']].append(annotation)
    assert sorted(images) == list(range(1, count + 1))
    assert [a['id'] for a in truth['annotations']] == list(range(1, len(truth['annotations']) + 1))
    assert [c['name'] for c in truth['categories']] == list(shapes_dataset.CLASS_NAMES)
    decoders = {'image': tfds.decode.SkipDecoding()}
    records = tfds.builder_from_directory(directory).as_data_source(split=split, decoders=decoders)
    assert len(records) == count
    for record in records:
      image, annotations = images[record['image/id']], of_image[record['image/id']]
      height, width = image['height'], image['width']
      assert record['image/filename'].decode() == image['file_name']
      objects = record['objects']
      assert list(objects['id']) == [a['id'] for a in annotations]
      assert list(objects['area']) == [a['area'] for a in annotations]
      assert [label + 1 for label in objects['label']] == [a['category_id'] for a in annotations]
      assert not any(objects['is_crowd']) and all(a['iscrowd'] == 0 for a in annotations)
      y1, x1, y2, x2 = np.array(objects['bbox']).T * np.array([[height], [width], [height], [width]])
      boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
      np.testing.assert_allclose(boxes, [a['bbox'] for a in annotations], atol=1e-4)
      scene = shapes_dataset.draw_scene(0, split, image['id'] - 1)
      assert [a['bbox'] for a in annotations] == [list(o.box) for o in scene.objects]
      names = {c['id']: c['name'] for c in truth['categories']}
      assert [names[a['category_id']] for a in annotations] == [
        shapes_drawing.CLASS_NAMES[o.label] for o in scene.objects
      ]
      stored = cv2.imdecode(np.frombuffer(record['image'], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
      assert stored.shape == (height, width, 3)
      assert np.abs(stored.astype(float) - scene.image).mean() < 9  # JPEG halves the colours' resolution
    source = shapes_dataset.open_split(data_dir, split, **TINY)
    assert len(source) == count and source.categories == shapes_dataset.CATEGORIES
    record = source[0]
    width = images[record.image_id]['width']
    expected = [a['bbox'][0] / width for a in of_image[record.image_id]]
    np.testing.assert_allclose(record.boxes[:, 0], expected, atol=1e-6)


def test_the_truth_scores_1_by_pycocotools(tiny):
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(tiny[1] / 'annotations' / 'instances_validation.json'))
    found = truth.loadRes([dict(a, score=0.9) for a in truth.dataset['annotations']])
    evaluation = COCOeval(truth, found, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  assert evaluation.stats[0] == pytest.approx(1)
  assert (evaluation.stats[3:5] == 1).all()  # small and medium are there


def contents(directory):
  """Every record as TFDS gives it back, image bytes included, and the JSON files."""
  decoders = {'image': tfds.decode.SkipDecoding()}
  splits = tfds.builder_from_directory(directory).as_data_source(decoders=decoders)
  records = {split: [repr(record) for record in source] for split, source in splits.items()}
  return records, {p.name: p.read_text() for p in (directory / 'annotations').glob('*')}


def test_preparing_again_does_nothing(tiny, monkeypatch):
  data_dir, directory = tiny
  before = {p: p.stat().mtime for p in directory.glob('*')}
  monkeypatch.setattr(shapes_drawing, 'compose', lambda rng: pytest.fail('drawn again'))
  assert shapes_dataset.prepare(data_dir, **TINY) == directory
  assert {p: p.stat().mtime for p in directory.glob('*')} == before


def test_other_settings_have_another_directory(tiny):
  _, directory = tiny
  names = {shapes_dataset.ShapesConfig(**s).name for s in (TINY, TINY | {'seed': 1}, TINY | {'train_images': 13}, {})}
  assert len(names) == 4 and directory.parent.name in names


PREPARE = (
  'import sys; from triplet_det.data import shapes_dataset; '
  'print(shapes_dataset.prepare(sys.argv[1], train_images=int(sys.argv[2]), validation_images=int(sys.argv[3])))'
)


def start(data_dir, train_images, validation_images):
  command = [sys.executable, '-c', PREPARE, str(data_dir), str(train_images), str(validation_images)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_preparation_recovers(tiny, tmp_path):
  process = start(tmp_path, 12, 6000)
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob('shapes/*/incomplete.*/annotations/*')) and time.monotonic() < deadline:
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  parent = next(tmp_path.glob('shapes/*'))
  assert [p.name for p in parent.iterdir() if not p.name.startswith('incomplete.')] == []
  parent.rename(parent.parent / tiny[1].parent.name)  # as if the tiny set had been killed
  directory = shapes_dataset.prepare(tmp_path, **TINY)
  assert [p.name for p in directory.parent.iterdir()] == [directory.name]
  assert contents(directory) == contents(tiny[1])


def test_two_processes_at_once(tiny, tmp_path):
  processes = [start(tmp_path, 12, 6) for _ in range(2)]
  for process in processes:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip().endswith('shapes/seed0_train12_validation6/1.0.0')
  directory = shapes_dataset.prepare(tmp_path, **TINY)
  assert [p.name for p in directory.parent.iterdir()] == [directory.name]
  assert contents(directory) == contents(tiny[1])


@pytest.mark.parametrize('sweep', [False, True])
def test_the_slower_of_two_takes_the_winners_set(tiny, tmp_path, monkeypatch, sweep):
  compose = shapes_drawing.compose

  def overtaken(rng):
    target = tmp_path / 'shapes' / tiny[1].parent.name / '1.0.0'
    if not target.exists():
      shutil.copytree(tiny[1], target)
      if sweep:
        for unfinished in target.parent.glob('incomplete.*'):
          shutil.rmtree(unfinished)
    return compose(rng)

  monkeypatch.setattr(shapes_drawing, 'compose', overtaken)
  directory = shapes_dataset.prepare(tmp_path, **TINY)
  assert [p.name for p in directory.parent.iterdir()] == ['1.0.0']
  assert contents(directory) == contents(tiny[1])


def test_more_images_than_tfds_orders_in_memory(tmp_path):
  with pytest.raises(ValueError, match=r'shapes draws up to 50,000 images per split, 50,001 were asked for'):
    shapes_dataset.prepare(tmp_path, train_images=50_001)
  assert not list(tmp_path.iterdir())


def test_a_failed_preparation_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
  def fail(rng):
    raise OSError('disk full')

  monkeypatch.setattr(shapes_drawing, 'compose', fail)
  with pytest.raises(OSError, match='disk full'):
    shapes_dataset.prepare(tmp_path, **TINY)
  assert list(tmp_path.glob('shapes/*/*')) == []


def test_a_directory_without_its_info_is_made_anew(tiny, tmp_path):
  broken = tmp_path / 'shapes' / tiny[1].parent.name / '1.0.0'
  shutil.copytree(tiny[1], broken)
  (broken / 'dataset_info.json').unlink()
  next(broken.glob('*train*')).write_bytes(b'')
  assert contents(shapes_dataset.prepare(tmp_path, **TINY)) == contents(tiny[1])


def test_wrong_settings_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'validation'\]"):
    shapes_dataset.open_split(tmp_path, 'test')
  with pytest.raises(ValueError, match='got seed 0, 12 train and 0 validation images'):
    shapes_dataset.prepare(tmp_path, train_images=12, validation_images=0)
  with pytest.raises(ValueError, match='got seed -1'):
    shapes_dataset.prepare(tmp_path, seed=-1)
  assert list(tmp_path.iterdir()) == []
