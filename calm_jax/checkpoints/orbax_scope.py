"""The context in which Orbax is called: quiet, also when something fails.

Orbax logs through absl at every level, from its background threads too, and
what matters it raises as well. And it runs every save and load in an event loop
of its own that it closes at the first error, while other reads and writes are
still under way: when those end, each prints a traceback about the closed loop.
Here a loop lets its tasks end before it is closed.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
  """Within it, Orbax logs nothing below CRITICAL; several may overlap.

  Other users of absl's logger are left alone.
  """
  logger = logging.getLogger('absl')

  # A new object each time, because a logger holds a filter only once.
  def is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or 'orbax' not in record.pathname

  logger.addFilter(is_wanted)
  try:
    with _PATIENT_LOOPS:
      yield
  finally:
    logger.removeFilter(is_wanted)


class _PatientLoop(asyncio.SelectorEventLoop):
  """An event loop whose tasks end before it is closed."""

  def close(self):
    """Closes the loop after whatever runs in it."""
    if not self.is_closed() and not self.is_running():
      while tasks := asyncio.all_tasks(self):
        self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
  """Gives out patient loops."""

  def new_event_loop(self):
    """Returns a new loop."""
    return _PatientLoop()


class _PatientLoops:
  """A context with the policy above, in all threads; several may overlap."""

  def __init__(self):
    self._lock = threading.Lock()
    self._users = 0
    self._before: asyncio.AbstractEventLoopPolicy | None = None

  def __enter__(self):
    with self._lock:
      if self._users == 0:
        self._before = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(_PatientPolicy())
      self._users += 1

  def __exit__(self, *error):
    with self._lock:
      self._users -= 1
      if self._users == 0:
        asyncio.set_event_loop_policy(self._before)


_PATIENT_LOOPS = _PatientLoops()
