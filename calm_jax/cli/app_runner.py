"""How every main is run: by absl, and ended quietly by `| head`.

A reader of the output that leaves early is no error of the job, and a traceback
would say that it were.
"""

import os
import select
import sys
from collections.abc import Callable
from typing import Any

from absl import app

# As the shell reports what a closed pipe ended.
_BROKEN_PIPE = 141


def run(main: Callable[..., Any], **options: Any) -> None:
  """Parses flags, calls `main` and exits.

  Args:
    main: called with what is left of the arguments.
    **options: of `absl.app.run`.
  """
  try:
    try:
      app.run(main, **options)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    if not _reader_is_gone():
      raise
    # What is still to be written would fail once more when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_BROKEN_PIPE)


def _reader_is_gone() -> bool:
  """Says whether standard output is a pipe that nobody reads any more."""
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))
