"""Ids for COCO results: those of the images and categories of an annotation JSON."""

import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from triplet_det.categories import CategoryTable
from triplet_det.data.layouts import coco_json
from triplet_det.pictures import video


@dataclasses.dataclass(frozen=True)
class Ids:
  """What a COCO JSON calls the files and classes at hand."""

  images: tuple[int, ...]  # of each file
  sizes: tuple[tuple[int, int] | None, ...]  # (height, width) of each file in the JSON, pixels; None if not said
  categories: CategoryTable  # the detector's names in its order, with the JSON's ids


def read_ids(annotations: Path, paths: Sequence[Path], categories: CategoryTable) -> Ids:
  """Finds files and classes in a COCO JSON by their names.

  Two spellings of a name are one: letters with their accents in one character or in two, and \\ for /.

  Args:
    annotations: COCO JSON, with or without annotations.
    paths: image files; each must end in the file_name of one image, and no two in that of the same image.
    categories: of the detector; the JSON must know every name, under whatever id.

  Raises:
    FileNotFoundError: no such JSON.
    ValueError: it is not COCO's, or images or classes are not in it, or not only once; names the first.
  """
  content = coco_json.read_images(annotations)
  of_class = {one['name']: one['id'] for one in content.get('categories') or categories.to_coco()}
  unknown = sorted(set(categories.names) - set(of_class))
  if unknown:
    raise ValueError(
      f'{annotations} lacks {len(unknown)} of the {len(categories)} classes of the detector: {str(unknown[:5])[1:-1]}; '
      f'it has {str(list(of_class)[:5])[1:-1]}: give the annotations of its data'
    )
  of_name = {}
  for image in content['images']:
    other = of_name.setdefault(_spelled(image['file_name']), image)
    if other is not image:
      names = _apart(other['file_name'], image['file_name'])
      raise ValueError(
        f'{annotations}: images {other["id"]} and {image["id"]} have one name in two spellings, {names}: '
        'give each image a name of its own'
      )
  if videos := [path for path in paths if video.is_video(path)]:
    raise ValueError(f'{videos[0]} is a video, and no frame is an image of {annotations}: leave it out')
  found = [_find(path, of_name) for path in paths]
  if None in found:
    first = paths[found.index(None)]
    raise ValueError(
      f'{found.count(None)} of {len(paths)} files are not among the {len(of_name)} images of {annotations}, '
      f'such as {first}{_near(first, of_name)}: leave them out, or give no annotations (the position is the image_id '
      'then)'
    )
  taken = {}
  for path, image in zip(paths, found):
    other = taken.setdefault(image['id'], path)
    if other is not path:
      raise ValueError(
        f'two files for image {image["id"]} of {annotations}, {image["file_name"]!a}: '
        f'{_apart(str(other), str(path))}: leave one out, or give annotations whose file_names tell the folders apart'
      )
  ids = tuple(of_class[name] for name in categories.names)
  return Ids(
    images=tuple(image['id'] for image in found),
    sizes=tuple(_size(image) for image in found),
    categories=CategoryTable(ids, categories.names),
  )


def _spelled(name: str) -> str:
  """The one spelling of all that name the same file; no two systems write it alike."""
  return str(PurePosixPath(unicodedata.normalize('NFC', name.replace('\\', '/'))))


def _find(path: Path, of_name: Mapping[str, dict]) -> dict | None:
  """The image with the longest file_name that the path ends in."""
  whole = _spelled(os.path.abspath(path))
  parts = whole.split('/')
  names = (whole, *('/'.join(parts[start:]) for start in range(1, len(parts))))
  return next((of_name[name] for name in names if name in of_name), None)


def _size(image: Mapping) -> tuple[int, int] | None:
  return None if None in (image.get('height'), image.get('width')) else (image['height'], image['width'])


def _near(path: Path, of_name: Mapping[str, dict]) -> str:
  """What the JSON has that a person may take for the name of this file."""

  def last(name: str) -> str:
    return name.split('/')[-1].casefold()

  wanted = last(_spelled(str(path)))
  near = [image['file_name'] for name, image in of_name.items() if last(name) == wanted]
  return f' (it has {near[0]!a}, which is another folder or another spelling)' if near else ''


def _apart(one: str, other: str) -> str:
  """Both names so that they can be told apart: escaped if they only look different to a program."""
  show = ascii if _spelled(one) == _spelled(other) else repr
  return f'{show(one)} and {show(other)}'
