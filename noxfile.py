"""The tests on every supported Python that is installed: `pip install nox`, `nox`; `nox -- tests/models` for a part."""

import nox

nox.options.error_on_missing_interpreters = False


@nox.session(python=['3.11', '3.12', '3.13'])
def tests(session: nox.Session) -> None:
  """In an environment of its own, with the newest versions that this Python gets."""
  session.install('-e', '.[test]')
  session.run('python', '-m', 'pip', 'list')
  session.run('python', '-m', 'pytest', '-q', '-n', '2', '--dist', 'loadfile', *session.posargs)
