"""What users get wrong, and what they are told: what was given, what was possible, what to do.

Commands end with exit code 2 and without a traceback. The messages are printed at the end. Wrong arguments of the shell
scripts are in test_scripts.py, of the tables in test_tables.py, contradictions inside a COCO JSON in test_bad_input.py.
"""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import textwrap
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import foreign_export, forks, link_server, torch_files
from tests.tiny_coco import CATEGORIES, write_tiny_coco
from triplet_det.categories import COCO, CategoryTable
from triplet_det.configs import photos
from triplet_det.detection.settings import Settings
from triplet_det.devices import sharding
from triplet_det.pictures import drawing
from triplet_det.run import checkpoints
from triplet_det.run.in_use import in_use
from triplet_det.training import built_step

STEP = 4  # of the checkpoints
SIZES = dict(stacks=1, dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8)
SMALL = {
  **{f'model.{name}': value for name, value in SIZES.items()},
  **{'input_size': 31, 'augment.border': 16, 'batch_size': 8, 'total_steps': STEP},
}
DATA_FLAGS = [
  f'--config.data.{split}.{key}={{coco}}/{place}'
  for split, folder in (('train', 'train2017'), ('eval', 'val2017'))
  for key, place in (('images', folder), ('annotations', f'annotations/instances_{folder}.json'))
]


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A command, and parts of the message: what was given, what was possible, what to do.

  `{tmp}`, `{coco}` and `{cache}` in them stand for folders: everything of the test, a COCO download, compiled programs;
  `{server}` for a server on loopback.
  """

  words: tuple[str, ...]
  given: str
  possible: str
  do: str
  devices: int = 1
  code: int = 2  # 1 with an error's name for a call in Python, and for a prediction that left files out
  raised: str = ''


def main(*words, config='configs/photos.py:encoder=hourglass', **told):
  start = ['-m', 'triplet_det.main', '--compilation_cache={cache}', '--workdir={tmp}/run']
  return Mistake((*start, *([f'--config={config}'] if config else []), *words), **told)


def mine(*words, **told):
  """With a small network and sound data, whose settings `words` change."""
  return main(*DATA_FLAGS, *(f'--config.{name}={value}' for name, value in SMALL.items()), *words, **told)


def predict(*words, photo='{coco}/val2017/000000000100.jpg', out='{tmp}/boxes', **told):
  start = ['-m', 'triplet_det.predict', '--compilation_cache={cache}']
  return Mistake((*start, *([f'--out={out}'] if out else []), *words, *([photo] if photo else [])), **told)


def export(*words, out='{tmp}/demo.zip', **told):
  return Mistake(('-m', 'triplet_det.export', '--checkpoint=demo', f'--out={out}', *words), **told)


def script(name, *words, **told):
  return Mistake((f'scripts/{name}.py', *words), **told)


def call(code, **told):
  return Mistake(('-c', f'import numpy, triplet_det\n{code}'), code=1, **told)


PATHS = {
  'no config': main(
    config='',
    given='--config is not given',
    possible='triplet:hg=104, mine.py',
    do='give the page of configs/ by its name',
  ),
  'no run folder': Mistake(
    ('-m', 'triplet_det.main', '--config=configs/shapes.py'),
    given='--workdir is not given',
    possible='local or gs://',
    do='give the run folder',
  ),
  'a config that is not there': main(
    config='configs/shaeps.py',
    given="No such file or directory: 'configs/shaeps.py'",
    possible='possible: configs/ablation.py, configs/coco_json.py, configs/cornernet.py, configs/photos.py',
    do='configs/shapes.py',
  ),
  'a page that is not there': main(
    config='shaeps',
    given="no config page 'shaeps'; did you mean 'shapes'?",
    possible='ablation, coco_json, cornernet, photos',
    do='mine.py',
  ),
  'a variant that is none': main(
    config='shapes:hg=52', given="unknown variant 'hg=52'", possible='scales=single|multi', do='separated by commas'
  ),
  'a config with a bug': main(
    config='{tmp}/bug.py', given="NameError: name 'unknown'", possible='{tmp}/bug.py", line 4', do='{tmp}/bug.py'
  ),
  'a config without its function': main(
    config='{tmp}/no_function.py',
    given='--config={tmp}/no_function.py',
    possible='a config file has a function get_config()',
    do='as those of configs/',
  ),
  'run folder is a file': mine(
    '--workdir={tmp}/file', given='--workdir={tmp}/file', possible='a folder for results: ', do='give the name of a new'
  ),
  'run folder cannot be made': mine(
    '--workdir={tmp}/file/run',
    given='--workdir={tmp}/file/run',
    possible='Not a directory',
    do='give the name of a new',
  ),
  'no folder of images': mine(
    '--config.data.train.images={tmp}/nowhere',
    given='no folder of images at {tmp}/nowhere',
    possible='such as 000000000',
    do='give the one that its file_names are relative to',
  ),
  'the folder of other images': mine(
    '--config.data.train.images={coco}/annotations',
    given='3 of the 3 images of {coco}/annotations/instances_train2017.json are not in {coco}/annotations: 0000',
    possible='it holds 2 files, instances_train2017.json',
    do='give the folder that the names are relative to',
  ),
  'no annotations': mine(
    '--config.data.eval.annotations={coco}/annotations/no.json',
    given='no annotations at {coco}/annotations/no.json',
    possible='such as {coco}/annotations/instances_train2017.json',
    do='give a COCO JSON',
  ),
  'data that are not named': main(
    given="not given: ['images', 'annotations']",
    possible="'coco_json' needs the settings",
    do="'images', 'annotations'",
  ),
  'COCO that is not prepared': main(
    '--config.data.train.data_dir={tmp}',
    config='configs/triplet.py',
    given="no prepared data set 'coco/2017' in {tmp}",
    possible='prepare COCO by',
    do='python scripts/prepare_coco.py --coco DIR --data_dir OUT',
  ),
}

CONFIGS = {
  'a misspelled key': mine(
    '--config.totl_steps=5',
    given="unknown key 'totl_steps' in config",
    possible='Known keys: accumulate, augment, average_decay,',
    do="did you mean 'total_steps'?",
  ),
  'a misspelled nested key': mine(
    '--config.total_steps=7',
    '--config.model.center_poling=false',
    given="unknown key 'center_poling' in config.model",
    possible='Known keys: blocks, ',
    do="did you mean 'center_pooling'?",
  ),
  'a misspelled switch': mine(
    '--noconfig.model.centre_branch',
    given="unknown key 'centre_branch' in config.model",
    possible='Known keys: blocks, ',
    do="did you mean 'center_branch'?",
  ),
  'a misspelled section': mine(
    '--config.optimiser.base=1',
    given="unknown key 'optimiser' in config",
    possible='Known keys: accumulate',
    do="did you mean 'optimizer'?",
  ),
  'a key like none': mine(
    '--config.zzz=1', given="unknown key 'zzz' in config.", possible='Known keys: accumulate, augment', do='total_steps'
  ),
  'a word for a number': mine(
    '--config.log_every=abc',
    given="--config.log_every: 'abc' cannot be its value",
    possible='usual 20',
    do='give a int',
  ),
  'no value': mine(
    '--config.log_every', given='--config.log_every: no value', possible='its usual 20', do='give a int'
  ),
  'an unknown variant': main(
    config='configs/triplet.py:hg=105',
    given="'hg=105'",
    possible='hg=104|52; scales=single|multi',
    do='separated by commas',
  ),
  'a variant of a config without': main(
    config='{tmp}/plain.py:hg=52',
    given='--config={tmp}/plain.py:hg=52',
    possible='this config has no variants',
    do='give --config={tmp}/plain.py',
  ),
  'an unknown mode': mine(
    '--config.mode=fly',
    given="config.mode is 'fly'",
    possible='possible: train_and_eval, train, eval, error_analysis, report, check_data, show_data',
    do='possible: train_and_eval',
  ),
  'an unknown flag': mine(
    '--wrkdir=x', given="Unknown command line flag 'wrkdir'", possible='workdir', do='Did you mean: workdir ?'
  ),
  'a stray word': mine('eval', given="not understood: ['eval']", possible='by flags', do='such as --config.mode=eval'),
  'an unknown schedule': mine(
    '--config.optimizer.schedule=linear',
    given="unknown schedule 'linear'",
    possible='possible: step, cosine',
    do='possible: step, cosine',
  ),
  'numbers that cannot be': mine(
    '--config.log_every=0',
    '--config.seed=-1',
    '--config.average_decay=2',
    given='config.log_every is 0: give at least 1; config.seed is -1',
    possible='give at least 0',
    do='config.average_decay is 2.0: give from 0, without averages, to below 1, such as 0.999',
  ),
  'scales of a text': mine(
    '--config.augment.scales=large',
    '--config.augment.max_objects=1000000000000',
    '--config.image_scale=1e-9',
    given='config.augment.max_objects is 1000000000000: give from 1 to 100,000; config.augment.scales is (',
    possible='one positive number or more',
    do='with commas in brackets, such as (0.8,1.0,1.2); config.image_scale is 1e-09: give from 0.01 to 100',
  ),
  'an unknown precision': mine(
    '--config.model.dtype=half', given='config.model.dtype is half', possible='float32, bfloat16', do='give float32'
  ),
  'an unknown rematerialisation': mine(
    '--config.model.remat=all', given="model.remat is 'all'", possible='possible: none, blocks', do='none, blocks'
  ),
  'a drop after the end': mine(
    '--config.optimizer.schedule=step',
    given='drop_step is 450000',
    possible=f'the run has {STEP} steps',
    do='give a step of the run',
  ),
  'levels that do not agree': main(
    *DATA_FLAGS,
    '--config.model.blocks=(1,)',
    given='3 dims (32, 48, 64), 1 blocks (1,)',
    possible='at least 2 levels',
    do='dims and blocks need one entry per level',
  ),
  'an input size that cannot be halved': mine(
    '--config.input_size=64',
    given='input_size 64 does not fit the network',
    possible='a multiple of 8 minus 1',
    do='for example 63',
  ),
  'canvases that the network cannot halve': mine(
    '--config.test.canvas_multiple=100',
    given='got 100',
    possible='canvas_multiple must be a power of two',
    do='must be a power of two',
  ),
  'centers of a scale that is not tested': mine(
    '--config.test.center_scale=2.0',
    given='test.center_scale is 2.0',
    possible='test.scales, (1.0,)',
    do='give one of test.scales',
  ),
  'an unknown kind of checkpoint': mine(
    '--config.mode=eval',
    '--config.eval_checkpoint=newest',
    given="'newest' is not known",
    possible='possible: best, checkpoints',
    do='which checkpoint?',
  ),
  'a name that is no folder': mine(
    '--config.mode=eval',
    '--workdir={tmp}/other_classes',
    '--config.eval_name=a/b',
    given="not 'a/b'",
    possible='letters, digits, _ - and .',
    do='eval_name becomes part of the name of a folder',
  ),
}

DATA = {
  'an unknown format': mine(
    '--config.data.train.format=voc',
    given="unknown data format 'voc'",
    possible="possible: ['coco_json', 'shapes', 'tfds']",
    do='possible:',
  ),
  'an empty JSON': mine(
    '--config.data.train.annotations={tmp}/empty.json',
    given='empty.json: not a JSON file (0 bytes)',
    possible='the lists images, categories and annotations',
    do='give an object with',
  ),
  'another JSON': mine(
    '--config.data.train.annotations={tmp}/other.json',
    given="other.json: not a COCO JSON, without ['images', 'categories', 'annotations']; it has ['boxes']",
    possible='the lists images, categories and annotations',
    do='give an object with',
  ),
  'results for annotations': mine(
    '--config.data.train.annotations={tmp}/results.json',
    given='results.json: not a COCO JSON: the top level is a list',
    possible='the lists images, categories and annotations',
    do='give an object with',
  ),
  'an unknown category': mine(
    '--config.data.train.annotations={tmp}/category_9.json',
    given='5 of 5 annotations have an unknown category_id; the first is annotations[0] with category_id 9',
    possible='known: 3 ids, [1, 3, 90]',
    do='Correct these, or list what they mean under `categories`',
  ),
  'no boxes': mine(
    '--config.data.train.annotations={tmp}/no_boxes.json',
    given='no_boxes.json: 0 annotations for 3 images',
    possible='a test set',
    do='require_boxes=False accepts',
  ),
  'groups alone': mine(
    '--config.data.train.annotations={tmp}/crowds.json',
    given='crowds.json has no object to learn',
    possible='5 boxes, all around groups (iscrowd)',
    do='augment.train_on_crowd=True takes these for objects',
  ),
  'broken images': mine(
    '--config.mode=check_data',
    '--config.data.train.images={tmp}/broken_images',
    given='is a JPEG cut short, without its end marker (300 bytes)',
    possible='3 things make training impossible, see above',
    do='replace the file, or take it out',
  ),
  'other classes to evaluate on': mine(
    '--config.data.eval.annotations={tmp}/other_names.json',
    given="data.eval does not fit data.train: 3 categories instead of 3; not known: ['cube', 'point']",
    possible="lacking: ['ring', 'square']",
    do='Give both annotations the same `categories`',
  ),
}

FIELDS = {
  'ids of more than 64 bits': mine(
    '--config.data.train.annotations={tmp}/long_ids.json',
    given='long_ids.json: images[0]: id must be',
    possible='an integer of 64 bits, got 9223372036854775908 in {{',
    do='correct it here and wherever it is so, 3 of 3 images',
  ),
  'areas as text': mine(
    '--config.data.eval.annotations={tmp}/text_areas.json',
    given='text_areas.json: annotations[0]: area must be',
    possible="a number of pixels, at least 0 (without the key, width x height is taken), got '700' in",
    do='correct it here and wherever it is so',
  ),
  'two photos for one image': predict(
    *('--checkpoint=demo', '--annotations={tmp}/one_image.json', '{tmp}/day1'),
    photo='{tmp}/day2',
    given="two files for image 1 of {tmp}/one_image.json, '0001.jpg'",
    possible="'{tmp}/day1/0001.jpg' and '{tmp}/day2/0001.jpg'",
    do='leave one out, or give annotations whose file_names tell the folders apart',
  ),
}

LAYOUTS = {
  'boxes as corners': mine(
    '--config.data.train.annotations={tmp}/corners.json',
    given='{tmp}/corners.json: about 100% of 12 boxes are x1 y1 x2 y2',
    possible='not x y width height',
    do='write [x1, y1, x2 - x1, y2 - y1]',
  ),
  'boxes as YOLO has them': mine(
    '--config.mode=check_data',
    '--config.data.eval.annotations={tmp}/yolo.json',
    given='{tmp}/yolo.json: 8 of 8 boxes (100%) are fractions of width and height (0 to 1), not pixels',
    possible='1 thing makes training impossible, see above',
    do='multiply by width and height of the image',
  ),
}

FOLDERS = {
  'a folder without a layout': mine(
    '--config.data.root={tmp}/pngs',
    given='{tmp}/pngs holds no data set that is known here, but 1 .png files',
    possible='coco needs a JSON with images, annotations and categories',
    do='yolo needs data.yaml, or a .txt of labels per image',
  ),
  'YOLO without names': mine(
    '--config.data.root={tmp}/nameless',
    given='{tmp}/nameless: the names of the classes are not given',
    possible='write them into data.yaml, names: [cat, dog]',
    do='or into classes.txt, one per line',
  ),
  'a class that YOLO has not': mine(
    '--config.data.root={tmp}/ranged',
    given='{tmp}/ranged/a.txt, line 1: class 7',
    possible='but there are 1 classes, 0 to 0',
    do='correct it, or name the class',
  ),
  'images and no labels': mine(
    '--config.data.root={tmp}/unlabelled',
    given='{tmp}/unlabelled: none of the 2 images has a label file',
    possible='labels/',
    do='they belong into labels/',
  ),
  # What may be meant is no error, but it is said.
  'an image without a label file': mine(
    *('--config.data.root={tmp}/one_unlabelled', '--config.mode=check_data'),
    code=0,
    given='{tmp}/one_unlabelled: YOLO, train 2 images, validation 1 images; 1 classes: cat',
    possible='1 images without a label file',
    do='kept as images without objects',
  ),
  'an XML whose size is 0': mine(
    *('--config.data.root={tmp}/no_size', '--config.mode=check_data'),
    code=0,
    given='{tmp}/no_size: VOC, train 1 images, validation 1 images; 1 classes: cat',
    possible='1 XML files have no size',
    do='that of the image is taken, such as train/a.xml',
  ),
  'a box of pixels for YOLO': mine(
    '--config.data.root={tmp}/pixels',
    given="{tmp}/pixels/a.txt, line 1: '0 20 15 9 9' has values far outside 0 to 1",
    possible='0 to 1',
    do='they are fractions of width and height',
  ),
  'two layouts in a folder': mine(
    '--config.data.root={tmp}/two_layouts',
    given='{tmp}/two_layouts has the labels of several layouts: a.txt (yolo) and a.xml (voc)',
    possible='yolo|voc',
    do='Say which with data.layout=yolo|voc',
  ),
  'a layout that is not there': mine(
    *('--config.data.root={tmp}/two_layouts', '--config.data.layout=coco'),
    given='data.layout=coco, but {tmp}/two_layouts has the labels of',
    possible='a.txt (yolo) and a.xml (voc)',
    do='Say which with data.layout=yolo|voc',
  ),
  'a layout that is none': mine(
    *('--config.data.root={tmp}/two_layouts', '--config.data.layout=kitti'),
    given="data.layout is 'kitti'",
    possible='possible: auto, coco, yolo, voc',
    do='possible: auto, coco, yolo, voc',
  ),
  'an XML of another size': mine(
    '--config.data.root={tmp}/other_size',
    given='{tmp}/other_size/a.xml: size is 400 x 300',
    possible='but {tmp}/other_size/a.png has 40 x 30 pixels',
    do='correct the size, or give the image that the boxes were drawn on',
  ),
  'an XML without coordinates': mine(
    '--config.data.root={tmp}/no_numbers',
    given='{tmp}/no_numbers/a.xml: bndbox/xmin must be a number, got None',
    possible='must be a number',
    do='bndbox/xmin',
  ),
  'two JSONs of a split': mine(
    '--config.data.root={tmp}/two_jsons',
    given='{tmp}/two_jsons: 2 JSONs of the split train: train.json, train_old.json',
    possible='train.json, train_old.json',
    do='keep one of them',
  ),
  'images that are not beside their JSON': mine(
    '--config.data.root={tmp}/no_images',
    given='{tmp}/no_images/train.json: 3 of its 3 images are nowhere in {tmp}/no_images',
    possible='such as 000000000100.jpg',
    do='put them there, or take them out of the JSON',
  ),
  'a split that is not there': mine(
    *('--config.data.root={coco}', '--config.data.eval.split=test', '--config.mode=eval'),
    given="data.eval.split is 'test'",
    possible='{coco} has train, validation',
    do='give one of them',
  ),
  'no folder at the root': mine(
    '--config.data.root={tmp}/nowhere',
    given='no folder at data.root={tmp}/nowhere',
    possible='your images and labels',
    do='give the one with your images and labels',
  ),
  'a run folder in the data': mine(
    *('--config.data.root={tmp}/ranged', '--workdir={tmp}/ranged/run'),
    given='--workdir={tmp}/ranged/run lies in data.root={tmp}/ranged',
    possible='which is only read',
    do='give another place',
  ),
}

DEVICES = {
  'a batch that the devices do not divide': mine(
    '--config.batch_size=12',
    devices=8,
    given='batch_size 12',
    possible='8 devices',
    do='give a multiple of 8, for example 16',
  ),
  'a batch that groups do not divide': mine(
    '--config.group_size=6',
    given='batch_size 8 is not a multiple of group_size 6',
    possible='group_size=0 for one group',
    do='give a multiple of 6',
  ),
  'a batch that cannot be dealt out': mine(
    '--config.accumulate=3',
    given='batch_size 8 cannot be dealt out to accumulate=3 parts',
    possible='a divisor of 8',
    do='give a divisor of 8',
  ),
  'shards that do not divide the devices': mine(
    '--config.state_shards=3',
    devices=8,
    given='state_shards is 3',
    possible='there are 8 devices',
    do='give a divisor of 8',
  ),
  'one of three flags': mine(
    '--num_hosts=2',
    given='num_hosts 2, host_index None',
    possible='coordinator None',
    do='give all three or none of them',
  ),
  'a host too many': mine(
    *('--coordinator=localhost:1234', '--num_hosts=2', '--host_index=2'),
    given='host_index is 2, num_hosts 2',
    possible='0 to 1',
    do='give each host its own',
  ),
  'a coordinator without a port': mine(
    *('--coordinator=localhost', '--num_hosts=2', '--host_index=0'),
    given="coordinator is 'localhost'",
    possible='address:port of host 0',
    do='such as localhost:1234',
  ),
}

CHECKPOINTS = {
  'nothing to evaluate': mine(
    '--config.mode=eval',
    '--workdir={coco}',
    given='no checkpoint in {coco}',
    possible='expected a run folder with best/ or checkpoints/ in it, or one checkpoint folder',
    do='give one, or train first',
  ),
  'nothing to analyse': mine(
    '--config.mode=error_analysis',
    '--workdir={tmp}/nowhere',
    given='no run folder at --workdir={tmp}/nowhere',
    possible='one that was trained',
    do='give one',
  ),
  'nothing to report on': mine(
    '--config.mode=report',
    '--workdir={tmp}/nowhere',
    given='there is no run folder {tmp}/nowhere',
    possible='run folder',
    do='give one that was trained',
  ),
  'a run of other network sizes': mine(
    '--workdir={tmp}/other_sizes',
    given='other_sizes/checkpoints/4 is of another network; dims: [8, 16] there',
    possible='[8, 8] here',
    do='Give another --workdir, or the config of that run',
  ),
  'a run of another number of classes': mine(
    '--workdir={tmp}/other_classes',
    given='the training data do not fit {tmp}/other_classes: 3 categories instead of 80',
    possible="not known: ['disc', 'ring', 'square']",
    do='Give another --workdir; --config.init_from={tmp}/other_classes starts it with these weights',
  ),
  'a run of other class names': mine(
    '--workdir={tmp}/other_names',
    given="the training data do not fit {tmp}/other_names: 3 categories instead of 3; not known: ['ring']",
    possible="lacking: ['cube']",
    do='Give another --workdir; --config.init_from={tmp}/other_names starts it with these weights',
  ),
  'a run with averages': mine(
    '--workdir={tmp}/averages',
    '--config.average_decay=0',
    given='averages/checkpoints/4 keeps moving averages',
    possible='this run keeps none',
    do='give the average_decay of that run, or another --workdir',
  ),
  'a run of another optimizer': mine(
    '--workdir={tmp}/other_optimizer',
    given='1 arrays are only there (opt_state/momentum, ...)',
    possible='arrays are only here (opt_state/1/count, ...)',
    do='Give another --workdir; --config.init_from={tmp}/other_optimizer/checkpoints/4 starts it with the weights',
  ),
  'a longer run': mine(
    '--workdir={tmp}/whole',
    '--config.total_steps=3',
    given='{tmp}/whole is already at step 4',
    possible='total_steps is 3',
    do='give more, or another --workdir',
  ),
  'evaluation of other classes': mine(
    '--config.mode=eval',
    '--workdir={tmp}/other_classes',
    given="3 categories instead of 80; not known: ['disc', 'ring', 'square']",
    possible="lacking: ['airplane', 'apple', 'backpack', 'banana', 'baseball bat'] and 75 more",
    do='Give the data of that run, or another checkpoint',
  ),
  'a start from another network': mine(
    '--config.init_from=demo',
    '--workdir={tmp}/started',
    given='init_from=demo: only 0% of the parameters of this network are in it',
    possible='50% are needed; blocks: [1, 1, 2] there, [1, 1] here',
    do='Give --config.model the sizes of that run, or another checkpoint',
  ),
  'nothing frozen': mine(
    '--config.freeze=hourglas_0',
    '--workdir={tmp}/whole',
    given="freeze='hourglas_0' matches no parameter",
    possible='modules: bottom_right_0, center_0, feature_0, hourglass_0, stem, top_left_0',
    do='it is compared with the start of paths such as',
  ),
  'prediction without a checkpoint': predict(
    '--checkpoint={tmp}/photos',
    given='no checkpoint in {tmp}/photos',
    possible='expected a run folder with best/ or checkpoints/ in it',
    do='give one, or train first',
  ),
  'prediction with a broken checkpoint': predict(
    '--checkpoint={tmp}/broken',
    given='the checkpoint {tmp}/broken/best/4 cannot be read: ',
    possible='Error',
    do='Copy it again, or give another one',
  ),
  'prediction with a PyTorch file': predict(
    '--checkpoint={tmp}/net.pkl',
    given='net.pkl is a PyTorch file',
    possible='make a run folder of it first',
    do='python scripts/import_torch_checkpoint.py {tmp}/net.pkl RUN_FOLDER',
  ),
  'prediction with a zip of something else': predict(
    '--checkpoint={tmp}/other.zip',
    given='{tmp}/other.zip is not a whole file of triplet_det.export',
    possible="no item named 'detector.json'",
    do='give one that is, or a run folder',
  ),
  'prediction with what is no zip': predict(
    '--checkpoint={tmp}/text.zip',
    given='{tmp}/text.zip is not a whole file of triplet_det.export',
    possible='File is not a zip file',
    do='give one that is, or a run folder',
  ),
}

COMMANDS = {
  'no images': predict(
    '--checkpoint=demo',
    photo='',
    given='error: ',
    possible='at least one image, video, folder or pattern',
    do='--checkpoint and at least one image, video, folder or pattern are needed',
  ),
  'a folder without images': predict(
    '--checkpoint=demo',
    photo='{tmp}/photos',
    given='{tmp}/photos: no such file, or a folder without images',
    possible='.jpg, .jpeg, .jpe',
    do='give files that are there',
  ),
  'a pattern without match': predict(
    '--checkpoint=demo',
    photo='{tmp}/photos/*.jpg',
    given='{tmp}/photos/*.jpg: no such file',
    possible='.jpg, .jpeg, .jpe',
    do='give files that are there',
  ),
  'a file that is no image': predict(
    '--checkpoint=demo',
    photo='{tmp}/file',
    code=1,
    given='left out: {tmp}/file: ',
    possible='is not an image, or is cut short (1 bytes)',
    do='replace the file',
  ),
  'images in a bucket': predict(
    '--checkpoint=demo',
    photo='gs://bucket/a.jpg',
    given='gs://bucket/a.jpg is not on this machine',
    possible='only the run folder and the data of triplet_det.main may be elsewhere',
    do='give a local path, and copy (gcloud storage cp --recursive',
  ),
  'boxes into a bucket': predict(
    '--checkpoint=demo',
    out='gs://bucket/boxes',
    given='gs://bucket/boxes is not on this machine',
    possible='only the run folder and the data of triplet_det.main may be elsewhere',
    do='give a local path, and copy (gcloud storage cp --recursive',
  ),
  'boxes into a file': predict(
    '--checkpoint=demo',
    out='{tmp}/file',
    given='--out={tmp}/file',
    possible='cannot be a folder for results: File exists',
    do='give the name of a new',
  ),
  'nowhere for the boxes': predict(
    '--checkpoint=demo', out='', given='error: ', possible='required: --out', do='the following arguments are required'
  ),
  'shard 4 of 3': predict(
    '--checkpoint=demo',
    '--shard=4/3',
    given='shard 4/3',
    possible='1/3 is the first and 3/3 the last',
    do='numbered from 1',
  ),
  'no shard': predict(
    '--checkpoint=demo',
    '--shard=three',
    given="'three' is not a shard",
    possible='3/16',
    do='the third of sixteen is 3/16',
  ),
  'shards that were never done': predict(
    '--merge', photo='', given='no parts in {tmp}/boxes/parts', possible='--shard', do='run predict with --shard first'
  ),
  'a threshold in percent': predict(
    '--checkpoint=demo',
    '--threshold=30',
    given='--threshold is 30.0',
    possible='scores are from 0 to 1',
    do='give one of these',
  ),
  'scales with semicolons': predict(
    '--checkpoint=demo',
    '--scales=1;2',
    given="'1;2' are no scales",
    possible='positive numbers with commas',
    do='such as 0.6,1,1.2',
  ),
  'scale 0': predict(
    '--checkpoint=demo',
    '--scales=0,1',
    given="'0,1' are no scales",
    possible='positive numbers with commas',
    do='such as 0.6,1,1.2',
  ),
  'no images per batch': predict(
    '--checkpoint=demo', '--batch_size=0', given='got 0', possible='at least 1', do='batch_size must be at least 1'
  ),
  'an unknown option': predict(
    '--checkpoint=demo',
    '--thresold=0.3',
    given='unrecognized arguments: --thresold=0.3',
    possible='[--threshold THRESHOLD]',
    do='usage: python -m triplet_det.predict',
  ),
  'ids of annotations of other classes': predict(
    '--checkpoint=demo',
    '--annotations={coco}/annotations/instances_val2017.json',
    given='instances_val2017.json lacks 5 of the 8 classes of the detector',
    possible="'diamond', 'frame', 'hollow diamond'",
    do='give the annotations of its data',
  ),
  'figures of an exported file': predict(
    '--checkpoint=a.zip',
    '--figures',
    given='not an exported file',
    possible='all images in one process',
    do='--figures needs a checkpoint',
  ),
  'a size that is none': export(
    '--sizes=640', given="'640' is not a size", possible='WIDTHxHEIGHT in pixels', do='such as 640x480'
  ),
  'a size beyond all files': export(
    '--sizes=99999x99999', given='1 image(s) on', possible='a file takes 536,870,912', do='give smaller --sizes'
  ),
  'an unknown platform': export(
    '--platforms=gpu', given='unknown platform gpu', possible='possible: cpu, cuda, rocm, tpu', do='cuda'
  ),
  'a file of another kind': export(
    out='{tmp}/demo.bin', given='got {tmp}/demo.bin', possible='is a zip or ONNX', do='must end in .zip or .onnx'
  ),
  'a file into a bucket': export(
    out='gs://bucket/demo.zip',
    given='gs://bucket/demo.zip is not on this machine',
    possible='only the run folder and the data of triplet_det.main may be elsewhere',
    do='give a local path, and copy (gcloud storage cp --recursive',
  ),
  'a file below a file': export(
    out='{tmp}/file/demo.zip',
    given='the folder of --out={tmp}/file',
    possible='cannot be a folder for results: File exists',
    do='give the name of a new',
  ),
  'an exported file exported': export(
    '--checkpoint={tmp}/other.zip',
    given='other.zip is exported already',
    possible='run folder',
    do='give the run folder',
  ),
}

CALLS = {
  'a path instead of a list': call(
    "triplet_det.load('demo')('photo.jpg')",
    raised='ValueError',
    given='got the path photo.jpg',
    possible='the detector takes a list of images',
    do='pass [path]',
  ),
  'an image instead of a list': call(
    "triplet_det.load('demo')(numpy.zeros((9, 9, 3), numpy.uint8))",
    raised='ValueError',
    given='got one ndarray',
    possible='the detector takes a list of images',
    do='pass [image]',
  ),
  'an image that is not there': call(
    "triplet_det.load('demo')(['{tmp}/photo.jpg'])",
    raised='FileNotFoundError',
    given='no image {tmp}/photo.jpg',
    possible='a file that is there',
    do='give a file',
  ),
  'an image of floats': call(
    "triplet_det.load('demo')([numpy.zeros((9, 9, 3))])",
    raised='ValueError',
    given='float64',
    possible='uint8 RGB array',
    do='must be a uint8 RGB array',
  ),
  'an unknown setting': call(
    "triplet_det.load('demo', miror=False)",
    raised='ValueError',
    given="unknown setting 'miror'",
    possible='Known settings: image_side, scales, center_scale, mirror',
    do="did you mean 'mirror'?",
  ),
  'settings for an exported file': call(
    "triplet_det.load('{tmp}/other.zip', mirror=False)",
    raised='ValueError',
    given='other.zip is exported',
    possible='and its settings with it',
    do='give others to triplet_det.export',
  ),
}

VERSIONS = {
  'an export of a newer format': predict(
    '--checkpoint={tmp}/newer.zip',
    given='newer.zip is of format 2 (triplet_det 9.0)',
    possible='reads formats up to 1',
    do='update it',
  ),
  'a checkpoint with a newer record': predict(
    '--checkpoint={tmp}/newer_record',
    given='its record has spirit, this version knows',
    possible='step, categories, model',
    do='update triplet_det',
  ),
  'a checkpoint with a newer test': predict(
    '--checkpoint={tmp}/newer_test',
    given='unknown test settings spirit',
    possible='known: image_side, scales, center_scale, mirror',
    do='update triplet_det',
  ),
  'metrics of another version': mine(
    '--config.mode=report',
    '--workdir={tmp}/old_metrics',
    given='old_metrics/eval/step_000004/metrics.json is broken or not what this version writes',
    possible="KeyError: 'fingerprint'",
    do='make it anew, or move it',
  ),
}

STRANGERS = {
  'an exported program that calls into the process': predict(
    '--checkpoint={tmp}/foreign_call.zip',
    given='{tmp}/foreign_call.zip: the program for 511 x 511 has the operation stablehlo.custom_call "stranger"',
    possible='triplet_det.export never writes that, it is not run',
    do='export the detector again',
  ),
  'an exported file that unpacks to much more': predict(
    '--checkpoint={tmp}/bomb.zip',
    given='{tmp}/bomb.zip is not a whole file of triplet_det.export (1',
    possible='bytes that unpack to 134217856, more than 67108864',
    do='give one that is, or a run folder',
  ),
}

SCRIPTS = {
  'a table that is not in the paper': script(
    'paper/tables',
    *('table6', '--runs={tmp}/runs'),
    given="invalid choice: 'table6'",
    possible='table5',  # in quotes up to Python 3.11
    do='choose from',
  ),
  'a row that is not in the table': script(
    'paper/tables',
    *('table4', '--runs={tmp}/runs', '--rows', '6'),
    given='table4 has no row 6',
    possible='possible: 1, 2, 3, 4, 5',
    do='possible:',
  ),
  'tables without a folder': script(
    'paper/tables', 'table4', given='usage: tables.py table4', possible='--runs RUNS', do='required: --runs'
  ),
  'an unknown topology': script(
    'aot_compile',
    *('--config=configs/shapes.py', '--topology=eight'),
    given="no topology 'eight'",
    possible='v4:2x2x1, v6e:2x4, h100:8',
    do='for example v5e:2x4',
  ),
  'no topology': script(
    'aot_compile',
    '--config=configs/shapes.py',
    given='--topology is not given',
    possible='v5e:2x4 or another TPU slice, or h100:8',
    do='give the v5e:2x4',
  ),
  'a canvas that is none': script(
    'aot_compile',
    *('--config=configs/shapes.py', '--topology=v5e:2x4', '--canvas=511'),
    given='--canvas=511',
    possible='HEIGHTxWIDTH in pixels is wanted',
    do='for example 511x767',
  ),
  'no COCO to prepare': script(
    'prepare_coco',
    *('--coco={tmp}/nowhere', '--data_dir={tmp}/tfds'),
    given='no annotations at {tmp}/nowhere/annotations/instances_train2017.json',
    possible='annotations/ and the folders of images train2017, val2017',
    do='--coco must hold annotations/',
  ),
  'an unknown split to prepare': script(
    'prepare_coco',
    *('--coco={coco}', '--data_dir={tmp}/tfds', '--splits', 'training2017'),
    given="unknown COCO split 'training2017'",
    possible="possible: ['train', 'val', 'test', 'test-dev']",
    do='each followed by the year, such as val2017',
  ),
  'a data set prepared into a file': script(
    'prepare_coco',
    *('--coco={coco}', '--data_dir={tmp}/file'),
    given='--data_dir={tmp}/file',
    possible='cannot be a folder for results: File exists',
    do='give the name of a new',
  ),
  'too few images to learn by heart': script(
    'overfit',
    *('--images={coco}/train2017', '--annotations={coco}/annotations/instances_train2017.json', '--out={tmp}/overfit'),
    given='instances_train2017.json has 0 images with 3 to 15 objects',
    possible='8 are needed',
    do='give --count',
  ),
  'an unknown full size': script(
    'checks/full_size',
    'hourglass-53',
    given='no network hourglass-53',
    possible='possible: hourglass-52, hourglass-104',
    do='possible:',
  ),
  'quirks of no run': script(
    'paper/published_quirks',
    *('--checkpoint={tmp}/photos', '--config=configs/shapes.py'),
    given='no checkpoint in {tmp}/photos',
    possible='expected a run folder with best/ or checkpoints/ in it',
    do='give one, or train first',
  ),
  'false boxes by a config that is not there': script(
    'paper/false_boxes',
    *('--config=configs/shaeps.py', '{tmp}/run'),
    given='configs/shaeps.py',
    possible='No such file or directory',
    do='usage: false_boxes.py',
  ),
  'figures kept in a file of something else': script(
    'accelerator',
    '--json={coco}/annotations/instances_val2017.json',
    given='instances_val2017.json',
    possible='is no file of this command',
    do='give another --json',
  ),
  'kills in a folder that is there': script(
    'checks/kill_test',
    '--out={tmp}/photos',
    given='{tmp}/photos is there already',
    possible='must start from nothing',
    do='the runs must start from nothing',
  ),
  'no PyTorch file': script(
    'import_torch_checkpoint',
    *('{tmp}/no.pkl', '{tmp}/imported'),
    given='{tmp}/no.pkl: no file there',
    possible='.pkl or .pth',
    do='give a .pkl or .pth',
  ),
}

CONVERTED = {
  'data converted into themselves': script(
    'convert_data',
    *('{tmp}/ranged', '{tmp}/ranged/json'),
    given='{tmp}/ranged/json lies in {tmp}/ranged',
    possible='which is only read',
    do='give another place',
  ),
  'data converted over a file': script(
    'convert_data',
    *('{coco}', '{tmp}/two_jsons'),
    given='{tmp}/two_jsons/train.json is there already',
    possible='nothing is written over',
    do='give another folder',
  ),
}

TORCH = {
  'a network that the authors have not': script(
    'export_torch_checkpoint',
    *('{tmp}/encoder', '{tmp}/encoder.pkl'),
    given='this network has the encoder efficientnet_lite0',
    possible="the authors' code has hourglasses alone",
    do='give another',
  ),
  'centers that mmdetection has not': script(
    'export_torch_checkpoint',
    *('{tmp}/other_pixels', '{tmp}/other.pkl'),
    given='model.pixels=imagenet',
    possible='is of mmdetection, which has CornerNet alone',
    do='give another network',
  ),
  'weights that know other pixels': mine(
    '--config.init_from={tmp}/other_pixels',
    '--workdir={tmp}/started',
    given='init_from={tmp}/other_pixels: its weights know pixels normalised by the statistics of imagenet',
    possible='config.model.pixels is coco',
    do='give --config.model.pixels=imagenet',
  ),
  'pixels of nobody': mine(
    '--config.model.pixels=cifar', given="model.pixels is 'cifar'", possible='possible: coco, imagenet', do='coco'
  ),
  'other pixels for an encoder': main(
    *DATA_FLAGS,
    '--config.model.pixels=imagenet',
    config='configs/photos.py:encoder=efficientnet_lite0',
    given='model.pixels=imagenet is for an hourglass',
    possible='efficientnet_lite0 has its own',
    do='give coco',
  ),
  'several scales of mmdetection': main(
    config='configs/cornernet.py:test=mmdetection,scales=multi',
    given="variant 'test=mmdetection,scales=multi'",
    possible='test=mmdetection has one scale and no small network',
    do='leave scales, small out',
  ),
  'a canvas of no colour': mine(
    '--config.test.canvas_colour=red',
    given="unknown canvas_colour 'red'",
    possible='possible: black, imagenet',
    do='black',
  ),
  'settings of two programs': mine(
    '--config.test.stale_rows=true',
    '--config.test.class_shift=true',
    given='stale_rows is of one program',
    possible='drop_untouched and class_shift are of another',
    do='leave one out',
  ),
  'the weights of ImageNet for an hourglass': mine(
    '--config.init_from=imagenet',
    given='init_from=imagenet: only 0% of the parameters of this network are in it, 50% are needed',
    possible='encoder: efficientnet_lite0 there, hourglass here',
    do='Give --config.model the sizes of that run, or another checkpoint',
  ),
  'statistics of an encoder that has none': mine(
    '--config.model.encoder_norms=fixed',
    given='model.encoder_norms=fixed',
    possible='init_from is empty',
    do='--config.model.encoder_norms=batch --config.freeze=',
  ),
  'an image size that is none': mine(
    '--config.image_side=-5', given='config.image_side is -5', possible='0, as images are', do='give -1, from the data'
  ),
  'levels that the encoder has not': mine(
    '--config.model.encoder=efficientnet_lite0',
    given='1 stacks, dims (8, 8)',
    possible='model.encoder=efficientnet_lite0 needs stacks 1 and 4 dims',
    do='for strides 4 to 32',
  ),
  'an encoder that is none': mine(
    '--config.model.encoder=resnet',
    given="model.encoder is 'resnet'",
    possible='possible: hourglass, efficientnet_lite0',
    do='possible: hourglass',
  ),
  'a pickle that acts for weights': script(
    'import_torch_checkpoint',
    *('{tmp}/acts.pkl', '{tmp}/imported'),
    given='{tmp}/acts.pkl: refused',
    possible='it is not a PyTorch file of weights alone (it asks for posix.mkdir)',
    do='give one',
  ),
  'weights that are cut short': script(
    'import_torch_checkpoint',
    *('{tmp}/short.pth', '{tmp}/imported'),
    given='{tmp}/short.pth: refused',
    possible='cut short: storage 0 needs 1000 numbers, 800 are left',
    do='give one',
  ),
  'weights of fewer than no steps': script(
    'import_torch_checkpoint',
    *('{tmp}/tensor.pth', '{tmp}/imported', '--step=-4'),
    given='--step is -4',
    possible='from 0',
    do='give how many steps these weights were trained',
  ),
  'a checksum that a variable did not have': script(
    'import_torch_checkpoint',
    *('{tmp}/tensor.pth', '{tmp}/imported', '--sha256='),
    given='{tmp}/tensor.pth: has SHA-256',
    possible='--sha256 says nothing',
    do='not the file that was meant, fetch it again',
  ),
  'a tensor for a state dict': script(
    'import_torch_checkpoint',
    *('{tmp}/tensor.pth', '{tmp}/imported'),
    given='{tmp}/tensor.pth: holds a ndarray',
    possible='not a state dict of tensors',
    do='save model.state_dict()',
  ),
}

ONNX = {
  'no ONNX file': predict(
    '--checkpoint={tmp}/no.onnx',
    given='no exported detector {tmp}/no.onnx',
    possible='a file of triplet_det.export, or a run folder',
    do='give a file',
  ),
  'ONNX for a platform': export(
    *('--platforms', 'cuda'),
    out='{tmp}/demo.onnx',
    given='--platforms cuda',
    possible='an ONNX file runs wherever onnxruntime does',
    do='leave --platforms cuda out',
  ),
  'other settings for an ONNX file': predict(
    '--checkpoint={tmp}/text.onnx',
    '--no_mirror',
    given='{tmp}/text.onnx is exported',
    possible='its settings with it',
    do='give others to triplet_det.export',
  ),
}

LINKS = {
  'a link to nothing': predict(
    '--checkpoint={server}/none.zip',
    given='{server}/none.zip: the server says 404 Not Found',
    possible='404',
    do='give a link to a file that is there',
  ),
  'a link without a network': predict(
    '--checkpoint=http://127.0.0.1:1/run.zip',
    given='http://127.0.0.1:1/run.zip: no connection',
    possible='Connection refused',
    do='connect to the network, or give a file on this machine',
  ),
  'a link that anybody could change': predict(
    '--checkpoint=http://example.com/run.zip',
    given='http://example.com/run.zip is not https://',
    possible='only https:// is followed',
    do='give such a link',
  ),
  'a link to a page': predict(
    '--checkpoint={server}/download',
    given="{server}/download does not lead to a file by its name 'download'",
    possible='possible are .zip, .onnx, .tar, .tar.gz, .tgz, .pth, .pt, .pkl',
    do='give a link to one',
  ),
  'a link with half a digest': predict(
    '--checkpoint={server}/run.zip#sha256=12',
    given="behind # it says 'sha256=12'",
    possible='8 to 64 digits of 0-9 and a-f',
    do='give these',
  ),
  'a link to another file': predict(
    '--checkpoint={server}/run.zip#sha256=00000000',
    given='{server}/run.zip has SHA-256 ',
    possible='the link says 00000000',
    do='not the file that was meant: ask whoever gave the link',
  ),
  'a link that breaks off': predict(
    '--checkpoint={server}/short.zip',
    given='{server}/short.zip: broken off after 4 of 9 bytes',
    possible='3 times in a row',
    do='the same command tries again, and continues where the server lets it',
  ),
  'a start from a link to nothing': mine(
    '--config.init_from={server}/none.tar',
    given='{server}/none.tar: the server says 404 Not Found',
    possible='404',
    do='give a link to a file that is there',
  ),
  'an archive without a run folder': mine(
    '--config.init_from={server}/none_inside.tar',
    given='none_inside.tar has no run folder in it',
    possible='with best/ or checkpoints/',
    do='give an archive of one (.zip, .tar, .tar.gz, .tgz)',
  ),
  'an archive that leads out of its folder': predict(
    '--checkpoint={server}/out.zip',
    given="'../out' leads out of ",
    possible='names must stay in this folder',
    do='out.zip: it is not followed',
  ),
  'a PyTorch file behind a link': predict(
    '--checkpoint={server}/net.pth',
    given='{server}/net.pth is a PyTorch file',
    possible='make a run folder of it first',
    do='python scripts/import_torch_checkpoint.py {server}/net.pth RUN_FOLDER',
  ),
  'half a link to the hub': predict(
    '--checkpoint=hf://owner/run.zip',
    given='hf://owner/run.zip is none of the hub',
    possible='hf://OWNER/REPO/FILE',
    do='give hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE',
  ),
  'no PyTorch file behind a link': script(
    'import_torch_checkpoint',
    *('{server}/none.pth', '{tmp}/imported'),
    given='{server}/none.pth: the server says 404 Not Found',
    possible='404',
    do='give a link to a file that is there',
  ),
}

FLIPPED = {
  'a flipped bit in a record': predict(
    '--checkpoint={tmp}/flipped',
    given='the checkpoint {tmp}/flipped/best/4 cannot be read',
    possible='its record is not what was saved, by its digest',
    do='Copy it again, or give another one',
  ),
}

FILES = {
  'drawings over the photos': predict(
    '--checkpoint=demo',
    photo='{tmp}/pngs',
    out='{tmp}/pngs',
    given='{tmp}/pngs/a.png would be written over',
    possible='the input {tmp}/pngs/a.png',
    do='give another place for the results',
  ),
  'images outside of their folder': mine(
    '--config.data.train.annotations={tmp}/outside.json',
    given='1 of the 3 file_names of {tmp}/outside.json lead out of {coco}/train2017: ../val2017/000000000100.jpg',
    possible='they are not followed',
    do='write them relative to a folder that holds all',
  ),
  'weights imported over those of a run': script(
    'import_torch_checkpoint',
    *('{tmp}/net.pkl', '{tmp}/whole'),
    given='{tmp}/net.pkl: {tmp}/whole/best holds weights already',
    possible='and they would go',
    do='give a new run folder',
  ),
}

IN_USE = {
  'a run folder in use': mine(
    '--workdir={tmp}/held',
    given='{tmp}/held is in use by ',
    possible=f', process {os.getpid()}, since 2',
    do='wait until that has ended, or give another --workdir',
  ),
  'boxes into a folder in use': predict(
    '--checkpoint=demo',
    out='{tmp}/held',
    given='{tmp}/held is in use by ',
    possible=f', process {os.getpid()}, since 2',
    do='wait until that has ended, or give another --out',
  ),
}

IMAGES = {
  'a setting of the orientation that is none': mine(
    '--config.data.train.orientation=turned',
    given="orientation is 'turned'",
    possible="give 'stored' for boxes on the pixels as the files have them, or 'upright'",
    do='for boxes that were drawn on images turned by their EXIF orientation',
  ),
  'an image that claims to be huge': predict(
    '--checkpoint=demo',
    out='{tmp}/claims',
    photo='{tmp}/claims.ppm',
    code=1,
    given='claims.ppm: 12000 x 12000 pixels (height x width) are 144,000,000',
    possible='the limit is 100,000,000',
    do='make it smaller, or raise the limit (predict --max_pixels N',
  ),
}

MISTAKES = (
  PATHS
  | CONFIGS
  | DATA
  | FOLDERS
  | FIELDS
  | DEVICES
  | CHECKPOINTS
  | ONNX
  | LINKS
  | COMMANDS
  | CALLS
  | VERSIONS
  | STRANGERS
  | SCRIPTS
  | CONVERTED
  | TORCH
  | FLIPPED
  | FILES
  | IN_USE
  | IMAGES
  | LAYOUTS
)


def write_run(folder: Path, state, *, model=None, categories=None, test=None) -> None:
  """A run folder with a checkpoint in checkpoints/ and best/."""
  here = CategoryTable.from_coco(CATEGORIES)
  settings = dataclasses.asdict(Settings(canvas_multiple=32))
  record = checkpoints.RunRecord(STEP, categories or here, model or SIZES, test or settings)
  saved = checkpoints.Checkpoints(folder)
  saved.save(state, record)
  saved.save_best({name: state[name] for name in ('params', 'batch_stats')}, record)
  saved.close()


def write_runs(folder: Path, overrides: dict) -> None:
  """Run folders that do not fit the command `mine`, and one that does."""
  config = photos.get_config('encoder=hourglass')
  config.update_from_flattened_dict(overrides)
  built = built_step.build(config, sharding.make_mesh(), len(CATEGORIES))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), built.state)
  whole = {field.name: getattr(zeros, field.name) for field in dataclasses.fields(zeros)}
  little = {name: {'x': np.zeros(2)} for name in ('params', 'batch_stats')}
  write_run(folder / 'whole', whole, model=built.model)
  write_run(
    folder / 'other_names', whole, model=built.model, categories=CategoryTable((3, 1, 90), ('disc', 'square', 'cube'))
  )
  write_run(folder / 'other_optimizer', whole | {'opt_state': {'momentum': np.zeros(2)}}, model=built.model)
  write_run(folder / 'averages', little | {'average': little}, model=built.model)
  write_run(folder / 'other_sizes', little, model=built.model | {'dims': (8, 16)})
  write_run(folder / 'encoder', little, model=built.model | {'encoder': 'efficientnet_lite0', 'dims': (8,) * 4})
  write_run(folder / 'other_pixels', whole, model=built.model | {'pixels': 'imagenet'})
  write_run(folder / 'other_classes', little, model=built.model | {'num_classes': 80}, categories=COCO)
  for name in ('broken', 'newer_record', 'flipped'):
    write_run(folder / name, little)
  write_run(folder / 'newer_test', little, model=built.model, test=dict(scales=(1.0,), center_scale=1.0, spirit=1))
  for data in (folder / 'broken/best/4/state').rglob('d/*'):
    data.unlink()
  record = folder / 'newer_record/best/4/record/metadata'
  record.write_text(json.dumps(json.loads(record.read_text()) | {'spirit': 1}))
  record = folder / 'flipped/best/4/record/metadata'
  record.write_text(record.read_text().replace('"step": 4', '"step": 5'))  # one bit
  metrics = folder / 'old_metrics/eval/step_000004/metrics.json'
  metrics.parent.mkdir(parents=True)
  metrics.write_text('{"metrics": {"AP": 0.5}}')


def write_layouts(folder: Path, coco: dict) -> None:
  """Folders of label tools with something wrong in them: an image a.png of 40 x 30 pixels, or none."""

  def xml(size: str, box: str) -> str:
    return f'<annotation>{size}<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>'

  box = '<xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax>'
  size = '<size><width>{}</width><height>{}</height></size>'
  image, line = (folder / 'pngs/a.png').read_bytes(), '0 0.5 0.5 0.2 0.2\n'
  for name, files in {
    'one_unlabelled': {
      **{f'{split}/{name}.png': image for split, name in (('train', 'b'), ('train', 'c'), ('valid', 'd'))},
      **{'train/b.txt': line, 'valid/d.txt': line, 'classes.txt': 'cat\n'},
    },
    'no_size': {
      **{'train/a.png': image, 'train/a.xml': xml(size.format(0, 0), box)},
      **{'valid/d.png': image, 'valid/d.xml': xml(size.format(40, 30), box)},
    },
    'unlabelled': {'data.yaml': 'names: [cat]\n', 'b.png': image},
    'pixels': {'a.txt': '0 20 15 9 9\n', 'classes.txt': 'cat\n'},
    'two_layouts': {'a.txt': '0 0.5 0.5 0.1 0.1\n', 'classes.txt': 'cat\n', 'a.xml': xml('', box)},
    'other_size': {'a.xml': xml(size.format(400, 300), box)},
    'no_numbers': {'a.xml': xml('', '')},
    'two_jsons': {'train.json': json.dumps(coco), 'train_old.json': json.dumps(coco)},
    'no_images': {'train.json': json.dumps(coco)},
  }.items():
    shutil.copytree(folder / 'pngs', folder / name)
    for file, text in files.items():
      (folder / name / file).parent.mkdir(exist_ok=True)
      (folder / name / file).write_bytes(text if isinstance(text, bytes) else text.encode())


def write_files(folder: Path) -> dict[str, Path]:
  """Everything that the commands name."""
  coco = write_tiny_coco(folder / 'coco', train=3, val=2)
  content = json.loads(coco.annotations().read_text())
  renamed = [dict(CATEGORIES[0]), dict(CATEGORIES[1], name='cube'), dict(CATEGORIES[2], name='point')]
  outside = content['images'][0] | {'file_name': '../val2017/000000000100.jpg'}
  for name, data in {
    'other': {'boxes': []},
    'results': [],
    'category_9': content | {'annotations': [a | {'category_id': 9} for a in content['annotations']]},
    'outside': content | {'images': [*content['images'][1:], outside]},
    'no_boxes': content | {'annotations': []},
    'long_ids': content | {'images': [image | {'id': image['id'] + 2**63} for image in content['images']]},
    'text_areas': content | {'annotations': [a | {'area': '700'} for a in content['annotations']]},
    'one_image': {'images': [{'id': 1, 'file_name': '0001.jpg'}]},
    'crowds': content | {'annotations': [a | {'iscrowd': 1} for a in content['annotations']]},
    'other_names': json.loads(coco.annotations('val2017').read_text()) | {'categories': renamed},
  }.items():
    (folder / f'{name}.json').write_text(json.dumps(data))
  for name, split, box in (
    ('corners', 'train2017', [45, 35, 59, 52]),
    ('yolo', 'val2017', [0.5, 0.4, 0.2, 0.1]),
  ):
    truth = json.loads(coco.annotations(split).read_text())
    rows = [
      dict(id=n + 1, image_id=truth['images'][n // 4]['id'], category_id=3, bbox=[v + n / 1000 for v in box])
      for n in range(4 * len(truth['images']))
    ]
    (folder / f'{name}.json').write_text(json.dumps(truth | {'annotations': rows}))
  (folder / 'empty.json').write_text('')
  (folder / 'claims.ppm').write_bytes(b'P6 12000 12000 255\n')
  shutil.copytree(coco.images(), folder / 'broken_images')
  for path in (folder / 'broken_images').iterdir():
    path.write_bytes(path.read_bytes()[:300])
  for day in ('day1', 'day2'):
    (folder / day).mkdir()
    shutil.copy(next(coco.images().iterdir()), folder / day / '0001.jpg')
  for name in ('photos', 'pngs', 'held'):
    (folder / name).mkdir()
  drawing.save_png(folder / 'pngs' / 'a.png', np.zeros((30, 40, 3), np.uint8))
  for name in ('nameless', 'ranged'):
    shutil.copytree(folder / 'pngs', folder / name)
    (folder / name / 'a.txt').write_text('7 0.5 0.5 0.1 0.1\n')
  (folder / 'ranged' / 'classes.txt').write_text('cat\n')
  write_layouts(folder, content)
  torch_files.write(folder / 'tensor.pth', np.zeros(1000, np.float32), zipped=True)
  short = torch_files.write(folder / 'short.pth', {'a': np.zeros(1000, np.float32)}, zipped=False)
  short.write_bytes(short.read_bytes()[:-800])
  (folder / 'acts.pkl').write_bytes(b'cposix\nmkdir\n(V' + str(folder / 'broken_into').encode() + b'\ntR.')
  for name in ('file', 'net.pkl', 'text.zip'):
    (folder / name).write_text('x')
  for name, entry, text in (
    ('other', 'a.txt', ''),
    ('newer', 'detector.json', '{"format": 2, "versions": {"triplet_det": "9.0"}}'),
  ):
    with zipfile.ZipFile(folder / f'{name}.zip', 'w') as file:
      file.writestr(entry, text)
  foreign_export.write_file(
    folder / 'foreign_call.zip', foreign_export.changed(foreign_export.foreign_call('stranger')), canvas=(511, 511)
  )
  zeros = foreign_export.npz(np.savez_compressed, a=np.zeros(2**25, np.float32))
  foreign_export.write_file(folder / 'bomb.zip', weights=zeros)
  (folder / 'bug.py').write_text('\n\ndef get_config():\n  return unknown\n')
  (folder / 'no_function.py').write_text('config = {}\n')
  page = 'from triplet_det.configs import shapes\n\n\ndef get_config():\n  return shapes.get_config()\n'
  (folder / 'plain.py').write_text(page)
  write_runs(folder, SMALL)
  return dict(tmp=folder, coco=coco.root, cache=Path(jax.config.jax_compilation_cache_dir))


def serve(files):
  """What LINKS lead to."""
  files['/run.zip'] = link_server.Served(b'x')
  files['/short.zip'] = link_server.Served(b'x' * 9, ranges=False, breaks=[4] * 3)
  with zipfile.ZipFile(out := io.BytesIO(), 'w') as archive:
    archive.writestr('../out', '')
  files['/out.zip'] = link_server.Served(out.getvalue())
  with tarfile.open(fileobj=(none := io.BytesIO()), mode='w') as archive:
    archive.addfile(tarfile.TarInfo('a.txt'))
  files['/none_inside.tar'] = link_server.Served(none.getvalue())


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  places = write_files(tmp_path_factory.mktemp('mistakes'))
  with in_use(places['tmp'] / 'held', 'none'), link_server.started() as server:
    serve(server.files)
    yield places | dict(server=server.url)


@pytest.fixture(scope='module')
def ended(places, tmp_path_factory):
  """Name of a mistake -> how its command ended."""
  commands = [
    forks.Command(tuple(word.format(**places) for word in mistake.words), devices=mistake.devices)
    for mistake in MISTAKES.values()
  ]
  downloads = str(tmp_path_factory.mktemp('downloads'))
  return dict(zip(MISTAKES, forks.run(commands, tmp_path_factory.mktemp('said'), TRIPLET_DET_DOWNLOADS=downloads)))


def message(mistake: Mistake, said: str) -> str:
  """What the user has to read: the error, or the last line of a Python error, without the hint on the stack."""
  if mistake.raised:
    return said.strip().splitlines()[-1]
  starts = [said.find(mark) for mark in ('error: ', 'left out: ', 'FATAL Flags parsing error') if mark in said]
  return said[min(starts, default=0) :].replace('(--v=1 shows where)', '').strip()


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake(ended, places, name):
  mistake, end = MISTAKES[name], ended[name]
  assert end.code == mistake.code, end.err
  told = message(mistake, end.err) if mistake.raised else end.err
  for part in (mistake.given, mistake.possible, mistake.do):
    assert part.format(**places) in told, told
  if mistake.raised:
    assert told.startswith(f'{mistake.raised}: ')
  else:
    assert 'Traceback' not in end.err
    assert sum('error: ' in line for line in end.err.splitlines()) <= 1


def test_nothing_was_written(ended, places):
  never = {'demo.zip', 'runs', 'nowhere', 'overfit', 'imported', 'broken_into', 'encoder.pkl'}
  assert {path.name for path in places['tmp'].iterdir()} & never == set()
  assert not (forks.ROOT / 'gs:').exists()


def test_the_table(ended, places, tell):
  """mistake -> message, for whoever reads the output of the tests."""
  lines = []
  for name, mistake in MISTAKES.items():
    told = message(mistake, ended[name].err)
    for key in ('coco', 'tmp'):
      told = told.replace(str(places[key]), key.upper())
    lines += textwrap.wrap(f'{name} -> {" ".join(told.split())}', 118, subsequent_indent='    ', max_lines=4)
  tell('\n'.join(['', f'{len(MISTAKES)} mistakes of users, and what they are told', *lines]))
  assert len(MISTAKES) >= 40
