"""Files behind links: downloaded once into a cache, whole or not at all, and continued where they broke off.

  https://HOST/detector.zip   http:// as well, on this machine alone
  gs://BUCKET/detector.zip    extra `gcs`
  hf://OWNER/REPO/detector.zip, hf://OWNER/REPO@REVISION/FOLDER/run.tar   extra `hf`; in the hub's own cache (HF_HOME)

`#sha256=HEX` behind any of them, all 64 digits or the first 8 or more, refuses other content. A file that is in the
cache is not asked for again, so that later starts need no network; remove its folder to have it anew.
"""

import contextlib
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from absl import logging
from etils import epath
from tqdm import tqdm

from triplet_det.run import output_paths, run_archive

FOLDER_VARIABLE = 'TRIPLET_DET_DOWNLOADS'
SUFFIXES = ('.zip', '.onnx', '.tar', '.tar.gz', '.tgz', '.pth', '.pt', '.pkl')
_CHUNK = 2**20  # bytes in memory
_ATTEMPTS = 3  # one after the other, none of which brings more than there was
_PAUSE, _PATIENCE = 1.0, 60.0  # seconds: before another attempt, times its number; without a byte


class _Answer(NamedTuple):
  """What a server sends."""

  stream: IO[bytes]
  start: int  # the byte it begins with; 0 if the server does not continue, or if the file is another one now
  length: int | None  # of the whole file; None if only the protocol tells the end
  validator: str  # equal as long as the file is the same; '' if the server says none


class _BrokenOff(Exception):
  """Another attempt may bring the rest."""


def is_link(given: epath.PathLike) -> bool:
  """Whether `fetch` is to be asked: a run folder on gs:// is read where it is."""
  scheme, found, rest = str(given).partition('://')
  return bool(found) and (
    scheme in ('http', 'https', 'hf') or (scheme == 'gs' and rest.split('#')[0].endswith(SUFFIXES))
  )


def fetch(link: str) -> Path:
  """The file behind a link, on this machine; logs its SHA-256.

  Raises:
    ValueError: not a link to one of `SUFFIXES`, a redirect that gives up https, a web page, or another SHA-256.
    FileNotFoundError: the server has no such file.
    ConnectionError: no network, or it broke off `_ATTEMPTS` times; what is there is kept, the next call continues.
    ImportError: the extra for such links is not installed.
  """
  address, expected = _split(link)
  if address.startswith('hf://'):
    path = _from_hub(address)
  else:
    folder = _folder(link)
    path = folder / _name(address)
    with _alone(folder):
      if not path.exists():
        _download(address, path, expected)
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if not digest.startswith(expected):
    if not address.startswith('hf://'):
      path.unlink(missing_ok=True)
    raise ValueError(
      f'{address} has SHA-256 {digest}, the link says {expected}: not the file that was meant: '
      'ask whoever gave the link'
    )
  logging.info('%s: %s, %.1f MB, SHA-256 %s', address, path, path.stat().st_size / 1e6, digest)
  return path


def fetch_run(link: str) -> Path:
  """As `fetch`; of an archive of a run folder, that folder, unpacked in the cache.

  Raises ValueError also for an archive with no run folder or several in it, or with what `run_archive` refuses.
  """
  path = fetch(link)
  if not path.name.endswith(run_archive.SUFFIXES) or (place := run_archive.find_run(path)) is None:
    return path
  folder = _folder(link)
  unpacked = folder / f'{path.name}.unpacked'
  with _alone(folder):
    if not unpacked.exists():
      run_archive.unpack(path, unpacked)
  return unpacked / place


def _split(link: str) -> tuple[str, str]:
  """The link without its fragment, and the SHA-256 in it, or ''."""
  address, _, fragment = link.partition('#')
  if fragment and not re.fullmatch('sha256=[0-9a-fA-F]{8,64}', fragment):
    raise ValueError(
      f'{link}: behind # it says {fragment!r}, possible is sha256= and 8 to 64 digits of 0-9 and a-f: give these'
    )
  if not _name(address).endswith(SUFFIXES):
    raise ValueError(
      f'{link} does not lead to a file by its name {_name(address)!r}; possible are {", ".join(SUFFIXES)}: an exported '
      'detector, an archive of a run folder, a PyTorch file: give a link to one'
    )
  return address, fragment.removeprefix('sha256=').lower()


def _name(address: str) -> str:
  return unquote(urlsplit(address).path).rpartition('/')[2]


