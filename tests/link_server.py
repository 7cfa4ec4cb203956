"""A server on loopback that does what servers do: breaks off, redirects, lies, and goes on where it is asked to.

with link_server.started() as server:
  server.files['/run.zip'] = link_server.Served(content, breaks=[1000])
  download.fetch(f'{server.url}/run.zip')
"""

import contextlib
import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Served:
  """What is behind a path, and how it is sent."""

  content: bytes = b''
  etag: str = '"1"'
  modified: str = ''
  ranges: bool = True  # answers 206 to those who know the etag
  breaks: list[int] = dataclasses.field(default_factory=list)  # after so many bytes, answer by answer
  length: int | str | None = 'true'  # Content-Length; None: it says none
  chunked: bool = False
  kind: str = 'application/octet-stream'
  status: int = 200
  redirect: str = ''
  repeat: int = 1  # the content so many times, for large files in little memory


class Server(ThreadingHTTPServer):
  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.url = f'http://127.0.0.1:{self.server_port}'
    self.files, self.asked = {}, []  # path -> Served; (path, headers) of every request

  def handle_error(self, request, client_address):
    pass  # a client that has gone


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *told):
    pass

  def end_headers(self):
    # A connection ends with its answer: a client that does not know would ask again on it, and sometimes too late.
    self.send_header('Connection', 'close')
    super().end_headers()

  def do_HEAD(self):
    self.do_GET(with_content=False)

  def do_GET(self, with_content=True):
    served = self.server.files.get(self.path, Served(status=404))
    self.server.asked.append((self.path, dict(self.headers)))
    if served.redirect or served.status != 200:
      self.send_response(302 if served.redirect else served.status)
      if served.redirect:
        self.send_header('Location', served.redirect)
      self.send_header('X-Error-Code', 'EntryNotFound')  # as the hub says 404
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    size = len(served.content) * served.repeat
    span = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
    known = self.headers.get('If-Range', '')
    start = int(span[1]) if span and served.ranges and known in (served.etag, served.modified) and known else 0
    if start >= size > 0:
      self.send_response(416)
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    self.send_response(206 if start else 200)
    self.send_header('Content-Type', served.kind)
    self.send_header('X-Repo-Commit', hashlib.sha1(served.etag.encode()).hexdigest())  # as the hub
    for name, value in (('ETag', served.etag), ('Last-Modified', served.modified)):
      if value:
        self.send_header(name, value)
    if start:
      self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
    if served.chunked:
      self.send_header('Transfer-Encoding', 'chunked')
    elif served.length is not None:
      self.send_header('Content-Length', str(size - start if served.length == 'true' else served.length))
    self.end_headers()
    if with_content:
      self._send(served, start, size)

  def _send(self, served, start, size):
    stop = min(size, start + served.breaks.pop(0)) if served.breaks else size
    at = start
    while at < stop:
      first = at % len(served.content)
      part = memoryview(served.content)[first : first + min(stop - at, len(served.content) - first)]
      self.wfile.write(b'%x\r\n%b\r\n' % (len(part), part) if served.chunked else part)
      at += len(part)
    if served.chunked and stop == size:
      self.wfile.write(b'0\r\n\r\n')


@contextlib.contextmanager
def started() -> Iterator[Server]:
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
