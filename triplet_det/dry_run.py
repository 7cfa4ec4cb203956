"""What a run takes of its devices, found by compiling its programs: memory, arithmetic, traffic, the least time.

For the devices at hand (`--config.dry_run=true`) or for others (scripts/aot_compile.py).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from triplet_det.data import from_data, pipeline
from triplet_det.detection import canvas, inference, launching, trained_network
from triplet_det.detection.settings import Settings, settings_for
from triplet_det.devices import compiler, roofline, sharding
from triplet_det.devices.compiled_program import Program, bytes_on_device, compile_program
from triplet_det.run import output_paths
from triplet_det.run.progress import duration
from triplet_det.training import built_step
from triplet_det.training.built_step import BuiltStep

STEP, DETECTION = 'training step', 'detection'
CLASSES = 80  # of COCO; where the data are not at hand


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run takes of `devices` equal devices."""

  device_kind: str
  devices: int
  chip: roofline.Chip | None  # None: not in `roofline.CHIPS`
  multiplies_in: str  # what the chip makes of the network's dtype, unless model.precision is highest
  simulated: bool  # a GPU's programs compiled without the GPU: its kernels are not chosen
  num_classes: int
  total_steps: int | None  # None: the data tell, and are not here
  programs: tuple[Program, ...]

  @property
  def days(self) -> float | None:
    """The least time of all training steps; None if it is not known."""
    seconds = [one.bound.seconds for one in self.programs if one.name == STEP and one.bound]
    return seconds[0] * self.total_steps / 86_400 if seconds and self.total_steps else None


def make_plan(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  num_classes: int,
  *,
  images: int = 0,
  programs: Sequence[str] = (STEP, DETECTION),
  canvas_size: tuple[int, int] | None = None,
  hlo: epath.PathLike | None = None,
) -> Plan:
  """Compiles the very programs that training and evaluation by `config` would run on `mesh`.

  Args:
    config: of the run.
    mesh: of `sharding.make_mesh`; its devices may be described only.
    num_classes: of the data, which are not needed.
    images: of the data, if the length of the run depends on it.
    programs: STEP, DETECTION or both.
    canvas_size: height and width of the images to detect objects in; default: those of the training images. Each
      canvas size is a program of its own.
    hlo: file for the text of the compiled training step.

  Raises:
    DoesNotFit: with both numbers.
    ValueError: config and devices do not fit together.
  """
  device = mesh.devices.flat[0]
  chip, multiplies_in = roofline.chip_of(device), 'bfloat16'
  if chip and config.model.dtype == 'float32' and chip.tf32:
    chip, multiplies_in = dataclasses.replace(chip, flops=chip.tf32), 'TF32'
  known = images or config.total_steps != from_data.FROM_DATA
  config = config.copy_and_resolve_references()
  length = config.total_steps, config.eval_every, images, config.batch_size
  config.total_steps, _ = from_data.settled_length(*length)
  config.input_size = built_step.largest_crops(config)
  built = built_step.build(config, mesh, num_classes)
  found = []
  if STEP in programs:
    program, text = training_step(built, chip, mesh.devices.size, config.accumulate)
    found.append(program)
    if hlo is not None:
      output_paths.write_whole(hlo, text)
  if DETECTION in programs:
    settings = settings_for(config.test.to_dict(), config.image_scale, max(config.image_side, 0))
    own = [one for one in mesh.devices.flat if one.process_index == jax.process_index()]
    size = canvas_size or (config.input_size, config.input_size)
    found.append(_detection(built, chip, own, settings, config.eval_batch_size, size))
  return Plan(
    device_kind=device.device_kind,
    devices=mesh.devices.size,
    chip=chip,
    multiplies_in=multiplies_in,
    simulated=device.platform == 'gpu' and device not in jax.devices(),
    num_classes=num_classes,
    total_steps=config.total_steps if known else None,
    programs=tuple(found),
  )


