"""How every main is run: by absl, and ended in words whatever its streams are.

A reader of the output that leaves early (`| head`) is no error of the job, and
a traceback would say that it were. A full disk behind standard output, or none
at all, ends in one line; a terminal that knows only ASCII is no error either.
"""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

# As the shell reports what a closed pipe ended.
_BROKEN_PIPE = 141
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[..., Any], **options: Any) -> None:
  """Parses flags, calls `main` and exits.

  Args:
    main: called with what is left of the arguments.
    **options: of `absl.app.run`.
  """
  _open_streams()
  try:
    try:
      app.run(main, **options)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    if not _reader_is_gone():
      raise
    _discard_output()
    sys.exit(_BROKEN_PIPE)
  except OSError as error:
    # Other errors are the job's to tell.
    if not _is_full(error):
      raise
    _discard_output()
    sys.exit(f'standard output cannot be written: {error.strerror}')


@contextlib.contextmanager
def in_one_line(job: str) -> Iterator[None]:
  """Tells what a user can do something about in one line, and exits.

  Args:
    job: what the line begins with.
  """
  try:
    yield
  except BrokenPipeError:
    raise
  except (OSError, ValueError) as error:
    raise SystemExit(f'{job}: {error}') from None


def path(flag: flags.FlagHolder) -> Any:
  """Returns the path that a flag gives, `~` expanded, or None.

  No shell expands it in `--flag=~/folder`.
  """
  value = flag.value
  if isinstance(value, list):
    return [os.path.expanduser(one) for one in value]
  return value and os.path.expanduser(value)


def _open_streams() -> None:
  """Makes sure that the three streams are there, and take any character.

  Raises:
    SystemExit: if standard output is closed.
  """
  # Python has None for one that is closed.
  if sys.stderr is None:
    sys.stderr = open(os.devnull, 'w', encoding='utf-8')
  if sys.stdin is None:
    sys.stdin = open(os.devnull, encoding='utf-8')
  if sys.stdout is None:
    sys.exit(
      'standard output is closed; redirect it to a file, or to /dev/null'
    )
  reconfigure = getattr(sys.stdout, 'reconfigure', None)
  if reconfigure is not None:
    # A stream that was exchanged under Python's feet stays as it is.
    with contextlib.suppress(OSError):
      reconfigure(errors='backslashreplace')


def _is_full(error: OSError) -> bool:
  """Says whether it is standard output that has no room; files have names."""
  return error.errno in _NO_ROOM and error.filename is None


def _discard_output() -> None:
  # What is still to be written would fail once more when Python ends.
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
  """Says whether standard output is a pipe that nobody reads any more."""
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))
