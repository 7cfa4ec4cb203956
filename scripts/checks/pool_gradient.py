"""What a pool of a corner costs in training: its own gradient against the one that JAX derives.

  python scripts/checks/pool_gradient.py --shape 8,32,32,32
  python scripts/checks/pool_gradient.py --topology v5e:2x2 --shape 6,128,128,128 --dtype bfloat16

For the value and the gradient of top pooling (along the height) and left pooling (along the width): size of the
compiled program's text, temporary memory, and the time on this machine; with --topology (extra `tpu`) the TPU
compiler's estimate in cycles instead of the time, and the bytes it counts. The corners of a stack have 8 pools.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import jax
import jax.numpy as jnp
from jax import lax

from scripts import aot_compile  # sets up JAX for compilers without their device
from scripts.timing import quiet_pairs
from triplet_det.devices import sharding
from triplet_det.models import pooling

POOLS = {'top': (pooling.top_pool, pooling.HEIGHT), 'left': (pooling.left_pool, pooling.WIDTH)}


def value_and_gradient(pool: Callable) -> Callable:
  """(x, dL/dy) -> (y, dL/dx)."""

  def both(x, g):
    y, pull_back = jax.vjp(pool, x)
    return y, pull_back(g)[0]

  return both


def programs(shape: Sequence[int], dtype: str, device: jax.Device) -> dict[str, jax.stages.Compiled]:
  """Compiled for `device`, which may be described only: 'top, own gradient', 'top, automatic', and so for left."""
  place = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)
  options = sharding.compiler_options(sharding.make_mesh([device]))
  compiled = {}
  for name, (pool, axis) in POOLS.items():
    derived = functools.partial(lax.cummax, axis=axis, reverse=True)  # JAX derives the gradient of this
    for how, function in (('own gradient', pool), ('automatic', derived)):
      compiled[f'{name}, {how}'] = jax.jit(value_and_gradient(function)).lower(x, x).compile(options)
  return compiled


def estimated_cycles(text: str) -> int:
  """Of a TPU's program, by its compiler; the body of a loop as often as the loop turns.

  Raises:
    ValueError: a loop does not say how often it turns.
  """
  within, inside, loops = {}, '', []
  for line in text.splitlines():
    if match := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      inside = match[1]
    if match := re.search(r'"estimated_cycles":"?(\d+)', line):
      within[inside] = within.get(inside, 0) + int(match[1])
    if ' while(' in line:
      loops.append((re.search(r'condition=%?([\w.\-]+)', line)[1], re.search(r'body=%?([\w.\-]+)', line)[1]))
  total = within.get(re.search(r'ENTRY %?([\w.\-]+)', text)[1], 0)
  for condition, body in loops:
    total += within.get(body, 0) * _turns(text, condition)
  return total


def _turns(text: str, condition: str) -> int:
  block = re.search(rf'^%?{re.escape(condition)} \(.*?^\}}', text, re.MULTILINE | re.DOTALL)
  limits = re.findall(r's32\[\]\S* constant\((\d+)\)', block[0]) if block else []
  if len(limits) != 1:
    raise ValueError(f'the loop with the condition {condition} has no single limit: {limits}')
  return int(limits[0])


def measured_seconds(compiled: dict[str, jax.stages.Compiled], arguments: argparse.Namespace) -> dict[str, float]:
  """Medians of quiet rounds in which the programs take turns."""
  key = jax.random.key(0)
  x, g = (jax.random.normal(k, arguments.shape, arguments.dtype) for k in jax.random.split(key))
  arms = {n: quiet_pairs.Arm(lambda c=c: jax.block_until_ready(c(x, g))) for n, c in compiled.items()}
  turns = quiet_pairs.take_turns(arms, pairs=arguments.pairs, max_load=arguments.max_load)
  print(turns.note())
  return {name: sorted(turns.seconds(name).values())[len(turns.rounds) // 2] for name in arms}


def _sizes(text: str) -> tuple[int, ...]:
  return tuple(int(side) for side in text.split(','))


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', type=_sizes, default=(8, 32, 32, 32), help='images,height,width,channels')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--topology', help='v5e:2x2 for example: compile for a TPU that is not here')
  parser.add_argument('--pairs', type=int, default=5, help='quiet rounds that are wanted')
  parser.add_argument('--max_load', type=float, default=quiet_pairs.MAX_LOAD, help='cores that others may keep busy')
  arguments = parser.parse_args(argv)
  if len(arguments.shape) != 4:
    parser.error(f'--shape has 4 numbers, images,height,width,channels; got {len(arguments.shape)}')
  try:
    device = aot_compile.devices_of(arguments.topology)[0] if arguments.topology else jax.devices()[0]
    compiled = programs(arguments.shape, arguments.dtype, device)
    texts = {name: one.as_text() for name, one in compiled.items()}
    if arguments.topology:
      title, times = 'million cycles', {name: estimated_cycles(text) / 1e6 for name, text in texts.items()}
    else:
      title, times = 'ms', {name: 1e3 * s for name, s in measured_seconds(compiled, arguments).items()}
  except ValueError as error:
    parser.error(str(error))
  print(f'{device.device_kind}, {list(arguments.shape)} {arguments.dtype}')
  print(f'{"":22}{"HLO, kB":>10}{"temporary, MiB":>16}{"counted, MB":>13}{title:>16}')
  for name, one in compiled.items():
    memory = one.memory_analysis().temp_size_in_bytes / 2**20
    counted = one.cost_analysis()['bytes accessed'] / 1e6
    print(f'{name:22}{len(texts[name]) / 1e3:>10.0f}{memory:>16.1f}{counted:>13.0f}{times[name]:>16.2f}')


if __name__ == '__main__':
  main()
