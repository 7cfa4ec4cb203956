"""The notebook, executed from top to bottom as in Colab: its figures and pictures are those of the package."""

import base64
import contextlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import nbclient
import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import triplet_det
from tests import forks
from tests.tiny_detector import CATEGORIES, write_run
from tests.tiny_run import environment
from triplet_det import evaluate, export
from triplet_det.data import pipeline, shapes_dataset
from triplet_det.detection import demo, paper_figures

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'scripts/evaluate_colab.ipynb'
ONE_CANVAS = dict(canvas_multiple=256)  # for all scenes: one program
COUNT = 8


def read():
  return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def cell_of(notebook, cell_id):
  (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
  return cell


def execute(folder: Path, **settings):
  """The notebook run in `folder` with other values in its settings cell; raises if a cell does."""
  notebook = read()
  cell = cell_of(notebook, 'settings')
  for name, value in settings.items():
    before, _, after = re.split(rf'(?m)^({name} = .*)(?=  # @param)', cell.source)
    cell.source = f'{before}{name} = {value!r}{after}'
  kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))  # this Python, not the user's
  env = environment(
    PYTHONPATH=forks.IMPORTS,
    IPYTHONDIR=str(folder / 'ipython'),
    JAX_COMPILATION_CACHE_DIR=str(jax.config.jax_compilation_cache_dir),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
    JAX_DEFAULT_MATMUL_PRECISION='highest',
  )
  nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute(cleanup_kc=True, cwd=str(folder), env=env)
  return notebook


def said(notebook, cell_id) -> str:
  return ''.join(o.text for o in cell_of(notebook, cell_id).outputs if o.output_type == 'stream' and o.name == 'stdout')


def shown(notebook, cell_id) -> list[np.ndarray]:
  """The pictures below a cell."""
  data = [o.data for o in cell_of(notebook, cell_id).outputs if o.output_type == 'display_data']
  pngs = [base64.b64decode(one['image/png']) for one in data if 'image/png' in one]
  return [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for png in pngs]


def printed_metrics(notebook) -> dict[str, float]:
  """Name -> percent, read off the table and the line of classes."""
  (table,) = (o.data['text/markdown'] for o in cell_of(notebook, 'metrics').outputs if o.output_type == 'display_data')
  values = {}
  for line in table.splitlines()[2:]:
    names, numbers, meaning = (part.strip(' *') for part in line.strip('|').split('|'))
    assert meaning
    values |= dict(zip(names.split(' / '), map(float, numbers.split(' / ')), strict=True))
  by_class = said(notebook, 'metrics').removeprefix('AP by class: ').strip().split(', ')
  return values | {f'AP/{name}': float(value) for name, value in (one.rsplit(' ', 1) for one in by_class)}


def by_hand(truth: dict, rows: list[dict], thresholds=None) -> float:
  """AP of pycocotools, as its authors run it."""
  with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = {'info': {}, **truth}
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(rows), 'bbox')
    if thresholds is not None:
      run.params.iouThrs = np.array(thresholds)
    run.evaluate()
    run.accumulate()
  precision = run.eval['precision'][:, :, :, 0, -1]
  return precision[precision > -1].mean()


@pytest.fixture(scope='module')
def embedded(tmp_path_factory):
  """The notebook as it comes, on fewer images: (executed, its folder)."""
  folder = tmp_path_factory.mktemp('embedded')
  return execute(folder, NUM_IMAGES=COUNT, TEST_SETTINGS=ONE_CANVAS), folder / 'evaluation'


@pytest.fixture(scope='module')
def direct(embedded, tmp_path_factory):
  """The same images without the notebook: the detector, their source, the metrics and the folder of `evaluate`."""
  detector = triplet_det.load('demo', **ONE_CANVAS)
  wanted = dict(data_dir=embedded[1], split='validation', train_images=1, validation_images=COUNT)
  source = pipeline.open_source('shapes', **wanted)
  folder = tmp_path_factory.mktemp('direct')
  metrics = evaluate.evaluate(
    detector.tester, source, detector.categories, folder, split='validation', run_name='demo', draw_threshold=0.3
  )
  return detector, source, metrics, folder


def test_it_is_stored_without_outputs():
  notebook = read()
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(cell.outputs == [] and cell.execution_count is None and not cell.metadata for cell in code)
  settings = cell_of(notebook, 'settings').source
  assert code[0].id == 'settings' and 'REPOSITORY = ' in settings
  assert all(line.startswith('#') or '  # @param {type: ' in line for line in settings.splitlines())


