"""How right and how fast this program is on a GPU or TPU, in one command, without network or data.

  python scripts/accelerator.py --json results.json
  python scripts/accelerator.py --part step --json results.json

chip: what products of matrices reach. right: small published networks and testing, errors and their bounds. step: the
training step of the paper's networks. detection: images and their mirror images to boxes. pools: in each form. twin:
the same networks in PyTorch, if that sees the GPU. run: the embedded data set, trained to its AP.

A part ends within --minutes. What is not done then, or has failed, is done when the same command is given again; what
is finished is taken from the --json file. One device is used. On a GPU several processes compile before anything is
timed, --at_once, for as long as all parts may take; then each program has the device alone. On a CPU all is tiny, to
see that the command works, and no figure says anything. docs/accelerators.md says how to read what is printed.

Exit codes: 0 all done; 1 something failed or is out of bounds; 2 the file does not fit; 75 the same command goes on.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FAILED, UNFINISHED = 1, 75
ENOUGH = 60  # seconds that are worth to begin another item with
GRACE = 20  # and that an item has to end by itself
FINISHED = 'rows', 'full'


def main() -> int:
  import jax  # here and not above: the twin's processes import this file too

  from scripts.timing import accelerator_parts
  from triplet_det.devices import compiler
  from triplet_det.run import command_line, output_paths

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--part', nargs='+', choices=[*accelerator_parts.PARTS, 'all'], default=['all'], help='which')
  parser.add_argument('--only', type=pattern, metavar='REGEX', help='items whose title has it (default: all)')
  parser.add_argument('--at_once', type=int, metavar='N', help='processes that compile (default: 1; on a GPU 3)')
  parser.add_argument('--json', type=lambda text: Path(text).expanduser(), metavar='FILE', help='keeps what was found')
  parser.add_argument('--size', choices=list(accelerator_parts.SIZES), help='default: tiny on a CPU, else paper')
  parser.add_argument('--minutes', type=float, default=8, help='that a part may take (default: %(default)s)')
  arguments = parser.parse_args()
  # One GPU of several, and nearly all of its memory: read when an item's process looks for its devices.
  os.environ['CUDA_VISIBLE_DEVICES'] = os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]
  os.environ.setdefault(share_name(), '.92')

  found = start(lambda _: {'': accelerator_parts.about()}, 300).result()
  if 'rows' not in found:
    parser.error(f'JAX finds no device: {found}')
  about = found['rows']['']
  about['size'] = arguments.size or ('tiny' if about['platform'] == 'cpu' else 'paper')
  if about['size'] == 'tiny':  # all that counts then is how long it takes to see that everything works
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
  at_once = arguments.at_once or (3 if about['platform'] == 'gpu' else 1)
  try:
    content = found_before(arguments.json, about)
  except ValueError as error:
    parser.error(str(error))
  print(', '.join(f'{key} {value}' for key, value in about.items()))

  def keep() -> None:
    if arguments.json:
      output_paths.write_whole(arguments.json, json.dumps(content, indent=1) + '\n')

  try:
    keep()  # not after the first item, if it cannot be written
  except OSError as error:
    parser.error(f'--json cannot be written: {error}')
  chosen = accelerator_parts.PARTS if 'all' in arguments.part else arguments.part
  failures, unfinished = [], []
  with tempfile.TemporaryDirectory() as scratch:
    folder = (arguments.json or Path(scratch, 'results')).with_suffix('.run').absolute()
    if not jax.config.jax_compilation_cache_dir:
      compiler.keep_programs(command_line.CACHE if about['size'] == 'tiny' else str(folder / 'programs'))
    every = {
      part: {title: item for title, item in of.items() if not arguments.only or arguments.only.search(title)}
      for part, of in accelerator_parts.items(accelerator_parts.SIZES[about['size']], folder).items()
    }
    if not any(every[part] for part in chosen):
      parser.error(f'--only {arguments.only.pattern}: no item of {", ".join(chosen)} has that in its title')
    if at_once > 1:
      ahead = {part: every[part] for part in chosen if part in accelerator_parts.COMPILED_AHEAD}
      prepare(ahead, content, at_once, 60 * arguments.minutes * len(ahead), keep)
    for part in chosen:
      done = content['parts'].setdefault(part, {})
      measure(every[part], done, content['ahead'].get(part, {}), 60 * arguments.minutes, keep)
      shown = {title: done[title] for title in every[part] if title in done}
      print(f'\n{part}: {accelerator_parts.PARTS[part]}\n\n{as_table(shown)}', flush=True)
      failures += [f'{part}, {title}: {why}' for title, why in wrong(shown)]
      unfinished += [f'{part}, {title}' for title in every[part] if not done.get(title)]
  for title, said in (('failed', failures), ('not done yet, by the same command', unfinished)):
    if said:
      print('\n  '.join([f'\n{title}:', *said]))
  return FAILED if failures else UNFINISHED if unfinished else 0


def pattern(text: str) -> re.Pattern:
  """For argparse."""
  try:
    return re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(f'{text!r} is no regular expression: {error}') from None


def share_name() -> str:
  """The variable for the share of a device's memory; its old name if that is set: the new one is an error then."""
  before = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  return before if before in os.environ else 'XLA_CLIENT_MEM_FRACTION'


