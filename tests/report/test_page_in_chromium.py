"""The page of a run in a real browser, at the widths of a phone and of a desktop: it fits, and its script works."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_report
from tests.html_tree import Tree
from triplet_det import report

WIDTHS = (375, 1280)
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
OPTIONS = (
  *('--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1700,900'),
  *('--allow-file-access-from-files', '--enable-logging=stderr', '--virtual-time-budget=5000'),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium or chrome on the PATH')


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
  return tiny_report.write_run(tmp_path_factory.mktemp('runs') / f'a_run_with_a_name_that_is_{"very_" * 9}long')


@pytest.fixture(scope='module')
def browsed(run, tmp_path_factory) -> dict[str, dict]:
  """Width -> what tests/report/driver.js saw.

  The report is in frames, because windows narrower than 500 pixels are not honoured, and because its policy allows no
  script but its own.
  """
  folder = tmp_path_factory.mktemp('browser')
  page = Path(report.write_report(run)).as_uri()
  frames = ''.join(f'<iframe id="{width}" src="{page}" width="{width}" height="900"></iframe>' for width in WIDTHS)
  driver = (Path(__file__).parent / 'driver.js').read_text()
  drives = ''.join(f'(WIDTH => {{\n{driver}}})({width});\n' for width in WIDTHS)
  script = f'onload = () => {{ const results = {{}}; {drives} document.body.textContent = JSON.stringify(results); }};'
  around = folder / 'around.html'
  around.write_text(f'<style>iframe {{ border: 0; }}</style><body>{frames}<script>{script}</script></body>')
  command = [CHROMIUM, *OPTIONS, f'--user-data-dir={folder / "profile"}', '--dump-dom', around.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  assert not [line for line in done.stderr.splitlines() if 'CONSOLE' in line]  # errors, and what the policy refused
  found = Tree(done.stdout).root.one('body').text
  assert found.startswith('{'), f'the driver did not come to its end: {done.stdout[-500:]} {done.stderr[-500:]}'
  return json.loads(found)


@pytest.fixture(params=WIDTHS)
def seen(request, browsed) -> dict:
  return browsed[str(request.param)] | {'expected_width': request.param}


def metrics(run: Path, step: int) -> dict:
  return json.loads((run / 'eval' / f'step_{step:06d}' / 'metrics.json').read_text())['metrics']


def test_fits_its_width(seen):
  assert seen['script'] == 'ran'
  assert seen['client'] == seen['expected_width']
  assert seen['width'] == seen['opened'] == seen['client']  # tables scroll in their boxes, the page does not
  assert seen['outside'] == []


def test_gallery_toggles(seen):
  """3 pictures with 3 objects, detections of scores 0.9 0.61 0.35 | 0.3 0.1, rejected pairs of 0.7 0.4 each."""
  assert seen['boxes'] == [9, 9, 0]
  assert seen['toggled'] == [0, 9, 6]
  assert seen['over_half'] == [0, 6, 3]
  assert re.search(r'3 objects.*2 detections.*1 rejected', seen['counts'])
  assert (seen['tags'], seen['no_tags']) == (9, 0)
  assert seen['enlarged'] == ['true', 1]


def test_classes_are_sorted(seen, run):
  by_class = {name[3:]: value for name, value in metrics(run, 400).items() if name.startswith('AP/')}
  by_value = sorted(by_class.values())
  np.testing.assert_array_equal(np.array(seen['rising'], float), by_value)
  np.testing.assert_array_equal(np.array(seen['falling'], float), by_value[::-1])
  assert seen['names'] == sorted(by_class)
  assert seen['sorted'] == ['ascending', None, None, None]


def test_one_class_is_chosen(seen):
  assert seen['charts'] == ['Precision: ring']


def test_values_under_the_pointer(seen, run):
  earlier, later = (f'{metrics(run, step)["AP"]:.3f}' for step in (200, 400))
  assert seen['pointed'] == ['step 200', earlier]
  assert seen['end'] == ['step 400', later]
  assert seen['before'] == seen['after'] == ['', later]
