"""Tables and numbers as HTML. Every metric stands in <data value="...">, which carries all its digits."""

import html
import math
import re
from collections.abc import Mapping, Sequence


def number(value: float, name: str, *, signed: bool = False) -> str:
  """A metric with three decimals; a dash for NaN, which means that the split has no such object."""
  metric = html.escape(name)
  if math.isnan(value):
    return f'<data value="NaN" data-metric="{metric}" title="no such object in this split">–</data>'
  text = f'{value:{"+" if signed else ""}.3f}'.replace('-', '−')
  return f'<data value="{value!r}" data-metric="{metric}">{text}</data>'


def symbol(metric: str) -> str:
  """AP_S and AP50 with what follows AP, AR or FD lowered, as the paper writes them."""
  match = re.fullmatch('(AP|AR|FD)_?(.+)', metric)
  return f'{match[1]}<sub>{html.escape(match[2])}</sub>' if match else html.escape(metric)


def metric_table(caption: str, names: Sequence[str], metrics: Mapping[str, float]) -> str:
  """One row of metrics below their symbols; those that `metrics` lacks are left out."""
  names = [name for name in names if name in metrics]
  cells = [number(metrics[name], name) for name in names]
  return table([symbol(name) for name in names], [cells], caption, kind='plain')


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str, *, kind: str = '') -> str:
  """A table in a box that scrolls; the first column names the row.

  Args:
    head: HTML of the column heads.
    body: rows of HTML.
    caption: any text.
    kind: 'plain': the first column names nothing; 'sortable': by a click on a head; 'values': of long texts.
  """
  button = '<button type="button">{}</button>' if kind == 'sortable' else '{}'
  columns = ''.join(f'<th scope="col">{button.format(title)}</th>' for title in head)
  first = '<td>{}</td>' if kind == 'plain' else '<th scope="row">{}</th>'
  rows = ''.join(f'<tr>{first.format(row[0])}{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in body)
  title = html.escape(caption)
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table class="{kind}">'
    f'<caption>{title}</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
  )


def values_table(values: Mapping[str, object], caption: str) -> str:
  """Names and values of `flat`."""
  rows = [[html.escape(name), f'<code>{html.escape(text)}</code>'] for name, text in flat(values).items()]
  return table(['name', 'value'], rows, caption, kind='values')


def flat(values: Mapping[str, object], prefix: str = '') -> dict[str, str]:
  """Nested mappings as dotted names -> texts."""
  texts = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      texts |= flat(value, f'{prefix}{name}.')
    else:
      texts[f'{prefix}{name}'] = str(value)
  return texts


def sentence(text: str, command: str = '') -> str:
  """What stands in the place of something that is missing, and the command that would make it."""
  return f'<p class="missing">{html.escape(text)}{f" <code>{html.escape(command)}</code>" if command else ""}</p>'
