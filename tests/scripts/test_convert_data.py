"""scripts/convert_data.py: whatever the layout, the JSONs have the same boxes, and pycocotools reads them."""

import json

import pytest
from pycocotools.coco import COCO

from scripts import convert_data
from tests.data.layouts.test_folder import LAYOUTS, NAMES, boxes_by_file, scenes


@pytest.mark.parametrize('layout', ['coco, annotations/', 'yolo, images above split', 'voc, as the devkit'])
def test_a_json_per_split(layout, tmp_path):
  LAYOUTS[layout](tmp_path / 'data')
  before = {path: path.read_bytes() for path in (tmp_path / 'data').rglob('*') if path.is_file()}
  data, files = convert_data.convert(tmp_path / 'data', tmp_path / 'out')
  assert {name: path.name for name, path in files.items()} == {'train': 'train.json', 'validation': 'validation.json'}
  for split, name in (('train', 'train'), ('valid', 'validation')):
    content = json.loads(files[name].read_text())
    expected = {f'{n}.png': [(NAMES[i], *box) for i, *box in boxes] for n, (_, boxes) in scenes(split).items()}
    assert boxes_by_file(content) == expected
    assert all((data.splits[name].images / image['file_name']).is_file() for image in content['images'])
    assert len(COCO(str(files[name])).getAnnIds()) == sum(map(len, expected.values()))
  assert before == {path: path.read_bytes() for path in (tmp_path / 'data').rglob('*') if path.is_file()}
  with pytest.raises(ValueError, match=r'out/train\.json is there already, and nothing is written over'):
    convert_data.convert(tmp_path / 'data', tmp_path / 'out')


def test_what_it_says(tmp_path, monkeypatch, capsys):
  LAYOUTS['voc, XML beside the images'](tmp_path / 'data')
  monkeypatch.setattr('sys.argv', ['convert_data.py', str(tmp_path / 'data'), str(tmp_path / 'out')])
  convert_data.main()
  boxes = sum(len(boxes) for _, boxes in scenes('valid').values())
  first, _, second, last = capsys.readouterr().out.splitlines()
  assert first == f'{tmp_path}/data: VOC, train 8 images, validation 4 images; 3 classes: apple, pear, plum'
  assert second == (
    f'  validation: 4 images, {boxes} boxes -> {tmp_path}/out/validation.json; images: {tmp_path}/data/valid'
  )
  assert 'orientation=upright' in last
