"""mmdetection's CornerNet, part by part and from the file to boxes, against numbers of its own modules.

tests/golden/mmdetection.npz comes from mmdetection 2.28.2 (later ones have no flip for CornerNet, which its AP was
measured with), mmcv 1.7.2 and PyTorch 2.13 on a CPU: a small HourglassNet and CornerHead with drawn weights, the
pipeline and `test_cfg` of its configs/cornernet.
"""

import dataclasses

import jax
import numpy as np
import pytest

import triplet_det
from scripts import import_torch_checkpoint
from tests.golden_state import MMDETECTION, drawn_image, drawn_weights, nhwc, read, relative_error
from tests.released_keys import mmdetection_shapes
from triplet_det import export
from triplet_det.configs import cornernet
from triplet_det.detection import batches, canvas, inference, nms
from triplet_det.detection.settings import PUBLISHED_MMDETECTION, settings_for
from triplet_det.models import detector, input_pixels, pooling, torch_import
from triplet_det.structs import KeypointMaps

GOLDEN = read('mmdetection')
# Height and width. Heatmaps of drawn weights are hot in stripes; where many boxes are a pixel wide, soft-NMS makes more
# than the bound of the last bit of a coordinate. In these images they are not.
SIZES = [(100, 121), (127, 100), (127, 127), (100, 255), (37, 44)]
OUTPUTS = 'tl_heat', 'br_heat', 'tl_embed', 'br_embed', 'tl_offset', 'br_offset'


@pytest.fixture(scope='module')
def network():
  """The network and its variables, both from mmdetection's state dict alone."""
  weights = drawn_weights(mmdetection_shapes(MMDETECTION))
  model = torch_import.infer_model_config(weights)
  return detector.build(model), torch_import.import_state_dict(weights, model)


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mmdetection')
  categories = ', '.join(f'{{"id": {i}, "name": "class {i}"}}' for i in range(1, 6))
  images = '{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}'
  (folder / 'five.json').write_text(f'{{"images": [{images}], "annotations": [], "categories": [{categories}]}}')
  weights = drawn_weights(mmdetection_shapes(MMDETECTION))
  import_torch_checkpoint.write_run(weights, folder / 'run', folder / 'five.json', step=1)
  return folder / 'run'


def test_names_and_shapes_of_the_tests_are_those_of_its_modules():
  shapes = mmdetection_shapes(MMDETECTION)
  assert sorted(f'{key} {"x".join(map(str, shape))}' for key, shape in shapes.items()) == sorted(GOLDEN['keys'])


def test_maps(network, parity):
  module, variables = network
  (maps,) = jax.jit(module.apply)(variables, input_pixels.normalise(drawn_image(95, 127)[None]))
  errors = [relative_error(getattr(maps, name), nhwc(GOLDEN[f'map/{name}'])) for name in OUTPUTS]
  parity('mmdetection, small CornerNet: all maps', max(errors), 2e-5)


@pytest.mark.parametrize('kind, corner', [('tl', 'top_left'), ('br', 'bottom_right')])
def test_corner_pooling(network, kind, corner, parity):
  variables = {name: tree[f'{corner}_1']['pooling'] for name, tree in network[1].items()}
  pooled = pooling.CornerPooling(corner, MMDETECTION['pool_width']).apply(variables, nhwc(GOLDEN['feature']))
  parity('mmdetection, corner pooling: maps', relative_error(pooled, nhwc(GOLDEN[f'pool/{kind}'])), 2e-5)


def test_decoding(parity):
  """In an image of 121 x 82 pixels that lies at (3, 6) in a canvas of 127 x 95."""
  maps = KeypointMaps(**{name: nhwc(GOLDEN[f'map/{name}']) for name in OUTPUTS})
  placement = canvas.Placement(*(np.array([pair], np.float32) for pair in ((3, 6), (121, 82), (1, 1))))
  settings = dataclasses.replace(PUBLISHED_MMDETECTION, mirror=False)
  pairs, centers = jax.jit(inference.locate, static_argnums=(1, 2))(maps, settings, (95, 127), placement)
  valid = np.asarray(pairs.valid[0])
  assert centers is None and valid.sum() == len(GOLDEN['decoded/scores']) == 310 and valid[:310].all()
  assert (GOLDEN['decoded/boxes'] == 0).any() and (GOLDEN['decoded/boxes'][:, 2] > 121).any()  # cut, and not cut
  got = np.column_stack([pairs.boxes[0][valid], pairs.scores[0][valid], pairs.classes[0][valid]])
  want = np.column_stack([GOLDEN[f'decoded/{name}'] for name in ('boxes', 'scores', 'classes')])
  # Pairs that score the same may change places.
  got, want = (rows[np.lexsort((*rows[:, :4].round(2).T, -rows[:, 4].round(5)))] for rows in (got, want))
  apart = np.abs(got - want).max(axis=0)
  parity('mmdetection, decoding: boxes, pixels', apart[:4].max(), 1e-2)
  parity('mmdetection, decoding: scores', apart[4], 1e-5)
  assert apart[5] == 0


