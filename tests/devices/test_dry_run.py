"""Ahead-of-time compilation: what is counted and read off, by hand and against XLA's own count; a dry run; refusals."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scripts import aot_compile
from tests import tiny_run
from triplet_det import dry_run, main
from triplet_det.configs import photos
from triplet_det.data import from_data, pipeline
from triplet_det.devices import compiled_program, roofline, sharding
from triplet_det.devices.collectives import Collective, collectives
from triplet_det.models import detector
from triplet_det.structs import Cells
from triplet_det.training import built_step

ROOT = Path(__file__).parents[2]

# Lines as the compilers of TPUs and GPUs print them, shortened: a collective in a fusion, one in a loop of 10 turns
# whose number is in the condition, one in a loop that says its number, and pairs of start and done.
HLO = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %y = f32[]{:T(128)} parameter(1)
  %x = f32[]{:T(128)} parameter(0)
  ROOT %add.3 = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter (input: f32[512,512]) -> f32[128,512] {
  %input = f32[512,512]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.2 = f32[512,512]{1,0:T(8,128)} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %dynamic-slice.3 = f32[128,512]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.2, %m, %c), dynamic_slice_sizes={1,5}
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %v = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %reduce-scatter.1 = bf16[1,8]{1,0} reduce-scatter(%v), channel_id=7, dimensions={0}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %v)
}

%condition (p.1: (s32[], bf16[4,8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(10)
  %p.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.4), direction=LT
}

%body.2 (p.2: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.2 = (s32[], f32[16]{0}) parameter(0)
  %w = f32[16]{0} get-tuple-element(%p.2), index=1
  %b = pred[3]{0} constant({...})
  %all-reduce.5 = (f32[16]{0}, pred[3]{0}) all-reduce(%w, %b), channel_id=9, to_apply=%add
  ROOT %t.2 = (s32[], f32[16]{0}) tuple(%w)
}

ENTRY %main (param: f32[128,512], param.1: (s32[], bf16[4,8])) -> f32[128,512] {
  %param = f32[128,512]{1,0:T(8,128)} parameter(0), metadata={op_name="all-reduce(w)"}
  %convert = bf16[128,512]{1,0:T(8,128)(2,1)} convert(%param)
  %all-gather-start = (bf16[128,512]{1,0}, bf16[512,512]{1,0}) all-gather-start(%convert), channel_id=2, dimensions={0}
  %all-gather-done = bf16[512,512]{1,0} all-gather-done(%all-gather-start), metadata={op_name="jit(f)/dot"}
  %fusion = f32[128,512]{1,0:T(8,128)S(1)} fusion(%big), kind=kCustom, calls=%all-reduce-scatter
  %all-reduce-start = f32[128,512]{1,0} all-reduce-start(%param), channel_id=1, to_apply=%add
  %all-reduce-done = f32[128,512]{1,0} all-reduce-done(%all-reduce-start)
  %param.1 = (s32[], bf16[4,8]{1,0}) parameter(1)
  %while.9 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%param.1), condition=%condition, body=%body, metadata={op_name="w"}
  %while.8 = (s32[], f32[16]{0}) while(%t.9), condition=%condition, body=%body.2, backend={"known_trip_count":{"n":"3"}}
  ROOT %sub = f32[128,512]{1,0:T(8,128)} subtract(%all-reduce-done, %fusion)
}
"""


def test_collectives_of_a_module_s_text():
  assert collectives(HLO) == (
    Collective('all-reduce', 1 + 1 + 3, 4 * 512 * 512 + 4 * 128 * 512 + 3 * (4 * 16 + 3)),
    Collective('all-gather', 1, 2 * 512 * 512),
    Collective('reduce-scatter', 10, 10 * 2 * 4 * 8),
  )
  with pytest.raises(ValueError, match=r"no line begins with ENTRY: 'module @jit_step'"):
    collectives('module @jit_step')


