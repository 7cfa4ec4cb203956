"""The AP of a trained run with the sound and the published value of every quirk of testing (docs/departures.md).

python scripts/paper/published_quirks.py --checkpoint runs/shapes --config configs/shapes.py
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.paper.table_runs import load_config
from triplet_det import evaluate
from triplet_det.data import pipeline
from triplet_det.detection import coco_results, trained_network
from triplet_det.detection.settings import settings_for
from triplet_det.evaluators import coco_ap
from triplet_det.models import detector
from triplet_det.run import checkpoints

# field of Settings (or `decimals` of the results JSON) -> published value
QUIRKS = dict(
  center_rule='first',
  stale_rows=True,
  inclusive=True,
  nominal_scale=True,
  mirror_shift=True,
  cut_last_line=True,
  decimals=2,
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True, help='run folder')
  parser.add_argument('--config', required=True, help='config whose data.eval is evaluated, with its variant')
  arguments = parser.parse_args()
  try:
    variables, record = checkpoints.load_weights(arguments.checkpoint)
    source = pipeline.open_source(**load_config(arguments.config).data.eval)
    evaluate.check_categories(source, record.categories)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  module = detector.build(record.model)
  sound = settings_for(record.test)

  def ap(**published) -> dict[str, float]:
    decimals = published.pop('decimals', None)
    settings = dataclasses.replace(sound, **published)
    tester = trained_network.make_detector(module, variables, settings, batch_size=8)
    found = evaluate.detect(tester, source)
    rows = coco_results.results_rows(found.items(), record.categories, decimals=decimals)
    return coco_ap.evaluate(source.ground_truth, rows)

  names = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
  print('| published value | ' + ' | '.join(names) + ' |\n|---|' + '---:|' * len(names))
  cases = [('none: all sound', {})] + [(f'{k} = {v}', {k: v}) for k, v in QUIRKS.items()] + [('all', dict(QUIRKS))]
  for title, published in cases:
    metrics = ap(**published)
    print(f'| {title} | ' + ' | '.join(f'{100 * metrics[name]:.2f}' for name in names) + ' |', flush=True)


if __name__ == '__main__':
  main()
