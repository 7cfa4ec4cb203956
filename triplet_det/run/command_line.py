"""What commands have in common: flags, and one line for what does not fit."""

import argparse
import contextlib
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from triplet_det.run.endings import EXIT_DISK, EXIT_INTERRUPTED, EXIT_MISFIT, disk_is_full, one_line
from triplet_det.run.progress import show_messages

CACHE = '~/.cache/triplet_det'
CACHE_HELP = 'folder of compiled programs; empty: none'


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """What was typed; from here on messages are shown."""
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # absl's log wants it; these commands have none of absl's flags
  show_messages()
  return arguments


@contextlib.contextmanager
def misfits_in_one_line() -> Iterator[None]:
  """What does not fit, a full disk and Ctrl-C end the process with a message alone."""
  try:
    yield
  except (OSError, ValueError, ImportError) as error:
    full = disk_is_full(error)
    message = f'the disk is full ({one_line(error)}); free some space, then the same command' if full else error
    print(f'error: {message}', file=sys.stderr)
    sys.exit(EXIT_DISK if full else EXIT_MISFIT)
  except KeyboardInterrupt:
    print('\ninterrupted; the same command does the rest', file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of the settings that commands let a user change; what is not given has no attribute."""
  add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
  scales = 'scales at which each image is tested, such as 0.6,1,1.2,1.5,1.8 (default: those of the run)'
  add('--scales', type=parse_scales, metavar='S,S,...', help=scales)
  mirror = 'leave the mirror image out: half the time, less AP'
  add('--no_mirror', action='store_false', dest='mirror', help=mirror)
  fewer = 'canvas sides + 1 are multiples of it: larger, fewer programs to compile (default: that of the run)'
  add('--canvas_multiple', type=int, metavar='N', help=fewer)


def parse_scales(text: str) -> tuple[float, ...]:
  """'0.6,1' -> (0.6, 1.0); an ArgumentTypeError says what was expected."""
  try:
    scales = tuple(map(float, text.split(',')))
  except ValueError:
    scales = ()
  if not scales or not all(0 < scale < math.inf for scale in scales):
    raise argparse.ArgumentTypeError(f'{text!r} are no scales: give positive numbers with commas, such as 0.6,1,1.2')
  return scales


def changes_of(arguments: argparse.Namespace) -> dict[str, Any]:
  """What the flags of `add_settings_flags` change, for `load`."""
  given = vars(arguments)
  return {name: given[name] for name in ('scales', 'mirror', 'canvas_multiple') if name in given}
