"""The page of a run: each number against the file it comes from, hostile names, missing files, and a real browser."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import tiny_report
from tests.html_tree import Element, Tree
from triplet_det import report
from triplet_det.report import sections

SECTIONS = {
  *('learning-curves', 'metrics', 'precision-recall', 'false-discovery', 'error-analysis'),
  *('gallery', 'evaluations', 'config', 'fingerprint'),
}


def read(path) -> Element:
  return Tree(Path(path).read_text(encoding='utf-8')).root


def section(page: Element, name: str) -> Element:
  return page.one(id=name)


def numbers(part: Element) -> dict[str, Element]:
  """Name -> <data>; asserts that what is printed is the value to the digits printed, and a dash for NaN."""
  for data in part.all('data'):
    value, text = float(data.attributes['value']), data.text.replace('−', '-').replace(',', '')
    if math.isnan(value):
      assert text == '–'
    else:
      decimals = len(text.partition('.')[2])
      assert float(text) == pytest.approx(value, abs=0.5 * 10**-decimals + 1e-12)
  return {data.attributes['data-metric']: data for data in part.all('data') if 'data-metric' in data.attributes}


def values(part: Element) -> dict[str, float]:
  return {name: float(data.attributes['value']) for name, data in numbers(part).items()}


def chart_values(figure: Element) -> dict[str, tuple[list, list]]:
  """Curve name -> x, y that page.js shows."""
  names = [entry.one('span').text for entry in figure.one('ul').all('li')]
  given = json.loads(figure.attributes['data-values'])['curves']
  return {name: (curve['x'], curve['y']) for name, curve in zip(names, given, strict=True)}


def parsed(path: Path) -> dict:
  return json.loads(path.read_text())


def same(found: dict, expected: dict) -> None:
  """NaN equals NaN, and the string that stands for it."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_equal(found[name], float(value), err_msg=name)


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
  return tiny_report.write_run(tmp_path_factory.mktemp('runs') / 'tiny_run')


@pytest.fixture(scope='module')
def page(run) -> Element:
  return read(report.write_report(run))


@pytest.fixture(scope='module')
def shown(run) -> Path:
  return run / 'eval' / 'step_000400'


def test_sections_and_links(page):
  assert {one.attributes['id'] for one in page.all('section')} == SECTIONS
  assert {link.attributes['href'] for link in page.one('nav').all('a')} == {f'#{name}' for name in SECTIONS}
  assert all(len(page.all(id=one.attributes['id'])) == 1 for one in page.all() if 'id' in one.attributes)


def test_header_says_what_was_evaluated(page, shown):
  header, metrics = page.one('header'), parsed(shown / 'metrics.json')['metrics']
  same(values(header), {name: metrics[name] for name in ('AP', 'AP50', 'AP75', 'FD')})
  assert header.one('h1').text == 'tiny_run'
  facts = {term.text: meaning.all_text for term, meaning in zip(header.all('dt')[4:], header.all('dd')[4:])}
  assert facts.pop('date').endswith('UTC')
  assert facts == {
    **{'trained to step': '400', 'evaluated at step': '400', 'split': 'validation'},
    **{'images': '1,200', 'commit': 'abc1234'},
  }


def test_metric_tables_hold_the_metrics_file(page, shown):
  metrics, curves = parsed(shown / 'metrics.json')['metrics'], parsed(shown / 'curves.json')
  found = values(section(page, 'metrics'))
  by_class = {name: found.pop(name) for name in list(found) if re.match('AP(50|75)/', name)}
  same(found, metrics)
  # The AP at one IoU is the mean of the 101 precisions.
  for curve in curves['precision_recall']:
    for name, precision in curve['classes'].items():
      expected = math.nan if precision[0] == 'NaN' else np.mean(precision)
      np.testing.assert_allclose(by_class.pop(f'AP{100 * curve["iou"]:.0f}/{name}'), expected, rtol=1e-12)
  assert not by_class