def plan_here(config: ConfigDict) -> Plan:
  """The plan for the devices at hand; the number of classes is that of the training data, or 80 without them."""
  mesh = sharding.make_mesh(state_shards=config.state_shards)
  try:
    source = pipeline.open_source(**config.data.train)
    num_classes, images = len(source.categories), len(source)
  except (ValueError, FileNotFoundError) as error:
    logging.warning('the training data are not at hand, so this is for %d classes: %s', CLASSES, error)
    num_classes, images = CLASSES, 0
  return make_plan(config, mesh, num_classes, images=images)


def training_step(built: BuiltStep, chip: roofline.Chip | None, devices: int, accumulate: int) -> tuple[Program, str]:
  """The step of the loop, and its text; with `chip` it must fit into its memory."""
  state, images = built.state, built.batch.images
  parts = {
    'parameters': state.params,
    'optimizer': state.opt_state,
    'norm statistics': (state.step, state.batch_stats),
    'averages': state.average,
    'images and boxes': built.batch,
  }
  return compile_program(
    STEP,
    built.train_step.lower(state, built.batch),
    {name: bytes_on_device(part) for name, part in parts.items()},
    chip,
    images=images.shape[0],
    useful_flops=step_flops(built) / devices,
    turns=accumulate,
    # Adam reads gradient, parameter and two moments, and writes the last three.
    bytes_outside=7 * bytes_on_device(state.params),
    what_helps='more devices, model.dtype=bfloat16, model.remat=blocks, accumulate, state_shards',
  )


def step_flops(built: BuiltStep) -> int:
  """The arithmetic of the network in a training step on all devices, see `roofline.network_flops`."""
  variables = {'params': built.state.params, 'batch_stats': built.state.batch_stats}
  images = jax.ShapeDtypeStruct(built.batch.images.shape, np.float32)

  def apply_fn(variables, images, read):
    return built.module.apply(variables, images, train=True, read=read, mutable=['batch_stats'])

  return roofline.network_flops(apply_fn, variables, images, built.read, train=True)


def _detection(
  built: BuiltStep,
  chip: roofline.Chip | None,
  devices: Sequence[jax.Device],
  settings: Settings,
  batch_size: int,
  size: tuple[int, int],
) -> Program:
  """What `inference.Detector` runs for images of one `size` on the devices of a host, beside the training's state."""
  mesh = sharding.make_mesh(list(devices))
  over_rows, everywhere = sharding.over_data(mesh), sharding.replicated(mesh)
  rows = launching.rows_for(batch_size, over_rows)
  height, width = canvas.canvas_size(*size, settings.canvas_multiple)
  canvases = jax.ShapeDtypeStruct((rows, height, width, 3), np.uint8, sharding=over_rows)
  pair = jax.ShapeDtypeStruct((rows, 2), np.float32, sharding=over_rows)
  placement = canvas.Placement(border=pair, size=pair, scale=pair)
  network_input = functools.partial(inference.network_input, settings=settings)
  normalised = jax.eval_shape(network_input, canvases, placement=placement)
  module = built.module.clone(norm_folded=True)  # as `trained_network.folded`
  variables = jax.eval_shape(module.init, jax.random.key(0), normalised)
  variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), variables)
  apply_fn = trained_network.last_stack(module)
  suited = trained_network.suited(apply_fn, devices)
  propose = jax.jit(
    functools.partial(inference.propose, suited, settings), compiler_options=compiler.options(devices[0])
  )
  return compile_program(
    DETECTION,
    propose.lower(variables, canvases, placement),
    {
      'parameters': bytes_on_device(variables),
      'images and boxes': bytes_on_device((canvases, placement)),
    },
    chip,
    images=rows,
    useful_flops=roofline.network_flops(apply_fn, variables, normalised, train=False) / len(devices),
    turns=1 if suited is apply_fn else normalised.shape[0],
    beside={"the training's state meanwhile": bytes_on_device(built.state)},
    what_helps='a smaller eval_batch_size, evaluation in a run of its own (mode=eval)',
  )[0]


def as_json(plan: Plan) -> dict[str, Any]:
  """All numbers, in bytes, FLOPs and seconds."""
  return dataclasses.asdict(plan) | dict(
    days=plan.days,
    programs=[dataclasses.asdict(one) | dict(total_memory=one.total_memory) for one in plan.programs],
  )


