"""A program that takes memory, for a process of its own to run; light, so that little else is in that process."""

import numpy as np


def fill(megabytes):
  print('this is no answer')
  return lambda: np.ones(megabytes * 1_000_000, np.uint8).sum()
