"""run/download.py against a server on loopback, and what else a link can be."""

import concurrent.futures
import email.message
import hashlib
import io
import logging
import socket
import sys
import tracemalloc
import urllib.request
import urllib.response

import numpy as np
import pytest
from etils import epath

from tests import link_server
from tests.link_server import Served
from triplet_det.run import download

CONTENT = np.random.default_rng(0).integers(256, size=3_000_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
  with link_server.started() as server:
    yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('TRIPLET_DET_DOWNLOADS', str(tmp_path / 'downloads'))
  monkeypatch.setattr(download, '_PAUSE', 0.01)
  return tmp_path / 'downloads'


def whole_files(cache):
  return [path.name for path in cache.rglob('*') if path.is_file() and path.suffix == '.zip']


def test_once(server, cache, caplog):
  server.files['/a%20b/run.zip'] = Served(CONTENT)
  link = f'{server.url}/a%20b/run.zip'
  with caplog.at_level(logging.INFO):
    path = download.fetch(link)
  assert path.read_bytes() == CONTENT and path.name == 'run.zip' and path.is_relative_to(cache)
  assert f'3.0 MB, SHA-256 {DIGEST}' in caplog.text
  server.files.clear()
  assert download.fetch(link) == path and len(server.asked) == 1


def test_the_cache_is_where_xdg_says(server, tmp_path, monkeypatch):
  monkeypatch.delenv('TRIPLET_DET_DOWNLOADS')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  server.files['/run.zip'] = Served(b'x')
  assert download.fetch(f'{server.url}/run.zip').is_relative_to(tmp_path / 'xdg/triplet_det/downloads')


@pytest.mark.parametrize(('etag', 'modified'), [('"1"', ''), ('', 'Wed, 21 Oct 2015 07:28:00 GMT')])
def test_what_breaks_off_is_continued(server, etag, modified):
  server.files['/run.zip'] = Served(CONTENT, etag, modified, breaks=[1_200_000, 700_000])
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT
  said = [(headers.get('Range'), headers.get('If-Range')) for _, headers in server.asked]
  assert said == [(None, None), ('bytes=1200000-', etag or modified), ('bytes=1900000-', etag or modified)]


@pytest.mark.parametrize('unlike', [dict(ranges=False), dict(etag='W/"1"'), dict(etag='')], ids=str)
def test_a_server_that_cannot_continue_begins_anew(server, unlike):
  server.files['/run.zip'] = Served(CONTENT, **unlike, breaks=[1_200_000, 700_000])
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT
  assert len(server.asked) == 3


class Changing(dict):
  """The file is another one from the second request on."""

  def get(self, path, otherwise):
    served = super().get(path, otherwise)
    self[path] = self.after
    return served


@pytest.mark.parametrize('after', [Served(CONTENT[::-1], etag='"2"'), Served(CONTENT[:9], etag='"2"')])
def test_a_file_that_changes_meanwhile_is_not_mixed(server, after):
  server.files = Changing({'/run.zip': Served(CONTENT, breaks=[1_200_000])})
  server.files.after = after
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == after.content


def test_a_server_that_continues_another_file(server, monkeypatch):
  """Whatever If-Range says: the etag of the answer is looked at."""
  first = Served(CONTENT, breaks=[1_200_000])
  server.files = Changing({'/run.zip': first})
  server.files.after = Served(CONTENT[::-1], etag='"2"', modified='"1"')  # takes the etag before for its own
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT[::-1]
  assert [headers.get('Range') for _, headers in server.asked] == [None, 'bytes=1200000-', None]


def test_half_a_download_is_not_taken_for_whole(server, cache):
  served = server.files['/run.zip'] = Served(CONTENT, breaks=[1_000_000, 0, 0, 0])
  link = f'{server.url}/run.zip'
  with pytest.raises(ConnectionError, match=r'broken off after 1,000,000 of 3,000,000 bytes, 3 times in a row: the sa'):
    download.fetch(link)
  assert whole_files(cache) == []
  served.breaks.clear()
  assert download.fetch(link).read_bytes() == CONTENT
  assert server.asked[-1][1]['Range'] == 'bytes=1000000-'
  assert [path.suffix for path in download.fetch(link).parent.iterdir() if path.name != '.lock'] == ['.zip']


def test_a_killed_download_is_continued(server, monkeypatch):
  server.files['/run.zip'] = Served(CONTENT)
  read = download._read

  def killed(stream, seen=[]):  # noqa: B006
    if len(seen) == 2:
      raise KeyboardInterrupt
    seen.append(1)
    return read(stream)

  monkeypatch.setattr(download, '_read', killed)
  with pytest.raises(KeyboardInterrupt):
    download.fetch(f'{server.url}/run.zip')
  monkeypatch.setattr(download, '_read', read)
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT
  assert server.asked[-1][1]['Range'] == f'bytes={2 * 2**20}-'


@pytest.mark.parametrize('note', ['', '[]', '{"validator": 3}', None])
def test_a_part_without_its_note_is_begun_anew(server, cache, note):
  served = server.files['/run.zip'] = Served(CONTENT, breaks=[1_000_000, 0, 0, 0])
  with pytest.raises(ConnectionError):
    download.fetch(f'{server.url}/run.zip')
  (beside,) = cache.rglob('*.part.json')
  beside.write_text(note) if note is not None else beside.unlink()
  served.breaks.clear()
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT
  assert 'Range' not in server.asked[-1][1]


def test_a_server_that_promises_more_than_it_has(server, cache):
  server.files['/run.zip'] = Served(CONTENT, length=4_000_000)
  with pytest.raises(ConnectionError, match=r'after 3,000,000 of 4,000,000 bytes, 3 times in a row'):
    download.fetch(f'{server.url}/run.zip')
  assert whole_files(cache) == []


def test_a_server_that_promises_less_than_it_has(server, cache):
  """The rest never comes; only the digest knows of it."""
  server.files['/run.zip'] = Served(CONTENT, length=2_000_000)
  with pytest.raises(ValueError, match=f'the link says {DIGEST}'):
    download.fetch(f'{server.url}/run.zip#sha256={DIGEST}')
  assert whole_files(cache) == []


def test_without_a_length_only_a_digest_tells_the_end(server, cache):
  server.files['/run.zip'] = Served(CONTENT, length=None)
  with pytest.raises(ValueError, match=r'does not say how long the file is.*#sha256='):
    download.fetch(f'{server.url}/run.zip')
  assert whole_files(cache) == []
  assert download.fetch(f'{server.url}/run.zip#sha256={DIGEST}').read_bytes() == CONTENT


def test_chunks_have_an_end(server):
  server.files['/run.zip'] = Served(CONTENT, chunked=True, breaks=[1_000_000])
  assert download.fetch(f'{server.url}/run.zip').read_bytes() == CONTENT
  assert len(server.asked) == 2


def test_a_digest(server, cache):
  server.files['/run.zip'] = Served(CONTENT)
  for given in (DIGEST, DIGEST.upper(), DIGEST[:8]):
    assert download.fetch(f'{server.url}/run.zip#sha256={given}').read_bytes() == CONTENT
  for path in cache.rglob('run.zip'):
    path.unlink()
  with pytest.raises(ValueError, match=f'has SHA-256 {DIGEST}, the link says {"0" * 64}: not the file'):
    download.fetch(f'{server.url}/run.zip#sha256={"0" * 64}')
  assert whole_files(cache) == []


def test_what_the_disk_has_damaged_is_noticed(server):
  server.files['/run.zip'] = Served(CONTENT)
  link = f'{server.url}/run.zip#sha256={DIGEST}'
  download.fetch(link).write_bytes(CONTENT[::-1])
  with pytest.raises(ValueError, match='not the file that was meant'):
    download.fetch(link)
  assert download.fetch(link).read_bytes() == CONTENT


def test_redirects_are_followed(server):
  server.files |= {'/latest.zip': Served(redirect='/a.zip'), '/a.zip': Served(redirect=f'{server.url}/b')}
  server.files['/b'] = Served(CONTENT, breaks=[1_000_000])
  assert download.fetch(f'{server.url}/latest.zip').read_bytes() == CONTENT
  assert server.asked[-1][0] == '/b' and server.asked[-1][1]['Range'] == 'bytes=1000000-'


def test_a_redirect_that_gives_up_https(server, monkeypatch):
  """An https:// server in the process: what it answers is made here, what is done with it is urllib's and ours."""
  server.files['/run.zip'] = Served(CONTENT)

  def answer(self, request):
    headers = email.message.Message()
    headers['Location'] = f'{server.url}/run.zip'
    response = urllib.response.addinfourl(io.BytesIO(), headers, request.full_url, 302)
    response.msg = 'Found'
    return response

  monkeypatch.setattr(urllib.request.HTTPSHandler, 'https_open', answer)
  with pytest.raises(ValueError, match=r'https://a\.org/run\.zip is redirected to http://127\.0\.0\.1, .* https'):
    download.fetch('https://a.org/run.zip')
  assert server.asked == []


@pytest.mark.parametrize(
  ('served', 'error', 'told'),
  [
    (Served(status=404), FileNotFoundError, 'the server says 404 Not Found: give a link to a file that is there'),
    (Served(status=410), FileNotFoundError, 'the server says 410'),
    (Served(status=403), PermissionError, 'the server says 403 Forbidden: it is not for everybody'),
    (Served(status=503), ConnectionError, 'the server says 503 Service Unavailable, 3 times in a row'),
    (Served(b'<html>', kind='text/html; charset=utf-8'), ValueError, 'sends text/html, , a web page'),
    (Served(redirect='http://example.com/run.zip'), ValueError, 'redirected to http://example.com, which anybody'),
    (Served(redirect='file:///etc/passwd.zip'), ValueError, '302 Found - Redirection to url .file:'),
    (Served(redirect='/run.zip'), ValueError, 'the server says 302 .*infinite loop'),
  ],
  ids=str,
)
def test_what_servers_refuse(server, cache, served, error, told):
  server.files['/run.zip'] = served
  with pytest.raises(error, match=told) as raised:
    download.fetch(f'{server.url}/run.zip')
  assert str(raised.value).startswith(server.url) and '\n' not in str(raised.value)
  assert whole_files(cache) == []


def test_no_network(server, monkeypatch):
  def unknown(*_, **__):
    raise socket.gaierror(-2, 'Name or service not known')

  told = r'https://a\.org/run\.zip: no connection \(Name or service not known\): connect to the network, or give a file'
  with monkeypatch.context() as patched, pytest.raises(ConnectionError, match=told):
    patched.setattr(socket, 'getaddrinfo', unknown)
    download.fetch('https://a.org/run.zip')
  server.shutdown()
  server.server_close()
  with pytest.raises(ConnectionError, match='no connection'):
    download.fetch(f'{server.url}/run.zip')


@pytest.mark.parametrize(
  ('link', 'told'),
  [
    ('http://example.com/run.zip', 'is not https://, which anybody on the way could exchange'),
    ('https://example.com/download?id=7', "by its name 'download'; possible are .zip, .onnx, .tar"),
    ('https://example.com/', "by its name ''"),
    ('https://example.com/run.zip#md5=1', "'md5=1', possible is sha256= and 8 to 64 digits"),
    ('https://example.com/run.zip#sha256=1234567', 'possible is sha256='),
    ('hf://run.zip', "by its name ''"),
    ('hf://owner@v1/run.zip', 'give hf://OWNER/REPO/FILE'),
    ('hf://owner/run.zip', 'give hf://OWNER/REPO/FILE'),
  ],
)
def test_what_is_no_link(link, told):
  assert download.is_link(link)
  with pytest.raises(ValueError, match=told):
    download.fetch(link)


def test_what_is_a_link():
  given = ['https://a.org/x', 'http://a.org/x', 'hf://a/b/c', 'gs://bucket/run.tar.gz#sha256=12345678', 'gs://b/a.zip']
  assert all(map(download.is_link, given))
  others = ['runs/shapes', '/a/b.zip', 'demo', 'gs://bucket/run', epath.Path('/a')]
  assert not any(map(download.is_link, others))


def test_one_of_several_downloads(server, cache):
  server.files['/run.zip'] = Served(CONTENT)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    paths = list(pool.map(download.fetch, [f'{server.url}/run.zip'] * 4))
  assert len(set(paths)) == len(server.asked) == 1 and paths[0].read_bytes() == CONTENT


def test_a_large_file_takes_no_more_memory(server):
  """60 MB, of which never more than a few chunks are here."""
  server.files['/run.zip'] = Served(CONTENT, repeat=20)
  tracemalloc.start()
  try:
    path = download.fetch(f'{server.url}/run.zip')
    most = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert path.stat().st_size == 60_000_000 and most < 8e6


PATH = epath.Path


class Bucket:
  """Objects that `epath` finds in files of this machine."""

  def __init__(self, folder, breaks):
    self.folder, self.breaks, self.seeks = folder, breaks, []

  def __call__(self, path):
    if not str(path).startswith('gs://'):
      return PATH(path)
    bucket, local = self, PATH(self.folder / str(path).removeprefix('gs://'))

    class Object:
      stat = local.stat

      def open(self, mode):
        file = io.FileIO(local, mode)
        seek, read, stop = file.seek, file.read, bucket.breaks.pop(0) if bucket.breaks else None

        class Stream(io.RawIOBase):
          def seek(self, at):
            bucket.seeks.append(at)
            return seek(at)

          def read(self, size):
            if stop is not None and file.tell() >= stop:
              raise OSError('reset')
            return read(size)

        return Stream()

    return Object()


def test_buckets(tmp_path, monkeypatch):
  (tmp_path / 'bucket').mkdir()
  (tmp_path / 'bucket/run.zip').write_bytes(CONTENT)
  bucket = Bucket(tmp_path, breaks=[2**20])
  monkeypatch.setattr(download.epath, 'Path', bucket)
  assert download.fetch(f'gs://bucket/run.zip#sha256={DIGEST}').read_bytes() == CONTENT
  assert bucket.seeks == [0, 2**20]
  with pytest.raises(FileNotFoundError, match=r'gs://bucket/other\.zip: no such object'):
    download.fetch('gs://bucket/other.zip')


def test_the_hub_needs_its_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(
    ImportError, match=r"hf://a/b/run.zip: hf:// needs the extra hf .*pip install 'triplet_det\[hf\]'"
  ):
    download.fetch('hf://a/b/run.zip')


def test_the_hub(server, tmp_path, monkeypatch):
  """The package itself, with a server on loopback for the hub."""
  constants = pytest.importorskip('huggingface_hub.constants', reason='the extra `hf` is not installed')

  monkeypatch.setattr(constants, 'ENDPOINT', server.url)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  url = f'{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url)
  for revision, content in (('main', CONTENT), ('v1', CONTENT[:9])):
    server.files[f'/owner/repo/resolve/{revision}/runs/run.zip'] = Served(content, etag=f'"{revision}"')
  assert download.fetch(f'hf://owner/repo/runs/run.zip#sha256={DIGEST}').read_bytes() == CONTENT
  assert download.fetch('hf://owner/repo@v1/runs/run.zip').read_bytes() == CONTENT[:9]
  with pytest.raises(ValueError, match='the link says 00000000'):
    download.fetch('hf://owner/repo@v1/runs/run.zip#sha256=00000000')
  with pytest.raises(FileNotFoundError, match=r'hf://owner/repo/other\.zip: .*NotFound'):
    download.fetch('hf://owner/repo/other.zip')
