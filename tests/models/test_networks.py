"""Whole small networks against the published ones: maps, loss, gradients, running statistics."""

import numpy as np
import pytest

from tests import golden_networks
from tests.golden_networks import largest_error, norm_errors, training_step
from tests.golden_state import NETWORKS, relative_error, under
from triplet_det.models import fast_convolution, pooling


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
  return golden_networks.opened(request.param)


@pytest.fixture(scope='module')
def step32(network):
  return training_step(network, 'float32')


@pytest.fixture(scope='module')
def steps64(network):
  """From the published weights, and from ones rounded otherwise."""
  params = network.variables['params'], golden_networks.rounded_otherwise(network)
  return golden_networks.training_steps(network, 'float64', params)


@pytest.fixture(scope='module')
def step64(steps64):
  return steps64[0]


@pytest.mark.parametrize('convolution', ['by definition', 'minimal filtering'])
def test_evaluation_is_the_published_one(network, convolution, parity, monkeypatch):
  what = f'small {network.name}, evaluation: maps'
  if convolution == 'minimal filtering':  # wherever it can be; by its own rule not in maps as small as these
    monkeypatch.setattr(fast_convolution, 'MIN_HEIGHT', fast_convolution.ROWS)
    monkeypatch.setattr(fast_convolution, 'MIN_CHANNELS', 1)
    what += f', {convolution}'
  parity(what, golden_networks.evaluation_error(network), 2e-5)


def test_training_forward_is_the_published_one(network, step32, parity):
  assert len(step32.maps) == 2
  error = largest_error(step32.maps, under(network.golden, 'train/map/'))
  parity(f'small {network.name}, training: maps', error, 1e-4)


def test_training_statistics_are_the_published_ones(network, step32, parity):
  expected = {k: v for k, v in under(network.golden, 'after/').items() if not k.endswith('num_batches_tracked')}
  assert step32.statistics.keys() == expected.keys()
  for name, vector in expected.items():
    error = relative_error(step32.statistics[name], vector)
    parity(f'small {network.name}, training: running statistics', error, 1e-5)


@pytest.mark.parametrize('precision', ['float32', 'float64'])
def test_loss_and_its_terms_are_the_published_ones(network, precision, request, parity):
  """The proof is the float64 test. In float32 a term can be no closer than the maps that it is computed from, whose
  bound in training is 1e-4: pull is made of small differences of embeddings, and how it rounds is a matter of the
  processor (2e-6 on one, 1.3e-5 on another)."""
  step = request.getfixturevalue(dict(float32='step32', float64='step64')[precision])
  expected = network.golden[dict(float32='train/loss', float64='train/loss64')[precision]]
  focal = step.terms['focal_corner'] + step.terms.get('focal_center', 0)
  ours = (focal, *(step.terms[name] for name in ('pull', 'push', 'offset')))
  what = f'small {network.name}, {precision}'
  parity(f'{what}: loss', relative_error(step.loss, expected[0]), 1e-5)
  for value, golden in zip(ours, expected[1:]):  # CornerNet's program gives the total alone
    parity(f'{what}: terms of the loss', relative_error(value, golden), dict(float32=1e-4, float64=1e-5)[precision])


def test_gradients_are_the_published_ones(network, step64, parity):
  what, golden = f'small {network.name}, float64', network.golden
  parity(f'{what}: norms of all gradients', norm_errors(step64.gradients, golden).max(), 1e-5)
  for name, total, norm in zip(golden['param_names'].tolist(), golden['train/gradsum64'], golden['train/gradnorm64']):
    array = step64.gradients[name].astype(np.float64)
    error = abs(array.sum() - total) / (norm * np.sqrt(array.size))
    parity(f'{what}: sums of all gradients', error, 1e-5)
  # Stored from the published program's float32 run, whose own distance to its float64 run this is.
  for name, array in under(golden, 'train/grad/').items():
    parity(f'{what}: gradients against float32 ones', relative_error(step64.gradients[name], array), 1e-2)


def test_gradients_in_float32_are_the_published_ones_up_to_ties(network, step32, steps64, parity):
  """Gradients jump where pools and ReLUs change sides; the proof is the float64 test.

  What rounding in float32 may do is therefore asked of the network itself: how far the exact gradients move when every
  weight changes by 6e-7 of itself, a few roundings. Here 2e-4 (median) and 3e-3 to 1e-2 (worst), of deeper networks
  more. The published float32 run is 3e-5 to 1e-4 and 2e-3 to 6e-3 away from its float64 run.
  """
  errors = norm_errors(step32.gradients, network.golden)
  exact, moved = (step.gradients for step in steps64)
  moves = np.array([relative_error(np.linalg.norm(moved[k]), np.linalg.norm(exact[k])) for k in exact])
  parity(f'small {network.name}, float32: norms of gradients, median', np.median(errors), np.median(moves))
  parity(f'small {network.name}, float32: norms of gradients, worst', errors.max(), 2 * moves.max())


@pytest.mark.parametrize('form', [form for form in pooling.FORMS if form != pooling.FORM_ON['cpu']])
def test_training_in_the_other_forms_of_the_pools(network, form, parity, monkeypatch):
  monkeypatch.setattr(pooling, 'FORM_ON', dict(default=form))
  step = training_step(network, 'float64')
  what = f'small {network.name}, float64, pools by {form}'
  parity(f'{what}: loss', relative_error(step.loss, network.golden['train/loss64'][0]), 1e-5)
  parity(f'{what}: norms of all gradients', norm_errors(step.gradients, network.golden).max(), 1e-5)
