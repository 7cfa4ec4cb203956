"""Import of the released state dicts: every key, every shape, exactly the values; one error with all that is wrong."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden_state import MMDETECTION, NETWORKS, drawn_weights, read, state_dict
from tests.released_keys import mmdetection_shapes, released_shapes
from triplet_det.models import detector, torch_import


def test_a_network_with_an_encoder_has_no_released_names():
  with pytest.raises(ValueError, match='hourglasses alone, this network has the encoder efficientnet_lite0'):
    torch_import.export_state_dict({}, detector.VARIANTS['photos'])


def test_mmdetection_has_no_centers():
  with pytest.raises(ValueError, match='pixels=imagenet is of mmdetection, which has CornerNet alone'):
    torch_import.export_state_dict({}, dict(NETWORKS['centernet'], pixels='imagenet'))


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
  return NETWORKS[request.param], state_dict(read(f'small_net_{request.param}'))


@pytest.fixture(scope='module', params=[*NETWORKS, 'mmdetection'])
def any_network(request):
  if request.param == 'mmdetection':
    return MMDETECTION, drawn_weights(mmdetection_shapes(MMDETECTION))
  return NETWORKS[request.param], state_dict(read(f'small_net_{request.param}'))


def test_the_config_is_read_off_the_keys(any_network):
  config, released = any_network
  prefixed = {f'module.{key}': array for key, array in released.items()}
  for keys in (released, prefixed):
    built, wanted = (detector.build(one).config for one in (torch_import.infer_model_config(keys), config))
    assert dataclasses.replace(built, norm_group=None, norm_running='all') == wanted


def test_round_trip_is_exact(any_network):
  config, released = any_network
  variables = torch_import.import_state_dict(released, config)
  back = torch_import.export_state_dict(variables, config)
  assert back.keys() == released.keys()
  for name, array in released.items():
    assert back[name].dtype == np.float32
    np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_prefix_and_counters_are_ignored(any_network):
  config, released = any_network
  prefixes = ('module.', 'module.module.', '')  # one for each wrapping
  saved = {f'{prefixes[i % 3]}{name}': array for i, (name, array) in enumerate(released.items())}
  saved['module.pre.0.bn.num_batches_tracked'] = np.int64(480000)
  ours, expected = (torch_import.import_state_dict(s, config) for s in (saved, released))
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_layout_and_channel_order():
  released = state_dict(read('small_net_centernet'))
  params = torch_import.import_state_dict(released, NETWORKS['centernet'])['params']
  stem, inner = released['pre.0.conv.weight'], released['pre.1.conv1.weight']
  ours = params['stem']['block']['conv']['kernel']
  for blue_green_red, red_green_blue in ((0, 2), (1, 1), (2, 0)):
    np.testing.assert_array_equal(ours[1, 5, red_green_blue], stem[:, blue_green_red, 1, 5])
  np.testing.assert_array_equal(params['stem']['residual']['block']['conv']['kernel'][0, 2, 7], inner[:, 7, 0, 2])


def test_mmdetection_reads_red_first():
  weights = drawn_weights(mmdetection_shapes(MMDETECTION))
  kernel = torch_import.import_state_dict(weights, MMDETECTION)['params']['stem']['block']['conv']['kernel']
  np.testing.assert_array_equal(kernel, weights['backbone.stem.0.conv.weight'].transpose(2, 3, 1, 0))


def test_all_that_does_not_fit_is_in_one_error(network):
  config, released = network
  broken = dict(released)
  del broken['kps.0.up1.0.bn1.running_var'], broken['tl_tags.1.1.bias']
  broken['kps.7.surplus.weight'] = np.zeros(3, np.float32)
  broken['module.another'] = np.zeros(1, np.float32)
  broken['pre.0.bn.bias'] = np.zeros(17, np.float32)
  broken['cnvs.0.conv.weight'] = np.zeros((32, 32, 5, 5), np.float32)
  broken['cnvs.1.conv.weight'] = np.zeros((32, 288), np.float32)
  broken['pre.0.bn.weight'] = broken['pre.0.bn.weight'] * np.float32('nan')
  broken['pre.0.bn.running_var'] = broken['pre.0.bn.running_var'] - 1000
  with pytest.raises(ValueError) as error:
    torch_import.import_state_dict(broken, config)
  message = str(error.value)
  for part in (
    '2 missing: kps.0.up1.0.bn1.running_var, tl_tags.1.1.bias',
    '2 not known to the network: another, kps.7.surplus.weight',
    '3 of another shape',
    '2 with values that are not finite, or variances below 0: pre.0.bn.running_var, pre.0.bn.weight',
    'pre.0.bn.bias: given (17,), the network has (16,)',
    'cnvs.0.conv.weight: given (5, 5, 32, 32), the network has (3, 3, 32, 32)',
    'cnvs.1.conv.weight: given (32, 288), the network has (3, 3, 32, 32)',
  ):
    assert part in message


def test_weights_of_another_variant_are_refused():
  with pytest.raises(ValueError, match=r'not known to the network: .*ct_cnvs'):
    torch_import.import_state_dict(state_dict(read('small_net_centernet')), NETWORKS['cornernet'])
  with pytest.raises(ValueError, match=r'missing: .*ct_cnvs'):
    torch_import.import_state_dict(state_dict(read('small_net_cornernet')), NETWORKS['centernet'])


def test_list_of_released_keys_is_that_of_the_small_networks(network):
  """The oracle of the next tests itself: names and shapes as the published programs wrote them."""
  config, released = network
  assert released_shapes(config) == {name: array.shape for name, array in released.items()}


def as_theirs(config):
  """The released name of every array, each once, and its shape with convolutions as OIHW."""
  shapes = {}
  for _, key, shape in torch_import.key_table(config):
    assert key not in shapes
    shapes[key] = tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape
  return shapes


@pytest.mark.parametrize('variant', ['hourglass-52', 'hourglass-104'])
def test_full_size_keys_and_shapes(variant):
  config = detector.VARIANTS[variant]
  expected = released_shapes(config)
  assert as_theirs(config) == expected
  parameters = sum(np.prod(shape) for key, shape in expected.items() if 'running' not in key)
  assert parameters == {'hourglass-52': 104_844_152, 'hourglass-104': 210_062_960}[variant]


CORNERNET_104 = dict(
  detector.VARIANTS['hourglass-104'], center_branch=False, center_pooling=False, cascade_corner_pooling=False
)


def test_full_size_keys_and_shapes_of_mmdetection():
  config = dict(CORNERNET_104, pixels='imagenet')
  assert as_theirs(config) == mmdetection_shapes(config)


# Prints the seconds of the import and the peak of memory in GiB.
FULL_SIZE = """
import resource, sys, time
import numpy as np
from tests.released_keys import mmdetection_shapes, released_shapes
from triplet_det.models import detector, torch_import

