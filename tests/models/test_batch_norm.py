"""Batch normalisation per group of images against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.models.batch_norm import BatchNorm


def numpy_norm(x, scale, bias, group):
  """Training mode in float64: the result, and each group's mean and unbiased variance."""
  y, means, variances = [], [], []
  for start in range(0, len(x), group):
    part = x[start : start + group].astype(np.float64)
    mean, variance = part.mean((0, 1, 2)), part.var((0, 1, 2))
    y.append((part - mean) / np.sqrt(variance + 1e-5) * scale + bias)
    means.append(mean)
    variances.append(part.var((0, 1, 2), ddof=1))
  return np.concatenate(y), np.array(means), np.array(variances)


@pytest.mark.parametrize('running', ['all', 'first'])
@pytest.mark.parametrize('group', [3, None])
def test_norm_statistics_are_per_group(group, running):
  rng = np.random.default_rng(0)
  x = (rng.normal(3, 2, (6, 2, 3, 4)) * rng.uniform(0.5, 3, (6, 1, 1, 1))).astype(np.float32)
  variables = {
    'params': dict(scale=rng.normal(1, 0.3, 4), bias=rng.normal(0, 1, 4)),
    'batch_stats': dict(mean=rng.normal(0, 1, 4), var=rng.uniform(0.5, 2, 4)),
  }
  variables = jax.tree.map(np.float32, variables)
  before = variables['batch_stats']
  y, after = BatchNorm(group, running).apply(variables, x, train=True, mutable=['batch_stats'])
  expected, means, variances = numpy_norm(x, **variables['params'], group=group or 6)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  kept = np.s_[:1] if running == 'first' else np.s_[:]
  after = after['batch_stats']
  np.testing.assert_allclose(after['mean'], 0.9 * before['mean'] + 0.1 * means[kept].mean(0), rtol=1e-5)
  np.testing.assert_allclose(after['var'], 0.9 * before['var'] + 0.1 * variances[kept].mean(0), rtol=1e-5)

  tested = BatchNorm(group, running).apply(variables, x, train=False)
  scaled = (x - before['mean']) / np.sqrt(before['var'] + 1e-5)
  np.testing.assert_allclose(tested, scaled * variables['params']['scale'] + variables['params']['bias'], atol=1e-5)


def test_one_pixel_one_image_norm_is_finite():
  x = np.full((1, 1, 1, 2), 3.0, np.float32)
  variables = BatchNorm().init(jax.random.key(0), x, train=False)
  y, after = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
  np.testing.assert_array_equal(y, np.zeros_like(x))
  np.testing.assert_allclose(after['batch_stats']['var'], 0.9)


def test_batch_must_be_a_multiple_of_the_norm_group():
  with pytest.raises(ValueError, match='batch of 4 images is not a multiple of the norm group of 3 images'):
    BatchNorm(3).init(jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), train=True)


def test_bfloat16_is_normalised_by_float32_statistics():
  """Of the rounded numbers, also where the mean is 20 deviations away; the result is off by bfloat16's rounding."""
  rng = np.random.default_rng(1)
  x = (rng.normal(0, 1, (4, 16, 16, 3)) + np.array([0, 5, 20])).astype(jnp.bfloat16)
  variables = {
    'params': dict(scale=np.ones(3, np.float32), bias=np.zeros(3, np.float32)),
    'batch_stats': dict(mean=np.zeros(3, np.float32), var=np.zeros(3, np.float32)),
  }
  y, after = BatchNorm(2, dtype=jnp.bfloat16).apply(variables, x, train=True, mutable=['batch_stats'])
  expected, means, variances = numpy_norm(x, 1, 0, group=2)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(after['batch_stats']['mean'], 0.1 * means.mean(0), rtol=1e-4, atol=1e-4)
  # float32 keeps 24 bits: mean^2 / variance = 400 of them cost 9.
  np.testing.assert_allclose(after['batch_stats']['var'], 0.1 * variances.mean(0), rtol=400 * 2.0**-20)
  # x * factor and the shift are float32, the result is rounded once to 8 bits.
  np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2.0**-8, atol=1e-3)
