"""Splitting the batch over devices; what needs several devices is in test_train_step.py."""

import http.server
import itertools
import os
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from triplet_det.devices import sharding
from triplet_det.structs import Batch


class FakeMesh:
  """As much of a mesh as `check_batch` looks at."""

  def __init__(self, count):
    self.devices = np.arange(count)


@pytest.mark.parametrize(
  'batch_size, devices, group_size', [(48, 8, 6), (48, 1, 6), (8, 8, None), (6, 3, 0), (1, 1, 1)]
)
def test_batches_that_can_be_split(batch_size, devices, group_size):
  sharding.check_batch(batch_size, FakeMesh(devices), group_size)


@pytest.mark.parametrize(
  'batch_size, group_size, accumulate, message',
  [
    (48, 6, 3, r'batch_size 48 cannot be dealt out to accumulate=3 parts in groups of 6: give a divisor of 8'),
    (8, 0, 0, r'batch_size 8 cannot be dealt out to accumulate=0 parts in images: give a divisor of 8'),
  ],
)
def test_batches_that_cannot_go_in_parts(batch_size, group_size, accumulate, message):
  with pytest.raises(ValueError, match=message):
    sharding.check_batch(batch_size, FakeMesh(1), group_size, accumulate)


@pytest.mark.parametrize(
  'environment, variable',
  [
    ({}, None),
    ({'SLURM_NTASKS': '1', 'OMPI_COMM_WORLD_SIZE': ''}, None),
    ({'SLURM_NTASKS': '16'}, 'SLURM_NTASKS'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': 't1v-n-0,t1v-n-1'}, 'TPU_WORKER_HOSTNAMES'),
  ],
)
def test_who_started_several_processes(environment, variable):
  assert sharding.started_by(environment) == variable


@pytest.mark.parametrize(
  'endpoints, hosts', [('10.0.0.2', 1), ('a:b:10.0.0.2,a:b:10.0.0.3', 2), ('w0,w1,w2,w3', 4), (None, 1)]
)
def test_the_hosts_of_a_tpu_slice(endpoints, hosts):
  """As Google's metadata server tells them; the last case is a machine of theirs that is not in a slice."""
  asked = []

  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append((self.path, self.headers['Metadata-Flavor']))
      self.send_response(404 if endpoints is None else 200)
      self.end_headers()
      self.wfile.write((endpoints or '').encode())

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(('localhost', 0), Metadata) as server:
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert sharding.slice_hosts({'GCE_METADATA_IP': f'localhost:{server.server_port}'}) == hosts
  assert asked == [('/computeMetadata/v1/instance/attributes/worker-network-endpoints', 'Google')]


def test_without_a_tpu_nobody_is_asked(monkeypatch):
  monkeypatch.setattr(sharding.urllib.request, 'build_opener', None)
  assert sharding.slice_hosts({'TPU_SKIP_MDS_QUERY': '1'}) == 1
  assert 'TPU_SKIP_MDS_QUERY' in os.environ  # set by JAX, here


def test_hosts_are_named_completely_or_not_at_all():
  with pytest.raises(ValueError, match=r'coordinator a:1, num_hosts None, host_index 0: give all three or none'):
    sharding.join_hosts('a:1', None, 0)


def test_devices_that_cannot_share_a_state():
  with pytest.raises(ValueError, match=r'state_shards is 3, there are 1 devices: give a divisor'):
    sharding.make_mesh(jax.devices()[:1], state_shards=3)


@pytest.mark.parametrize(
  'batch_size, devices, group_size, message',
  [
    (50, 8, None, r'batch_size 50 cannot be split over 8 devices: give a multiple of 8, for example 48'),
    (3, 8, None, r'batch_size 3 cannot be split over 8 devices: give a multiple of 8, for example 8'),
    (0, 1, None, r'batch_size 0 cannot be split over 1 devices'),
    (48, 8, 5, r'batch_size 48 is not a multiple of group_size 5: give a multiple of 5, or group_size=0'),
    (4, 1, 6, r'batch_size 4 is not a multiple of group_size 6'),
  ],
)
def test_batches_that_cannot(batch_size, devices, group_size, message):
  with pytest.raises(ValueError, match=message):
    sharding.check_batch(batch_size, FakeMesh(devices), group_size)


def test_rows_of_a_host_lie_on_its_devices(monkeypatch):
  """However a platform numbers its devices; a v5e slice of 4 x 4 numbers them row by row, and a host has 2 x 2."""
  where = itertools.product(range(4), range(4))
  there = [SimpleNamespace(process_index=2 * (y // 2) + x // 2, id=4 * y + x) for y, x in where]
  monkeypatch.setattr(jax, 'devices', lambda: there)
  monkeypatch.setattr(sharding, 'Mesh', lambda devices, axes, axis_types: devices)
  for shards in (1, 2):
    mesh = sharding.make_mesh(state_shards=shards)
    assert mesh.shape == (16 // shards, shards)
    assert [one.process_index for one in mesh.ravel()] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_a_host_s_rows_become_a_global_batch():
  mesh = sharding.make_mesh()
  assert mesh.axis_names == ('data', 'state') and mesh.devices.ravel().tolist() == jax.devices()
  images = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)
  batch = Batch(images, np.ones((4, 2, 4), np.float32), np.zeros((4, 2), np.int32), np.zeros((4, 2), bool))
  got = sharding.to_global(batch, mesh)
  assert isinstance(got, Batch) and got.images.sharding.spec == PartitionSpec(('data', 'state'))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(batch)):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
  assert sharding.replicated(mesh).spec == PartitionSpec()
