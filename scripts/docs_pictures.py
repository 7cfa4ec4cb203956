"""Rewrites the pictures of the documentation from finished runs; what is not given keeps its picture.

  python scripts/docs_pictures.py --shapes runs/shapes

--shapes, a run of configs/shapes.py: docs/detections.jpg, the first eight validation images with ground truth (blue)
and detections (red); docs/shapes_loss.png and shapes_ap.png, its learning curves; docs/report.jpg, the upper part of
its page, if there is a Chromium or Chrome to open it. --bccd, the run of docs/own_data.md: docs/bccd_ap.png. The runs
are only read.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triplet_det
from triplet_det.data import pipeline
from triplet_det.pictures import drawing

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 8  # validation images
PAGE_SIZE = (1280, 2450)  # pixels of the page's upper part, width and height
PAGE_WIDTH = 900  # of its picture
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
# What a run folder must hold -> name of the copy in docs/; None is read.
NEEDED = {
  'shapes': {'config.json': None, 'report.html': None, 'loss.png': 'shapes_loss.png', 'ap.png': 'shapes_ap.png'},
  'bccd': {'ap.png': 'bccd_ap.png'},
}


def detections(run: Path) -> np.ndarray:
  """A sheet of the run's first validation images with their boxes, RGB."""
  config = json.loads((run / 'config.json').read_text(encoding='utf-8'))
  source = pipeline.open_source(**config['data']['eval'])
  detector, names = triplet_det.load(run), source.categories.names
  drawn = []
  for _, record, image in pipeline.load_images(source, range(min(SHOWN, len(source)))):
    (found,) = detector([image])
    found = found.above(config['draw_threshold'])
    boxes = record.boxes * np.array(image.shape[1::-1] * 2)
    truth = boxes, [names[c] for c in record.classes]
    drawn.append(drawing.draw_ground_truth_and_detections(image, *truth, found.boxes, found.names, found.scores))
  return drawing.contact_sheet(drawn, columns=4, cell_width=260)


def screenshot(page: Path, browser: str) -> np.ndarray:
  """The upper part of an HTML page, RGB."""
  with tempfile.TemporaryDirectory() as folder:
    picture = Path(folder) / 'page.png'
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', f'--user-data-dir={folder}/user']
    options += [f'--screenshot={picture}', '--window-size={},{}'.format(*PAGE_SIZE), '--virtual-time-budget=5000']
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    image = cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB)
  factor = PAGE_WIDTH / PAGE_SIZE[0]
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def save_jpeg(path: Path, image: np.ndarray) -> None:
  cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name in NEEDED:
    parser.add_argument(f'--{name}', type=lambda text: Path(text).expanduser(), metavar='RUN_FOLDER')
  parser.add_argument(
    '--out',
    type=lambda text: Path(text).expanduser(),
    default=ROOT / 'docs',
    help='folder for the pictures (default %(default)s)',
  )
  arguments = parser.parse_args()
  runs = {name: run for name in NEEDED if (run := getattr(arguments, name))}
  if not runs:
    parser.error(f'nothing to draw: give a run folder with {", ".join(f"--{name}" for name in NEEDED)}')
  if missing := [str(run / file) for name, run in runs.items() for file in NEEDED[name] if not (run / file).exists()]:
    parser.error(f'not there: {", ".join(missing)}; the runs must be finished ones')
  arguments.out.mkdir(parents=True, exist_ok=True)
  for name, run in runs.items():
    for file, copy in NEEDED[name].items():
      if copy:
        shutil.copyfile(run / file, arguments.out / copy)
  if 'shapes' in runs:
    save_jpeg(arguments.out / 'detections.jpg', detections(runs['shapes']))
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
      save_jpeg(arguments.out / 'report.jpg', screenshot(runs['shapes'] / 'report.html', browser))
    else:
      print(f'report.jpg is not made: none of {", ".join(BROWSERS)} is installed', file=sys.stderr)
  print(f'the pictures are in {arguments.out}')


if __name__ == '__main__':
  main()