def test_learning_curves_hold_the_log(page, run):
  log = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  figures = {figure.one('figcaption').one('span').text: figure for figure in page.all('figure', class_='chart')}
  expected = {
    'Loss and its terms, log scale': {
      f'train/{name}': name.replace('_', ' ') for name in ('loss', 'focal_corner', 'pull', 'push', 'offset')
    },
    'Average precision': {f'eval/{name}': name for name in ('AP', 'AP50', 'AP75')},
    'False discovery rate': {f'eval/{name}': name for name in ('FD', 'FD5', 'FD25', 'FD50')},
    'Learning rate': {'train/learning_rate': ''},
    'Images per second': {'train/images_per_second': ''},
  }
  for title, names in expected.items():
    drawn = chart_values(figures[title])
    assert list(drawn) == list(names.values()), title
    notes = [entry.one('output').text for entry in figures[title].all('li')]
    for (key, name), note in zip(names.items(), notes):
      points = [(row['step'], row[key]) for row in log if key in row]
      assert drawn[name][0] == [step for step, _ in points]
      np.testing.assert_allclose(drawn[name][1], [value for _, value in points], rtol=5e-6)
      assert float(note) == pytest.approx(points[-1][1], rel=1e-3, abs=5e-4)


def pixels_to_values(figure: Element) -> list[np.ndarray]:
  """The drawn lines [n, 2], turned back into values by the tick labels alone."""
  plot = figure.one('svg', class_='plot')
  *numbered, label = plot.all('text', class_='x')
  horizontal = [(float(text.attributes['x']), float(text.text.replace(',', ''))) for text in numbered]
  heights = [float(line.attributes['d'].split()[-1]) for line in plot.all('path', class_='y')]
  vertical = [(y, float(text.text)) for y, text in zip(heights, plot.all('text', class_='y'), strict=True)]
  assert len(horizontal) > 2 and len(vertical) > 2 and label.text == 'step'
  log = 'log scale' in figure.one('figcaption').all_text

  def line(points, log=False):
    at, value = np.array(points).T
    slope, start = np.polyfit(at, np.log10(value) if log else value, 1)
    return lambda where: 10 ** (slope * where + start) if log else slope * where + start

  to_x, to_y = line(horizontal), line(vertical, log)
  drawn = [path.attributes['d'] for path in plot.all('path') if path.attributes['class'].startswith('curve')]
  lines = [np.array(re.findall(r'[ML](\S+?) ([^ML]+)', d), float) for d in drawn]
  frame = plot.all('path', class_='frame')[-1].attributes['d']
  left, bottom, right = map(float, re.fullmatch(r'M(\S+) (\S+)L(\S+) \2', frame).groups())
  for x, y in np.concatenate(lines):
    assert left <= x <= right and 0 < y <= bottom
  return [np.stack([to_x(xy[:, 0]), to_y(xy[:, 1])], axis=1) for xy in lines]


@pytest.mark.parametrize('title', ['Loss and its terms, log scale', 'Average precision', 'Images per second'])
def test_lines_lie_where_the_ticks_say(page, title):
  (figure,) = [f for f in page.all('figure', class_='chart') if f.one('figcaption').one('span').text == title]
  drawn, given = pixels_to_values(figure), chart_values(figure)
  assert len(drawn) == len(given)
  for xy, (x, y) in zip(drawn, given.values()):
    np.testing.assert_allclose(xy[:, 0], x, atol=0.5)
    np.testing.assert_allclose(xy[:, 1], y, rtol=0.01, atol=1e-3)


def test_precision_recall_curves(page, shown):
  curves, part = parsed(shown / 'curves.json'), section(page, 'precision-recall')
  titles = [option.text for option in part.all('option')]
  assert titles == ['mean over all classes', 'disc', 'ring']  # the third class has no object ...
  assert 'hollow square' in part.one('p', class_='missing').text  # ... and that is said
  figures = part.all('figure')
  assert [figure.attributes['data-choice'] for figure in figures] == [o.attributes['value'] for o in part.all('option')]
  assert ['hidden' in figure.attributes for figure in figures] == [False, True, True]
  for title, figure in zip(titles, figures):
    for curve in curves['precision_recall']:
      precision = curve['all'] if title.startswith('mean') else curve['classes'][title]
      x, y = chart_values(figure)[f'IoU {curve["iou"]:.2f}']
      np.testing.assert_allclose(x, curves['recall'], atol=1e-9)
      np.testing.assert_allclose(y, precision, rtol=5e-6)


def test_false_discovery_over_iou(page, shown):
  rows, part = parsed(shown / 'curves.json')['false_discovery'], section(page, 'false-discovery')
  same(values(part), {f'{n} at {r["iou"]:.2f}': r[n] for r in rows for n in ('FD', 'FD_S', 'FD_M', 'FD_L')})
  drawn = chart_values(part.one('figure'))
  assert list(drawn) == ['all objects', 'small', 'medium']  # there is no large object
  np.testing.assert_allclose(drawn['small'][1], [row['FD_S'] for row in rows], rtol=5e-6)


