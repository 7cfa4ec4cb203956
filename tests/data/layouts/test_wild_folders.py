"""Folders as label tools, downloads and people leave them: the right boxes on the right images, or a clear refusal."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from triplet_det.data.layouts import folder

WIDTH, HEIGHT = 128, 96
NAMES = ('apple', 'pear', 'plum')
CLASSES = '\n'.join(NAMES)


def box_of(number):
  """(class index, x, y, width, height) of the object of an image, another for each."""
  return number % 3, 3 + 7 * number, 2 + 5 * number, 20 + number, 16 + 2 * number


def save(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(path, size=(WIDTH, HEIGHT)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(path, 'PNG' if path.suffix == '.png' else 'JPEG')


def line(number, tail=''):
  index, x, y, w, h = box_of(number)
  return f'{index} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}{tail}\n'


def xml(number, filename='', size=f'<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>', turned=False):
  index, x, y, w, h = box_of(number)
  (x1, x2) = (x + w, x + 1) if turned else (x + 1, x + w)
  box = f'<xmin>{x1}</xmin><ymin>{y + 1}</ymin><xmax>{x2}</xmax><ymax>{y + h}</ymax>'
  objects = f'<object><name>{NAMES[index]}</name><bndbox>{box}</bndbox></object>'
  return f'<annotation><filename>{filename}</filename>{size}{objects}</annotation>'


def coco(files, names=NAMES, first=1, **changes):
  """A COCO JSON of {file_name: number}, its category ids counted from `first`."""
  images = [dict(id=i, file_name=f, width=WIDTH, height=HEIGHT) for i, f in enumerate(files, start=1)]
  boxes = [
    dict(id=i, image_id=i, category_id=first + names.index(NAMES[box_of(n)[0]]), bbox=list(box_of(n)[1:]), iscrowd=0)
    for i, n in enumerate(files.values(), start=1)
  ]
  categories = [dict(id=first + i, name=name) for i, name in enumerate(names)]
  return json.dumps(dict(dict(images=images, annotations=boxes, categories=categories), **changes))


class Folder:
  """Writes a data set, and knows which image shall have which box."""

  def __init__(self, root):
    self.root, self.wanted = root, {}

  def pair(self, number, image, label, content=line):
    picture(self.root / image)
    self.wanted[image] = number
    save(self.root / label, content(number))

  def pairs(self, numbers, image, label, content=line):
    for n in numbers:
      self.pair(n, image.format(n), label.format(n), content)

  def text(self, path, content):
    save(self.root / path, content)


FOLDERS = {}


def reads(*said, **splits):
  """A folder that is read; what is said of it, and how many images its splits have."""
  return lambda make: FOLDERS.setdefault(make.__name__, (make, said, splits))


@reads('train 3 images, validation 2 images', train=3, validation=2)
def voc_numbered_anew_in_each_split(f):
  for split, count in (('train', 3), ('val', 2)):
    for n in range(count):
      f.pair(n + 3 * (split == 'val'), f'images/{split}/{n}.jpg', f'annotations/{split}/{n}.xml', xml)


@reads(train=4, validation=2)
def voc_folders_of_images_and_of_labels_by_split(f):
  for split, numbers in (('train', range(4)), ('val', range(4, 6))):
    for i, n in enumerate(numbers):
      f.pair(n, f'{split}_images/{i}.jpg', f'{split}_labels/{i}.xml', xml)


@reads()
def voc_beside_masks_of_the_same_names(f):
  f.pairs(range(5), 'images/{}.jpg', 'annotations/xmls/{}.xml', xml)
  for n in range(5):
    picture(f.root / f'annotations/trimaps/{n}.png')


@reads()
def voc_of_two_years(f):
  for year, numbers in (('VOC2007', range(3)), ('VOC2012', range(3, 6))):
    f.pairs(numbers, f'{year}/JPEGImages/{{}}.jpg', f'{year}/Annotations/{{}}.xml', xml)
    f.text(f'{year}/ImageSets/Main/trainval.txt', '\n'.join(map(str, numbers)))


@reads(train=3, validation=2)
def voc_lists_with_spaces_suffixes_and_capitals(f):
  f.pairs(range(5), 'JPEGImages/my photo {}.jpg', 'Annotations/my photo {}.xml', xml)
  f.text('ImageSets/Main/Train.txt', 'my photo 0\n"my photo 1"\nmy photo 2.jpg\n')
  f.text('ImageSets/Main/Validation.txt', 'my photo 3\nsub/my photo 4\n')
  f.text('ImageSets/Main/test.txt', '')


@reads('1 images of the list for test have no XML and are passed over, such as t1', train=3, validation=1, test=1)
def voc_test_images_without_xml(f):
  f.pairs(range(5), 'JPEGImages/{}.jpg', 'Annotations/{}.xml', xml)
  for split, listed in (('train', '0\n1\n2\n3'), ('test', '4\nt1')):
    f.text(f'ImageSets/Main/{split}.txt', listed)


@reads()
def voc_file_name_inside_the_xml(f):
  for n in range(3):
    f.pair(n, f'images/p{n}.jpg', f'labels/label_{n}.xml', lambda n: xml(n, filename=f'p{n}.jpg'))
  f.pair(3, 'images/p3.jpg', 'labels/p3.jpg.xml', xml)
  f.pair(4, 'images/p4.png', 'labels/p4.xml', lambda n: xml(n, filename='p4.png'))
  picture(f.root / 'images/p4.jpg')


@reads('1 XML files have boxes whose least and largest coordinates were exchanged', '1 XML files have no size')
def voc_exchanged_corners_and_empty_sizes(f):
  f.pairs(range(3), '{}.jpg', '{}.xml', xml)
  f.pair(3, '3.jpg', '3.xml', lambda n: xml(n, turned=True))
  f.pair(4, '4.jpg', '4.xml', lambda n: xml(n, size='<size><width/><height> </height></size>'))


@reads()
def voc_in_utf_16(f):
  header = '<?xml version="1.0" encoding="utf-16"?>'
  f.pairs(range(3), '{}.jpg', '{}.xml', lambda n: (header + xml(n)).encode('utf-16'))


@reads(train=3, validation=2)
def yolo_poses(f):
  tail = ' 0.1 0.1 2 0.9 0.9 2 0.2 0.2 0 0.3 0.4 1'
  for split, numbers in (('train', range(3)), ('val', range(3, 5))):
    f.pairs(numbers, f'images/{split}/{{}}.jpg', f'labels/{split}/{{}}.txt', lambda n: line(n, tail))
  f.text('data.yaml', f'train: images/train\nval: images/val\nkpt_shape: [4, 3]\nnames: [{", ".join(NAMES)}]\n')


@reads('classes are counted otherwise', train=3, validation=2)
def yolo_classes_counted_anew_in_each_folder(f):
  f.pairs(range(3), 'train/{}.jpg', 'train/{}.txt')
  f.text('train/classes.txt', CLASSES)
  # plum, apple, pear: class 0 there is plum
  f.pairs((3, 4), 'val/{}.jpg', 'val/{}.txt', lambda n: str((n + 1) % 3) + line(n)[1:])
  f.text('val/classes.txt', 'plum\napple\npear')


@reads(train=4, validation=2, test=1)
def yolo_dev_and_test(f):
  for split, numbers in (('train', range(4)), ('dev', (4, 5)), ('test', (6,))):
    f.pairs(numbers, f'{split}/images/{{}}.jpg', f'{split}/labels/{{}}.txt')
  f.text('classes.txt', CLASSES)


@reads('1 images that belong to no split are passed over, such as extra/images/9.jpg', train=4, validation=2)
def yolo_another_folder_beside_the_splits(f):
  for split, numbers in (('train', range(4)), ('val', (4, 5))):
    f.pairs(numbers, f'{split}/images/{{}}.jpg', f'{split}/labels/{{}}.txt')
  picture(f.root / 'extra/images/9.jpg')
  f.text('extra/labels/9.txt', line(9))
  f.text('classes.txt', CLASSES)


@reads(train=5, validation=1)
def yolo_a_track_that_is_no_split(f):
  f.pairs(range(3), 'images/train/{}.jpg', 'labels/train/{}.txt')
  f.pairs((3, 4), 'images/train/test_track/{}.jpg', 'labels/train/test_track/{}.txt')
  f.pairs((5,), 'images/val/{}.jpg', 'labels/val/{}.txt')
  f.text('classes.txt', CLASSES)


@reads('no validation split')
def yolo_in_a_project_called_test(f):
  f.pairs(range(5), 'test_project/images/{}.jpg', 'test_project/labels/{}.txt')
  f.text('classes.txt', CLASSES)


@reads()
def yolo_photos_called_as_other_files(f):
  for n, name in enumerate(('test', 'train', 'names', 'labels', 'classes')):
    f.pair(n, f'images/{name}.jpg', f'labels/{name}.txt')
  f.text('data.yaml', f'names: [{", ".join(NAMES)}]\n')


@reads('results of a program are passed over: runs/')
def yolo_beside_what_a_detector_found(f):
  f.pairs(range(5), 'images/{}.jpg', 'labels/{}.txt')
  for n in range(5):
    picture(f.root / f'runs/detect/predict/{n}.jpg')
    f.text(f'runs/detect/predict/labels/{n}.txt', line(n + 1))
  f.text('runs/detect/train/args.yaml', 'task: detect\nmode: train\nval: true\n')
  f.text('data.yaml', f'names: [{", ".join(NAMES)}]\n')


@reads('4 images with the names of labelled ones are passed over, such as masks/0.png')
def yolo_beside_masks(f):
  f.pairs(range(4), 'images/{}.jpg', 'labels/{}.txt')
  for n in range(4):
    picture(f.root / f'masks/{n}.png')
  f.text('classes.txt', CLASSES)


@reads('3 classes: no, yes, 3', train=4, validation=1)
def yolo_classes_that_are_words_of_yaml(f):
  f.pairs(range(4), 'train/images/{}.jpg', 'train/labels/{}.txt')
  f.pairs((4,), 'valid/images/{}.jpg', 'valid/labels/{}.txt')  # which the YAML does not name
  f.text('data.yaml', 'train: ../train/images\nnc: "3"\nnames: {"0": no, 1: yes, 2: 3}\n')


@reads("data.yaml says validation is '../valid/images', where no image is", 'no validation split')
def yolo_a_split_that_was_not_exported(f):
  f.pairs(range(5), 'train/images/{}.jpg', 'train/labels/{}.txt')
  f.text('data.yaml', f'train: ../train/images\nval: ../valid/images\nnames: [{", ".join(NAMES)}]\n')


@reads(train=3, validation=2)
def yolo_yaml_beside_the_folder_that_it_names(f):
  for split, numbers in (('train', range(3)), ('val', (3, 4))):
    f.pairs(numbers, f'fruit/images/{split}/{{}}.jpg', f'fruit/labels/{split}/{{}}.txt')
  about = f'path: ../datasets/fruit\ntrain: images/train\nval: images/val\nnames: [{", ".join(NAMES)}]\n'
  f.text('fruit.yaml', about)


@reads(train=3, validation=2)
def yolo_darknet(f):
  f.pairs(range(5), 'data/obj/{}.jpg', 'data/obj/{}.txt')
  f.text('data/train.txt', ''.join(f'data/obj/{n}.jpg\n' for n in range(3)))
  f.text('data/valid.txt', ''.join(f'/home/me/darknet/data/obj/{n}.jpg\n' for n in (3, 4)))
  f.text('data/fruit.data', 'classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/fruit.names\n')
  f.text('data/fruit.names', CLASSES)


@reads(train=3, validation=2)
def yolo_lists_without_a_description(f):
  f.pairs(range(5), 'images/{}.jpg', 'labels/{}.txt')
  f.text('train.txt', ''.join(f'./images/{n}.jpg\n' for n in range(3)))
  f.text('val.txt', ''.join(f'./images/{n}.jpg\n' for n in (3, 4)))
  f.text('classes.txt', CLASSES)


@reads(train=3, validation=2)
def yolo_capitals(f):
  for split, numbers in (('Train', range(3)), ('Val', (3, 4))):
    f.pairs(numbers, f'Images/{split}/{{}}.JPG', f'Labels/{split}/{{}}.TXT')
  f.text('Classes.txt', CLASSES)


@reads('5 label files belong to the images of their names, such as txt/0.txt to photos/0.jpg')
def yolo_folders_of_other_names(f):
  f.pairs(range(5), 'photos/{}.jpg', 'txt/{}.txt')
  f.text('classes.txt', CLASSES)


@reads('1 images without a label file', '1 label files without an image', train=3, validation=2)
def yolo_a_left_over_label_finds_no_image_of_another_folder(f):
  f.pairs(range(2), 'images/train/{}.jpg', 'labels/train/{}.txt')
  f.pairs((3, 4), 'images/val/{}.jpg', 'labels/val/{}.txt')
  picture(f.root / 'images/train/7.jpg')
  f.wanted['images/train/7.jpg'] = None
  f.text('labels/val/7.txt', line(7))
  f.text('classes.txt', CLASSES)


@reads()
def yolo_classes_as_numpy_writes_them(f):
  f.pairs(range(5), 'images/{}.jpg', 'labels/{}.txt', lambda n: f'{n % 3}.000e+00' + line(n)[1:])
  f.text('classes.txt', CLASSES)


@reads()
def yolo_images_by_a_link(f):
  f.pairs(range(5), 'yolo/images/{}.jpg', 'yolo/labels/{}.txt')
  os.rename(f.root / 'yolo/images', f.root / 'raw')
  os.symlink('../raw', f.root / 'yolo/images')
  os.symlink('.', f.root / 'yolo/again')
  f.text('classes.txt', CLASSES)


@reads('images of result.json are found by their names', 'no validation split')
def coco_paths_of_windows(f):
  for n in range(5):
    picture(f.root / f'images/p{n}.jpg')
  f.wanted = {f'images/p{n}.jpg': n for n in range(5)}
  f.text('result.json', coco({f'images\\p{n}.jpg': n for n in range(5)}))


@reads(train=3, validation=2)
def coco_paths_of_another_machine_in_another_case(f):
  for split, numbers in (('train', range(3)), ('val', (3, 4))):
    for n in numbers:
      picture(f.root / f'{split}/O\N{COMBINING DIAERESIS}l{n}.jpg')
      f.wanted[f'{split}/O\N{COMBINING DIAERESIS}l{n}.jpg'] = n
    f.text(f'{split}.json', coco({f'/mnt/x/\N{LATIN CAPITAL LETTER O WITH DIAERESIS}L{n}.JPG': n for n in numbers}))


@reads(train=3, validation=2)
def coco_splits_of_the_images_of_one_folder(f):
  f.wanted = {f'train/{n}.jpg': n for n in range(5)}
  for image in f.wanted:
    picture(f.root / image)
  for split, numbers in (('train', range(3)), ('val', (3, 4))):
    f.text(f'{split}.json', coco({f'{n}.jpg': n for n in numbers}))


@reads()
def coco_images_in_two_folders(f):
  f.wanted = {f'day{n % 2}/p{n}.jpg': n for n in range(5)}
  for image in f.wanted:
    picture(f.root / image)
  f.text('annotations.json', coco({f'p{n}.jpg': n for n in range(5)}))


@reads()
def coco_thumbnails_come_first(f):
  f.wanted = {f'photos/{n}.jpg': n for n in range(5)}
  for n in range(5):
    picture(f.root / f'cache/{n}.jpg', size=(32, 24))
    picture(f.root / f'photos/{n}.jpg')
  f.text('labels/annotations.json', coco({f'{n}.jpg': n for n in range(5)}))


@reads('classes of validation are those to train on of the same name', train=3, validation=2)
def coco_classes_counted_anew_in_each_split(f):
  f.wanted = {f'{split}/{n}.jpg': n for split, numbers in (('train', range(3)), ('val', (3, 4))) for n in numbers}
  for image in f.wanted:
    picture(f.root / image)
  f.text('train/a.json', coco({f'{n}.jpg': n for n in range(3)}))
  f.text('val/a.json', coco({f'{n}.jpg': n for n in (3, 4)}, names=('plum', 'apple', 'pear'), first=0))


@reads('3 classes: apple, pear, plum', train=3, validation=2, test=1)
def coco_project_called_as_a_class_and_test_without_boxes(f):
  project = [dict(id=0, name='apple', supercategory='none')]
  for split, numbers in (('train', range(3)), ('valid', (3, 4)), ('test', (5,))):
    content = json.loads(coco({f'{n}.jpg': n for n in numbers}))
    content['categories'] = project + [dict(row, supercategory='apple') for row in content['categories']]
    content['annotations'] = [] if split == 'test' else content['annotations']
    f.text(f'{split}/_annotations.coco.json', json.dumps(content))
    for n in numbers:
      picture(f.root / f'{split}/{n}.jpg')
      f.wanted[f'{split}/{n}.jpg'] = None if split == 'test' else n


@reads(train=3, validation=2, test=1)
def coco_an_unlabelled_test_split_with_another_class(f):
  f.wanted = {f'{split}/{n}.jpg': n for split, numbers in (('train', range(3)), ('val', (3, 4))) for n in numbers}
  f.wanted['test/5.jpg'] = None
  for image in f.wanted:
    picture(f.root / image)
  f.text('train/a.json', coco({f'{n}.jpg': n for n in range(3)}))
  f.text('val/a.json', coco({f'{n}.jpg': n for n in (3, 4)}))
  f.text('test/a.json', coco({'5.jpg': 5}, names=(*NAMES, 'melon'), annotations=None))


@reads('1 JSONs of no split are passed over, such as all.json', train=3, validation=2)
def coco_a_json_beside_the_splits(f):
  for split, numbers in (('train', range(3)), ('dev', (3, 4))):
    f.text(f'{split}.json', coco({f'{n}.jpg': n for n in numbers}))
  f.text('all.json', coco({f'{n}.jpg': n for n in range(5)}))
  f.wanted = {f'images/{n}.jpg': n for n in range(5)}
  for image in f.wanted:
    picture(f.root / image)


@reads()
def coco_keypoints_alone(f):
  f.wanted = {f'images/{n}.jpg': n for n in range(5)}
  for image in f.wanted:
    picture(f.root / image)
  f.text('annotations/person_keypoints_default.json', coco({f'{n}.jpg': n for n in range(5)}))


@pytest.mark.parametrize('name', FOLDERS)
def test_the_right_boxes_are_on_the_right_images(name, tmp_path):
  make, said, splits = FOLDERS[name]
  made = Folder(tmp_path)
  make(made)
  data = folder.read(tmp_path)
  assert data.layout == name.partition('_')[0]
  found = {}
  for split in data.splits.values():
    names = {row['id']: row['name'] for row in split.content['categories']}
    images = {row['id']: os.path.relpath(split.images / row['file_name'], tmp_path) for row in split.content['images']}
    found |= {image: [] for image in images.values()}
    for row in split.content['annotations']:
      found[images[row['image_id']]].append((names[row['category_id']], *row['bbox']))
  # A class that is called otherwise in this folder has the place of ours.
  classes = [row['name'] for row in data.splits['train'].content['categories']]
  classes = NAMES if {*classes} <= {*NAMES} else classes
  wanted = {image: [] if n is None else [(classes[box_of(n)[0]], *box_of(n)[1:])] for image, n in made.wanted.items()}
  for image, boxes in wanted.items():
    assert [name for name, *_ in found[image]] == [name for name, *_ in boxes], image
    # YOLO's six digits are a ten thousandth of a pixel here.
    np.testing.assert_allclose([b[1:] for b in found[image]], [b[1:] for b in boxes], atol=0.01, err_msg=image)
  assert found.keys() == wanted.keys()
  counts = {split: len(part.content['images']) for split, part in data.splits.items()}
  assert counts == (splits or counts)
  for text in said:
    assert text in str(data)


REFUSED = {}


def refuses(*said):
  return lambda make: REFUSED.setdefault(make.__name__, (make, said))


@refuses('annotations/0.xml and annotations_old/0.xml are both of images/0.jpg', 'keep one of them')
def two_xmls_of_an_image(f):
  f.pairs(range(2), 'images/{}.jpg', 'annotations/{}.xml', xml)
  f.text('annotations_old/0.xml', xml(1))


@refuses('a/0.jpg and b/0.jpg both have its name', 'keep one of them')
def two_images_of_an_xml(f):
  f.pairs(range(2), 'a/{}.jpg', 'labels/{}.xml', xml)
  picture(f.root / 'b/0.jpg')


@refuses('a/0.jpg and b/0.jpg both have its name')
def two_images_of_a_text(f):
  f.pairs(range(2), 'a/{}.jpg', 'txt/{}.txt')
  picture(f.root / 'b/0.jpg')
  f.text('classes.txt', CLASSES)


@refuses('1 of its 2 images are nowhere in', 'such as 1.jpg')
def an_image_of_another_split_has_the_name(f):
  for image in ('train/0.jpg', 'val/0.jpg', 'val/1.jpg'):
    picture(f.root / image)
  for split in ('train', 'val'):
    f.text(f'{split}/a.json', coco({f'{n}.jpg': n for n in range(2)}))


@refuses('none of the 2 XML files has its image, such as annotations/train/0.xml')
def images_of_another_split_have_the_names(f):
  for n in range(2):
    picture(f.root / f'images/val/{n}.jpg')
    f.text(f'annotations/train/{n}.xml', xml(n))


@refuses('its images may be those of a/0.jpg and b/0.jpg')
def two_folders_of_a_json(f):
  for n in range(3):
    picture(f.root / f'a/{n}.jpg')
    picture(f.root / f'b/{n}.jpg')
  f.text('annotations/all.json', coco({f'{n}.jpg': n for n in range(3)}))


@refuses('1 of its 3 images are nowhere in', 'such as 2.jpg')
def an_image_of_a_json_is_missing(f):
  for n in range(2):
    picture(f.root / f'{n}.jpg')
  f.text('all.json', coco({f'{n}.jpg': n for n in range(3)}))


@refuses('valid/_annotations.coco.json: no images and annotations in it, which train/_annotations.coco.json has')
def a_json_of_a_split_is_empty(f):
  for split in ('train', 'valid'):
    picture(f.root / f'{split}/0.jpg')
  f.text('train/_annotations.coco.json', coco({'0.jpg': 0}))
  f.text('valid/_annotations.coco.json', '')


@refuses('annotations/instances_train.json: no images and annotations in it')
def the_json_to_train_on_is_cut_short(f):
  for split in ('train', 'val'):
    picture(f.root / f'{split}/0.jpg')
    f.text(f'annotations/instances_{split}.json', coco({'0.jpg': 0})[: 40 if split == 'train' else None])


@refuses("val/a.json: its class 'melon' is none of those to train on (apple, pear, plum)")
def a_class_that_is_not_trained(f):
  for split in ('train', 'val'):
    picture(f.root / f'{split}/0.jpg')
  f.text('train/a.json', coco({'0.jpg': 0}))
  f.text('val/a.json', coco({'0.jpg': 0}, categories=[dict(id=1, name='melon')]))


@refuses('none of the 2 images to validate on has a box', 'a part of the others is held out instead')
def validation_without_boxes(f):
  f.pairs(range(3), 'train/images/{}.jpg', 'train/labels/{}.txt')
  for n in (3, 4):
    picture(f.root / f'val/images/{n}.jpg')
  f.text('classes.txt', CLASSES)


@refuses('none of the 3 images, such as images/0.jpg, has the name of one of the 3 label files, such as labels/a-0.txt')
def labels_of_other_names(f):
  f.pairs(range(3), 'images/{}.jpg', 'labels/a-{}.txt')
  f.text('classes.txt', CLASSES)


@refuses('3 label files, such as labels/0.txt, and no images')
def no_images(f):
  for n in range(3):
    f.text(f'labels/{n}.txt', line(n))
  f.text('classes.txt', CLASSES)


@refuses("classes.txt: several classes are called 'apple'")
def two_classes_of_one_name(f):
  f.pairs(range(2), 'images/{}.jpg', 'labels/{}.txt')
  f.text('classes.txt', 'apple\npear\napple')


@refuses('annotations.xml looks like CVAT for images: export it as COCO, YOLO or Pascal VOC')
def xml_of_cvat(f):
  f.text('annotations.xml', '<annotations><image name="0.jpg"><box label="apple" xtl="1"/></image></annotations>')
  picture(f.root / '0.jpg')


@refuses('0.json looks like labelme: export it')
def json_of_labelme(f):
  f.text('0.json', '{"shapes": [], "imagePath": "0.jpg"}')
  picture(f.root / '0.jpg')


@refuses('images/x.jpg: a link to a file that is not there')
def a_link_to_nothing(f):
  f.pairs(range(3), 'images/{}.jpg', 'labels/{}.txt')
  os.symlink('/nowhere/x.jpg', f.root / 'images/x.jpg')
  f.text('classes.txt', CLASSES)


@pytest.mark.parametrize('name', REFUSED)
def test_what_has_two_meanings_or_none_is_refused(name, tmp_path):
  make, said = REFUSED[name]
  make(Folder(tmp_path))
  with pytest.raises(ValueError) as raised:
    folder.read(tmp_path)
  for text in (str(tmp_path), *said):
    assert text in str(raised.value)
