"""Eq. (2) and its terms against the published program and against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_state import nhwc, read, relative_error
from triplet_det.structs import KeypointMaps, Targets
from triplet_det.training import losses

GOLDEN = read('losses')
KINDS = ('tl', 'br', 'ct')
BATCH, HEIGHT, WIDTH, CLASSES, SLOTS = 4, 16, 12, 3, 128
VALID = GOLDEN['mask'].astype(bool)


def value_and_gradient(function, *arguments, wrt=(0,)):
  return jax.jit(jax.value_and_grad(function, argnums=wrt))(*arguments)


@pytest.mark.parametrize('kind', KINDS)
def test_focal_loss_is_the_published_one(kind, parity):
  logits, goal = nhwc(GOLDEN[f'heat/{kind}']), nhwc(GOLDEN[f'gt/{kind}'])
  loss, (gradient,) = value_and_gradient(lambda x: losses.focal_loss(x, goal, group=BATCH), logits)
  parity('focal loss', relative_error(loss, GOLDEN[f'focal/{kind}']), 1e-5)
  parity('focal loss: gradient', relative_error(gradient, nhwc(GOLDEN[f'focal_grad/{kind}'])), 1e-5)


def test_focal_loss_without_objects_is_not_divided(parity):
  logits = nhwc(GOLDEN['heat/br'])
  loss, (gradient,) = value_and_gradient(lambda x: losses.focal_loss(x, jnp.zeros_like(x), group=BATCH), logits)
  parity('focal loss, no object', relative_error(loss, GOLDEN['focal_nopos']), 1e-5)
  parity('focal loss, no object: gradient', relative_error(gradient, nhwc(GOLDEN['focal_nopos_grad/br'])), 1e-5)


def test_focal_loss_is_the_formula():
  """REFERENCE's sum, cell by cell in float64; logits from far outside the clip to far outside the clip."""
  rng = np.random.default_rng(0)
  logits, goal = rng.normal(0, 6, (3, 4, 5, 2)), rng.uniform(0, 0.99, (3, 4, 5, 2)).astype(np.float32)
  logits[0, 0, 0], goal[1, 2, 3, 0], goal[1, 0, 0, 1], goal[2, 0, 0, 0] = 40.0, 1, 1, 1
  total, positives = 0.0, 0
  for x, y in zip(logits.ravel(), goal.ravel().astype(np.float64)):
    p = min(max(1 / (1 + np.exp(-x)), 1e-4), 1 - 1e-4)
    positives += y == 1
    total -= np.log(p) * (1 - p) ** 2 if y == 1 else np.log(1 - p) * p**2 * (1 - y) ** 4
  loss, (gradient,) = value_and_gradient(lambda x: losses.focal_loss(x, goal, group=3), logits.astype(np.float32))
  np.testing.assert_allclose(loss, total / positives, rtol=1e-5)
  clipped = np.abs(logits) > np.log(1e4)  # the probability is within 1e-4 of 0 or 1
  assert clipped.any() and (np.asarray(gradient)[clipped] == 0).all() and np.all(gradient[~clipped] != 0)


def test_pull_and_push_are_the_published_ones(parity):
  tl, br = GOLDEN['tag/tl'][..., 0], GOLDEN['tag/br'][..., 0]
  for i, name in enumerate(('pull', 'push')):
    # Published: summed over the images. Ours: their mean.
    def summed(tl, br, i=i):
      return BATCH * losses.pull_push_loss(tl, br, VALID)[i]

    loss, gradients = value_and_gradient(summed, tl, br, wrt=(0, 1))
    parity(f'{name} loss', relative_error(loss, GOLDEN[name]), 1e-5)
    for kind, gradient in zip(KINDS, gradients):
      parity(f'{name} loss: gradient', relative_error(gradient, GOLDEN[f'{name}_grad/{kind}'][..., 0]), 1e-5)
    for image in range(BATCH):  # of 0, 1, 2 and 9 objects
      alone = losses.pull_push_loss(tl[image, None], br[image, None], VALID[image, None])[i]
      parity(f'{name} loss of one image', relative_error(alone, GOLDEN[f'{name}_img/{image}']), 1e-5)


