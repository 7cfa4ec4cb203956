"""What libraries tell of a failed read or save beside the error that they raise."""

import logging
import sys
import threading

import pytest

from triplet_det.run import endings


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
  for name in ('excepthook', 'unraisablehook'):
    monkeypatch.setattr(sys, name, getattr(sys, name))
  level = logging.getLogger('asyncio').level
  yield
  logging.getLogger('asyncio').setLevel(level)


def test_only_closed_event_loops_are_kept_quiet(monkeypatch):
  told = []
  monkeypatch.setattr(sys, 'excepthook', lambda *what: told.append(what[1]))
  monkeypatch.setattr(sys, 'unraisablehook', lambda what: told.append(what.exc_value))
  endings.say_it_once()
  errors = [RuntimeError('Event loop is closed'), RuntimeError('another'), ValueError('Event loop is closed')]
  for error in errors:
    sys.excepthook(type(error), error, None)
  assert told == errors[1:]
  for error in errors:
    sys.unraisablehook(threading.ExceptHookArgs((type(error), error, None, None)))
  assert told == errors[1:] * 2
  assert not logging.getLogger('asyncio').isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
  'text', ['OUT_OF_RANGE: File too large [os_error_code=27]', 'No space left on device', 'Disk quota exceeded']
)
def test_a_full_disk_is_known_by_the_text_of_libraries(text):
  assert endings.disk_is_full(ValueError(text))
  assert not endings.disk_is_full(ValueError('another'))
