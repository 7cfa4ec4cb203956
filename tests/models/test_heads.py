"""Outputs of the branches that are computed at the cells that the loss reads, against those of whole maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triplet_det.models import detector, heads
from triplet_det.structs import Cells
from triplet_det.training import losses, targets

QUICK_COMPILE = {'xla_backend_optimization_level': 0}
CONFIG = dict(
  stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8, num_classes=3, dtype='float64'
)
SIDE, CELLS, OBJECTS = 63, 16, 4


@pytest.fixture
def case():
  """Variables, images and targets; corners in all corners of the image, slots that are not valid."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, SIDE, SIDE, 3)))
    boxes = np.array(
      [
        [[0, 0, 62, 62], [0, 30, 20, 62], [30, 0, 62, 31], [5, 6, 40, 50]],
        [[61, 61, 62, 62], [20, 20, 30, 41], [0, 0, 0, 0], [0, 0, 0, 0]],
      ],
      np.float32,
    )
    valid = np.array([[True] * 4, [True, True, False, False]])
    classes = rng.integers(0, 3, (2, OBJECTS), np.int32)
    goal = targets.render(boxes, classes, valid, num_classes=3, input_size=SIDE, output_size=CELLS)
    module = detector.build(CONFIG)
    variables = jax.jit(module.init, compiler_options=QUICK_COMPILE)(jax.random.key(0), images[:1])
    yield module, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables), images, goal


@pytest.mark.parametrize('reach', [0, 1])
def test_reading_at_cells_is_reading_of_the_maps(case, reach):
  """The loss, its terms and every gradient; offsets and embeddings one by one."""
  module, variables, images, goal = case
  cells = Cells(goal.tl_cell, goal.br_cell, goal.center_cell, reach)

  @functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK_COMPILE)
  def loss_of(params, at_cells):
    read = cells if at_cells else None

    def loss_of(params):
      updates = dict(train=True, mutable=['batch_stats'])
      maps, _ = module.apply({**variables, 'params': params}, images, read=read, **updates)
      loss, terms = losses.detection_loss(maps, goal, reach=reach)
      return loss, (terms, maps)

    return jax.value_and_grad(loss_of, has_aux=True)(params)

  ((whole, (terms, maps)), gradient), ((read, (read_terms, read_maps)), read_gradient) = (
    loss_of(variables['params'], at_cells) for at_cells in (False, True)
  )
  reached = (2 * reach + 1) ** 2
  for kind in ('tl', 'br', 'center'):
    near, inside, _ = losses.around(getattr(cells, kind), (CELLS, CELLS), reach)
    for output, size in (('offset', 2), *([('embed', 1)] if kind != 'center' else [])):
      field, there = (np.asarray(getattr(m, f'{kind}_{output}')) for [m] in (maps, read_maps))
      assert field.shape == (2, CELLS, CELLS, size) and there.shape == (2, OBJECTS * reached, size)
      for image, slot, place in np.argwhere(inside):
        wanted = field[image].reshape(-1, size)[near[image, slot, place]]
        found = there[image, slot * reached + place]
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12, err_msg=f'{kind} {output}')
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
  jax.tree.map(compare, (read, read_terms, read_gradient), (whole, terms, gradient))
  assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient['top_left_0']['embed']))


def test_many_cells_are_read_of_the_maps(case):
  """Windows that overlap would be larger than the map."""
  module, variables, images, _ = case
  many = jnp.zeros((2, 15), jnp.int32)
  maps = jax.eval_shape(functools.partial(module.apply, read=Cells(many, many, many)), variables, images)
  assert maps[0].tl_offset.shape == (2, CELLS, CELLS, 2)


def test_a_cell_beyond_the_map_changes_no_other():
  """A loss that multiplies what it leaves out by 0 would be NaN by a NaN there."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)))
  beyond, alone = heads._windows(x, jnp.array([[5, 16]]), 1), heads._windows(x, jnp.array([[5]]), 1)
  np.testing.assert_array_equal(beyond[:1], alone)
  assert np.isfinite(beyond).all()