def test_every_cell_ran(embedded):
  notebook, folder = embedded
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  objects = sum(len(shapes_dataset.draw_scene(0, 'validation', i).objects) for i in range(COUNT))
  assert said(notebook, 'images').endswith(f'{COUNT} images, {objects} objects of 8 classes\n')
  assert said(notebook, 'detector').startswith('demo: 8 classes, step 2,000, on ')
  assert not (folder.parent / 'repository').exists()


def test_its_figures_are_those_of_evaluate_and_pycocotools(embedded, direct):
  notebook, folder = embedded
  printed, (_, source, metrics, _) = printed_metrics(notebook), direct
  assert set(printed) == set(metrics) and len(metrics) == 12 + 7 + 8
  for name, value in metrics.items():
    assert printed[name] == pytest.approx(100 * value, abs=0.06, nan_ok=True), name
  rows = json.loads((folder / 'results.json').read_text())
  assert {row['image_id'] for row in rows} == set(range(1, COUNT + 1))
  assert printed['AP'] == pytest.approx(100 * by_hand(source.ground_truth, rows), abs=0.06) and printed['AP'] > 60
  false = 1 - by_hand(source.ground_truth, rows, np.arange(1, 11) / 20)
  assert printed['FD'] == pytest.approx(100 * false, abs=0.06) and 0 < false < 0.2


def side_by_side_size(image, panels: int) -> tuple[int, int]:
  """(smallest height, width) of so many panels of an image: enlarged to 480 pixels, with gaps, captions below."""
  height, width = (side * math.ceil(480 / max(image.shape[:2])) for side in image.shape[:2])
  gap = max(4, width // 40)
  return height + 2 * gap, panels * (width + gap) + gap


def test_its_pictures(embedded, direct):
  notebook, folder = embedded
  detector, source, _, direct_folder = direct
  sheets, heatmaps, pairs = (shown(notebook, cell) for cell in ('compare', 'heatmaps', 'pairs'))
  # Ground truth and detections of four images each, 400 pixels wide, in four columns.
  assert len(sheets) == 2 and all(sheet.shape[1] == 4 * 410 + 10 and sheet.shape[0] > 400 for sheet in sheets)
  f1 = {entry['image_id']: entry['f1'] for entry in json.loads((direct_folder / 'gallery.json').read_text())}
  stored = {path.name for path in folder.glob('*.png')}
  best, worst = (
    next(i for i in f1 if f1[i] == extreme(f1.values()) and f'pairs_{i}.png' in stored) for extreme in (max, min)
  )
  assert len(f1) == COUNT and f1[best] > f1[worst]
  expected = {f'{kind}_{i}.png' for kind in ('heatmaps', 'pairs') for i in (best, worst)}
  assert stored == {'lowest_f1.png', 'highest_f1.png', *expected}
  for image_id, heat, pair in zip((best, worst), heatmaps, pairs, strict=True):
    ((_, _, image),) = pipeline.load_images(source, [source.image_ids.index(image_id)])
    assert (heat.shape[1], pair.shape[1]) == (width_of(image, 3), width_of(image, 2))
    (proposals,) = detector.tester.proposals([image])
    drawn = paper_figures.side_by_side(
      paper_figures.draw_pairs(image, proposals, detector.categories.names, threshold=0.3)
    )
    assert np.mean(pair != drawn) < 0.001
    drawn = paper_figures.side_by_side(paper_figures.draw_heatmaps(image, detector.heatmaps(image)))
    assert np.abs(heat.astype(int) - drawn).mean() < 0.1


def width_of(image, panels: int) -> int:
  """Of so many panels of an image: enlarged to 480 pixels at least, gaps of a fortieth between and around them."""
  width = image.shape[1] * math.ceil(480 / max(image.shape[:2]))
  return panels * width + (panels + 1) * (width // 40)


@pytest.fixture(scope='module')
def own_images(tmp_path_factory):
  """A run folder's detector as an exported file, images, and a COCO JSON of two of the boxes that it finds in each.

  Returns the folder, the JSON's content and the COCO rows that the run folder gives.
  """
  folder = tmp_path_factory.mktemp('own')
  run = write_run(folder / 'run')
  export.export(str(run), folder / 'tiny.zip', sizes=((60, 60),), batch_size=2)
  rng = np.random.default_rng(2)
  images = [cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), size) for size in ((50, 40), (33, 60), (52, 41))]
  (folder / 'images').mkdir()
  truth, rows = dict(images=[], annotations=[], categories=CATEGORIES.to_coco()), []
  for image_id, (image, found) in enumerate(zip(images, triplet_det.load(run)(images)), start=4):
    cv2.imwrite(str(folder / 'images' / f'{image_id}.png'), image[..., ::-1])
    height, width = image.shape[:2]
    truth['images'].append(dict(id=image_id, file_name=f'{image_id}.png', height=height, width=width))
    rows += found.to_coco(image_id)
    for row in found.to_coco(image_id)[1:4:2]:
      area = row['bbox'][2] * row['bbox'][3]
      annotation = dict(id=len(truth['annotations']) + 1, area=area, iscrowd=0)
      truth['annotations'].append(annotation | {key: row[key] for key in ('image_id', 'category_id', 'bbox')})
  (folder / 'truth.json').write_text(json.dumps(truth))
  return folder, truth, rows