def as_text(plan: Plan) -> str:
  """A table for the terminal."""
  rows = [('', *(program.name for program in plan.programs)), *_rows(plan)]
  label_width, *widths = (max(map(len, column)) for column in zip(*rows))
  lines = [
    f'  {label:<{label_width}}' + ''.join(f'  {value:>{width}}' for value, width in zip(values, widths))
    for label, *values in rows
  ]
  return '\n'.join([f'per device, {_title(plan)}:', *lines, *_notes(plan)])


def as_markdown(plan: Plan) -> str:
  """The same as Markdown."""
  head = ['per device', *(program.name for program in plan.programs)]
  lines = [head, ['---', *['---:'] * len(plan.programs)], *_rows(plan)]
  table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
  return '\n\n'.join([_title(plan), table, *_notes(plan)])


def _title(plan: Plan) -> str:
  title = f'{plan.devices} x {plan.device_kind}, {plan.num_classes} classes'
  if plan.chip:
    title += f' ({plan.chip.flops / 1e12:g} TFLOP/s in {plan.multiplies_in}, {plan.chip.bandwidth / 1e9:g} GB/s)'
  return title


def _rows(plan: Plan) -> list[tuple[str, ...]]:
  """(what, its value for each program); what no program has is left out."""
  parts = dict.fromkeys(part for program in plan.programs for part in program.memory)
  kinds = dict.fromkeys(one.kind for program in plan.programs for one in program.collectives)
  available = f' of {plan.chip.memory / roofline.GIB:.2f} GiB' if plan.chip else ''
  values_of = {
    'images per call, on all devices': lambda program: str(program.images),
    **{f'memory: {part}': lambda program, part=part: _binary(program.memory.get(part)) for part in parts},
    'memory, total': lambda program: _binary(program.total_memory) + available,
    'arithmetic, as compiled': lambda program: _decimal(program.flops, 'FLOP'),
    'arithmetic of the network': lambda program: _decimal(program.useful_flops, 'FLOP'),
    'memory read and written': lambda program: _decimal(program.bytes_accessed, 'B'),
    **{kind: lambda program, kind=kind: _sent(program, kind) for kind in kinds},
    'least time': lambda program: program.bound and f'{_decimal(program.bound.seconds, "s")}, by {program.bound.by}',
    'share of peak for the network, then': lambda program: program.bound and f'{100 * program.bound.peak_share:.1f} %',
    'compiled in': lambda program: f'{program.compile_seconds:.0f} s',
  }
  rows = [(label, [value_of(program) for program in plan.programs]) for label, value_of in values_of.items()]
  return [(label, *(value or '-' for value in values)) for label, values in rows if any(values)]


def _sent(program: Program, kind: str) -> str | None:
  return next((f'{one.count} x, {_decimal(one.bytes, "B")}' for one in program.collectives if one.kind == kind), None)


def _notes(plan: Plan) -> list[str]:
  notes = []
  if plan.days is not None:
    time = f'{plan.days:.2f} days' if plan.days >= 1 else duration(86_400 * plan.days)
    notes.append(
      f'{plan.total_steps:,} steps: at least {time}. A bound, not a promise: arithmetic at the peak or '
      'memory at full speed, whichever takes longer, without evaluation and without waiting for data or other devices.'
    )
  if plan.simulated:
    notes.append(
      'Compiled without the GPU, whose kernels are chosen when it is there: memory is an estimate, arithmetic and '
      'traffic are not counted.'
    )
  return notes


def _binary(size: int | None) -> str | None:
  """Bytes as people read them, None and 0 as nothing."""
  if not size:
    return None
  for unit, scale in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
    if size >= scale:
      return f'{size / scale:.2f} {unit}'
  return f'{size} B'


def _decimal(value: float | None, unit: str) -> str | None:
  """3 digits and a prefix: 25.6 TFLOP, 354 GB, 432 ms."""
  if value is None:
    return None
  for prefix, scale in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3), ('', 1.0), ('m', 1e-3)):
    if value >= 0.9995 * scale:  # 999.6 is 1.00 k
      return f'{value / scale:#.3g}'.removesuffix('.') + f' {prefix}{unit}'
  return f'{value / 1e-6:#.3g}'.removesuffix('.') + f' µ{unit}'
