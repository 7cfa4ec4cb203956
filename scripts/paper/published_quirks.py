"""The AP of a trained run with the sound and the published value of every quirk of testing (docs/departures.md).

python scripts/paper/published_quirks.py --checkpoint runs/shapes --config configs/shapes.py
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.paper import published
from scripts.paper.table_runs import load_config
from triplet_det import evaluate
from triplet_det import main as program
from triplet_det.detection import coco_results, trained_network
from triplet_det.detection.settings import Settings, settings_for
from triplet_det.evaluators import coco_ap

# field of Settings (or `decimals` of the results JSON) -> published value, of the authors' programs and of mmdetection
QUIRKS = dict(
  center_rule='first',
  stale_rows=True,
  inclusive=True,
  nominal_scale=True,
  mirror_shift=True,
  cut_last_line=True,
  decimals=2,
)
MMDETECTION = dict(
  canvas_colour='imagenet', near_edges=True, mirror_in_image=True, drop_untouched=True, class_shift=True
)


def sound_but_for(quirks: Mapping[str, object], own: Settings) -> Settings:
  """A checkpoint's settings with the sound value of every quirk that is not given."""
  names = (QUIRKS | MMDETECTION).keys() - {'decimals'}
  return dataclasses.replace(own, **{name: getattr(Settings(), name) for name in names} | dict(quirks))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True, help='run folder')
  parser.add_argument('--config', required=True, help='page whose data.eval is evaluated, with its variant')
  arguments = parser.parse_args()
  try:
    trial = program.open_trial(load_config(arguments.config), epath.Path(arguments.checkpoint))
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))

  def ap(decimals: int | None = None, **quirks) -> dict[str, float]:
    settings = sound_but_for(quirks, settings_for(trial.record.test))
    tester = trained_network.make_detector(trial.module, trial.variables, settings, **trial.placement)
    found = evaluate.detect(tester, trial.source)
    rows = coco_results.results_rows(found.items(), trial.record.categories, decimals=decimals)
    return coco_ap.evaluate(trial.source.ground_truth, rows)

  print(f'| published value | {" | ".join(published.AP)} |\n|---|' + '---:|' * len(published.AP))
  cases = {'none: all sound': {}} | {f'{name} = {value}': {name: value} for name, value in QUIRKS.items()}
  cases |= {'all': QUIRKS} | {f"mmdetection's {name} = {value}": {name: value} for name, value in MMDETECTION.items()}
  for title, quirks in cases.items():
    metrics = ap(**quirks)
    print(f'| {title} | ' + ' | '.join(f'{100 * metrics[name]:.2f}' for name in published.AP) + ' |', flush=True)


if __name__ == '__main__':
  main()
