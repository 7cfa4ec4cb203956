"""How fast each stage is on this machine, measured so that two measurements can be compared.

  python scripts/benchmark.py network --hg 52 --against torch --json network.json
  python scripts/benchmark.py network --hg 52 --against torch --compare network.json

network: image and mirror image to maps. train_step: a whole step. decode: maps to boxes. image: all of these. input:
what the host does for training. startup: a fresh process to its first boxes. memory: of many predictions.

What is compared takes turns (A B A B ...): our program, with --against torch the same network in PyTorch, and a product
of two matrices as yardstick. Rounds in which other processes took more than --max_load cores are left out and counted;
medians are given with the smallest and largest value, a ratio is formed within each round. --compare says by these
ratios what got more than 3 % slower. Needs Linux, whose /proc tells load and memory.

Exit codes: 0 done; 1 slower or larger than before, or fewer quiet rounds than wanted; 2 it cannot be measured.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from absl import flags

from scripts.paper.side_by_side import as_json, as_text
from scripts.timing import quiet_pairs, timed_detection, timed_process, timed_training
from scripts.timing.benchmark_table import compare
from triplet_det.devices import compiler

# Command -> its arguments, and what it measures.
COMMANDS = {
  'network': (timed_detection.add_network_command, timed_detection.network),
  'train_step': (timed_training.add_train_step_arguments, timed_training.train_step),
  'decode': (timed_detection.add_decode_arguments, timed_detection.decode),
  'image': (timed_detection.add_image_arguments, timed_detection.image),
  'input': (timed_training.add_input_arguments, timed_training.feed),
  'startup': (timed_process.add_startup_arguments, timed_process.startup),
  'memory': (timed_process.add_memory_arguments, timed_process.resident),
}


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  chosen = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', help=', '.join(COMMANDS))
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument('--pairs', type=int, default=5, help='quiet rounds that are wanted (default: %(default)s)')
  load = 'cores that other processes may keep busy during a sample (default: %(default)s)'
  shared.add_argument('--max_load', type=float, default=quiet_pairs.MAX_LOAD, help=load)
  least = 'seconds of a sample, in which a quick program runs several times (default: %(default)s)'
  shared.add_argument('--min_seconds', type=float, default=quiet_pairs.MIN_SECONDS, help=least)
  shared.add_argument('--json', type=Path, metavar='FILE', help='where all figures go')
  shared.add_argument('--compare', type=Path, metavar='FILE', help='of an earlier --json')
  cache = 'folder of compiled programs; empty: none (default: %(default)s)'
  shared.add_argument('--compilation_cache', default='~/.cache/triplet_det', help=cache)
  for command, (add_arguments, measure) in COMMANDS.items():
    add_arguments(chosen.add_parser(command, parents=[shared], allow_abbrev=False, help=measure.__doc__))
  return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  parser, arguments = parse(argv)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # absl's log and the workers of the input pipeline want it
  if getattr(arguments, 'against', None) and importlib.util.find_spec('torch') is None:
    parser.error("--against torch: PyTorch is not installed; pip install -e '.[torch]'")
  compiler.keep_programs(arguments.compilation_cache)
  try:
    before = json.loads(arguments.compare.read_text()) if arguments.compare else None
    how = dict(pairs=arguments.pairs, max_load=arguments.max_load, min_seconds=arguments.min_seconds)
    table = COMMANDS[arguments.command][1](arguments, how)
    measured = json.loads(as_json(table))
    print(as_text(table))
    if arguments.json:
      arguments.json.write_text(as_json(table) + '\n')
    changes = compare(before, measured) if before else []
  except (ValueError, FileNotFoundError, RuntimeError) as error:
    parser.error(str(error))
  for change in changes:
    print(change)
  worse = any(change.verdict == 'slower' for change in changes)
  return 1 if worse or any(note.startswith('WARNING') for note in table.notes) else 0


if __name__ == '__main__':
  sys.exit(main())