def test_push_is_over_pairs_of_different_objects():
  means = np.array([0.0, 0.25, 3.0], np.float32)[None]
  _, push = losses.pull_push_loss(means, means, np.ones((1, 3), bool))
  # The pair at distance 0.25, both ways round, and what of the three diagonal ones 1/(N + 1e-4) does not take away.
  share = 1 / (3 + 1e-4)
  expected = (2 * 0.75 + 3 - 9 * share) / (2 * 3 + 1e-4)
  np.testing.assert_allclose(push, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_offset_loss_is_the_published_one(kind, parity):
  offset, goal = GOLDEN[f'regr/{kind}'], GOLDEN[f'gt_regr/{kind}']
  loss, (gradient,) = value_and_gradient(lambda x: losses.offset_loss(x, goal, VALID, group=BATCH), offset)
  parity('offset loss', relative_error(loss, GOLDEN[f'off/{kind}']), 1e-5)
  parity('offset loss: gradient', relative_error(gradient, GOLDEN[f'off_grad/{kind}']), 1e-5)
  assert (np.abs(offset - goal)[VALID] > 1).any()  # both branches of smooth l1 are seen


def as_maps(factor):
  """The golden outputs as maps: what belongs to slot n of an image lies at cell n."""

  def field(per_slot):
    flat = np.zeros((BATCH, HEIGHT * WIDTH, per_slot.shape[-1]), np.float32)
    flat[:, :SLOTS] = per_slot * factor
    return flat.reshape(BATCH, HEIGHT, WIDTH, -1)

  heat = {kind: nhwc(GOLDEN[f'heat/{kind}']) * factor for kind in KINDS}
  return KeypointMaps(
    tl_heat=heat['tl'],
    br_heat=heat['br'],
    center_heat=heat['ct'],
    tl_embed=field(GOLDEN['tag/tl']),
    br_embed=field(GOLDEN['tag/br']),
    tl_offset=field(GOLDEN['regr/tl']),
    br_offset=field(GOLDEN['regr/br']),
    center_offset=field(GOLDEN['regr/ct']),
  )


def as_targets(*, empty=False):
  cells = np.tile(np.arange(SLOTS, dtype=np.int32), (BATCH, 1))
  kept = 0 if empty else 1
  return Targets(
    tl_heat=nhwc(GOLDEN['gt/tl']) * kept,
    br_heat=nhwc(GOLDEN['gt/br']) * kept,
    center_heat=nhwc(GOLDEN['gt/ct']) * kept,
    tl_cell=cells,
    br_cell=cells,
    center_cell=cells,
    tl_offset=GOLDEN['gt_regr/tl'],
    br_offset=GOLDEN['gt_regr/br'],
    center_offset=GOLDEN['gt_regr/ct'],
    valid=VALID & (not empty),
  )


@pytest.mark.parametrize(('case', 'factors'), [('aeloss_2stack', (1.0, 0.5)), ('aeloss_empty', (1.0,))])
def test_whole_loss_is_the_published_one(case, factors, parity):
  # Published: 0.1 x the sum over a GPU's images, here 4.
  loss, terms = losses.detection_loss(
    [as_maps(factor) for factor in factors],
    as_targets(empty=case == 'aeloss_empty'),
    group=BATCH,
    pull_weight=0.1 * BATCH,
    push_weight=0.1 * BATCH,
  )
  ours = (loss, terms['focal_corner'] + terms['focal_center'], terms['pull'], terms['push'], terms['offset'])
  for value, golden in zip(ours, GOLDEN[case]):
    parity('Eq. (2) and its terms', relative_error(value, golden), 1e-5)
  np.testing.assert_allclose(sum(terms.values()), loss, rtol=1e-6)


def test_default_weights_are_the_published_ones_for_six_images():
  assert losses.PULL_WEIGHT == losses.PUSH_WEIGHT == pytest.approx(0.1 * 6)


def random_case(seed, batch, *, slots=10, side=8):
  """Maps and targets of `batch` images with 0 to `slots` objects; heatmaps hold a 1 at each object's cell."""
  rng = np.random.default_rng(seed)
  valid = np.arange(slots) < rng.integers(0, slots + 1, batch)[:, None]

  def kind():
    cell = rng.integers(0, side * side, (batch, slots)).astype(np.int32)
    goal = rng.uniform(0, 0.9, (batch, side * side, CLASSES))
    for image, slot in np.argwhere(valid):
      goal[image, cell[image, slot], rng.integers(CLASSES)] = 1
    return goal.reshape(batch, side, side, CLASSES).astype(np.float32), cell

  def field(channels):
    return rng.normal(0, 1.5, (batch, side, side, channels)).astype(np.float32)

  def offset():
    return rng.uniform(0, 1, (batch, slots, 2)).astype(np.float32)

  (tl, tl_cell), (br, br_cell), (center, center_cell) = kind(), kind(), kind()
  maps = KeypointMaps(field(CLASSES), field(CLASSES), field(1), field(1), field(2), field(2), field(CLASSES), field(2))
  return maps, Targets(tl, br, center, tl_cell, br_cell, center_cell, offset(), offset(), offset(), valid)


PER_SLOT = ('tl_cell', 'br_cell', 'center_cell', 'tl_offset', 'br_offset', 'center_offset', 'valid')


@pytest.fixture(scope='module')
def loss_of():
  return jax.jit(lambda maps, goal, group: losses.detection_loss([maps], goal, group=group), static_argnums=2)


def test_groups_average_the_losses_of_their_images(loss_of):
  maps, goal = random_case(0, 12)
  loss, terms = loss_of(maps, goal, 6)
  halves = [loss_of(*jax.tree.map(lambda x, s=s: x[s], (maps, goal)), 6) for s in (slice(0, 6), slice(6, 12))]
  np.testing.assert_allclose(loss, np.mean([half[0] for half in halves]), rtol=1e-6)
  for name, term in terms.items():
    np.testing.assert_allclose(term, np.mean([half[1][name] for half in halves]), rtol=1e-6)
  whole, of_all = loss_of(maps, goal, None)
  assert abs(whole - loss) > 1e-3  # the group matters ...
  assert float(of_all['pull']) == pytest.approx(float(terms['pull']), rel=1e-6)  # ... but not to pull and push
  assert float(of_all['push']) == pytest.approx(float(terms['push']), rel=1e-6)


def test_order_of_objects_and_padding_do_not_matter(loss_of):
  maps, goal = random_case(1, 6)
  expected, _ = loss_of(maps, goal, 6)

  order = np.random.default_rng(2).permuted(np.tile(np.arange(10), (6, 1)), axis=1)
  shuffled = {}
  for name in PER_SLOT:
    array = getattr(goal, name)
    shuffled[name] = np.take_along_axis(array, order[..., None] if array.ndim == 3 else order, axis=1)
  np.testing.assert_allclose(loss_of(maps, goal.replace(**shuffled), 6)[0], expected, rtol=1e-6)

  rng = np.random.default_rng(3)
  noise = {}
  for name in PER_SLOT[:-1]:
    array = getattr(goal, name)
    random = rng.integers(0, 64, array.shape) if array.ndim == 2 else rng.normal(0, 50, array.shape)
    kept = goal.valid if array.ndim == 2 else goal.valid[..., None]
    noise[name] = np.where(kept, array, random).astype(array.dtype)
  np.testing.assert_array_equal(loss_of(maps, goal.replace(**noise), 6)[0], expected)


def test_cells_around_keypoints():
  """Their offsets lead to the keypoint, and their embeddings to their object's: loops over cells, by definition."""
  maps, goal = random_case(4, 5)
  side, reach = maps.tl_heat.shape[1], 1
  _, plain = losses.detection_loss([maps], goal)
  _, terms = losses.detection_loss([maps], goal, reach=reach)

  def cells_near(cell):
    y, x = divmod(int(cell), side)
    steps = range(-reach, reach + 1)
    return [(y + j, x + i, i, j) for j in steps for i in steps if 0 <= y + j < side and 0 <= x + i < side]

  offset = 0.0
  for kind in ('tl', 'br', 'center'):
    field, cells, wanted = (
      getattr(part, f'{kind}_{name}') for part, name in ((maps, 'offset'), (goal, 'cell'), (goal, 'offset'))
    )
    distances = [
      field[image, y, x] + (i, j) - wanted[image, slot]
      for image, slot in np.argwhere(goal.valid)
      for y, x, i, j in cells_near(cells[image, slot])
    ]
    far = np.abs(distances)
    offset += np.where(far < 1, far**2 / 2, far - 0.5).sum() / len(distances)
  np.testing.assert_allclose(terms['offset'], offset, rtol=1e-4)  # published: counts are taken plus 1e-4

  pulls = []
  for image, valid in enumerate(goal.valid):
    embeds, cells = (
      (maps.tl_embed[image, ..., 0], maps.br_embed[image, ..., 0]),
      (goal.tl_cell[image], goal.br_cell[image]),
    )
    total = 0.0
    for slot in np.flatnonzero(valid):
      own = [embed.ravel()[cell[slot]] for embed, cell in zip(embeds, cells)]
      total += sum((value - np.mean(own)) ** 2 for value in own)
      for embed, cell in zip(embeds, cells):
        near = [(embed[y, x] - np.mean(own)) ** 2 for y, x, i, j in cells_near(cell[slot]) if (i, j) != (0, 0)]
        total += np.mean(near)
    pulls.append(total / (valid.sum() + 1e-4))
  np.testing.assert_allclose(terms['pull'], losses.PULL_WEIGHT * np.mean(pulls), rtol=1e-5)
  assert terms['pull'] > 1.5 * plain['pull']
  for name in ('focal_corner', 'focal_center', 'push'):
    np.testing.assert_array_equal(terms[name], plain[name])


def test_batch_must_be_a_multiple_of_the_group():
  with pytest.raises(ValueError, match=r'batch of 4 images is not a multiple of the loss group of 3 images'):
    losses.detection_loss([as_maps(1.0)], as_targets(), group=3)


def test_bfloat16_maps_give_a_float32_loss(loss_of):
  maps, goal = random_case(4, 6)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), maps)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  loss, _ = loss_of(half, goal, 6)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, loss_of(rounded, goal, 6)[0], rtol=1e-6)
