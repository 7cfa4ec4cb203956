"""Detectors behind links: archives of run folders, and what is told of other files."""

import shutil
import zipfile

import numpy as np
import pytest

from tests import link_server, tiny_detector
from triplet_det.detection import loading


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_detector.write_run(tmp_path_factory.mktemp('runs') / 'tiny')


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setenv('TRIPLET_DET_DOWNLOADS', str(tmp_path / 'downloads'))
  with link_server.started() as server:
    yield server


@pytest.mark.parametrize('form', ['tar', 'gztar', 'zip'])
def test_a_run_folder_behind_a_link(run, server, tmp_path, form):
  archive = shutil.make_archive(str(tmp_path / 'tiny'), form, run.parent, run.name)
  suffix = archive.removeprefix(str(tmp_path / 'tiny'))
  with open(archive, 'rb') as file:
    server.files[f'/tiny{suffix}'] = link_server.Served(file.read(), breaks=[1000])
  link = f'{server.url}/tiny{suffix}'
  image = np.random.default_rng(1).integers(256, size=(60, 50, 3), dtype=np.uint8)
  there = loading.load(run)
  for _ in range(2):  # fetched, then from the cache
    here = loading.load(link)
    assert here.about == there.about | {'checkpoint': link}
    (found,), (expected,) = here([image]), there([image])
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert len(found) == 5 and found.names == expected.names
  assert len(server.asked) == 2  # it broke off once


def test_a_zip_without_a_run_folder_is_an_exported_file(server, tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('a.txt', '')
  server.files['/a.zip'] = link_server.Served((tmp_path / 'a.zip').read_bytes())
  with pytest.raises(ValueError, match=r'a\.zip is not a whole file of triplet_det.export .*detector\.json'):
    loading.load(f'{server.url}/a.zip')


def test_what_load_cannot_take(run):
  with pytest.raises(ValueError, match='the checkpoint is an empty text: give a run folder'):
    loading.load('')
  with pytest.raises(ValueError, match=r'settings are those of .*\.Settings, got dict: give single ones by'):
    loading.load(run, settings={'mirror': False})
  with pytest.raises(ValueError, match=r'batch_size must be a whole number, got 1\.5'):
    loading.load(run, batch_size=1.5)
  with pytest.raises(ValueError, match=r'embedding_threshold must be a number, got nan'):
    loading.load(run, embedding_threshold=float('nan'))


def test_a_pytorch_file_is_not_even_fetched(server):
  with pytest.raises(ValueError, match=r'a\.pth#sha256=12345678 is a PyTorch file: make a run folder of it first'):
    loading.load(f'{server.url}/a.pth#sha256=12345678')
  assert server.asked == []