def test_error_analysis(page, shown):
  rows, part = parsed(shown / 'error_analysis.json')['rows'], section(page, 'error-analysis')
  before = rows[0]['metrics']['AP']
  for row, drawn in zip(rows, part.one('tbody').all('tr'), strict=True):
    assert drawn.one('th').text == row['replaced']
    found = values(drawn)
    if row['replaced'] != 'nothing':
      assert found.pop('gain') == pytest.approx(row['metrics']['AP'] - before, abs=1e-12)
    same(found, row['metrics'])
  best = max(rows[1:-1], key=lambda row: row['metrics']['AP'])  # 'everything' says nothing about which one
  assert part.one('strong').text == best['replaced']


def test_error_analysis_of_another_folder(run, tmp_path):
  """Mode error_analysis writes beside mode eval's files, also where mode eval has not run."""
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  rows = tiny_report.error_rows(np.random.default_rng(5))
  for one in (folder / 'eval').iterdir():
    (one / 'error_analysis.json').unlink()
  about = {'rows': rows, 'fingerprint': {'step': 300, 'split': 'minival'}}
  tiny_report.write_json(folder / 'eval' / 'minival_step_000300' / 'error_analysis.json', about)
  page = read(report.write_report(folder))
  part = section(page, 'error-analysis')
  same(values(part.one('tbody').all('tr')[0]), rows[0]['metrics'])
  assert 'step 300, split minival' in part.all_text
  assert 'no metrics yet' in section(page, 'evaluations').all('tr')[-1].all_text


def test_gallery_draws_the_boxes(page, shown):
  gallery = parsed(shown / 'gallery.json')
  figures = section(page, 'gallery').all('figure')
  assert [f.one('strong').text for f in figures] == [entry['file_name'] for entry in gallery]
  for figure, entry in zip(figures, gallery):
    numbers(figure)
    for kind in ('truth', 'detections', 'rejected'):
      drawn = {}
      for rect in figure.all('rect', class_=f'box {kind}'):
        x, y, width, height = (float(rect.attributes[name]) for name in ('x', 'y', 'width', 'height'))
        drawn[rect.one('title').text] = (x, y, x + width, y + height), 'hidden' not in rect.attributes
      tags = {tag.text: 'hidden' not in tag.attributes for tag in figure.one('g', class_=f'{kind} tags').all('text')}
      for box in entry[kind]:
        name = box['name'] + (f' {box["score"]:.2f}' if 'score' in box else '')
        corners, visible = drawn.pop(name)
        np.testing.assert_allclose(corners, box['box'], atol=0.11)
        assert visible == tags.pop(name) == (box.get('score', 1) > 0.3)  # the config's draw_threshold
      assert not drawn and not tags
    counts = {c.attributes['data-kind']: int(c.text) for c in figure.all('span', class_='count')}
    assert counts == {'truth': 3, 'detections': 3, 'rejected': 2}


def test_images_are_inside_the_page(page, shown):
  for figure, entry in zip(section(page, 'gallery').all('figure'), parsed(shown / 'gallery.json')):
    kind, content = figure.one('image').attributes['href'].split(',')
    assert kind == 'data:image/jpeg;base64'
    image = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[:2] == (120, 200)  # small images keep their size
    original = cv2.imread(str(shown / entry['image'])).astype(float)
    assert np.abs(image - original).mean() < 20  # noise, twice compressed; another image would differ by 85


def test_page_of_large_images_stays_small(run, tmp_path):
  folder, rng = Path(shutil.copytree(run, tmp_path / 'run')), np.random.default_rng(1)
  evaluation = folder / 'eval' / 'step_000400'
  titles = ['best'] * 8 + ['worst'] * 8
  entries = [
    tiny_report.write_picture(evaluation, title, i, rng, tiny_report.CLASSES, size=(1400, 1050))
    for i, title in enumerate(titles)
  ]
  tiny_report.write_json(evaluation / 'gallery.json', entries)
  path = report.write_report(folder)
  assert path.stat().length < 5e6
  uri = section(read(path), 'gallery').all('image')[0].attributes['href'].split(',')[1]
  content = base64.b64decode(uri)
  assert len(content) <= 150_000
  assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (480, 640)