@pytest.mark.parametrize(
  'strides, padding, input_step, kernel_step',
  [((1, 1), ((1, 1), (0, 0)), (1, 1), (1, 1)), ((2, 3), ((3, 0), (2, 5)), (1, 2), (2, 1))],
)
def test_products_with_padding_are_left_out(strides, padding, input_step, kernel_step):
  """A convolution of ones with ones adds up its own products."""

  def convolve(x, kernel):
    axes = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, input_step, kernel_step, axes)

  arrays = np.ones((2, 9, 7, 3), np.float32), np.ones((3, 2, 3, 5), np.float32)
  assert roofline.network_flops(convolve, *arrays, train=False) == 2 * convolve(*arrays).sum()


class Convolutions(nn.Module):
  """Strided, padded or not, and behind a call and a rematerialised call."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(32, (7, 7), strides=2, padding=3)(x))
    x = nn.remat(nn.Conv)(48, (3, 3), padding=1)(x)  # nothing of it is needed again
    x = jax.jit(nn.relu)(x)
    x = nn.Conv(64, (3, 3), strides=2, padding='VALID')(x)
    return nn.Conv(64, (3, 1), padding=((2, 1), (0, 0)))(x)


def test_the_network_s_arithmetic_is_that_of_xla():
  network = Convolutions()
  images = jax.ShapeDtypeStruct((2, 63, 47, 3), np.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)

  def xla(function):
    return jax.jit(function).lower(variables, images).cost_analysis()['flops']

  forward = roofline.network_flops(network.apply, variables, images, train=False)
  assert forward == pytest.approx(xla(network.apply), rel=0.02)
  gradient = jax.grad(lambda v, x: jnp.square(network.apply(v, x)).sum())
  step = roofline.network_flops(network.apply, variables, images, train=True)
  assert step == pytest.approx(xla(gradient), rel=0.02)
  stem = 2 * 2 * 32 * (7 * 32 - 3 - 1 - 3 - 1) * (7 * 24 - 3 - 1 - 3 - 1) * 3  # taps on the padding of 3 left out
  assert 3 * forward - step == stem


def test_rematerialisation_is_no_arithmetic_of_the_network():
  def flops(remat, **arguments):
    module = detector.build(detector.VARIANTS['tiny'] | dict(remat=remat))
    images = jax.ShapeDtypeStruct((2, 63, 63, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    apply_fn = functools.partial(module.apply, **arguments)
    return roofline.network_flops(apply_fn, variables, images, train=bool(arguments))

  counts = [flops(remat, train=True, mutable=['batch_stats']) for remat in detector.REMAT]
  assert len(set(counts)) == 1
  assert 2.9 < counts[0] / flops('none') < 3  # not 3, because images need no gradient


def test_what_no_loss_reads_is_not_computed():
  """Five hidden layers, of offsets and embeddings, on the whole map or where they are read."""
  module = detector.build(detector.VARIANTS['tiny'])
  images = jax.ShapeDtypeStruct((2, 127, 127, 3), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  cells = jax.ShapeDtypeStruct((2, 8), np.int32)

  def flops(*read):
    def apply_fn(variables, images, *cells):
      at = Cells(*cells) if cells else None
      return module.apply(variables, images, train=True, read=at, mutable=['batch_stats'])

    return roofline.network_flops(apply_fn, variables, images, *read, train=True)

  count, of_cells, width = 2, 8, 32
  hidden = 2 * count * width * width * (3 * 32 - 2) ** 2  # taps without those on the padding
  at_cells = 2 * count * width * width * 9 * of_cells
  last = 2 * count * width * (2 + 2 + 2 + 1 + 1)  # for each cell: three offsets, two embeddings
  assert flops() - flops(cells, cells, cells) == 3 * (5 * (hidden - at_cells) + last * (32 * 32 - of_cells))


def test_the_roofline_by_hand():
  chip = roofline.Chip('toy', ('Toy',), flops=100.0, bandwidth=10.0, memory=1e3)
  assert roofline.bound(chip, flops=600, bytes_accessed=50, useful_flops=300) == roofline.Bound(6.0, 'arithmetic', 0.5)
  assert roofline.bound(chip, flops=600, bytes_accessed=80, useful_flops=200) == roofline.Bound(8.0, 'memory', 0.25)
  names = {kind: chip.name for chip in roofline.CHIPS for kind in chip.kinds}
  assert (names['TPU v5 lite'], names['TPU v5'], names['NVIDIA H100 80GB HBM3']) == ('v5e', 'v5p', 'H100')
  assert roofline.chip_of(jax.devices('cpu')[0]) is None
  peaks = {chip.name: (chip.peak('bfloat16') / 1e12, chip.peak('float32') / 1e12) for chip in roofline.CHIPS}
  assert peaks['v5e'] == (197, 197) and peaks['A100 40 GB'] == (312, 156)  # a TPU multiplies in bfloat16, a GPU in TF32


def lowered_loop(turns):
  """`turns` matrix products in a loop, and one sum behind it."""
  replicated = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
  x = jax.ShapeDtypeStruct((256, 256), np.float32, sharding=replicated)

  def function(x, w):
    return jax.lax.scan(lambda y, _: (y @ w, None), x, None, length=turns)[0] + x

  return jax.jit(function).lower(x, x), {'matrices': compiled_program.bytes_on_device((x, x))}


def test_a_loop_counts_as_often_as_it_turns():
  found, text = compiled_program.compile_program('loop', *lowered_loop(5), None, images=1, useful_flops=1.0, turns=5)
  once, _ = compiled_program.compile_program('loop', *lowered_loop(5), None, images=1, useful_flops=1.0)
  matrix = 4 * 256**2
  product = 2 * 256**3
  assert once.flops == pytest.approx(product, rel=0.02), 'XLA counts the turns itself by now'
  assert found.flops == pytest.approx(5 * product, rel=0.02)
  outside, _ = compiled_program.compile_program(
    'loop', *lowered_loop(5), None, images=1, useful_flops=1.0, turns=5, bytes_outside=3 * matrix
  )
  assert found.bytes_accessed == 5 * once.bytes_accessed
  assert outside.bytes_accessed == 5 * (once.bytes_accessed - 3 * matrix) + 3 * matrix
  assert found.memory['matrices'] == 2 * matrix and found.memory['results'] == matrix
  assert found.bound is None and found.collectives == () and 'while(' in text


@pytest.mark.parametrize(
  'message, wanted',
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.28G) exceeds '
      'available HBM (15.75G).',
      'the step does not fit: it needs 16.28 GiB, a device has 15.75 GiB (0.53 GiB too much). What helps: more devices',
    ),
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 512.00M of '
      '256.00M hbm. Exceeded hbm capacity by 256.00M.\n\nTotal hbm usage >= 530.00M:\n    reserved 18.00M',
      'the step does not fit: it needs 0.50 GiB, a device has 0.25 GiB (0.25 GiB too much). What helps: more devices',
    ),
    (
      'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes. [tf-allocator-allocation-error]',
      'the step does not fit: it needs 16.00 GiB. What helps: more devices',
    ),
    ('RESOURCE_EXHAUSTED: anything else\nlines', 'the step does not fit: RESOURCE_EXHAUSTED: anything else'),
  ],
)
def test_the_compiler_s_refusal_in_one_line(message, wanted):
  assert compiled_program.refusal('step', message, 'more devices') == wanted


def test_a_program_that_the_chip_has_no_memory_for():
  chip = roofline.Chip('toy', ('Toy',), flops=1.0, bandwidth=1.0, memory=0.5 * 2**20)
  with pytest.raises(
    compiled_program.DoesNotFit, match=r'the loop does not fit: it needs 0\.00 GiB, a device has 0\.00 GiB'
  ):
    compiled_program.compile_program('loop', *lowered_loop(5), chip, images=1, useful_flops=1.0)
  roomy = roofline.Chip('toy', ('Toy',), flops=1e9, bandwidth=1e9, memory=2**21)
  found, _ = compiled_program.compile_program('loop', *lowered_loop(5), roomy, images=1, useful_flops=1.0, turns=5)
  assert found.bound.seconds == found.flops / 1e9 > found.bytes_accessed / 1e9
  with pytest.raises(compiled_program.DoesNotFit, match=r'needs 0\.00 GiB.* What helps: less'):
    compiled_program.compile_program(
      'loop', *lowered_loop(5), roomy, images=1, useful_flops=1.0, beside={'other': 2**21}, what_helps='less'
    )


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The tiny run's."""
  config = photos.get_config('encoder=hourglass')
  data = tiny_run.coco_data(tmp_path_factory.mktemp('data') / 'coco')
  config.update_from_flattened_dict({**tiny_run.OVERRIDES, **data, 'dry_run': True})
  return config


