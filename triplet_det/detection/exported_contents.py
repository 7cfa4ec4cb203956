"""What a file of `export` can hold: sizes, fields, operations; a stranger's file with anything else is refused.

An exported program is code. What XLA runs can call into whatever is registered in the process, by name (custom calls,
callbacks, sends); pure arithmetic on arrays of a sensible size can at worst be wrong, or not end.
"""

import dataclasses
import graphlib
import math
import reprlib
import zipfile
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax import export as jax_export
from jax.extend import mlir
from jax.interpreters.mlir import ir, make_ir_context

INFLATION, SMALL = 20, 2**26  # a zip unpacks to at most so many times its own bytes; to 64 MiB without asking
MAX_OPERATIONS = 1_000_000  # with every call written out; hourglass-104 at five scales for four platforms has 60,000

# All that `export` writes, for any network, settings and platform, as in `test_exported_contents`.
_NAMES = (
  'abs add and broadcast_in_dim case compare composite concatenate constant convert convolution divide dot_general '
  'dynamic_slice dynamic_update_slice exponential gather iota maximum minimum multiply negate or pad power reduce '
  'reduce_window remainder reshape return reverse scatter select sign slice sort subtract transpose while'
)
OPERATIONS = frozenset(['func.func', 'func.call', 'func.return', *(f'stablehlo.{name}' for name in _NAMES.split())])
COMPOSITES = frozenset(['chlo.top_k'])
MODULE_ATTRIBUTES = frozenset(['sym_name', 'jax.uses_shape_polymorphism', 'mhlo.num_partitions', 'mhlo.num_replicas'])
ARGUMENT_ATTRIBUTES = frozenset(['jax.result_info', 'jax.global_constant'])


def check_sizes(archive: zipfile.ZipFile, packed: int) -> None:
  """Raises BadZipFile if a zip, or the npz in it, unpacks to more than its file of `packed` bytes can mean."""
  size, limit = sum(one.file_size for one in archive.infolist()), max(SMALL, INFLATION * packed)
  if size > limit:
    raise zipfile.BadZipFile(f'{packed} bytes that unpack to {size}, more than {limit}')
  for one in archive.infolist():
    if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or one.flag_bits & 1:
      raise zipfile.BadZipFile(f'{one.filename!r} is encrypted, or packed as export never does')


def read(archive: zipfile.ZipFile, name: str) -> bytes:
  """A member of a zip, of which no more is unpacked than `check_sizes` was told."""
  with archive.open(name) as file:
    return file.read(archive.getinfo(name).file_size)


def check_program(exported: jax_export.Exported, arguments: Any, max_detections: int, what: str) -> int:
  """Raises ValueError for a program that `export` does not write; nothing of it is compiled or run.

  Args:
    exported: the program.
    arguments: what it is to be called with.
    max_detections: of the settings.
    what: file and program, for the message.

  Returns:
    The most bytes that it can sensibly have in memory beside its arguments.
  """

  def refuse(reason: str) -> NoReturn:
    raise ValueError(f'{what} {reason}: triplet_det.export never writes that, it is not run; export the detector again')

  given = jax.tree_util.tree_leaves_with_path((arguments, {}))
  if exported.in_tree != jax.tree.structure((arguments, {})):
    refuse('takes other arguments than detector.json and weights.npz have')
  for (place, array), aval in zip(given, exported.in_avals):
    if (array.shape, array.dtype) != (aval.shape, aval.dtype):
      there = f'the file has {array.dtype}{list(array.shape)}'
      refuse(f'takes {aval.dtype}{list(aval.shape)} for {jax.tree_util.keystr(place)}, {there}')
  images = [aval for aval in exported.in_avals if aval.dtype == 'uint8']
  rows = {'boxes': ('float32', (4,)), 'scores': ('float32', ()), 'classes': ('int32', ()), 'valid': ('bool', ())}
  results = {name: (dtype, (images[0].shape[0], max_detections, *rest)) for name, (dtype, rest) in rows.items()}
  found = jax.tree.unflatten(exported.out_tree, [(str(aval.dtype), aval.shape) for aval in exported.out_avals])
  if found != results:
    refuse(f'gives {reprlib.repr(found)} instead of {results}')
  # Measured: 86 times the canvases for one array of the published network, 600 MB for pairs and centers at five scales;
  # and rearranged weights.
  limit = (
    2**30
    + 2**11 * sum(one.size for one in images)
    + 8 * sum(one.size * one.dtype.itemsize for one in exported.in_avals)
  )

  functions, types = _read(exported.mlir_module_serialized, refuse)
  for one in types:
    size = _bytes(one)
    if size is None or size > limit:
      refuse(f'has an array of {one}; possible are numbers, at most {limit} bytes')
  try:
    order = list(graphlib.TopologicalSorter({name: one.calls for name, one in functions.items()}).static_order())
  except graphlib.CycleError as error:
    refuse(f'has a function that calls itself, {" -> ".join(error.args[1])}')
  written_out = {}
  for name in order:  # what is called comes first
    one = functions[name]
    written_out[name] = one.operations + sum(written_out[callee] for callee in one.calls)
    if written_out[name] > MAX_OPERATIONS:
      refuse(f'has more than {MAX_OPERATIONS} operations')
  return limit


@dataclasses.dataclass
class _Function:
  operations: int = 0
  calls: list[str] = dataclasses.field(default_factory=list)


def _read(serialised: bytes, refuse: Callable[[str], NoReturn]) -> tuple[dict[str, _Function], set[ir.Type]]:
  """The functions of a program and the types of its values, if all operations are among `OPERATIONS`."""
  functions, types, faults = {}, set(), []

  def look(operation: ir.Operation) -> ir.WalkResult:  # what it raised would lose its type
    name, attributes = operation.name, _attributes(operation)
    function.operations += 1
    types.update(result.type for result in operation.results)
    foreign = [key for key in attributes if '.' in key]  # hints for one backend or another
    for of_one in (one for key in ('arg_attrs', 'res_attrs') for one in attributes.get(key, ())):
      foreign += {of_one[i].name for i in range(len(of_one))} - ARGUMENT_ATTRIBUTES
    if name not in OPERATIONS or foreign:
      faults.append(f'{name} {attributes.get("call_target_name", "")} {" ".join(foreign)}'.strip())
    elif name == 'stablehlo.composite':
      function.calls.append(attributes['decomposition'].value)
      if attributes['name'].value not in COMPOSITES:
        faults.append(f'{name} {attributes["name"]}')
    elif name == 'func.call':
      function.calls.append(attributes['callee'].value)
    return ir.WalkResult.ADVANCE

  with make_ir_context():
    module = mlir.deserialize_portable_artifact(serialised)
    faults += sorted(set(_attributes(module.operation)) - MODULE_ATTRIBUTES)
    for operation in module.body.operations:
      attributes = _attributes(operation)
      function = functions.setdefault(str(getattr(attributes.get('sym_name'), 'value', '')), _Function())
      operation.operation.walk(look)
    if faults:
      refuse(f'has the operation {faults[0]}')
    return functions, types


def _attributes(operation) -> dict[str, ir.Attribute]:
  return dict(operation.attributes.items())


def _bytes(kind: ir.Type) -> int | None:
  """Of an array of that type; None for what is no array of numbers of a known shape."""
  if not isinstance(kind, ir.RankedTensorType) or not kind.has_static_shape or kind.encoding:
    return None
  element = kind.element_type
  if not isinstance(element, ir.IntegerType | ir.FloatType):
    return None
  return math.prod(kind.shape) * max(element.width // 8, 1)
