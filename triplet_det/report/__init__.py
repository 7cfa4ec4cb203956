"""One HTML page per run: learning curves, metrics, pictures; a single file that needs no network.

`write_report` reads only files of the run folder (`run_folder`), turns each part into a piece of HTML (`sections`, with
`charts`, `pictures` and `tables`) and puts them into page.html with its style and script.
"""

import base64
import datetime
import hashlib
import html
import pathlib
import string

from etils import epath

import triplet_det
from triplet_det.report import run_folder, sections

PAGE = 'report.html'

# Section id -> title and what makes it, in the order of the page.
SECTIONS = {
  'learning-curves': ('Learning curves', sections.learning_curves),
  'metrics': ('Metrics', sections.metric_tables),
  'precision-recall': ('Precision and recall', sections.precision_recall),
  'false-discovery': ('False discovery', sections.false_discovery),
  'error-analysis': ('Error analysis', sections.error_analysis),
  'gallery': ('Gallery', sections.gallery),
  'evaluations': ('Evaluations', sections.evaluations),
  'config': ('Config', sections.config),
  'fingerprint': ('Fingerprint', sections.fingerprint),
}


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Writes `<workdir>/report.html`, whole or not at all, about the run's log and its newest evaluation with metrics.

  What the run does not have yet is said in its section.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: names the file of the run that is broken.
  """
  run = run_folder.read_run(workdir)
  path = run.folder / PAGE
  unfinished = path.with_name(path.name + '.tmp')
  unfinished.write_bytes(_page(run).encode(errors='replace'))  # file names may hold what is not Unicode
  return unfinished.replace(path)


def _page(run: run_folder.Run) -> str:
  here = pathlib.Path(__file__).parent
  template, style, script = ((here / f'page.{kind}').read_text(encoding='utf-8') for kind in ('html', 'css', 'js'))
  links = ''.join(f'<a href="#{name}">{title}</a>' for name, (title, _) in SECTIONS.items())
  body = ''.join(
    f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{make(run)}</section>\n'
    for name, (title, make) in SECTIONS.items()
  )
  now = datetime.datetime.now(datetime.UTC)
  return string.Template(template).substitute(
    title=html.escape(f'{run.name}: triplet_det run'),
    style=style,
    script=script,
    # No other script runs, should a name in the data ever get past html.escape.
    script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    header=sections.header(run),
    links=links,
    sections=body,
    version=triplet_det.__version__,
    now=f'{now:%Y-%m-%d %H:%M} UTC',
  )