@pytest.fixture(scope='module')
def built(config):
  return built_step.build(config, sharding.make_mesh(), 3)


@pytest.fixture(scope='module')
def planned(config):
  return dry_run.plan_here(config)


def test_the_plan_of_the_devices_at_hand(built, planned):
  numbers = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(built.state.params))
  statistics = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(built.state.batch_stats))
  step, detection = planned.programs
  assert (step.name, step.images, detection.images, planned.num_classes, planned.devices) == (dry_run.STEP, 4, 2, 3, 1)
  of_state = dict(parameters=4 * numbers, optimizer=4 * (2 * numbers + 2), averages=0)
  # Adam counts its steps once, so does the schedule; the state counts them with the statistics.
  assert {part: step.memory[part] for part in of_state} == of_state
  assert step.memory['norm statistics'] == 4 * (statistics + 1)
  assert step.memory['images and boxes'] == 4 * (31 * 31 * 3 + 8 * (4 * 4 + 4 + 1))
  assert step.memory['results'] < numbers, 'the state is updated in its place'
  assert step.memory['activations and other temporaries'] > 4 * 4 * 8 * 8 * 8 * 10
  assert detection.memory["the training's state meanwhile"] == sum(
    step.memory[part] for part in ('parameters', 'optimizer', 'norm statistics', 'averages')
  )
  assert detection.memory['images and boxes'] == 2 * (127 * 127 * 3 + 3 * 2 * 4)
  assert step.flops > step.useful_flops > 0 and detection.flops > detection.useful_flops > 0
  assert step.bound is None and planned.days is None and not planned.simulated