def test_tags_give_way_to_each_other(tmp_path):
  """Boxes at one place: no tag lies on another, and all lie inside the image."""
  folder = tiny_report.write_run(tmp_path / 'run')
  evaluation = folder / 'eval' / 'step_000400'
  (entry, *_) = parsed(evaluation / 'gallery.json')
  box = [60, 40, 140, 90]
  entry |= {
    'truth': [{'name': 'disc', 'box': box}] * 2,
    'detections': [{'name': 'disc', 'score': s, 'box': box} for s in (0.9, 0.8)],
    'rejected': [{'name': 'ring', 'score': 0.7, 'box': box}],
  }
  tiny_report.write_json(evaluation / 'gallery.json', [entry])
  figure = section(read(report.write_report(folder)), 'gallery').one('figure')
  height = 0.035 * 200  # of the text, as page.css has it
  covered = []
  for tag in (tag for group in figure.all('g') if 'tags' in group.attributes['class'] for tag in group.all('text')):
    x, y, width = float(tag.attributes['x']), float(tag.attributes['y']), 0.66 * height * len(tag.text)
    left = x - width if 'text-anchor' in tag.attributes else x
    top = y - 1.2 * height if tag.attributes['class'] == 'up' else y
    covered.append((left, top, left + width, top + 1.2 * height))
  assert len(covered) == 5
  for i, a in enumerate(covered):
    assert a[0] >= 0 and a[1] >= 0 and a[2] <= 200 and a[3] <= 120
    for b in covered[:i]:
      assert min(a[2], b[2]) <= max(a[0], b[0]) + 0.1 or min(a[3], b[3]) <= max(a[1], b[1]) + 0.1


def test_evaluations_newest_first(page, run):
  rows = section(page, 'evaluations').one('tbody').all('tr')
  assert [row.one('th').text.strip() for row in rows] == ['step_000400', 'step_000200']
  assert ['shown here' in row.all_text for row in rows] == [True, False]
  for row, step in zip(rows, (400, 200)):
    metrics = parsed(run / 'eval' / f'step_{step:06d}' / 'metrics.json')['metrics']
    same(values(row), {name: metrics[name] for name in ('AP', 'AP50', 'AP75', 'FD')})
    assert row.all('data')[0].text == str(step)


def test_config_and_fingerprint(page):
  def cells(name: str) -> dict:
    return {row.one('th').text: row.one('td').all_text for row in section(page, name).one('tbody').all('tr')}

  assert cells('config') == {
    **{'total_steps': '400', 'draw_threshold': '0.3', 'test.scales': '[1.0]', 'test.nms_method': 'gaussian'}
  }
  assert cells('fingerprint') == {
    **{'images': '1200', 'step': '400', 'split': 'validation', 'commit': 'abc1234', 'test.top_k': '70'}
  }
  assert section(page, 'config').all('details')


def test_nothing_comes_from_the_network(page, run):
  for element in page.all():
    for name in ('src', 'href', 'data', 'action', 'srcset', 'poster'):
      assert re.match('#|data:|$', element.attributes.get(name, '')), element.attributes
    assert not {'iframe', 'object', 'embed', 'base'} & {element.tag}
  style = page.one('style').text
  assert 'url(' not in style and '@import' not in style
  script = page.one('script').text
  assert not re.search(r'fetch|XMLHttpRequest|import\(|https?:', script)
  (policy,) = [m for m in page.all('meta') if m.attributes.get('http-equiv') == 'Content-Security-Policy']
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert policy.attributes['content'].startswith("default-src 'none';")
  assert f"script-src 'sha256-{digest}'" in policy.attributes['content']


def test_hostile_names_are_text(page, tmp_path):
  hostile = '</title></script><script>alert(1)</script><img src="http://x/" onerror=\'alert(2)\'>$title &amp;'
  folder = tiny_report.write_run(tmp_path / '"><i onclick=x>', classes=(hostile, 'b"b', "c'c"))
  evaluation = folder / 'eval' / 'step_000400'
  gallery = parsed(evaluation / 'gallery.json')
  gallery[0] |= {'file_name': hostile, 'title': hostile}
  gallery[1] |= {'image': hostile, 'file_name': '\udcff.png'}  # no such image; a name that is not Unicode
  tiny_report.write_json(evaluation / 'gallery.json', gallery)
  log = (folder / 'metrics.jsonl').read_text()
  (folder / 'metrics.jsonl').write_text(log + json.dumps({'step': 401, f'train/{hostile}': 1.0}) + '\n')
  config = {'draw_threshold': 0.3, hostile: hostile}
  tiny_report.write_json(folder / 'config.json', config)
  content = parsed(evaluation / 'metrics.json')
  content['fingerprint'] |= {'split': hostile, 'commit': hostile, hostile: hostile}
  tiny_report.write_json(evaluation / 'metrics.json', content)
  content = parsed(evaluation / 'error_analysis.json')
  content['rows'][1]['replaced'] = hostile
  tiny_report.write_json(evaluation / 'error_analysis.json', content)

  found = read(report.write_report(folder))
  assert len(found.all('script')) == 1
  assert {one.tag for one in found.all()} <= {one.tag for one in page.all()}
  assert not [name for one in found.all() for name in one.attributes if name.startswith('on')]
  assert found.one('h1').text == '"><i onclick=x>'
  assert section(found, 'gallery').all('strong')[0].text == hostile
  assert hostile in [option.text for option in section(found, 'precision-recall').all('option')]
  assert hostile in [row.one('th').text for row in section(found, 'error-analysis').one('tbody').all('tr')]
  assert hostile in [code.text for code in section(found, 'config').all('code')]