def found_before(file: Path | None, about: Mapping[str, object]) -> dict[str, dict]:
  """What the file has: `about`, and item by item what `Started.result` returned, for each part; or nothing yet.

  Under 'ahead' likewise what is known since its program was compiled, see `prepare`.

  Raises:
    ValueError: it is of another device, commit or size, or no file of this command.
  """
  if not (file and file.exists()):
    return {'about': dict(about), 'parts': {}, 'ahead': {}}
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
    before = dict(content['about'])
    content.setdefault('ahead', {})
  except (ValueError, KeyError, TypeError):
    raise ValueError(f'{file} is no file of this command: give another --json') from None
  if differing := [
    f'{key} {before.get(key)}, here {value}' for key, value in about.items() if before.get(key) != value
  ]:
    raise ValueError(f'{file} is of {"; ".join(differing)}: give another --json')
  return content


def prepare(
  parts: Mapping[str, Mapping[str, Callable]],
  content: dict[str, dict],
  at_once: int,
  seconds: float,
  keep: Callable[[], None],
) -> None:
  """Compiles the programs of what is not finished, several processes at once; items that time nothing are finished.

  Programs wait in JAX's cache of compiled programs. The device's memory is shared out, because a compiler that finds
  too little to try kernels with picks slow ones, or none. What fails here says so when its turn comes.

  Args:
    parts: name -> items by their titles, begun in this order.
    content: of the file; 'ahead' and, of items that time nothing, 'parts' are added to.
    at_once: processes.
    seconds: that all may take.
    keep: called whenever `content` has changed.
  """
  left = [
    (part, title, item)
    for part, of in parts.items()
    for title, item in of.items()
    if title not in content['ahead'].get(part, {}) and not finished(content['parts'].get(part, {}).get(title, {}))
  ]
  end, enough, running = time.monotonic() + seconds, min(ENOUGH, seconds / 2), {}
  try:
    while running or (left and end - time.monotonic() >= enough):
      while left and len(running) < at_once and end - time.monotonic() >= enough:
        part, title, item = left.pop(0)
        with no_interrupt():  # between a process and its place among those that are ended
          running[start(item, end - time.monotonic(), ahead=0.9 / at_once)] = part, title
      ready = wait([one.receiver for one in running], max(0.0, end - time.monotonic()))
      for one in [one for one in running if one.receiver in ready or not ready]:
        (part, title), found = running.pop(one), one.result()
        ((kind, said),) = found.items()
        told = {'ahead': 'compiled', 'rows': 'done'}.get(kind, f'{kind}: {said}')
        print(f'  {part}, {title}: {told}, {one.seconds():.0f} s', file=sys.stderr, flush=True)
        if kind == 'ahead':
          content['ahead'].setdefault(part, {})[title] = said
        elif kind == 'rows':
          content['parts'].setdefault(part, {})[title] = found
        keep()
  finally:
    for one in running:  # after Ctrl-C
      one.end_now()


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
  """Ctrl-C waits until the end of this: as an exception within a fork it would be lost.

  A handler of its own, as a mask would be that of this thread alone: the signal goes to any other of the process.
  """
  came = []
  before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if came:
    raise KeyboardInterrupt


def finished(found: Mapping[str, object]) -> bool:
  """Whether an item needs no other try."""
  return any(name in found for name in FINISHED)


def measure(
  items: Mapping[str, Callable],
  done: dict[str, dict],
  ahead: Mapping[str, Mapping],
  seconds: float,
  keep: Callable[[], None],
) -> None:
  """Executes what is not finished.

  Args:
    items: of one part, by title.
    done: title -> what `Started.result` returned; is added to. An item that no time was left for is not in it.
    ahead: title -> columns of its rows that are known from `prepare`.
    seconds: that all may take.
    keep: called whenever `done` has changed.
  """
  end, full, begun = time.monotonic() + seconds, set(), False
  for title, item in items.items():
    kind, _, batch = title.rpartition(', batch ')
    if not finished(done.get(title, {})):
      done.pop(title, None)
      within = end - time.monotonic()
      if batch and kind in full:
        done[title] = {'full': 'not tried: a smaller batch did not fit'}
      elif within >= min(ENOUGH, seconds / 2):
        print(f'  {title} ...', file=sys.stderr, end='', flush=True)
        one = start(item, within)
        found = one.result()
        print(f' {one.seconds():.0f} s', found.get('unfinished', ''), file=sys.stderr, flush=True)
        for row in found.get('rows', {}).values():
          row.update(ahead.get(title, {}))
        if 'late' in found and not begun:  # it had all the time, and would have no more the next time
          found = {'error': found['late']}
        begun = True
        if 'late' not in found and 'unfinished' not in found:
          done[title] = found
      keep()
    if 'full' in done.get(title, {}):
      full.add(kind)