def _folder(link: str) -> Path:
  """Where what is behind a link is kept; a link with a digest has its own, another digest does not cost its file."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  root = os.environ.get(FOLDER_VARIABLE) or f'{cache}/triplet_det/downloads'
  folder = output_paths.local(root) / hashlib.sha256(link.encode()).hexdigest()[:16]
  output_paths.make_folder(f'{FOLDER_VARIABLE}, a folder in it', folder)
  return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
  """Waits until no other process works there: all hosts of a run may share the cache, and one of them downloads."""
  with (folder / '.lock').open('wb') as file:
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _download(address: str, path: Path, expected: str) -> None:
  """Puts the file at `path` once it is whole; until then it is `.part`, with what it is of in `.part.json`."""
  part, note = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.part.json')
  failures, most = 0, 0
  while True:
    try:
      _attempt(address, part, note, expected)
      break
    except _BrokenOff as error:
      there = part.stat().st_size if part.exists() else 0
      failures, most = (1 if there > most else failures + 1), max(there, most)
      if failures == _ATTEMPTS:
        raise ConnectionError(
          f'{address}: {error}, {failures} times in a row: the same command tries again, and continues where the '
          'server lets it; or give a file on this machine'
        ) from error
      logging.warning('%s: %s, trying again', address, error)
      time.sleep(_PAUSE * failures)
  part.replace(path)
  note.unlink(missing_ok=True)


def _attempt(address: str, part: Path, note: Path, expected: str) -> None:
  """Brings `part` to its whole length; _BrokenOff if only nearer to it."""
  known = _read_note(note) if part.exists() else {}
  wanted = part.stat().st_size if known else 0
  answer = (_open_gs if address.startswith('gs://') else _open_http)(address, wanted, known)
  with answer.stream as stream:
    if answer.length is None and not expected and not getattr(answer.stream, 'chunked', False):
      raise ValueError(
        f'{address}: the server does not say how long the file is, so that nobody knows whether it is whole: put '
        '#sha256= and its digest behind the link'
      )
    if answer.validator and answer.start == 0:
      part.unlink(missing_ok=True)  # first: a note must not speak of a file before
      output_paths.write_whole(epath.Path(note), json.dumps(dict(validator=answer.validator, length=answer.length)))
    elif not answer.validator:
      note.unlink(missing_ok=True)
    with part.open('r+b' if answer.start else 'wb') as file, _bar(_name(address), answer) as bar:
      file.seek(answer.start)
      while chunk := _read(stream):
        file.write(chunk)
        bar.update(len(chunk))
      size = file.tell()
      file.truncate()
      file.flush()
      os.fsync(file.fileno())
  if answer.length is not None and size != answer.length:
    raise _BrokenOff(f'broken off after {size:,} of {answer.length:,} bytes')


def _read_note(note: Path) -> dict:
  try:
    known = json.loads(note.read_text())
    return known if isinstance(known, dict) and isinstance(known.get('validator'), str) else {}
  except (OSError, ValueError):
    return {}


def _read(stream: IO[bytes]) -> bytes:
  try:
    return stream.read(_CHUNK)
  except (http.client.HTTPException, OSError) as error:
    raise _BrokenOff(f'broken off ({_reason(error)})') from error


def _bar(name: str, answer: _Answer) -> tqdm:
  interval = 0.5 if sys.stderr.isatty() else 30.0
  size = dict(total=answer.length, initial=answer.start, unit='B', unit_scale=True)
  return tqdm(desc=name, file=sys.stderr, mininterval=interval, **size)


class _Redirects(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, request, file, code, message, headers, address):
    to = urlsplit(address)
    _check_web(to, f'{request.full_url} is redirected to {to.scheme}://{to.hostname}')
    if request.type == 'https' and to.scheme != 'https':
      raise ValueError(
        f'{request.full_url} is redirected to {to.scheme}://{to.hostname}, which gives up https: refused'
      )
    return super().redirect_request(request, file, code, message, headers, address)


def _check_web(address: SplitResult, told: str) -> None:
  if address.scheme != 'https' and not (address.scheme == 'http' and _is_here(address.hostname)):
    raise ValueError(f'{told}, which anybody on the way could exchange; only https:// is followed: give such a link')


def _is_here(host: str | None) -> bool:
  try:
    return host == 'localhost' or ipaddress.ip_address(host or '').is_loopback
  except ValueError:
    return False


def _open_http(address: str, wanted: int, known: dict) -> _Answer:
  """The file from byte `wanted` on if it is still the one that is `known`, otherwise from the beginning."""
  _check_web(urlsplit(address), f'{address} is not https://')
  headers = {'User-Agent': 'triplet_det', 'Accept-Encoding': 'identity'}
  if wanted:
    headers |= {'Range': f'bytes={wanted}-', 'If-Range': known['validator']}
  proxies = [urllib.request.ProxyHandler({})] if _is_here(urlsplit(address).hostname) else []
  opener = urllib.request.build_opener(_Redirects, *proxies)
  try:
    response = opener.open(urllib.request.Request(address, headers=headers), timeout=_PATIENCE)
  except urllib.error.HTTPError as error:
    if error.code == 416 and wanted:  # there is no such byte any more
      return _open_http(address, 0, {})
    raise _refusal(address, error) from error
  except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
    reason = getattr(error, 'reason', error)
    if isinstance(reason, socket.gaierror | ConnectionRefusedError) and not wanted:
      raise ConnectionError(
        f'{address}: no connection ({_reason(reason)}): connect to the network, or give a file on this machine'
      ) from error
    raise _BrokenOff(f'no connection ({_reason(reason)})') from error
  headers = response.headers
  if headers.get_content_type() == 'text/html' or headers.get('Content-Encoding', 'identity') != 'identity':
    raise ValueError(
      f'{address}: the server sends {headers.get_content_type()}, {headers.get("Content-Encoding", "")}, a web page or '
      'something packed, and not the file itself: give the link that its download button has'
    )
  length = headers.get('Content-Length')
  etag = headers.get('ETag', '')
  validator = etag if etag.startswith('"') else headers.get('Last-Modified', '')  # a weak one does not tell every bit
  if response.status != 206:
    return _Answer(response, 0, int(length) if length and length.isdigit() else None, validator)
  span = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', headers.get('Content-Range', ''))
  same = span and int(span[1]) == wanted and validator in ('', known['validator'])
  if not same or int(span[2]) != (known.get('length') or int(span[2])):
    response.close()
    return _open_http(address, 0, {})
  return _Answer(response, wanted, int(span[2]), known['validator'])


def _refusal(address: str, error: urllib.error.HTTPError) -> Exception:
  said = f'the server says {error.code} {str(error.reason).partition(chr(10))[0]}'
  if error.code in (404, 410):
    return FileNotFoundError(f'{address}: {said}: give a link to a file that is there')
  if error.code in (401, 403):
    return PermissionError(
      f'{address}: {said}: it is not for everybody; fetch it as its owner wants, and give the file'
    )
  if error.code >= 500 or error.code in (408, 429):
    return _BrokenOff(said)
  return ValueError(f'{address}: {said}: give the link that a browser ends at')


def _reason(error: BaseException) -> str:
  return str(getattr(error, 'strerror', None) or error) or type(error).__name__


def _open_gs(address: str, wanted: int, known: dict) -> _Answer:
  """As `_open_http`."""
  try:
    path = epath.Path(address)
    found = path.stat()
    stream = path.open('rb')
    validator = f'{found.length} bytes of {found.mtime}'
    start = wanted if validator == known.get('validator') else 0
    stream.seek(start)
  except FileNotFoundError:
    raise FileNotFoundError(f'{address}: no such object: give a link to a file that is there') from None
  except ImportError as error:
    raise ImportError(f"{address}: gs:// needs the extra gcs ({error}): pip install 'triplet_det[gcs]'") from error
  except Exception as error:  # whatever the library for the bucket raises
    raise _BrokenOff(f'no connection ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})') from error
  return _Answer(stream, start, found.length, validator)


def _from_hub(address: str) -> Path:
  """The file of hf://OWNER/REPO[@REVISION]/FILE, by huggingface_hub, with its cache and its bar."""
  found = re.fullmatch(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)', address)
  if not found:
    raise ValueError(f'{address} is none of the hub: give hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE')
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise ImportError(f"{address}: hf:// needs the extra hf ({error}): pip install 'triplet_det[hf]'") from error
  repository, revision, name = found.groups()
  try:
    return Path(huggingface_hub.hf_hub_download(repository, unquote(name), revision=revision))
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
    raise ConnectionError(
      f'{address}: no connection to the hub, and not in its cache: connect to the network, or give a file on this '
      'machine'
    ) from error
  except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
    raise FileNotFoundError(
      f'{address}: {type(error).__name__} of the hub: give a link to a file that is there, and that you may read '
      '(HF_TOKEN)'
    ) from error
  except errors.HFValidationError as error:
    raise ValueError(f'{address}: {str(error).partition(chr(10))[0]}: give hf://OWNER/REPO/FILE') from error
  except Exception as error:  # of its client for HTTP, which has had several
    if getattr(error, 'errno', None):
      raise  # of this machine
    raise ConnectionError(f'{address}: {str(error).strip().partition(chr(10))[0]}: try again later') from error