def test_the_batch_that_is_compiled_for_is_the_one_that_comes(config, built):
  batches = pipeline.train_batches(
    pipeline.open_source(**config.data.train),
    batch_size=config.batch_size,
    input_size=config.input_size,
    seed=0,
    start_step=0,
    num_workers=0,
    num_threads=1,
    host_index=0,
    host_count=1,
    scales=[1.0],
    border=16,
    flip=True,
    max_objects=config.augment.max_objects,
    train_on_crowd=True,
  )
  come = next(batches)
  batches.close()
  for name, value in come.items():
    wanted = getattr(built.batch, name)
    assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype), name


def test_a_dry_run_prints_the_plan_and_does_nothing(config, planned, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(dry_run, 'plan_here', lambda config: planned)
  main.run(config, str(tmp_path / 'run'))
  said = capsys.readouterr().out
  assert not (tmp_path / 'run').exists()
  assert said.startswith(f'per device, 1 x {jax.devices()[0].device_kind}, 3 classes:\n')
  lines = {line[:40].strip(): line for line in said.splitlines()}
  step = planned.programs[0]
  assert f'{step.memory["parameters"] / 1024:.2f} KiB' in lines['memory: parameters']
  assert f'{step.total_memory / 1024:.2f} KiB' in lines['memory, total']
  assert 'least time' not in said and 'steps: at least' not in said


def test_a_dry_run_without_data_is_for_80_classes(config, monkeypatch, caplog):
  asked = []
  monkeypatch.setattr(dry_run, 'make_plan', lambda config, mesh, *about, images: asked.append((*about, images)))
  elsewhere = config.copy_and_resolve_references()
  elsewhere.data.train.images = '/nowhere'
  dry_run.plan_here(elsewhere)
  dry_run.plan_here(config)
  assert asked == [(80, 0), (3, len(pipeline.open_source(**config.data.train)))]


def test_a_length_that_the_data_tell(config):
  """Is not made up where they are not; the config of the caller stays."""
  left_open = config.copy_and_resolve_references()
  left_open.total_steps = from_data.FROM_DATA
  lengths = [
    dry_run.make_plan(left_open, sharding.make_mesh(), 3, programs=(), images=images).total_steps for images in (0, 400)
  ]
  assert lengths == [None, 1_800] and left_open.total_steps == from_data.FROM_DATA


def test_tables_and_numbers_of_a_known_chip(planned):
  chip = roofline.Chip('toy', ('Toy',), flops=2e12, bandwidth=1e11, memory=2**34)
  step, detection = planned.programs
  values = dict(flops=3e12, bytes_accessed=2e11, useful_flops=1e12)
  step = compiled_program.Program(
    **{**vars(step), **values, 'bound': roofline.bound(chip, **values), 'collectives': collectives(HLO)}
  )
  known = dry_run.Plan('Toy', 8, chip, 'bfloat16', True, 3, 480_000, (step, detection))
  text, markdown = dry_run.as_text(known), dry_run.as_markdown(known)
  assert known.days == pytest.approx(2 * 480_000 / 86_400)  # memory: 2 s a step
  for said in (text, markdown):
    assert '8 x Toy, 3 classes (2 TFLOP/s in bfloat16, 100 GB/s)' in said
    for value in ('3.00 TFLOP', '200 GB', '2.00 s, by memory', '25.0 %', '5 x, 1.31 MB', '10 x, 640 B'):
      assert value in said, value
    assert '480,000 steps: at least 11.11 days. A bound, not a promise' in said
    assert 'memory is an estimate' in said
  short = dataclasses.replace(known, total_steps=30)
  assert '30 steps: at least 1:00. A bound' in dry_run.as_text(short)
  assert '| share of peak for the network, then | 25.0 % | - |' in markdown
  numbers = json.loads(json.dumps(dry_run.as_json(known)))
  assert numbers['days'] == known.days
  assert numbers['programs'][0]['total_memory'] == sum(numbers['programs'][0]['memory'].values())
  assert numbers['programs'][0]['bound'] == dict(seconds=2.0, by='memory', peak_share=0.25)
  assert numbers['programs'][0]['collectives'][1] == dict(kind='all-gather', count=1, bytes=524288)


@pytest.mark.parametrize(
  'error, wanted',
  [
    (RuntimeError('JAX TPU support not installed; cannot generate'), r"pip install -e '\.\[tpu\]'"),
    (
      RuntimeError('ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm ...".'),
      r'another process holds the TPU compiler .*wait for its end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1',
    ),
    (
      RuntimeError('INVALID_ARGUMENT: Invalid TPU external name: TPU v9e'),
      r"no topology 'v9e:2x4' \(INVALID_ARGUMENT: Invalid TPU external name: TPU v9e\); for example v5e:2x4",
    ),
    (NotImplementedError('topology not implemented'), r'pip install --no-deps jax-cuda12-plugin==[\d.]+ jax-cuda12'),
  ],
)
def test_why_there_is_no_topology(error, wanted, monkeypatch):
  def get_topology_desc(**_):
    raise error

  monkeypatch.setattr(aot_compile.topologies, 'get_topology_desc', get_topology_desc)
  with pytest.raises(ValueError, match=wanted):
    aot_compile.devices_of('v9e:2x4')


def test_the_script_s_arguments():
  with pytest.raises(ValueError, match="no topology 'v5e'; for example v5e:2x4"):
    aot_compile.devices_of('v5e')
  assert aot_compile.canvas_size('511x767') == (511, 767) and aot_compile.canvas_size('') is None
  command = [sys.executable, 'scripts/aot_compile.py', '--config=configs/shapes.py', '--topology=v5e:2x2']
  if importlib.util.find_spec('libtpu') is None:
    wanted = "there is no compiler for v5e:2x2: pip install -e '.[tpu]'"
  else:
    command, wanted = [*command, '--canvas=511'], '--canvas=511: HEIGHTxWIDTH in pixels is wanted, for example 511x767'
  done = subprocess.run(command, cwd=ROOT, env=tiny_run.environment(), capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (2, '') and f'\nerror: {wanted}' in done.stderr