def test_run_just_begun(tmp_path):
  folder = tmp_path / 'begun'
  folder.mkdir()
  page = read(report.write_report(folder))
  for name in SECTIONS:
    assert section(page, name).one('p', class_='missing').all_text.count('.') <= 2, name
  assert 'no finished evaluation' in page.one('header').all_text


def test_training_without_evaluation(run, tmp_path):
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  shutil.rmtree(folder / 'eval')
  lines = [line for line in (folder / 'metrics.jsonl').read_text().splitlines() if 'eval/' not in line]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 420, "train/lo')  # being written
  page = read(report.write_report(folder))
  assert len(section(page, 'learning-curves').all('figure')) == 3
  assert 'first evaluation' in section(page, 'learning-curves').one('p', class_='missing').text
  assert 'no finished evaluation' in section(page, 'metrics').all_text


def test_test_set_without_annotations(run, tmp_path):
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  for one in (folder / 'eval').iterdir():
    shutil.rmtree(one)
  evaluation = folder / 'eval' / 'test_step_000400'
  content = {'metrics': {}, 'fingerprint': {'split': 'test', 'step': 400}}
  tiny_report.write_json(evaluation / 'metrics.json', content)
  tiny_report.write_json(evaluation / 'curves.json', {})
  entry = tiny_report.write_picture(evaluation, 'best', 0, np.random.default_rng(0), tiny_report.CLASSES)
  tiny_report.write_json(evaluation / 'gallery.json', [entry | {'f1': None, 'truth': [], 'rejected': []}])
  page = read(report.write_report(folder))
  for name in ('metrics', 'precision-recall', 'false-discovery'):
    assert 'no annotated objects' in section(page, name).one('p', class_='missing').text
  gallery = section(page, 'gallery')
  assert 'There are no ground truth in these images' not in gallery.all_text
  assert (
    gallery.one('p', class_='note').text == 'These images have no ground truth. These images have no rejected pairs.'
  )
  assert ['disabled' in box.attributes for box in gallery.all('input', type='checkbox')] == [True, False, True, False]
  assert 'F1' not in gallery.all_text


def test_a_test_set_does_not_hide_the_metrics(run, tmp_path):
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  content = {'metrics': {}, 'fingerprint': {'split': 'test', 'step': 500}}
  tiny_report.write_json(folder / 'eval' / 'test_step_000500' / 'metrics.json', content)
  page = read(report.write_report(folder))
  rows = section(page, 'evaluations').one('tbody').all('tr')
  assert [row.one('th').text.strip() for row in rows] == ['test_step_000500', 'step_000400', 'step_000200']
  assert 'shown here' in rows[1].all_text


def test_a_start_that_trained_nothing_has_no_column():
  history = [dict(step=step, changed=changed, values=dict(a=step)) for step, changed in ((0, []), (10, ['a']))]
  assert sections.changes(history, 10) == {}
  assert sections.changes(history, 12)['columns'] == ['steps 1 to 10', 'steps 11 to 12']
  twice = [*history, dict(step=10, changed=['a'], values=dict(a=3))]
  assert sections.changes(twice, 12) == {
    'columns': ['steps 1 to 10', 'steps 11 to 12'],
    'rows': {'a': ['0', '3'], 'commit': ['', '']},
  }


