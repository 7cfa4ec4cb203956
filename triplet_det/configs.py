"""The pages of configs/, wherever the package is: `from triplet_det.configs import triplet`, `--config triplet`.

They lie at the top of the repository; a wheel has them inside the package (setup.py).
"""

import difflib
from pathlib import Path

_INSTALLED, _CHECKOUT = Path(__file__).parent / 'config_pages', Path(__file__).parent.parent / 'configs'
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
__path__ = [str(FOLDER)]  # makes this module the package of the pages


def find(page: str) -> str:
  """'triplet:hg=104' -> 'FOLDER/triplet.py:hg=104'; the path of a file, such as `mine.py:small`, stays as it is.

  Raises:
    ValueError: there is no such page; names the nearest, and all.
  """
  name, colon, variant = page.partition(':')
  if name.endswith('.py') or '/' in name or Path(name).is_file():
    return page
  known = sorted(path.stem for path in FOLDER.glob('*.py'))
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise ValueError(f'no config page {name!r}{hint} Pages: {", ".join(known)}; or give the path of a file, mine.py')
  return f'{FOLDER / name}.py{colon}{variant}'
