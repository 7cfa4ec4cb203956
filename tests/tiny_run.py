"""A run small enough to be started, killed and started again by tests: 31-pixel crops of 6 images, 8 channels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax

from tests.tiny_coco import write_tiny_coco

ROOT = Path(__file__).parent.parent
STEPS = 10

PAGE = 'configs/photos.py:encoder=hourglass'
OVERRIDES = {
  'total_steps': STEPS,
  'log_every': 1,
  'checkpoint_every': 3,
  'eval_every': STEPS,
  'batch_size': 4,
  'eval_batch_size': 2,
  'input_size': 31,
  'augment.border': 16,
  'last_crops.input_size': 31,  # of `shapes`, whose share of the steps is not 0
  'augment.max_objects': 8,
  'model.dims': (8, 8),
  'model.blocks': (1, 1),
  'model.stem_width': 8,
  'model.head_width': 8,
  'model.pool_width': 8,
  'model.center_branch': False,  # CornerNet, because it compiles in half the time
  'model.center_pooling': False,
  'model.cascade_corner_pooling': False,
  'optimizer.base': 1e-3,
  'optimizer.warmup_steps': 2,
  'average_decay': 0.0,
}


def coco_data(root: Path) -> dict[str, str]:
  """Writes a tiny COCO download below `root`; returns the overrides of configs/photos.py that name it."""
  coco = write_tiny_coco(root, train=6, val=3)
  return {
    f'data.{split}.{key}': str(path)
    for split, folder in (('train', 'train2017'), ('eval', 'val2017'))
    for key, path in (('images', coco.images(folder)), ('annotations', coco.annotations(folder)))
  }


def command(workdir: Path, config: str, overrides: dict) -> list[str]:
  """What a user types: the tiny sizes, and `overrides` (name in the config -> value) on top."""
  start = [sys.executable, '-m', 'triplet_det.main', '--config', config, '--workdir', str(workdir)]
  cache = ['--compilation_cache', str(jax.config.jax_compilation_cache_dir)]
  return start + cache + [f'--config.{name}={value}' for name, value in {**OVERRIDES, **overrides}.items()]


def environment(**changes: str) -> dict[str, str]:
  """One CPU device, however many the tests themselves have, and whatever else is wanted."""
  return {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', **changes}


def start(workdir: Path, overrides: dict, config: str = PAGE, **changes: str) -> subprocess.Popen:
  """The run in the background; all it says goes to `<workdir>.txt`. `changes` are of the environment."""
  with open(said(workdir), 'w') as output:
    arguments = command(workdir, config, overrides)
    return subprocess.Popen(arguments, cwd=ROOT, env=environment(**changes), stdout=output, stderr=subprocess.STDOUT)


def run(workdir: Path, overrides: dict, config: str = PAGE, **changes: str) -> tuple[int, str]:
  """The run from start to end: exit code, and all it said."""
  code = start(workdir, overrides, config, **changes).wait(timeout=300)
  return code, said(workdir).read_text()


def said(workdir: Path) -> Path:
  return workdir.with_name(workdir.name + '.txt')


def rows(workdir: Path) -> list[dict]:
  """The lines of metrics.jsonl as they are, numbers with all their digits."""
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