def test_own_images_and_an_exported_file(own_images):
  """Only as many images as wanted are measured, against their own objects; there are no maps to draw."""
  folder, truth, rows = own_images
  paths = dict(
    IMAGES=str(folder / 'images'), ANNOTATIONS=str(folder / 'truth.json'), CHECKPOINT=str(folder / 'tiny.zip')
  )
  notebook = execute(folder, NUM_IMAGES=2, THRESHOLD=0.0, OUT='out', **paths)
  assert said(notebook, 'images') == '2 images, 4 objects of 3 classes\n'
  taken = [row for row in rows if row['image_id'] in (4, 5)]
  found = json.loads((folder / 'out/results.json').read_text())
  key = lambda row: (row['image_id'], -row['score'])  # noqa: E731
  for mine, theirs in zip(sorted(found, key=key), sorted(taken, key=key), strict=True):
    np.testing.assert_allclose(mine['bbox'], theirs['bbox'], atol=1e-2)
  objects = [annotation for annotation in truth['annotations'] if annotation['image_id'] in (4, 5)]
  ap = by_hand(truth | dict(images=truth['images'][:2], annotations=objects), taken)
  assert printed_metrics(notebook)['AP'] == pytest.approx(100 * ap, abs=0.06) and 0.1 < ap < 0.9
  assert [len(shown(notebook, cell)) for cell in ('compare', 'heatmaps', 'pairs')] == [2, 0, 0]


def test_a_json_that_is_read_is_not_written_over(own_images):
  folder, truth, _ = own_images
  given = folder / 'mine' / 'annotations.json'
  given.parent.mkdir()
  given.write_text(json.dumps(truth))
  paths = dict(IMAGES=str(folder / 'images'), ANNOTATIONS=str(given), CHECKPOINT=str(folder / 'tiny.zip'))
  with pytest.raises(nbclient.exceptions.CellExecutionError, match=r'mine/annotations\.json'):
    execute(folder, NUM_IMAGES=1, OUT=str(given.parent), **paths)
  assert json.loads(given.read_text()) == truth


def test_what_it_says_of_the_shipped_detector():
  metrics = json.loads((Path(demo.__file__).parent / demo.PROVENANCE).read_text())['record']['metrics']
  text = cell_of(read(), 'chosen-note').source.replace('\n', ' ')
  assert f'`demo` has AP {100 * metrics["AP"]:.1f} and FD {100 * metrics["FD"]:.1f}' in text


@pytest.mark.parametrize(('gpu', 'extras'), [(None, 'export'), ('/usr/bin/nvidia-smi', 'export,cuda')])
def test_it_installs_what_is_not_there(monkeypatch, tmp_path, gpu, extras):
  source, commands = cell_of(read(), 'install').source, []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr('shutil.which', lambda name: gpu)
  monkeypatch.setattr(subprocess, 'run', lambda command, check: commands.append(command))
  monkeypatch.setattr(sys, 'path', ['first'])
  with pytest.raises(AssertionError, match='set REPOSITORY to the address'):
    exec(source, dict(REPOSITORY=''))
  exec(source, dict(REPOSITORY='https://example.org/net.git'))
  clone, install = commands
  assert clone == ['git', 'clone', '--depth', '1', 'https://example.org/net.git', 'repository']
  assert install == [sys.executable, '-m', 'pip', 'install', '-q', '-e', f'./repository[{extras}]']
  assert sys.path == [str(tmp_path / 'repository'), 'first']
