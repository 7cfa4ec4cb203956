"""The one category table of a data set: its ids, the network's class indices, the names.

Free of JAX, because the workers of the input pipeline import it.
"""

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
      doubled = sorted({v for v in values if values.count(v) > 1}, key=str)
      if doubled:
        raise ValueError(f'category {what} listed more than once: {doubled}')
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
