"""Ids for COCO results: those of the images and categories of an annotation JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from triplet_det.categories import CategoryTable
from triplet_det.pictures import video


@dataclasses.dataclass(frozen=True)
class Ids:
  """What a COCO JSON calls the files and classes at hand."""

  images: tuple[int, ...]  # of each file
  categories: CategoryTable  # the detector's names in its order, with the JSON's ids


def read_ids(annotations: Path, paths: Sequence[Path], categories: CategoryTable) -> Ids:
  """Finds files and classes in a COCO JSON by their names.

  Args:
    annotations: COCO JSON, with or without annotations.
    paths: image files; each must end in the file_name of one image.
    categories: of the detector; the JSON must know every name, under whatever id.

  Raises:
    FileNotFoundError: no such JSON.
    ValueError: it is not COCO's, or images or classes are not in it; names the first.
  """
  if not annotations.exists():
    raise FileNotFoundError(f'no annotations {annotations}: give a COCO JSON that lists the images')
  try:
    content = json.loads(annotations.read_text())
    of_name = {image['file_name']: int(image['id']) for image in content['images']}
    of_class = {one['name']: int(one['id']) for one in content.get('categories', categories.to_coco())}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{annotations} is not a COCO JSON: {type(error).__name__} {error}') from error
  unknown = sorted(set(categories.names) - set(of_class))
  if unknown:
    raise ValueError(
      f'{annotations} lacks {len(unknown)} of the {len(categories)} classes of the detector: {", ".join(unknown[:5])}; '
      'give the annotations of its data'
    )
  ids = [None if video.is_video(path) else _find(path, of_name) for path in paths]
  if None in ids:
    first = paths[ids.index(None)]
    raise ValueError(
      f'{ids.count(None)} of {len(paths)} files are not among the {len(of_name)} images of {annotations}, '
      f'such as {first}: leave them out, or give no annotations (the position is the image_id then)'
    )
  return Ids(tuple(ids), CategoryTable(tuple(of_class[name] for name in categories.names), categories.names))


def _find(path: Path, of_name: dict[str, int]) -> int | None:
  """The id of the longest file_name that the path ends in."""
  names = ('/'.join(path.parts[start:]) for start in range(len(path.parts)))
  return next((of_name[name] for name in names if name in of_name), None)
