"""Colours against the published program, given its random numbers; then the whole sampler, host and device together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_state import nhwc, read, relative_error, under
from triplet_det.data import augmentation
from triplet_det.models import input_pixels
from triplet_det.training import colour_augmentation, targets

GOLDEN = read('augment')
INPUT, OUTPUT, CLASSES = 127, 32, 80


def draws_of(order, change, normal_unit):
  """The published draws: kinds in the order of application, strength - 1, and N(0, 1) for the lighting."""
  return colour_augmentation.ColourDraws(
    order=np.asarray(order, np.int32)[None],
    strength=1 + np.asarray(change, np.float32)[None],
    lighting=0.1 * np.asarray(normal_unit, np.float32)[None],
  )


@jax.jit
def colours(images, draws):
  unlit = colour_augmentation.distort(images, draws.replace(lighting=jnp.zeros_like(draws.lighting)))
  lit = colour_augmentation.distort(images, draws)
  return unlit, lit, input_pixels.normalise(lit)


@pytest.mark.parametrize('n', range(6))
def test_colours_are_the_published_ones(n, parity):
  golden = under(GOLDEN, f'color/{n}/')
  image = GOLDEN['color/in'][None, ..., ::-1].astype(np.float32) / 255  # published: blue-green-red
  results = colours(image, draws_of(golden['order'], golden['u'], golden['normal_unit']))
  for name, ours in zip(('jittered', 'lit', 'normalised'), results):
    parity(f'colours: {name}', relative_error(ours[0, ..., ::-1], golden[name]), 2e-6)


@pytest.mark.parametrize('n', range(3))
def test_the_whole_sampler_is_the_published_one(n, parity):
  golden = under(GOLDEN, f'pipe/{n}/')
  draws = augmentation.Draws(float(golden['scale']), *map(int, golden['center_xy']), flip=bool(golden['flip_u'] > 0.5))
  example = augmentation.apply(
    GOLDEN['img'][..., ::-1], GOLDEN['dets'][:, :4], GOLDEN['dets'][:, 4].astype(np.int32) - 1, draws, INPUT
  )
  *_, image = colours(
    example.image[None].astype(np.float32) / 255,
    draws_of(golden['order'], golden['alphas_minus1'], golden['normal_unit']),
  )
  published = nhwc(golden['image'][None])[0]
  error = np.abs(np.asarray(image)[0, ..., ::-1] - published) / np.abs(published).max()
  # Where another release of OpenCV rounds a resized pixel to the other side: a step of 255, jittered and normalised.
  parity('whole sampler: image', error.max(), 1.4**2 / 255 / 0.274)
  parity('whole sampler: image, all pixels but 1 %', np.quantile(error, 0.99), 1e-5)

  boxes, classes, valid = augmentation.pad(example, 8)
  goal = targets.render(
    boxes[None],
    classes[None],
    valid[None],
    num_classes=CLASSES,
    input_size=INPUT,
    output_size=OUTPUT,
    min_overlap=0.7,
    published_radius=True,
  )
  assert valid.sum() == golden['num']
  for theirs, ours in dict(tl='tl', br='br', ct='center').items():
    np.testing.assert_array_equal(getattr(goal, f'{ours}_cell')[0], golden[f'{theirs}_tags'])
    heat = np.zeros((CLASSES, OUTPUT, OUTPUT))
    heat.flat[golden[f'{theirs}_heat/idx']] = golden[f'{theirs}_heat/val']
    parity('whole sampler: heatmaps', np.abs(getattr(goal, f'{ours}_heat')[0].transpose(2, 0, 1) - heat).max(), 1e-6)
    parity('whole sampler: offsets', np.abs(getattr(goal, f'{ours}_offset')[0] - golden[f'{theirs}_regr']).max(), 1e-5)


def test_jitter_is_the_three_blends_in_order():
  rng = np.random.default_rng(0)
  images = rng.uniform(0, 1, (24, 5, 7, 3)).astype(np.float32)
  draws = jax.tree.map(np.asarray, colour_augmentation.draw_colours(jax.random.key(0), 24, jitter=0.9, lighting=0))
  ours = colour_augmentation.distort(images, draws)
  seen = set()
  for image, order, strength, result in zip(images, draws.order, draws.strength, ours):
    seen.add(tuple(order))
    grey = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    for kind, alpha in zip(order, strength):
      other = {
        colour_augmentation.BRIGHTNESS: 0,
        colour_augmentation.CONTRAST: grey.mean(),
        colour_augmentation.SATURATION: grey[..., None],
      }
      image = alpha * image + (1 - alpha) * other[kind]
    np.testing.assert_allclose(result, image, atol=2e-6)
  assert len(seen) == 6  # all orders


def test_draws_have_the_published_distributions():
  draws = colour_augmentation.draw_colours(jax.random.key(1), 6000)
  orders, counts = np.unique(draws.order, axis=0, return_counts=True)
  assert len(orders) == 6 and (np.sort(orders, axis=1) == [0, 1, 2]).all()
  assert np.abs(counts / 6000 - 1 / 6).max() < 0.02
  assert 0.6 <= draws.strength.min() < 0.601 and 1.399 < draws.strength.max() <= 1.4
  np.testing.assert_allclose(draws.strength.mean(0), 1, atol=0.015)
  np.testing.assert_allclose(draws.lighting.std(0), 0.1, rtol=0.05)
  np.testing.assert_allclose(draws.lighting.mean(0), 0, atol=0.006)


def test_zero_strengths_change_nothing():
  images = np.random.default_rng(2).uniform(0, 1, (3, 4, 4, 3)).astype(np.float32)
  draws = colour_augmentation.draw_colours(jax.random.key(2), 3, jitter=0, lighting=0)
  np.testing.assert_array_equal(colour_augmentation.distort(images, draws), images)


def test_normalise_takes_bytes_and_fractions():
  images = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), np.uint8)
  of_bytes = input_pixels.normalise(images)
  assert of_bytes.dtype == jnp.float32
  np.testing.assert_array_equal(of_bytes, input_pixels.normalise(images.astype(np.float32) / 255))
  red, green, blue = (images[..., i] / 255 for i in range(3))
  np.testing.assert_allclose(of_bytes[..., 0], (red - 0.47026115) / 0.27809835, atol=1e-6)
  np.testing.assert_allclose(of_bytes[..., 1], (green - 0.44719302) / 0.27408164, atol=1e-6)
  np.testing.assert_allclose(of_bytes[..., 2], (blue - 0.40789654) / 0.28863828, atol=1e-6)
