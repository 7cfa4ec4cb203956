"""What devices send each other in a compiled program, read off the text that XLA prints of it."""

import dataclasses
import math
import re
from collections.abc import Mapping

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{\n((?:[^}].*\n)*)\}', re.MULTILINE)
# name = shape operation(operands), attributes; of shapes, layouts such as {1,0:T(8,128)S(1)} are part
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$', re.MULTILINE)
_ARRAY = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')
_CALLED = re.compile(r'\b(body|condition|calls|to_apply|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All operations of one kind in one call of a program."""

  kind: str  # of KINDS
  count: int  # those in a loop as often as the loop turns
  bytes: int  # on one device, of what goes in or what comes out, whichever is more


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  operation: str
  rest: str  # operands and attributes


def collectives(hlo: str) -> tuple[Collective, ...]:
  """The collectives of a compiled module's text (`compiled.as_text()`), in the order of KINDS.

  Raises:
    ValueError: not such a text.
  """
  computations, entry = _computations(hlo)
  counts, sizes = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
  for name, times in _turns(computations, entry).items():
    shapes = {one.name: one.shape for one in computations[name]}
    for one in computations[name]:
      kind = one.operation.removesuffix('-start')  # what is started is done once more, in -done
      if kind in KINDS:
        counts[kind] += times
        sizes[kind] += times * _moved(one, shapes)
  return tuple(Collective(kind, counts[kind], sizes[kind]) for kind in KINDS if counts[kind])


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Name -> instructions, and the name of the one that the program begins with."""
  blocks = _COMPUTATION.findall(hlo)
  entries = [name for entry, name, _ in blocks if entry]
  if not entries:
    raise ValueError(f'not the text of a compiled program, no line begins with ENTRY: {hlo[:60]!r} ...')
  return {name: [_Instruction(*one) for one in _INSTRUCTION.findall(body)] for _, name, body in blocks}, entries[0]


def _turns(computations: Mapping[str, list[_Instruction]], entry: str) -> dict[str, int]:
  """Computation -> how often it runs in one call of the program."""
  turns = dict.fromkeys(computations, 0)

  def visit(name: str, times: int) -> None:
    turns[name] += times
    for one in computations[name]:
      if one.operation.endswith(('-update', '-done')):  # of what -start has called
        continue
      called = {role: re.findall(r'[\w.\-]+', names) for role, names in _CALLED.findall(one.rest)}
      trips = _trips(one, computations, called) if one.operation == 'while' else 1
      for names in called.values():
        for below in names:
          visit(below, times * trips)

  visit(entry, 1)
  return turns


def _trips(loop: _Instruction, computations: Mapping[str, list[_Instruction]], called: Mapping[str, list[str]]) -> int:
  """How often a loop turns: as XLA knows it, or else the bound that its condition compares the counter with."""
  if known := _TRIPS.search(loop.rest):
    return int(known[1])
  bounds = [
    int(number[1])
    for one in computations[called['condition'][0]]
    if one.operation == 'constant' and (number := re.match(r'(\d+)\)', one.rest))
  ]
  return max(bounds, default=1)


def _moved(one: _Instruction, shapes: Mapping[str, str]) -> int:
  operands = re.findall(r'%([\w.\-]+)', one.rest.split('), ')[0])
  sent = sum(_bytes(shapes[name]) for name in operands)
  # The result of most -start operations is the pair of what was sent and what arrives.
  pair = one.operation.endswith('-start') and one.shape.startswith('(') and one.operation != 'all-reduce-start'
  return max(sent, _bytes(one.shape) - pair * sent)


def _bytes(shape: str) -> int:
  """Of an array or a tuple of arrays as XLA writes them: 'f32[3,8]{1,0}', '(bf16[4], u32[])'."""
  total = 0
  for letters, bits, dims in _ARRAY.findall(shape):
    count = math.prod(map(int, filter(None, dims.split(','))))
    total += -(-count * (8 if letters == 'pred' else int(bits or 0)) // 8)
  return total
