"""Packs a finished run of configs/shapes.py as the detector that comes with the package, `triplet_det.load('demo')`.

  python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes
  python scripts/make_demo_weights.py --run runs/shapes

Trains nothing. Evaluates the packed float16 weights and the run's own on the embedded validation set (a minute or two)
and refuses to pack weights that lost more than 0.002 AP, or take more than 2 MB.
"""

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triplet_det
from triplet_det import evaluate
from triplet_det.configs import shapes
from triplet_det.data import pipeline
from triplet_det.detection import demo, trained_network
from triplet_det.detection.settings import settings_for
from triplet_det.models import detector
from triplet_det.run import checkpoints, output_paths
from triplet_det.run.progress import show_messages

MOST_LOST, MOST_BYTES = 0.002, 2_000_000
COMMAND = 'python -m triplet_det.main --config configs/shapes.py --workdir runs/shapes'
KEPT_METRICS = ('AP', 'AP50', 'AP75')


def measure(variables: dict, record: checkpoints.RunRecord, source: pipeline.Source, config) -> tuple[dict, dict]:
  """Metrics on the split as `--config.mode=eval` finds them, and their fingerprint."""
  settings = settings_for(config.test.to_dict(), config.image_scale)
  tester = trained_network.make_detector(
    detector.build(record.model), variables, settings, batch_size=config.eval_batch_size
  )
  with tempfile.TemporaryDirectory() as folder:
    about = dict(step=record.step)
    evaluate.evaluate(tester, source, record.categories, folder, split='validation', run_name='demo', about=about)
    content = json.loads((Path(folder) / 'metrics.json').read_text(encoding='utf-8'))
  return content['metrics'], content['fingerprint']


def trained_at(run: Path, step: int) -> str | None:
  """The commit that trained the run, from the evaluation of this step."""
  metrics = evaluate.evaluation_folder(run, step) / 'metrics.json'
  return json.loads(metrics.read_text(encoding='utf-8'))['fingerprint']['commit'] if metrics.exists() else None


def pack(run: Path, out: Path) -> dict:
  """Writes weights.npz and provenance.json; returns the latter's content."""
  config = shapes.get_config()
  variables, record = checkpoints.load_weights(run)
  model = dict(config.model.to_dict(), num_classes=len(record.categories))
  checkpoints.check_same_model(run, record.model, model)
  source = pipeline.open_source(**config.data.eval)
  evaluate.check_categories(source, record.categories)

  before, _ = measure(variables, record, source, config)
  with tempfile.TemporaryDirectory() as scratch:
    size = demo.save_weights(variables, Path(scratch))
    provenance = dict(
      command=COMMAND,
      packed_by='python scripts/make_demo_weights.py --run runs/shapes',
      date=datetime.datetime.now(datetime.UTC).date().isoformat(),
      trained_at=trained_at(run, record.step),
      bytes=size,
      float32_metrics=_brief(before),
      record=dict(record.to_json(), test=config.test.to_dict(), unlogged=[]),
    )
    (Path(scratch) / demo.PROVENANCE).write_text(json.dumps(provenance))
    packed, _ = demo.load_weights(Path(scratch))
  after, fingerprint = measure(packed, record, source, config)
  lost = before['AP'] - after['AP']
  if abs(lost) > MOST_LOST or size > MOST_BYTES:
    raise ValueError(
      f'not packed: AP {after["AP"]:.4f} instead of {before["AP"]:.4f} (at most {MOST_LOST} apart), '
      f'{size} bytes (at most {MOST_BYTES})'
    )
  provenance['record']['metrics'] = after
  provenance = dict(metrics=_brief(after), **provenance, triplet_det=triplet_det.__version__, fingerprint=fingerprint)
  demo.save_weights(variables, out)
  (out / demo.PROVENANCE).write_text(json.dumps(provenance, indent=1) + '\n')
  return provenance


def _brief(metrics: dict) -> dict:
  return {name: round(metrics[name], 4) for name in KEPT_METRICS}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    '--run', type=lambda text: Path(text).expanduser(), required=True, help='run folder of configs/shapes.py'
  )
  parser.add_argument(
    '--out',
    type=lambda text: Path(text).expanduser(),
    default=Path(demo.__file__).parent,
    help='default: where the package has it',
  )
  arguments = parser.parse_args()
  show_messages()
  try:
    output_paths.make_folder('--out', arguments.out)
    made = pack(arguments.run, arguments.out)
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))
  print(f'float32 {made["float32_metrics"]}\nfloat16 {made["metrics"]}\n{made["bytes"]:,} bytes in {arguments.out}')


if __name__ == '__main__':
  main()
