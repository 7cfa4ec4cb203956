"""One mesh over all devices of all hosts: the batch is split over it, the state replicated or sharded over one axis."""

import json
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from triplet_det.devices import compiler

DATA, STATE = 'data', 'state'
_Found = TypeVar('_Found')
_HEARTBEAT = 30  # seconds of silence after which a host counts as dead

# What starts one process per host and tells jax.distributed who they are: (variable, how many processes it says).
_STARTERS = {
  'SLURM_NTASKS': int,
  'OMPI_COMM_WORLD_SIZE': int,
  'TPU_WORKER_HOSTNAMES': lambda hosts: len(hosts.split(',')),
  'MEGASCALE_NUM_SLICES': int,
}
# The hosts of a TPU slice made by gcloud stand in no variable, but in the metadata of Google's machines.
_METADATA = 'computeMetadata/v1/instance/attributes/worker-network-endpoints'


class HostsMissing(RuntimeError):
  """The other hosts cannot be reached."""


def started_by(environment: Mapping[str, str]) -> str | None:
  """The variable by which a TPU pod, SLURM or MPI says that this is one of several processes; None if none does."""
  for variable, processes in _STARTERS.items():
    value = environment.get(variable, '')
    if value and processes(value) > 1:
      return variable
  return None


def slice_hosts(environment: Mapping[str, str]) -> int:
  """How many hosts the TPU slice of this machine has by its metadata; 1 without TPU, or outside of Google's cloud."""
  if 'TPU_SKIP_MDS_QUERY' in environment:  # JAX sets it on machines without a TPU
    return 1
  server = environment.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(f'http://{server}/{_METADATA}', headers={'Metadata-Flavor': 'Google'})
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with direct.open(request, timeout=5) as answer:
      return len(answer.read().decode().split(','))
  except OSError:
    return 1


def join_hosts(
  coordinator: str | None = None, num_hosts: int | None = None, host_index: int | None = None, *, timeout: int = 300
) -> None:
  """Connects this process with those of the other hosts; to be called before anything else asks JAX for devices.

  Without arguments the hosts are found by the environment of a TPU pod, SLURM or MPI; outside of those nothing
  happens, and the process is alone.

  Args:
    coordinator: address:port of host 0.
    num_hosts, host_index: how many processes there are, and which of them this is.
    timeout: seconds to wait for the others.

  Raises:
    ValueError: only some of the three are given, or they cannot be.
    HostsMissing: they cannot be reached. If they do not come in time JAX aborts the process (exit code 134).
  """
  given = (coordinator, num_hosts, host_index)
  by_hand = None not in given
  if not by_hand and given != (None, None, None):
    raise ValueError(
      f'coordinator {coordinator}, num_hosts {num_hosts}, host_index {host_index}: give all three or none of them'
    )
  if by_hand and not 0 <= host_index < num_hosts:
    raise ValueError(f'host_index is {host_index}, num_hosts {num_hosts}: give each host its own, 0 to {num_hosts - 1}')
  if by_hand and not re.fullmatch(r'.+:\d+', coordinator):
    raise ValueError(f'coordinator is {coordinator!r}: give address:port of host 0, such as {coordinator}:1234')
  variable = None if by_hand else started_by(os.environ)
  if not by_hand and variable is None and slice_hosts(os.environ) > 1:
    variable = 'metadata of the TPU slice'
  if not by_hand and variable is None:
    return
  # JAX ends the process itself when that time is over: nothing could be said after it.
  logging.info('waiting for the other hosts (%s), at most %d s ...', coordinator or variable, timeout)
  try:
    jax.distributed.initialize(
      coordinator,
      num_hosts,
      host_index,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=_HEARTBEAT,
    )
  except Exception as error:  # jaxlib has no class of its own for it
    reason = str(error).strip().splitlines()[0]
    raise HostsMissing(f'the other hosts cannot be reached ({coordinator or variable}): {reason}') from error
  logging.info(
    'process %d of %d: %d of %d %s device(s)',
    *(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(), jax.default_backend()),
  )


def make_mesh(devices: list[jax.Device] | None = None, *, state_shards: int = 1) -> Mesh:
  """A mesh with the axes `data` and `state` over `devices` (default: all of all hosts).

  Args:
    devices: in the order of the batch's rows.
    state_shards: devices that share one copy of the state, 1 to give each its own. The batch is split over all.

  Raises:
    ValueError: the devices cannot be divided so.
  """
  # Those of a host one after the other: its rows of a batch are. JAX's own order of a TPU slice, and that which
  # jax.make_mesh gives one for shorter ways, are of the slice's coordinates.
  devices = sorted(jax.devices(), key=lambda one: (one.process_index, one.id)) if devices is None else devices
  if state_shards < 1 or len(devices) % state_shards:
    raise ValueError(
      f'state_shards is {state_shards}, there are {len(devices)} devices: give a divisor of {len(devices)}'
    )
  shape = len(devices) // state_shards, state_shards
  return Mesh(np.array(devices).reshape(shape), (DATA, STATE), axis_types=(AxisType.Auto, AxisType.Auto))


