"""Pixel values as the network takes them, RGB order."""

import jax
import jax.numpy as jnp
import numpy as np

# Statistics of COCO's training images / 255; the published programs list them blue first.
RGB_MEAN = np.array([0.47026115, 0.44719302, 0.40789654], np.float32)
RGB_STD = np.array([0.27809835, 0.27408164, 0.28863828], np.float32)
# Statistics that other weights were trained with: what `DetectorConfig.pixels` can be.
STATISTICS = {
  'coco': (RGB_MEAN, RGB_STD),
  'imagenet': (np.array([123.675, 116.28, 103.53]) / 255, np.array([58.395, 57.12, 57.375]) / 255),  # mmdetection
}


def normalise(images: jax.Array) -> jax.Array:
  """RGB images [B, H, W, 3], uint8 in [0, 255] or float32 in [0, 1] -> zero mean and unit deviation, float32."""
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255
  return (images - RGB_MEAN) / RGB_STD


def renormalise(images: jax.Array, mean: np.ndarray | float, std: np.ndarray | float) -> jax.Array:
  """Images of `normalise` as with another mean and deviation, both / 255."""
  mean, std = np.float32(mean), np.float32(std)
  return images * (RGB_STD / std) + (RGB_MEAN - mean) / std