shapes, key = {
  'authors': (released_shapes, 'kps.1'), 'mmdetection': (mmdetection_shapes, 'backbone.hourglass_modules.1')
}[sys.argv[1]]
rng = np.random.default_rng(0)
shapes = shapes(detector.VARIANTS['hourglass-104'])
state = {f'module.{k}': rng.random(shape, np.float32) for k, shape in shapes.items()}
started = time.monotonic()
variables = torch_import.import_state_dict(state, torch_import.infer_model_config(state))
seconds = time.monotonic() - started
kernel = variables['params']['hourglass_1']['inner']['inner']['down_0']['block']['conv']['kernel']
assert (kernel == state[f'module.{key}.low2.low2.low1.0.conv1.weight'].transpose(2, 3, 1, 0)).all()
unit = 1 if sys.platform == 'darwin' else 1024
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30)
"""


@pytest.mark.parametrize('program', ['authors', 'mmdetection'])
def test_full_size_import_takes_seconds_and_two_copies(program):
  """Random weights of Hourglass-104, 0.84 GB: in a process of its own, so that its memory can be seen."""
  root = Path(__file__).parents[2]
  command = [sys.executable, '-c', FULL_SIZE, program]
  result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stderr
  seconds, gibibytes = map(float, result.stdout.split())
  assert seconds < 60
  assert gibibytes < 6
