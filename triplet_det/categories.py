"""The one category table of a data set: its ids, the network's class indices, the names.

Free of JAX, because the workers of the input pipeline import it.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class CategoryTable:
  """Data set id <-> contiguous class index <-> name; the class index is the position.

  Attributes:
    ids: category ids as the data set's JSON writes them, in the JSON's order.
    names: category names in the same order.
  """

  ids: tuple[int, ...]
  names: tuple[str, ...]

  def __post_init__(self):
    if len(self.ids) != len(self.names):
      raise ValueError(f'a category table needs a name per id: {len(self.ids)} ids, {len(self.names)} names')
    for what, values in (('id', self.ids), ('name', self.names)):
      doubled = sorted((v for v, count in collections.Counter(values).items() if count > 1), key=str)
      if doubled:
        raise ValueError(f'category {what} listed more than once: {doubled[:5]}')
    if not self.ids:
      raise ValueError('a category table needs at least one category, got none')

  def __len__(self) -> int:
    return len(self.ids)

  def class_of(self, category_id: int) -> int:
    """Contiguous class index of a data set id; KeyError names the known ids."""
    try:
      return self.ids.index(category_id)
    except ValueError:
      raise KeyError(f'unknown category id {category_id}; known ids: {list(self.ids)}') from None

  @classmethod
  def from_coco(cls, categories: Sequence[Mapping]) -> 'CategoryTable':
    """From the `categories` list of a COCO JSON; the list's order is kept."""
    return cls(tuple(int(c['id']) for c in categories), tuple(str(c['name']) for c in categories))

  def to_coco(self) -> list[dict]:
    """The `categories` list of a COCO JSON; also how checkpoints store the table."""
    return [dict(id=i, name=n) for i, n in zip(self.ids, self.names)]


# COCO's 80 categories in the order of its JSON files; 10 of the 90 ids were never used.
_COCO_NAMES = (
  'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,'
  'bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,'
  'skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,'
  'wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,'
  'chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,'
  'toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush'
)
COCO = CategoryTable(
  ids=tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}),
  names=tuple(_COCO_NAMES.split(',')),
)
