"""Colours on the device: colour jitter and PCA lighting (CornerNet's recipe [20]), RGB order."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

EIGENVALUES = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
EIGENVECTORS = np.array(  # a row per channel
  [
    [-0.56089297, 0.71832671, 0.41158938],
    [-0.5832747, 0.00994535, -0.81221408],
    [-0.58752847, -0.69563484, 0.41340352],
  ],
  np.float32,
)
GREY = np.array([0.299, 0.587, 0.114], np.float32)
BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2


@struct.dataclass
class ColourDraws:
  """The random numbers of one batch."""

  order: jax.Array  # [B, 3] int32, a permutation of BRIGHTNESS, CONTRAST, SATURATION
  strength: jax.Array  # [B, 3] float32, 1 + U(-jitter, jitter), in the order of application
  lighting: jax.Array  # [B, 3] float32, N(0, lighting)


def draw_colours(key: jax.Array, batch: int, *, jitter: float = 0.4, lighting: float = 0.1) -> ColourDraws:
  """Draws for `batch` images; the defaults are the published strengths, 0 switches either off."""
  order_key, strength_key, lighting_key = jax.random.split(key, 3)
  order = jnp.argsort(jax.random.uniform(order_key, (batch, 3)), axis=1).astype(jnp.int32)
  strength = jax.random.uniform(strength_key, (batch, 3), minval=1 - jitter, maxval=1 + jitter)
  return ColourDraws(order, strength, lighting * jax.random.normal(lighting_key, (batch, 3)))


def distort(images: jax.Array, draws: ColourDraws) -> jax.Array:
  """Colour jitter and lighting of images [B, H, W, 3] float32 in [0, 1]; nothing is clipped, as published.

  Brightness multiplies, contrast blends with the mean of the grey image, saturation with the grey image; grey is
  that of the image given. Three blends in any order are one: image x a + mean grey x b + grey x c.
  """
  grey = images @ jnp.asarray(GREY)
  mean_grey = grey.mean((1, 2))
  weights = jnp.zeros((images.shape[0], 3)).at[:, BRIGHTNESS].set(1.0)  # of image, mean grey, grey
  for step in range(3):
    kind, strength = draws.order[:, step, None], draws.strength[:, step, None]
    blended = (jnp.arange(3) == kind) & (kind != BRIGHTNESS)
    weights = weights * strength + jnp.where(blended, 1 - strength, 0.0)
  image_weight, mean_weight, grey_weight = (weights[:, i, None, None] for i in (BRIGHTNESS, CONTRAST, SATURATION))
  jittered = images * image_weight[..., None] + (grey * grey_weight + mean_grey[:, None, None] * mean_weight)[..., None]
  shift = (draws.lighting * EIGENVALUES) @ EIGENVECTORS.T
  return jittered + shift[:, None, None, :]
