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
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
from jax import lax

from scripts import aot_compile
from scripts.timing import quiet_pairs
from triplet_det.devices import sharding
from triplet_det.models import pooling


def pools() -> dict[str, Callable]:
  """JAX derives the gradient of the automatic ones."""
  found = {}
  for name, pool, axis in (('top', pooling.top_pool, pooling.HEIGHT), ('left', pooling.left_pool, pooling.WIDTH)):
    found[f'{name}, own gradient'] = pool
    found[f'{name}, automatic'] = functools.partial(lax.cummax, axis=axis, reverse=True)
  return found


def compile_for(device: jax.Device, pool: Callable, shape: Sequence[int], dtype: str) -> jax.stages.Compiled:
  """(x, dL/dy) -> (y, dL/dx), for a device that may be described only."""

  def value_and_gradient(x, g):
    y, pull_back = jax.vjp(pool, x)
    return y, pull_back(g)[0]

  x = jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(device))
  y = jax.eval_shape(pool, x)  # of a line's maximum smaller than x
  g = jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=x.sharding)
  return jax.jit(value_and_gradient).lower(x, g).compile(sharding.compiler_options(sharding.make_mesh([device])))


def estimated_cycles(text: str) -> int:
  """Of a TPU's program, by its compiler; the body of a loop as often as the loop turns.

  Raises:
    ValueError: a loop does not say how often it turns.
  """
  blocks = dict(re.findall(r'^(?:ENTRY )?%?([\w.\-]+) \((.*?)^\}', text, re.MULTILINE | re.DOTALL))
  within = {name: sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', block))) for name, block in blocks.items()}
  total = within[re.search(r'^ENTRY %?([\w.\-]+)', text, re.MULTILINE)[1]]
  for loop in re.findall(r' while\(.*', text):
    condition, body = (re.search(rf'{part}=%?([\w.\-]+)', loop)[1] for part in ('condition', 'body'))
    limits = re.findall(r's32\[\]\S* constant\((\d+)\)', blocks[condition])
    if len(limits) != 1:
      raise ValueError(f'the loop with the condition {condition} has no single limit: {limits}')
    total += within[body] * int(limits[0])
  return total


def measured_seconds(compiled: dict[str, jax.stages.Compiled], arguments: argparse.Namespace) -> dict[str, float]:
  """Medians of quiet rounds in which the programs take turns."""
  x, g = (jax.random.normal(key, arguments.shape, arguments.dtype) for key in jax.random.split(jax.random.key(0)))
  programs = {name: lambda one=one: jax.block_until_ready(one(x, g)) for name, one in compiled.items()}
  max_load = quiet_pairs.allowed_load() if arguments.max_load is None else arguments.max_load
  turns = quiet_pairs.take_turns(programs, pairs=arguments.pairs, max_load=max_load)
  print(turns.note())
  return {name: statistics.median(turns.seconds(name)) for name in programs}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  sides = dict(type=lambda text: tuple(map(int, text.split(','))), default=(8, 32, 32, 32))
  parser.add_argument('--shape', **sides, help='images,height,width,channels')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--topology', help='v5e:2x2 for example: compile for a TPU that is not here')
  parser.add_argument('--pairs', type=int, default=5, help='quiet rounds that are wanted')
  parser.add_argument('--max_load', type=float, help='cores that others may keep busy (default: 0.1; all but on a CPU)')
  arguments = parser.parse_args()
  if len(arguments.shape) != 4:
    parser.error(f'--shape has 4 numbers, images,height,width,channels; got {len(arguments.shape)}')
  try:
    device = aot_compile.devices_of(arguments.topology)[0] if arguments.topology else jax.devices()[0]
    compiled = {name: compile_for(device, pool, arguments.shape, arguments.dtype) for name, pool in pools().items()}
    if arguments.topology:
      title, times = 'million cycles', {n: estimated_cycles(one.as_text()) / 1e6 for n, one in compiled.items()}
    else:
      title, times = 'ms', {name: 1e3 * s for name, s in measured_seconds(compiled, arguments).items()}
  except ValueError as error:
    parser.error(str(error))
  print(f'{device.device_kind}, {list(arguments.shape)} {arguments.dtype}')
  print(f'{"":22}{"HLO, kB":>10}{"temporary, MiB":>16}{"counted, MB":>13}{title:>16}')
  for name, one in compiled.items():
    memory, counted = one.memory_analysis().temp_size_in_bytes / 2**20, one.cost_analysis()['bytes accessed'] / 1e6
    print(f'{name:22}{len(one.as_text()) / 1e3:>10.0f}{memory:>16.1f}{counted:>13.0f}{times[name]:>16.2f}')


if __name__ == '__main__':
  main()