@pytest.mark.parametrize(
  ('file', 'name'), [('curves.json', 'precision-recall'), ('gallery.json', 'gallery'), ('error_analysis.json', None)]
)
def test_old_evaluation_folders(run, tmp_path, file, name):
  folder = Path(shutil.copytree(run, tmp_path / 'a run'))
  for one in (folder / 'eval').iterdir():
    (one / file).unlink()
  page = read(report.write_report(folder))
  missing = section(page, name or 'error-analysis').one('p', class_='missing')
  mode = 'error_analysis' if name is None else 'eval'
  command = f"python -m triplet_det.main --config CONFIG --workdir '{folder}' --config.mode={mode}"
  assert missing.one('code').text == command
  assert len(section(page, 'metrics').all('table')) == 4


def test_old_metrics_without_fd(run, tmp_path):
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  path = folder / 'eval' / 'step_000400' / 'metrics.json'
  content = parsed(path)
  content['metrics'] = {name: v for name, v in content['metrics'].items() if not name.startswith('FD')}
  tiny_report.write_json(path, content)
  part = section(read(report.write_report(folder)), 'metrics')
  assert 'without false discovery rates' in part.one('p', class_='missing').text
  assert values(part)['AP'] == content['metrics']['AP']


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('config.json', '{"total_steps": 4'),
    ('metrics.jsonl', 'step 3\n{"step": 4}\n'),
    ('eval/step_000200/metrics.json', ''),
    ('eval/step_000400/metrics.json', '{"metrics": {"AP": 0.5}}'),
    ('eval/step_000400/curves.json', '[1, 2]'),
    (
      'eval/step_000400/curves.json',
      '{"recall": [0, 1], "precision_recall": [{"iou": 0.5, "all": [1], "classes": {}}]}',
    ),
    ('eval/step_000400/gallery.json', '[{"title": "best"}]'),
    ('eval/step_000400/error_analysis.json', '{"rows": ['),
  ],
)
def test_broken_files_are_named_and_the_old_page_stays(run, tmp_path, file, content):
  folder = Path(shutil.copytree(run, tmp_path / 'run'))
  before = Path(report.write_report(folder)).read_bytes()
  (folder / file).write_text(content)
  with pytest.raises(ValueError, match=re.escape(str(folder / file))):
    report.write_report(folder)
  assert (folder / 'report.html').read_bytes() == before
  assert not list(folder.glob('*.tmp'))


def test_no_run_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no run folder .*typo'):
    report.write_report(tmp_path / 'typo')
  assert not (tmp_path / 'typo').exists()


def test_importing_it_is_cheap():
  """A training or a prediction that starts waits neither for templates nor for plots."""
  code = (
    'import sys, triplet_det.report; assert not {"jax", "flax", "orbax", "jinja2", "matplotlib"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize('name', ['../../../secret.png', '/etc/hostname', 'linked/secret.png', 'best/linked.png', ''])
def test_pictures_stay_in_the_folder_of_the_evaluation(tmp_path, name):
  folder = tiny_report.write_run(tmp_path / 'run')
  evaluation = folder / 'eval' / 'step_000400'
  (tmp_path / 'secret.png').write_bytes(cv2.imencode('.png', np.zeros((9, 9, 3), np.uint8))[1].tobytes())
  (evaluation / 'linked').symlink_to(tmp_path)
  (evaluation / 'best' / 'linked.png').symlink_to(tmp_path / 'secret.png')
  entries = parsed(evaluation / 'gallery.json')
  tiny_report.write_json(evaluation / 'gallery.json', [entries[0] | {'image': name}])
  with pytest.raises(
    ValueError, match=rf'gallery\.json is broken .*{re.escape(repr(name))} leads out of .*step_000400'
  ):
    report.write_report(folder)


def test_a_run_folder_behind_a_link_is_read(tmp_path):
  folder = tiny_report.write_run(tmp_path / 'run')
  (folder / 'eval').rename(tmp_path / 'elsewhere')
  (folder / 'eval').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'link').symlink_to(folder)
  assert 'data:image/jpeg' in Path(report.write_report(tmp_path / 'link')).read_text()


def test_a_link_is_not_written_through(tmp_path):
  folder = tiny_report.write_run(tmp_path / 'run')
  (tmp_path / 'mine').write_text('mine')
  (folder / 'report.html.tmp').symlink_to(tmp_path / 'mine')
  with pytest.raises(ValueError, match=rf'report\.html\.tmp is a link to {tmp_path}/mine: it is not followed; remove'):
    report.write_report(folder)
  assert (tmp_path / 'mine').read_text() == 'mine' and not (folder / 'report.html').exists()
