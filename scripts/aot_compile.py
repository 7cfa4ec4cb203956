"""What a run takes of a TPU slice or of H100s that are not here: compiles its training step and detection for them.

  pip install -e '.[tpu]'
  python scripts/aot_compile.py --config configs/triplet.py:hg=104 --topology v5e:2x4 --config.model.dtype=bfloat16

Prints memory, arithmetic, traffic, collectives and the least time per device; ends with exit code 2 and both numbers if
it does not fit. Needs no data and no TPU; the compiler takes 10 to 40 minutes and 10 GB for Hourglass-104. Topologies:
v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4 and their multiples; h100:8 (one host, or fewer of it) with the compiler of
`pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt` in the version of jax.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':  # before JAX is imported
  os.environ['JAX_PLATFORMS'] = 'cpu'
  for _name, _value in {
    'TPU_SKIP_MDS_QUERY': '1',  # do not ask the network which TPU this is
    'TPU_WORKER_HOSTNAMES': 'localhost',  # and do not complain that nobody says
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }.items():
    os.environ.setdefault(_name, _value)
  # Kernels cannot be timed without the GPU.
  os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_autotune_level=0'

import jax
from absl import app, flags
from jax.experimental import topologies

from triplet_det import dry_run
from triplet_det.devices import sharding
from triplet_det.run import config_flag, config_limits, output_paths
from triplet_det.run.command_line import EXIT_MISFIT
from triplet_det.run.progress import show_messages

_TOPOLOGY = flags.DEFINE_string('topology', None, 'v5e:2x4 or another TPU slice, or h100:8')
_CLASSES = flags.DEFINE_integer('classes', dry_run.CLASSES, 'how many the data have', lower_bound=1)
_CANVAS = flags.DEFINE_string('canvas', '', 'HEIGHTxWIDTH of the images to detect objects in; empty: the input_size')
_ONLY = flags.DEFINE_enum('only', '', ['', 'step', 'detection'], 'one of the two programs')
_JSON = flags.DEFINE_string('json', None, 'file for the numbers')
_MARKDOWN = flags.DEFINE_string('markdown', None, 'file for the table')
_HLO = flags.DEFINE_string('hlo', None, 'file for the text of the compiled training step')

_EXAMPLES = 'v5e:2x4, v4:2x2x1, v6e:2x4, h100:8'

# XLA's description of an H100 SXM: NVIDIA's data sheet, and the limits of compute capability 9.0 in the CUDA guide.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 80000000000  memory_bandwidth: 3350000000000  l2_cache_size: 52428800
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices_of(topology: str) -> list[jax.Device]:
  """The devices of a slice or host that is not here, good for compiling only.

  Raises:
    ValueError: an unknown topology, no compiler for it, or one that another process keeps to itself.
  """
  if not re.fullmatch(r'\w+:\d+(x\d+)*', topology):
    raise ValueError(f'no topology {topology!r}; for example {_EXAMPLES}')
  kind, _, shape = topology.partition(':')
  try:
    if kind == 'h100':
      options = dict(target_config=_H100, topology=f'1x1x{int(shape)}')
      return list(topologies.get_topology_desc(platform='cuda', topology_name=kind, **options).devices)
    # Both cores of a v4 as one device, as programs see them; later chips are so anyhow.
    options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
    return list(topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    raise ValueError(explain(topology, error)) from error


def explain(topology: str, error: Exception) -> str:
  """Why there are no devices, and what to do."""
  said = str(error)
  if isinstance(error, NotImplementedError):
    return (
      f'there is no compiler for {topology}: pip install --no-deps jax-cuda12-plugin=={jax.__version__} '
      f'jax-cuda12-pjrt=={jax.__version__}'
    )
  if 'not installed' in said:
    return f"there is no compiler for {topology}: pip install -e '.[tpu]' (libtpu; it needs no TPU)"
  if 'lockfile' in said or 'already in use' in said:
    return (
      'another process holds the TPU compiler (/tmp/libtpu_lockfile): wait for its end, or set '
      'ALLOW_MULTIPLE_LIBTPU_LOAD=1 if this machine has the memory for both and no TPU of its own'
    )
  return f'no topology {topology!r} ({said.strip().splitlines()[0]}); for example {_EXAMPLES}'


def canvas_size(text: str) -> tuple[int, int] | None:
  """'511x767' -> (511, 767), '' -> None. Raises ValueError for anything else."""
  if not text:
    return None
  sides = text.split('x')
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise ValueError(f'--canvas={text}: HEIGHTxWIDTH in pixels is wanted, for example 511x767')
  return int(sides[0]), int(sides[1])


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'not understood: {argv[1:]}', exitcode=EXIT_MISFIT)
  show_messages()
  config = config_flag.CONFIG.value
  chosen = {'': (dry_run.STEP, dry_run.DETECTION), 'step': (dry_run.STEP,), 'detection': (dry_run.DETECTION,)}
  try:
    config_limits.check(config.to_dict())
    for flag in (_JSON, _MARKDOWN, _HLO):
      if flag.value:
        output_paths.make_place(f'--{flag.name}', flag.value)
    size = canvas_size(_CANVAS.value)
    mesh = sharding.make_mesh(devices_of(_TOPOLOGY.value), state_shards=config.state_shards)
    found = dry_run.make_plan(
      config, mesh, _CLASSES.value, programs=chosen[_ONLY.value], canvas_size=size, hlo=_HLO.value
    )
  except ValueError as error:
    print(f'\nerror: {error}', file=sys.stderr)
    sys.exit(EXIT_MISFIT)
  print(dry_run.as_text(found))
  if _JSON.value:
    about = dict(topology=_TOPOLOGY.value, config=json.loads(config.to_json_best_effort()), jax=jax.__version__)
    output_paths.write_whole(_JSON.value, json.dumps(dry_run.as_json(found) | about, indent=1) + '\n')
  if _MARKDOWN.value:
    output_paths.write_whole(_MARKDOWN.value, dry_run.as_markdown(found) + '\n')


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main, flags_parser=config_flag.parse)