@dataclasses.dataclass(eq=False, frozen=True)
class Started:
  """An item in a process of its own."""

  process: multiprocessing.Process
  receiver: Connection
  begun: float  # of time.monotonic
  end: float

  def seconds(self) -> float:
    return time.monotonic() - self.begun

  def result(self) -> dict[str, object]:
    """What `execute` says of it; 'late' that it took too long, 'error' that its process just ended. Waits for it."""
    patience = 0
    try:
      if not self.receiver.poll(max(0.0, self.end - time.monotonic())):
        return {'late': f'not done after {self.end - self.begun:.0f} s'}
      found, patience = self.receiver.recv(), GRACE  # to give the device back
      return found
    except EOFError:
      self.process.join()
      return {'error': f'its process ended with {self.process.exitcode}'}
    finally:
      self.process.join(patience)
      self.end_now()

  def end_now(self) -> None:
    self.process.kill()
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)  # what it has started
    self.process.join()


def start(item: Callable, seconds: float, *, ahead: float = 0) -> Started:
  """Begins an item in a process of its own, which has so many seconds; `ahead` as for `execute`."""
  context = multiprocessing.get_context('fork')  # what is imported is there; no device was used here
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(target=execute, args=(item, seconds - GRACE, sender.send, ahead))
  begun = time.monotonic()
  process.start()
  sender.close()
  return Started(process, receiver, begun, begun + seconds)


def execute(item: Callable, seconds: float, send: Callable[[dict], None], ahead: float) -> None:
  """In a process of its own, which it makes the first of a group: sends the item's rows, or one line that says why not.

  Under 'full' that memory was too short, 'missing' what this machine lacks, 'unfinished' that the time was. With
  `ahead` the item ends where it would be timed, and has this share of the device's memory: 'ahead' is what is known.
  """
  from scripts.timing import accelerator_parts

  os.setpgid(0, 0)
  signal.signal(signal.SIGINT, signal.default_int_handler)  # see `no_interrupt`
  accelerator_parts.compile_only = ahead > 0
  if ahead:
    os.environ.update(XLA_PYTHON_CLIENT_PREALLOCATE='false', **{share_name(): f'{ahead:.2f}'})
  try:
    send({'rows': item(seconds)})
  except accelerator_parts.Compiled as known:
    send({'ahead': known.columns})
  except accelerator_parts.Missing as error:
    send({'missing': str(error)})
  except TimeoutError as error:
    send({'unfinished': str(error)})
  except Exception as error:
    line = (str(error) or repr(error)).strip().splitlines()[0][:300]
    words = 'RESOURCE_EXHAUSTED', 'ut of memory', 'does not fit'  # of XLA, PyTorch, `compiled_program`
    if any(word in str(error) for word in words):
      send({'full': f'does not fit: {line}'})
    else:
      traceback.print_exc()
      send({'error': f'{type(error).__name__}: {line}'})


def wrong(done: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  """(title, what is wrong) of all that failed, or is out of its bounds."""
  for title, found in done.items():
    if 'error' in found:
      yield title, found['error']
    for name, row in found.get('rows', {}).items():
      if row.get('within') == 'NO':
        yield name or title, f'{row["error"]:.2g}, the bound is {row["bound"]:.2g}'


def as_table(done: Mapping[str, Mapping]) -> str:
  """In Markdown, a row per figure; what there are no figures of says why."""
  rows = {}
  for title, found in done.items():
    for name, row in found.get('rows', {'': {'note': ': '.join(map(str, *found.items()))}}).items():
      rows[name or title] = row
  columns = list(dict.fromkeys(column for row in rows.values() for column in row))
  columns.sort(key=lambda column: column == 'note')  # last
  lines = [['', *columns], ['---', *['---:'] * len(columns)]]
  lines += [[title, *(_cell(row.get(column, '')) for column in columns)] for title, row in rows.items()]
  widths = [max(map(len, cells)) for cells in zip(*lines)]
  return '\n'.join('| ' + ' | '.join(f'{c:<{w}}' for c, w in zip(cells, widths)) + ' |' for cells in lines)


def _cell(value: object) -> str:
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
  sys.exit(main())
