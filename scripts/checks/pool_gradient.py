"""What a pool of a corner costs in training, in each of its forms and with the gradient that JAX derives.

  python scripts/checks/pool_gradient.py --shape 8,32,32,32
  python scripts/checks/pool_gradient.py --topology v5e:2x2 --shape 6,128,128,128 --dtype bfloat16

For the value and the gradient of top pooling (along the height) and left pooling (along the width): size of the
compiled program's text, its loops and what it starts on a device (fusions and calls, those in a loop as often as it
turns), temporary memory, the bytes that XLA counts (a loop's once), and the time on this machine. With --topology (the
extra `tpu`, or the compiler of scripts/aot_compile.py for h100:1) a TPU compiler's estimate in cycles instead of the
time; of a GPU that is not there nobody tells it. The corners of a stack have 8 pools.
"""

import argparse
import functools
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == '__main__' and any(argument.startswith('--topology') for argument in sys.argv):
  os.environ['JAX_PLATFORMS'] = 'cpu'  # before JAX is imported: nothing is executed

import jax
from jax import lax

from scripts import aot_compile
from scripts.timing import quiet_pairs
from triplet_det.devices import sharding
from triplet_det.models import pooling


def pools() -> dict[str, Callable]:
  """Every form of both, and as JAX derives the gradient."""
  found = {}
  for name, axis in (('top', pooling.HEIGHT), ('left', pooling.WIDTH)):
    for form in pooling.FORMS:
      found[f'{name}, {form}'] = functools.partial(pooling.running_max, axis=axis, from_last=True, form=form)
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
  return _over_turns(text, lambda block: sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', block))))


def started(text: str) -> int:
  """Fusions and calls of a program, those within a loop as often as it turns; ValueError as in estimated_cycles."""
  return _over_turns(text, lambda block: len(re.findall(r' = .*?\b(?:fusion|custom-call)\(', block)))


def _over_turns(text: str, count: Callable[[str], int]) -> int:
  blocks = dict(re.findall(r'^(?:ENTRY )?%?([\w.\-]+) \((.*?)^\}', text, re.MULTILINE | re.DOTALL))

  def total(name):
    found = count(blocks[name])
    for loop in re.findall(r' while\(.*', blocks[name]):
      condition, body = (re.search(rf'{part}=%?([\w.\-]+)', loop)[1] for part in ('condition', 'body'))
      limits = re.findall(r's32\[\]\S* constant\((\d+)\)', blocks[condition])
      turns = re.findall(r'"known_trip_count":\{"n":"(\d+)"', loop) or limits
      if len(turns) != 1:
        raise ValueError(f'the loop with the condition {condition} has no single limit: {limits}')
      found += total(body) * int(turns[0])
    return found

  return total(re.search(r'^ENTRY %?([\w.\-]+)', text, re.MULTILINE)[1])


def measured_seconds(compiled: dict[str, jax.stages.Compiled], arguments: argparse.Namespace) -> dict[str, float]:
  """Medians of quiet rounds in which the programs take turns."""
  x, g = (jax.random.normal(key, arguments.shape, arguments.dtype) for key in jax.random.split(jax.random.key(0)))
  programs = {name: lambda one=one: jax.block_until_ready(one(x, g)) for name, one in compiled.items()}
  max_load = quiet_pairs.allowed_load() if arguments.max_load is None else arguments.max_load
  turns = quiet_pairs.take_turns(programs, pairs=arguments.pairs, max_load=max_load)
  print(turns.note())
  return {name: statistics.median(turns.seconds(name)) for name in programs}


def parse_shape(text: str) -> tuple[int, ...]:
  sides = text.split(',')
  if len(sides) != 4 or not all(side.isdecimal() and int(side) > 0 for side in sides):
    raise argparse.ArgumentTypeError(f'{text!r} is no shape: images,height,width,channels, such as 6,128,128,128')
  return tuple(map(int, sides))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  sides = dict(type=parse_shape, default=(8, 32, 32, 32))
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
    if not arguments.topology:
      title, times = 'ms', {name: 1e3 * s for name, s in measured_seconds(compiled, arguments).items()}
    elif device.platform == 'tpu':
      title, times = 'million cycles', {n: estimated_cycles(one.as_text()) / 1e6 for n, one in compiled.items()}
    else:
      title, times = '', {}
    starts = {name: started(one.as_text()) for name, one in compiled.items()}
  except ValueError as error:
    parser.error(str(error))
  print(f'{device.device_kind}, {list(arguments.shape)} {arguments.dtype}')
  print(f'{"":16}{"HLO, kB":>9}{"loops":>7}{"started":>9}{"temporary, MiB":>16}{"counted, MB":>13}{title:>16}')
  for name, one in compiled.items():
    text, counted = one.as_text(), (one.cost_analysis() or {}).get('bytes accessed')
    numbers = f'{len(text) / 1e3:>9.0f}{text.count(" while("):>7}{starts[name]:>9}'
    numbers += f'{one.memory_analysis().temp_size_in_bytes / 2**20:>16.1f}'
    numbers += f'{counted / 1e6:>13.0f}' if counted else f'{"not counted":>13}'
    print(f'{name:16}{numbers}' + (f'{times[name]:>16.2f}' if times else ''))


if __name__ == '__main__':
  main()
