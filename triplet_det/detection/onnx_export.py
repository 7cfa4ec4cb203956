"""The program of an exported detector as an ONNX file, by jax2onnx: a graph per canvas, chosen by the image's size.

What that package cannot convert, or converts so that onnxruntime cannot run it, is put in other words here, before it
sees the program: what differs between platforms, calls, windows over four axes, running maxima.
"""

import json
import logging as stdlib_logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from triplet_det.detection.sidecar import SIDECAR

OPSET = 21
_SMALL = 256  # bytes of a weight that is not worth sharing
_CALLS = {'jit': 'jaxpr', 'closed_call': 'call_jaxpr', 'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}


def convert(program: Callable, shapes: Sequence[jax.ShapeDtypeStruct], names: tuple[Sequence[str], Sequence[str]]):
  """An `onnx.ModelProto` of a function of arrays, whose constants become part of it.

  Args:
    program: (array, ...) -> (array, ...).
    shapes: of its arguments.
    names: of its arguments and of its results.

  Raises:
    ImportError: the packages of the extra `onnx` are not installed, or jax2onnx does not fit jax.
    ValueError: a part of the program cannot be converted; names the operation.
  """
  log = stdlib_logging.getLogger()
  handlers = log.handlers[:]
  try:
    import jax2onnx
    import onnxruntime  # noqa: F401, before minutes of work
  except ImportError as error:
    raise ImportError(f"exporting to ONNX needs jax2onnx ({error}): pip install 'triplet_det[onnx]'") from error
  start = time.monotonic()
  traced = jax.make_jaxpr(program)(*shapes)  # first: jax2onnx replaces parts of jax.numpy while it traces
  given, results = names
  stdlib_logging.disable(stdlib_logging.WARNING)  # each step is told, and handlers for it are installed
  try:
    model = jax2onnx.to_onnx(
      lambda *arguments: tuple(_evaluate(traced, arguments)),
      inputs=shapes,
      model_name='detector',
      opset=OPSET,
      input_names=given,
      output_names=results,
    )
  except NotImplementedError as error:
    raise ValueError(f'jax2onnx cannot convert this detector: {error}: export a .zip instead') from error
  except AttributeError as error:  # it takes parts of jax that are nobody's to take, and that come and go
    versions = ' '.join(f'{name} {metadata.version(name)}' for name in ('jax2onnx', 'jax'))
    raise ImportError(f"{versions} do not fit each other ({error}): pip install 'triplet_det[onnx]'") from error
  finally:
    stdlib_logging.disable(stdlib_logging.NOTSET)
    log.handlers[:] = handlers
  _forget_shapes(model.graph)
  logging.info('%d operations in %.1f s', len(model.graph.node), time.monotonic() - start)
  return model


def _evaluate(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
  """What the program gives for these arguments, calls written out and some operations in other words."""
  values = dict(zip(closed.jaxpr.constvars, closed.consts)) | dict(zip(closed.jaxpr.invars, arguments))

  def read(atom):
    return atom.val if isinstance(atom, Literal) else values[atom]

  for equation in closed.jaxpr.eqns:
    name, parameters, given = equation.primitive.name, equation.params, [read(atom) for atom in equation.invars]
    if name == 'platform_index':
      found = [None]  # that the branches below do not need
    elif name == 'cond' and (platforms := parameters.get('branches_platforms')):
      # The branch for platforms that have none of their own.
      found = _evaluate(parameters['branches'][platforms.index(None)], given[1:])
    elif name in _CALLS:
      found = _evaluate(parameters[_CALLS[name]], given)
    elif name == 'reduce_window_max':
      found = [_window_max(*given, parameters)]
    elif name == 'cummax':
      found = [_running_max(*given, parameters['axis'], parameters['reverse'])]
    else:
      found = equation.primitive.bind(*given, **parameters)
      found = found if equation.primitive.multiple_results else [found]
    values |= zip(equation.outvars, found)
  return [read(atom) for atom in closed.jaxpr.outvars]


def _window_max(x, parameters):
  """`lax.reduce_window` with stride 1 as the maximum of shifted arrays."""
  steps = parameters['window_strides'] + parameters['window_dilation'] + parameters['base_dilation']
  if set(steps) != {1}:
    raise NotImplementedError(f'a maximum over windows with {parameters}')
  for axis, (size, (before, after)) in enumerate(zip(parameters['window_dimensions'], parameters['padding'])):
    if size > 1:
      padded = _padded(x, axis, before, after)
      length = padded.shape[axis] - size + 1
      parts = [lax.slice_in_dim(padded, first, first + length, axis=axis) for first in range(size)]
      x = parts[0]
      for part in parts[1:]:
        x = lax.max(x, part)
  return x


def _running_max(x, axis, from_last):
  """`lax.cummax`: of 1, 2, 4, ... cells, each the maximum of two of those before."""
  length, shift = x.shape[axis], 1
  while shift < length:
    if from_last:
      moved = lax.slice_in_dim(_padded(x, axis, 0, shift), shift, length + shift, axis=axis)
    else:
      moved = lax.slice_in_dim(_padded(x, axis, shift, 0), 0, length, axis=axis)
    x, shift = lax.max(x, moved), 2 * shift
  return x


def _padded(x, axis, before, after):
  sizes = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
  return lax.pad(x, np.array(-np.inf, x.dtype), sizes)


def write(
  path: Path,
  models: Sequence[Any],
  canvases: Sequence[Sequence[tuple[int, int]]],
  inputs: Sequence[str],
  sidecar: Mapping[str, Any],
) -> None:
  """Writes the models, as for `join`, as one ONNX file with `sidecar` in its metadata.

  Raises ValueError if it is larger than a file of ONNX can be, or if onnxruntime cannot read it.
  """
  import onnx
  import onnxruntime

  model = join(models, canvases, inputs) if len(models) > 1 else models[0]
  model.producer_name = 'triplet_det'
  onnx.helper.set_model_props(model, {SIDECAR: json.dumps(sidecar)})
  if (size := model.ByteSize()) > onnx.checker.MAXIMUM_PROTOBUF:
    raise ValueError(f'{path} would have {size:,} bytes, ONNX files have at most {onnx.checker.MAXIMUM_PROTOBUF:,}')
  path.write_bytes(model.SerializeToString())
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  try:
    onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
  except Exception as error:  # of onnxruntime's own kind
    path.unlink()
    reason = str(error).partition('\n')[0][:300]
    raise ValueError(f'onnxruntime cannot read what jax2onnx made of this detector: {reason}: export a .zip') from error


def join(models: Sequence[Any], canvases: Sequence[Sequence[tuple[int, int]]], inputs: Sequence[str]) -> Any:
  """One `onnx.ModelProto` of models that differ in their canvases alone: the one runs whose canvases are given.

  Args:
    models: `onnx.ModelProto` with equal names of inputs and results.
    canvases: of each, for each scale, (height, width).
    inputs: names of those inputs that are canvases [B, H, W, 3].
  """
  import onnx
  from onnx import helper, numpy_helper

  shared = {}  # content of a weight -> the one that all branches use
  branches = []
  for i, model in enumerate(models):
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    _rename(graph, f'p{i}/', {})
    weights = list(graph.initializer)
    del graph.initializer[:]
    renamed = {}
    for weight in weights:
      key = weight.data_type, tuple(weight.dims), weight.raw_data or weight.SerializeToString()
      if len(weight.raw_data) < _SMALL:
        graph.initializer.append(weight)
      elif key in shared:
        renamed[weight.name] = shared[key].name
      else:
        shared[key] = weight
    _rename(graph, '', renamed)
    for one in graph.input:  # what is given, in the shape of this branch
      given = one.name.removeprefix(f'p{i}/')
      shape = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
      graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f'{one.name}_shape'))
      graph.node.insert(0, helper.make_node('Reshape', [given, f'{one.name}_shape'], [one.name]))
    del graph.input[:]
    branches.append(graph)

  first = models[0].graph
  sizes, nodes, constants = [], [], []
  for name in inputs:
    sizes.append(f'{name}_sides')
    nodes.append(helper.make_node('Shape', [name], [sizes[-1]], start=1, end=3))
  nodes.append(helper.make_node('Concat', sizes, ['sides'], axis=0))

  def distance(i: int) -> list[Any]:
    """Nodes of `most_i` [1], by how much the sides given are off those of a branch."""
    constants.append(numpy_helper.from_array(np.array(canvases[i], np.int64).reshape(-1), f'sides_{i}'))
    return [
      helper.make_node('Sub', ['sides', f'sides_{i}'], [f'off_{i}']),
      helper.make_node('Abs', [f'off_{i}'], [f'far_{i}']),
      helper.make_node('ReduceMax', [f'far_{i}'], [f'most_{i}'], keepdims=1),
    ]

  # What fits none comes to the last branch, whose Reshape would take other sides of as many pixels (48 x 64 for 64 x
  # 48). So Squeeze looks first: it takes the axis away of one zero, and fails on more, one for each pixel that is off.
  joined, last = branches[-1], len(branches) - 1
  strict = [
    *distance(last),
    helper.make_node('Add', [f'most_{last}', 'one'], ['length']),
    helper.make_node('Expand', ['zero', 'length'], ['as_far']),
    helper.make_node('Squeeze', ['as_far', 'zero'], ['none']),
  ]
  for name in inputs:
    shape = f'p{last}/{name}_shape'
    reshape = next(node for node in joined.node if shape in node.input)
    reshape.input[1] = f'{shape}_or_none'
    strict.append(helper.make_node('Add', [shape, 'none'], [f'{shape}_or_none']))
  for node in reversed(strict):
    joined.node.insert(0, node)

  for i in reversed(range(last)):
    results = [f'p{i}/if/{one.name}' for one in first.output]
    test = [
      *distance(i),
      helper.make_node('Equal', [f'most_{i}', 'zero'], [f'fits_{i}']),
      helper.make_node('If', [f'fits_{i}'], results, then_branch=branches[i], else_branch=joined),
    ]
    outputs = [helper.make_value_info(name, one.type) for name, one in zip(results, first.output)]
    joined = helper.make_graph(test, f'choose_{i}', [], outputs)
  nodes += joined.node
  nodes += [helper.make_node('Identity', [f.name], [o.name]) for f, o in zip(joined.output, first.output)]
  given = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in first.input]
  for one in given:
    if one.name in inputs:
      for axis, side in ((1, 'height'), (2, 'width')):
        one.type.tensor_type.shape.dim[axis].dim_param = f'{one.name}_{side}'
  constants += [numpy_helper.from_array(np.array([value], np.int64), name) for value, name in ((0, 'zero'), (1, 'one'))]
  whole = helper.make_graph(nodes, 'detector', given, list(first.output), [*constants, *shared.values()])
  return helper.make_model(whole, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)


def _forget_shapes(graph) -> None:
  """Of values inside an `onnx.GraphProto`: readers infer them, and those that a loop stacks are noted wrongly."""
  del graph.value_info[:]
  for node in graph.node:
    for attribute in node.attribute:
      if attribute.HasField('g'):
        _forget_shapes(attribute.g)


def _rename(graph, prefix: str, names: dict[str, str]) -> None:
  """Values, nodes and weights of an `onnx.GraphProto`, and of those in it; those of `names`, or all get the prefix."""

  def new(name: str) -> str:
    return names.get(name, f'{prefix}{name}' if name else '')

  for one in [*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node]:
    one.name = new(one.name)
  for node in graph.node:
    node.input[:] = map(new, node.input)
    node.output[:] = map(new, node.output)
    for attribute in node.attribute:
      if attribute.HasField('g'):
        _rename(attribute.g, prefix, names)
