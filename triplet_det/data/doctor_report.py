"""What the data doctor found, as text: a few lines before training, tables for `--config.mode=check_data`."""

from collections import Counter

import numpy as np
from absl import logging

from triplet_det.data.doctor import AREAS, SIZES, Diagnosis, Examination

BRIEF = 10  # lines that `brief` has at most
PERCENTILES = (5, 25, 50, 75, 95)


def brief(diagnosis: Diagnosis) -> list[str]:
  """A few lines for the log: two or three per split, and what is wrong."""
  lines = []
  for title, split in diagnosis.splits.items():
    classes = sorted(split.per_class.items(), key=lambda item: -item[1])
    named = [f'{name} {count:,}' for name, count in (classes if len(classes) <= 8 else [*classes[:4], *classes[-2:]])]
    if len(classes) > 8:
      named.insert(4, '...')
    shares = split.counts.sum(axis=0) / max(1, split.counts.sum())
    sizes = ', '.join(f'{name} {share:.0%}' for name, share in zip(SIZES, shares))
    lines.append(f'{title}: {len(split.objects):,} images, {split.objects.sum():,} objects: {", ".join(named)}')
    lines.append(f'  per image {_spread(split.objects)}; at {split.resolution} {sizes}')
    if split.repairs:
      lines.append('  ' + '; '.join(f'{repair.what}: {repair.count:,}' for repair in split.repairs))
  findings = diagnosis.findings
  if len(lines) + len(findings) > BRIEF:
    shown = BRIEF - len(lines) - 1
    findings[shown:] = [f'and {len(findings) - shown} more, which --config.mode=check_data shows']
  return lines + findings


def log(diagnosis: Diagnosis) -> None:
  """Logs the few lines. Raises ValueError with all that makes training impossible."""
  for line in brief(diagnosis):
    logging.info('%s', line)
  if diagnosis.fatal:
    raise ValueError('; '.join(diagnosis.fatal))


def full(diagnosis: Diagnosis) -> str:
  """All that was found, as tables for the terminal."""
  lines = []
  for title, split in diagnosis.splits.items():
    height, width = split.image_sizes.T
    common = Counter(zip(width.tolist(), height.tolist())).most_common(4)
    sizes = ', '.join(f'{w} x {h} ({count:,})' for (w, h), count in common)
    lines += [f'{title}: {split.path}', f'  {len(split.objects):,} images, {split.objects.sum():,} objects']
    lines.append(f'  image sizes, width x height (images): {sizes}')
    lines.append(f'    widths {width.min()} to {width.max()}, heights {height.min()} to {height.max()}')
    lines.append(f'  objects per image: {_spread(split.objects)}')
    if len(split.sides):
      sides = _spread(split.sides)
      lines.append(f'  root of width x height of objects, pixels at {split.resolution}: {sides}')
    lines += ['  repaired or left out:', *(f'    {repair}' for repair in split.repairs or ['nothing'])]
  for title, split in diagnosis.splits.items():
    lines += ['', *_class_table(title, split)]
  lines.append(f'\nsizes by the annotated area at that resolution: small < {AREAS[0]} <= medium < {AREAS[1]} <= large')
  lines += ['', *(diagnosis.findings or ['nothing is wrong'])]
  return '\n'.join(lines)


def _class_table(title: str, split: Examination) -> list[str]:
  names = [*split.categories.names, 'all']
  rows = np.concatenate([split.counts, split.counts.sum(axis=0, keepdims=True)])
  width = max(len(title), *(len(name) + 2 for name in names))
  lines = [f'{title:<{width}}{"all":>10}' + ''.join(f'{size:>10}' for size in SIZES)]
  for name, row in zip(names, rows.tolist()):
    lines.append(f'  {name:<{width - 2}}{sum(row):>10,}' + ''.join(f'{count:>10,}' for count in row))
  return lines


def _spread(values: np.ndarray) -> str:
  """'0 to 27, median 12 (5%: 2, 25%: 8, 75%: 17, 95%: 24)'."""
  at = dict(zip(PERCENTILES, np.percentile(values, PERCENTILES)))
  others = ', '.join(f'{percent}%: {_short(value)}' for percent, value in at.items() if percent != 50)
  return f'{_short(values.min())} to {_short(values.max())}, median {_short(at[50])} ({others})'


def _short(value: float) -> str:
  return f'{value:,.1f}'.removesuffix('.0')
