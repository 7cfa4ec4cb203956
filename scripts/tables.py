"""The paper's tables from runs of this program: trains what is missing, reads what is finished, prints both.

python scripts/tables.py table4 --runs runs/tables                 # the embedded data set, 5 rows x 2 seeds
python scripts/tables.py table4 --runs runs/tables --rows 1 5      # pairs against triplets only
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import ablation
from triplet_det import evaluate

COLUMNS = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')
# CenterNet511-52 on COCO validation, percent.
PAPER_TABLE_4 = {
  '1': (37.6, 53.3, 40.0, 18.5, 39.6, 52.2, 33.7, 52.2, 56.7, 37.2, 60.0, 74.0),
  '2': (38.3, 54.2, 40.5, 18.6, 40.5, 52.2, 34.0, 53.0, 57.9, 36.6, 60.8, 75.8),
  '3': (39.9, 57.7, 42.3, 23.1, 42.3, 52.3, 33.8, 54.2, 58.5, 38.7, 62.4, 74.4),
  '4': (40.8, 58.6, 43.6, 23.6, 43.6, 53.6, 33.9, 54.5, 59.0, 39.0, 63.2, 74.7),
  '5': (41.3, 59.2, 43.9, 23.6, 43.8, 55.8, 34.5, 55.0, 59.2, 39.1, 63.5, 75.1),
}


def trained(runs: Path, row: str, seed: int, overrides: list[str]) -> dict[str, float]:
  """The metrics of one run, which is trained (or continued) if it is not finished."""
  workdir = runs / f'row_{row}_seed_{seed}'
  total = ablation.get_config(f'row={row},small=1').total_steps
  for override in overrides:
    if override.startswith('--config.total_steps='):
      total = int(override.partition('=')[2])
  metrics = evaluate.read_metrics(evaluate.evaluation_folder(workdir, total))
  if not metrics:
    command = [sys.executable, '-m', 'triplet_det.main', f'--config=configs/ablation.py:row={row},small=1']
    command += [f'--workdir={workdir.resolve()}', f'--config.seed={seed}', *overrides]
    print(f'training row {row}, seed {seed}: {" ".join(command)}', file=sys.stderr)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    metrics = evaluate.read_metrics(evaluate.evaluation_folder(workdir, total))
  return metrics


def table4(runs: Path, rows: list[str], seeds: list[int], overrides: list[str]) -> str:
  """Markdown: the switches, our mean over seeds in percent, and the paper's figures."""
  lines = [
    '| CRE | CTP | CCP | of | ' + ' | '.join(COLUMNS) + ' |',
    '|---|---|---|---|' + '---:|' * len(COLUMNS),
  ]
  mean_ap = {}
  for row in rows:
    found = [trained(runs, row, seed, overrides) for seed in seeds]
    means = [100 * statistics.mean(metrics[name] for metrics in found) for name in COLUMNS]
    mean_ap[row] = means[0]
    ticks = ' | '.join('x' if on else '' for on in ablation.ROWS[row])
    single = ', '.join(f'{100 * metrics["AP"]:.1f}' for metrics in found)
    lines.append(f'| {ticks} | here (AP by seed {single}) | ' + ' | '.join(f'{v:.1f}' for v in means) + ' |')
    lines.append('| | | | paper, COCO | ' + ' | '.join(f'{v:.1f}' for v in PAPER_TABLE_4[row]) + ' |')
  if '1' in mean_ap and '5' in mean_ap:
    gain = mean_ap['5'] - mean_ap['1']
    lines.append(f'\ntriplets (row 5) minus pairs (row 1): {gain:+.1f} AP here, +3.7 in the paper')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('table', choices=('table4',))
  parser.add_argument('--runs', type=Path, required=True, help='folder of the runs, one below it per row and seed')
  parser.add_argument('--rows', nargs='+', default=list(ablation.ROWS), choices=list(ablation.ROWS))
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
  arguments, overrides = parser.parse_known_args()
  if unknown := [o for o in overrides if not o.startswith('--config.')]:
    parser.error(f'not understood: {unknown}; overrides of the config start with --config.')
  print(table4(arguments.runs, arguments.rows, arguments.seeds, overrides))


if __name__ == '__main__':
  main()