def over_data(mesh: Mesh) -> NamedSharding:
  """The leading (batch) axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec((DATA, STATE)))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def compiler_options(mesh: Mesh) -> dict[str, str]:
  """What the compiler is told about a training step: `compiler.options`, and more by the kind of device.

  TPU: with few images per device XLA cuts them into strips, to fill its rows. For a residual block of 6 images the
  strips' halos and copies move 3.6 times the bytes and, by the compiler's own model, cost 3.1 times the cycles.

  CPU: each layer uses all cores, so that nothing is gained by an order in which many could run at once, whose results
  are all kept.
  """
  device = mesh.devices.flat[0]
  training = {
    'tpu': {'xla_tpu_run_space_to_batch': 'false', 'xla_tpu_run_space_to_batch_on_new_platforms': 'false'},
    'cpu': {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'},
  }
  return compiler.options(device) | training.get(device.platform, {})


def of_state(mesh: Mesh, shapes: Any, *, smallest: int = 2**14) -> Any:
  """Where each array of a state (a tree of things with a shape) lies: large ones split over the axis `state`.

  An array is split along its longest axis that can be divided. With one state shard everything is replicated; so are
  arrays of fewer than `smallest` numbers, whose gathering costs more than the memory it saves.
  """
  shards = mesh.shape[STATE]

  def place(x) -> NamedSharding:
    possible = [axis for axis, length in enumerate(x.shape) if length % shards == 0]
    if shards == 1 or not possible or np.prod(x.shape) < smallest:
      return replicated(mesh)
    longest = max(possible, key=lambda axis: (x.shape[axis], axis))  # of equals the last: output channels
    return NamedSharding(mesh, PartitionSpec(*(STATE if axis == longest else None for axis in range(len(x.shape)))))

  return jax.tree.map(place, shapes)


def check_batch(batch_size: int, mesh: Mesh, group_size: int | None, accumulate: int = 1) -> None:
  """Raises ValueError when a global batch cannot be split over devices, parts and groups of images."""
  devices = mesh.devices.size
  if batch_size < 1 or batch_size % devices:
    raise ValueError(
      f'batch_size {batch_size} cannot be split over {devices} devices: give a multiple of {devices}, '
      f'for example {max(round(batch_size / devices), 1) * devices}'
    )
  if group_size and batch_size % group_size:
    raise ValueError(
      f'batch_size {batch_size} is not a multiple of group_size {group_size}: give a multiple of {group_size}, '
      f'or group_size=0 for one group'
    )
  if accumulate < 1 or batch_size % (accumulate * (group_size or 1)):
    unit = f'groups of {group_size}' if group_size else 'images'
    raise ValueError(
      f'batch_size {batch_size} cannot be dealt out to accumulate={accumulate} parts in {unit}: '
      f'give a divisor of {batch_size // (group_size or 1)}'
    )


def to_global(batch, mesh: Mesh):
  """This host's rows of a batch (a tree of NumPy arrays) -> global arrays split over the devices."""
  sharding = over_data(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def over_own_devices() -> NamedSharding | None:
  """The leading axis split over this host's devices, for work that each host does on its own; None for one device."""
  devices = jax.local_devices()
  return over_data(make_mesh(devices)) if len(devices) > 1 else None


def on_this_host(tree: Any) -> Any:
  """Global arrays as arrays that this host has all of; all hosts must call it."""

  def fetch(x: jax.Array) -> np.ndarray:
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return tree if jax.process_count() == 1 else jax.tree.map(fetch, tree)


def from_all_hosts(text: str) -> list[str]:
  """Every host's text, in the order of the hosts; all hosts must call it."""
  if jax.process_count() == 1:
    return [text]
  mine = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.asarray(len(mine)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(mine)] = mine
  rows = multihost_utils.process_allgather(padded)
  return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


def found_by_first_host(find: Callable[[], _Found]) -> _Found:
  """What `find` gives on the first host, something that JSON has, on all hosts; all must call it.

  For what lies on disk: two hosts that look at once may see different things, and must not go different ways.
  """
  if jax.process_count() == 1:
    return find()
  return json.loads(from_all_hosts(json.dumps(find()) if jax.process_index() == 0 else '')[0])


def first_host_says(value: bool) -> bool:
  """What the first host found, on all hosts; all must call it."""
  return value if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))
