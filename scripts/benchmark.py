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

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == '__main__':
  from scripts.timing import commands  # not above: the processes of its own import this file too, and JAX would count

  sys.exit(commands.main(__doc__))
