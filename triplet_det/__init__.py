"""CenterNet: Keypoint Triplets for Object Detection (Duan et al., 2019) in JAX and Flax."""

__version__ = '0.2.0'
__all__ = ['__version__', 'load']


def __getattr__(name: str):
  # `load` brings JAX; the input workers import this package without it.
  if name == 'load':
    from triplet_det.detection.loading import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
