"""A folder with COCO JSONs: one per split, beside the images or in a folder of their own, or a single one."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from triplet_det.data.layouts import coco_json
from triplet_det.data.layouts.inventory import Inventory, Split, split_of

NEEDS = 'a JSON with images, annotations and categories per split, such as train/_annotations.coco.json'
SAMPLE = 50  # names by which the folder of images is known
# Other files that COCO's download has beside the boxes.
_OTHER_TASKS = ('captions', 'person_keypoints', 'stuff', 'panoptic', 'image_info')


def look(there: Inventory) -> str:
  """Names the JSONs that have images and annotations; '' if there are none."""
  return ', '.join(map(str, _candidates(there)[:3]))


def read(there: Inventory) -> tuple[dict[str, Split], Sequence[str]]:
  """The splits by name ('all' for a single JSON that names none), and notes."""
  found, splits = {}, {}
  for path in _candidates(there):
    found.setdefault(split_of(path) or 'all', []).append(path)
  if len(found) > 1:
    found.pop('all', None)
  for name, paths in found.items():
    if len(paths) > 1:
      listed = ', '.join(map(str, paths))
      raise ValueError(f'{there.root}: {len(paths)} JSONs of the split {name}: {listed}; keep one of them')
    (path,) = paths
    coco_json.read_annotations(there.root / path)  # what is wrong is said of this file, not of a part of it
    content = coco_json.read_images(there.root / path)
    splits[name] = Split(there.root / _images_of(there, path, content), content, there.root / path)
  return splits, ()


def _candidates(there: Inventory) -> list[PurePosixPath]:
  def is_coco(path: PurePosixPath) -> bool:
    if path.name.startswith(_OTHER_TASKS):
      return False
    with (there.root / path).open('rb') as file:  # the keys stand anywhere, but their names are rare elsewhere
      content = file.read()
    return b'"images"' in content and b'"annotations"' in content

  return [path for path in there.with_suffix('.json') if is_coco(path)]


def _images_of(there: Inventory, path: PurePosixPath, content: Mapping) -> PurePosixPath:
  """The folder that the file_names are relative to, known by some of them: the nearest that has them all."""
  names = [image['file_name'].replace('\\', '/') for image in content['images']]
  names = names[:: len(names) // SAMPLE + 1]
  split, present = split_of(path), set(there.files)
  near = [path.parent, path.parent / 'images']
  ours = sorted(folder for folder in there.folders if split and split_of(folder) == split)
  counts = {}
  for folder in dict.fromkeys([*near, *ours, *sorted(there.folders)]):
    counts[folder] = sum(folder / name in present for name in names)
    if counts[folder] == len(names):
      return folder
  best = max(counts, key=counts.get)
  missing = next(name for name in names if best / name not in present)
  raise ValueError(
    f'{there.root / path}: its images are in no folder of {there.root}: of {len(names)} that were looked for '
    f'{there.root / best} has the most, {counts[best]}, and not {missing}: put all images of a JSON into one folder'
  )
