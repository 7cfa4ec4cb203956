"""One HTML page per run: learning curves, metrics, pictures; a single file that needs no network.

`write_report` reads only files of the run folder (`run_folder`), computes what the sections show (`sections`,
`gallery`) and fills the templates, which hold all HTML. jinja2 and matplotlib are imported by it, not with this room.
"""

import base64
import datetime
import hashlib
import pathlib
import shlex

from etils import epath

import triplet_det
from triplet_det.pictures import plots
from triplet_det.report import run_folder, sections
from triplet_det.run import output_paths

PAGE = 'report.html'


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Writes `<workdir>/report.html`, whole or not at all, about the run's log and its newest evaluation with metrics.

  What the run does not have yet is said in its section.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: names the file of the run that is broken, or the link that is not followed.
  """
  run = run_folder.read_run(workdir)
  path = run.folder / PAGE
  output_paths.write_whole(path, _page(run).encode(errors='replace'))  # file names may hold what is not Unicode
  return path


def _page(run: run_folder.Run) -> str:
  import jinja2

  here = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(here / 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.policies['json.dumps_kwargs'] = {'separators': (',', ':')}
  environment.globals |= {'plots': plots, 'draw': plots.SvgCharts().draw}
  style, script = ((here / f'page.{kind}').read_text(encoding='utf-8') for kind in ('css', 'js'))
  return environment.get_template('page.html').render(
    run=run,
    **sections.values(run),
    folder_in_shell=shlex.quote(str(run.folder)),
    style=style,
    script=script,
    script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    version=triplet_det.__version__,
    now=f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
  )
