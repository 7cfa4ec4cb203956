"""The schedule against numbers by hand, Adam against its equations in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.training import optimizer

PAPER = dict(base=2.5e-4, total_steps=480_000, schedule='step', drop_step=450_000, drop_factor=0.1)


@pytest.mark.parametrize(
  'done, rate', [(0, 2.5e-4), (1, 2.5e-4), (449_999, 2.5e-4), (450_000, 2.5e-5), (450_001, 2.5e-5), (479_999, 2.5e-5)]
)
def test_the_paper_s_schedule(done, rate):
  """450,000 steps with 2.5e-4, then 30,000 with 2.5e-5: step k + 1 is taken at the rate after k steps."""
  assert float(optimizer.learning_rate(**PAPER)(done)) == pytest.approx(rate, rel=1e-6)


def test_cosine_with_a_linear_rise():
  rate = optimizer.learning_rate(base=2.0, total_steps=100, schedule='cosine', warmup_steps=4)
  got = [float(rate(done)) for done in (0, 1, 2, 3, 25, 50, 75, 100)]
  falling = [1 + math.cos(math.pi * done / 100) for done in (0, 1, 2, 3, 25, 50, 75, 100)]
  rising = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]
  np.testing.assert_allclose(got, np.multiply(falling, rising), rtol=1e-5, atol=1e-7)


def test_the_rise_and_the_drop_together():
  rate = optimizer.learning_rate(
    base=1.0, total_steps=10, schedule='step', drop_step=6, drop_factor=0.5, warmup_steps=2
  )
  np.testing.assert_allclose([float(rate(done)) for done in range(10)], [0.5, *[1.0] * 5, *[0.5] * 4], rtol=1e-6)


@pytest.mark.parametrize('drop_step', [0, -1, 11])
def test_a_drop_outside_the_run(drop_step):
  with pytest.raises(ValueError, match=rf'drop_step is {drop_step}, the run has 10 steps'):
    optimizer.learning_rate(base=1.0, total_steps=10, schedule='step', drop_step=drop_step)


def test_unknown_schedule():
  with pytest.raises(ValueError, match=r"unknown schedule 'linear'; possible: step, cosine"):
    optimizer.learning_rate(base=1.0, total_steps=10, schedule='linear')


def adam_in_numpy(parameters, gradients, rates, *, clip_norm=0.0):
  """Kingma and Ba, Algorithm 1, in float64; gradients is a list of one tree (dict of arrays) per step."""
  first, second = ({k: np.zeros_like(v) for k, v in parameters.items()} for _ in range(2))
  for step, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
    norm = math.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
    for name, g in gradient.items():
      g = g * factor
      first[name] = 0.9 * first[name] + 0.1 * g
      second[name] = 0.999 * second[name] + 0.001 * g**2
      mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
      parameters = {**parameters, name: parameters[name] - rate * mean / (np.sqrt(square) + 1e-8)}
  return parameters


def test_the_encoder_goes_slower():
  params = {'encoder': {'a': jnp.ones(3)}, 'neck': jnp.ones(2)}
  gradients = jax.tree.map(lambda x: jnp.linspace(-1, 2, x.size), params)
  slow, plain = (optimizer.adam(lambda step: 0.1, clip_norm=1.0, encoder_factor=factor) for factor in (0.25, 1.0))
  ours, theirs = (one.update(gradients, one.init(params), params)[0] for one in (slow, plain))
  np.testing.assert_allclose(ours['encoder']['a'], theirs['encoder']['a'] / 4, rtol=1e-6)
  np.testing.assert_array_equal(ours['neck'], theirs['neck'])
  assert jax.tree.structure(slow.init(params)) == jax.tree.structure(plain.init(params))


@pytest.mark.parametrize('clip_norm', [0.0, 1.5])
def test_three_steps_of_adam(clip_norm):
  """One gradient is about as small as epsilon, so that epsilon counts; the rate changes after two steps."""
  rng = np.random.default_rng(0)
  parameters = {'a': rng.normal(size=(3, 4)), 'b': rng.normal(size=5)}
  gradients = [{name: rng.normal(size=p.shape) for name, p in parameters.items()} for _ in range(3)]
  for gradient in gradients:
    gradient['b'][0] = 3e-8
  rate = optimizer.learning_rate(base=0.1, total_steps=3, schedule='step', drop_step=2, drop_factor=0.1)
  adam = optimizer.adam(rate, clip_norm=clip_norm)

  @jax.jit
  def step(got, state, gradient):
    updates, state = adam.update(gradient, state, got)
    return jax.tree.map(jnp.add, got, updates), state

  got = jax.tree.map(jnp.float32, parameters)
  state = adam.init(got)
  for gradient in gradients:
    got, state = step(got, state, jax.tree.map(jnp.float32, gradient))
  want = adam_in_numpy(parameters, gradients, [0.1, 0.1, 0.01], clip_norm=clip_norm)
  for name in parameters:
    np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-6)