def kept(**changes):
  """The detections of the boxes of 80 classes in an image of 640 x 480 that both soft-NMS were given."""
  rule = dataclasses.replace(PUBLISHED_MMDETECTION, max_detections=1000, **changes).nms_settings()
  found = nms.soft_nms(*(GOLDEN[f'nms/{name}'] for name in ('boxes', 'scores', 'classes')), **rule)
  return jax.tree.map(lambda a: np.asarray(a)[found.valid], found)


def test_soft_nms(parity):
  found = kept()
  assert len(found.scores) == 884 and (GOLDEN['nms/scores'] < 1e-3).sum() == 538
  parity('mmdetection, soft-NMS: boxes, pixels', np.abs(found.boxes - GOLDEN['nms/kept_boxes']).max(), 1e-3)
  parity('mmdetection, soft-NMS: scores', np.abs(found.scores - GOLDEN['nms/kept_scores']).max(), 1e-6)
  np.testing.assert_array_equal(found.classes, GOLDEN['nms/kept_classes'])


def test_soft_nms_without_its_quirks_differs():
  assert len(kept(drop_untouched=False).scores) == 896  # 12 that nothing overlaps stay
  found = kept(class_shift=False)
  assert len(found.scores) == 884
  assert 1e-6 < np.abs(found.scores - GOLDEN['nms/kept_scores']).max() < 1e-4


@pytest.mark.parametrize('height, width', SIZES)
def test_network_inputs(height, width, parity):
  """Mean and deviation of the whole canvas, and the pixel (40, 40) of the image and of its mirror image."""
  canvases, placement = batches.place_batch([drawn_image(height, width)], 1.0, PUBLISHED_MMDETECTION, 1)
  images = inference.network_input(canvases, PUBLISHED_MMDETECTION, placement)
  images = np.asarray(input_pixels.renormalise(images, *input_pixels.STATISTICS['imagenet']), np.float64)
  got = [images[0].mean(), images[0].std(), *images[0, 40, 40], *images[1, 40, 40]]
  parity('mmdetection, network inputs', np.abs(np.array(got) - GOLDEN[f'test/{height}x{width}/input']).max(), 1e-5)


def apart(found, height, width):
  """The largest distances of boxes and of scores from mmdetection's; infinite if the classes differ."""
  want = GOLDEN[f'test/{height}x{width}/found']
  if not np.array_equal(found.classes, want[:, 5]):
    return np.inf, np.inf
  return np.abs(found.boxes - want[:, :4]).max(), np.abs(found.scores - want[:, 4]).max()


def test_the_whole_of_testing(run_folder, parity):
  loaded = triplet_det.load(run_folder, batch_size=2)
  assert loaded.tester.settings == PUBLISHED_MMDETECTION
  for (height, width), found in zip(SIZES, loaded([drawn_image(*size) for size in SIZES])):
    assert len(found.scores) == 100
    boxes, scores = apart(found, height, width)
    parity('mmdetection, the whole of testing, with flip: boxes, pixels', boxes, 1e-2)
    parity('mmdetection, the whole of testing, with flip: scores', scores, 1e-5)


# Setting without mmdetection's value -> an image whose boxes it changes.
QUIRKS = dict(
  cut_last_line=(False, (127, 127)),
  canvas_colour=('black', (37, 44)),
  near_edges=(False, (37, 44)),
  mirror_in_image=(False, (100, 121)),
  top_k=(70, (100, 121)),
)


@pytest.mark.parametrize('name', QUIRKS)
def test_every_setting_counts(name, run_folder):
  value, size = QUIRKS[name]
  (found,) = triplet_det.load(run_folder, **{name: value})([drawn_image(*size)])
  boxes, scores = apart(found, *size)
  assert boxes > 0.5 or scores > 1e-3


def test_the_config_for_mode_eval_has_its_settings():
  config = cornernet.get_config('hg=104,test=mmdetection')
  assert settings_for(config.test.to_dict()) == PUBLISHED_MMDETECTION
  assert config.result_decimals == -1 and config.eval_name == ''
  with pytest.raises(ValueError, match='test=mmdetection has one scale'):
    cornernet.get_config('test=mmdetection,scales=multi')


def test_it_leaves_as_one_file(run_folder, tmp_path):
  """Its soft-NMS works on the device; the canvas gets its colour in the program."""
  export.export(run_folder, tmp_path / 'a.zip', sizes=[(37, 44)])
  for size in ((37, 44), (127, 127)):
    (found,) = triplet_det.load(tmp_path / 'a.zip')([drawn_image(*size)])
    boxes, scores = apart(found, *size)
    assert boxes < 1e-2 and scores < 1e-5
