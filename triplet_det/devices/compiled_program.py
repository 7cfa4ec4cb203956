"""One program compiled for devices that may be absent, and what the compiler says it takes of each of them."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from triplet_det.devices import roofline
from triplet_det.devices.collectives import Collective, collectives


class DoesNotFit(ValueError):
  """A program needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program. Memory, FLOPs and bytes are those of one device and one call."""

  name: str
  images: int  # per call, on all devices; mirror images not counted
  memory: Mapping[str, int]  # bytes, by what they hold
  useful_flops: float  # see `roofline.network_flops`
  flops: float | None  # all, as the compiler counts them; None if it does not
  bytes_accessed: float | None  # to and from memory, as the compiler counts them
  collectives: tuple[Collective, ...]
  bound: roofline.Bound | None  # None for a chip of unknown speed, or without the compiler's counts
  compile_seconds: float

  @property
  def total_memory(self) -> int:
    return sum(self.memory.values())


def compile_program(
  name: str,
  lowered: jax.stages.Lowered,
  arguments: Mapping[str, int],
  chip: roofline.Chip | None,
  *,
  images: int,
  useful_flops: float,
  turns: int = 1,
  bytes_outside: int = 0,
  beside: Mapping[str, int] | None = None,
  what_helps: str = '',
) -> tuple[Program, str]:
  """Compiles, and reads off what the compiler says.

  Args:
    name: of the program, for messages.
    lowered: it.
    arguments: bytes on a device, by what they hold; see `bytes_on_device`.
    chip: of the devices, if known.
    images, useful_flops: see `Program`.
    turns: of the one loop that does the work. XLA counts the body of a loop once, however often it turns; short loops
      inside, such as those over rows in the gradient of the pools, stay counted so.
    bytes_outside: of the traffic that is not in that loop.
    beside: bytes that other things hold on the device meanwhile.
    what_helps: against too little memory, for the message.

  Returns:
    The program, and the text of its compiled module.

  Raises:
    DoesNotFit: with both numbers.
  """
  logging.info('compiling the %s ...', name)
  start = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise DoesNotFit(refusal(name, str(error), what_helps)) from None
  seconds = time.monotonic() - start
  stats = compiled.memory_analysis()
  memory = {
    **arguments,
    'padding of these': max(stats.argument_size_in_bytes - sum(arguments.values()), 0),
    'results': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'activations and other temporaries': stats.temp_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
    **(beside or {}),
  }
  if chip and sum(memory.values()) > chip.memory:
    raise DoesNotFit(_too_large(name, sum(memory.values()), chip.memory, what_helps))

  flops = accessed = bound = None
  costs = compiled.cost_analysis() or {}
  if {'flops', 'bytes accessed'} <= costs.keys():  # a GPU's compiler without the GPU does not count
    outside = min(bytes_outside, costs['bytes accessed'])
    flops, accessed = turns * costs['flops'], turns * (costs['bytes accessed'] - outside) + outside
    bound = chip and roofline.bound(chip, flops=flops, bytes_accessed=accessed, useful_flops=useful_flops)
  text = compiled.as_text()
  program = Program(
    name, images, memory, useful_flops, flops, accessed, collectives(text), bound, compile_seconds=seconds
  )
  return program, text


def bytes_on_device(tree: Any) -> int:
  """Of a tree of jax.ShapeDtypeStruct with shardings: the bytes that lie on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def refusal(name: str, message: str, what_helps: str = '') -> str:
  """The compiler's RESOURCE_EXHAUSTED as one line with both numbers.

  Args:
    name: of the program.
    message: known are '... required for HLO temporaries (56.00G) exceeds available HBM (15.75G)', 'Used 16.28G of
      15.75G hbm' and 'trying to allocate 17179869184 bytes'; of any other the first line is kept.
    what_helps: put at the end.
  """
  size = r'([\d.]+)([KMGT])i?B?'
  if match := re.search(rf'\({size}\) exceeds available \w+ \({size}\)|Used {size} of {size} ', message):
    needed, unit, available, its_unit = (group for group in match.groups() if group is not None)
    scale = {letter: 1024.0**power for power, letter in enumerate('KMGT', start=1)}
    return _too_large(name, float(needed) * scale[unit], float(available) * scale[its_unit], what_helps)
  if match := re.search(r'allocate (\d+) bytes', message):
    return _too_large(name, int(match[1]), None, what_helps)
  return f'the {name} does not fit: {message.strip().splitlines()[0]}'


def _too_large(name: str, needed: float, available: float | None, what_helps: str) -> str:
  said = f'the {name} does not fit: it needs {needed / roofline.GIB:.2f} GiB'
  if available:
    over = needed - available
    said += f', a device has {available / roofline.GIB:.2f} GiB ({over / roofline.GIB:.2f} GiB too much)'
  return f'{said}. What helps: {what_helps}' if what_helps else said
