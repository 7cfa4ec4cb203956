"""What lies beside the weights in a checkpoint, and explains it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from triplet_det.categories import CategoryTable
from triplet_det.run import array_digest

_ITSELF = 'record'  # in the digest of a record: of all the rest of it


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What lies beside the weights, so that a checkpoint explains itself."""

  step: int
  categories: CategoryTable
  model: Mapping[str, Any]  # keys of `detector.DetectorConfig`
  test: Mapping[str, Any]  # keys of `Settings`
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the evaluation that made it the best
  unlogged: tuple[tuple[int, Mapping[str, float]], ...] = ()  # (step, metrics) since the last line of the log
  evaluated_on: str = ''  # digest of the annotations that `metrics` were measured on
  digest: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the arrays, by `array_digest.measure`

  def sealed(self) -> dict:
    """As it is saved: with a digest of the record itself among those of the arrays."""
    content = self.to_json()
    content['digest'][_ITSELF] = _digest_of(content)
    return content

  def to_json(self) -> dict:
    return dict(dataclasses.asdict(self), categories=self.categories.to_coco())

  @classmethod
  def from_json(cls, record: Mapping) -> 'RunRecord':
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(record) - set(known)):
      raise ValueError(
        f'its record has {", ".join(unknown)}, this version knows {", ".join(known)}: update triplet_det'
      )
    unlogged = tuple((step, metrics) for step, metrics in record['unlogged'])
    return cls(**{**record, 'categories': CategoryTable.from_coco(record['categories']), 'unlogged': unlogged})


def read(directory: epath.Path) -> RunRecord:
  """The record of a checkpoint folder; ValueError if it is not what was saved."""
  content = json.loads((directory / 'record' / 'metadata').read_text(encoding='utf-8'))
  record = RunRecord.from_json(content)
  if record.digest and content['digest'].pop(_ITSELF, None) != _digest_of(content):
    raise ValueError('its record is not what was saved, by its digest')
  return record


def _digest_of(content: Mapping[str, Any]) -> str:
  return array_digest.of_texts([json.dumps(content, sort_keys=True)])
