"""One mesh over all devices of all hosts; the batch is split over its axis `data`, the state is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh with the one axis `data` over `devices` (default: all of all hosts)."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), (DATA,), devices=devices, axis_types=(AxisType.Auto,))


def over_data(mesh: Mesh) -> NamedSharding:
  """The leading (batch) axis split over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, group_size: int | None) -> None:
  """Raises ValueError when a global batch cannot be split over the devices and into groups of images."""
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


def to_global(batch, mesh: Mesh):
  """This host's rows of a batch (a tree of NumPy arrays) -> global arrays split over `data`."""
  sharding = over_data(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
