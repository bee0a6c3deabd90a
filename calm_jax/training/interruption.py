"""Ctrl-C and SIGTERM as a wish to stop, granted between two training steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from calm_jax.processes import collectives


class Interrupted(BaseException):
  """Raised inside `StopSignals.at_once` by the first signal."""


class StopSignals:
  """A context that turns the first SIGINT or SIGTERM into a flag.

  A second signal does what it would have done outside, so that an impatient
  user gets out. Signals can only be caught in the main thread; elsewhere the
  context does nothing.

  Attributes:
    received: the number of the first signal, or None.
  """

  def __init__(self):
    self.received: int | None = None
    self._raise = False
    self._previous: dict[int, object] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *error):
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def _handle(self, number, frame) -> None:
    del frame
    self.received = number
    self._restore()
    if self._raise:
      raise Interrupted

  def learn(self) -> None:
    """Takes a signal that another process of the run got as one of its own.

    All processes call it at the same step.
    """
    if collectives.any_process(self.received is not None):
      self.received = self.received or signal.SIGTERM

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Within it, a signal interrupts whatever is running; one before, at once.

    Not with several processes: the others would wait for this one for ever.
    """
    self._raise = jax.process_count() == 1
    try:
      if self._raise and self.received is not None:
        raise Interrupted
      yield
    finally:
      self._raise = False

  def exit_as_asked(self) -> None:
    """Raises what the signal stands for: KeyboardInterrupt or exit 143."""
    if self.received == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + self.received)
