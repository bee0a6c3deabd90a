"""Whether a directory can be written to, and is the same one everywhere.

Every process leaves a mark in the directory, or, if it is not there yet, in the
nearest folder above that is; process 0 looks for all of them. Marks are taken
away again, and nothing else is made.
"""

import os
import pathlib
import time
import uuid
from collections.abc import Sequence

from calm_jax.processes.meeting.reports import Report

# Network file systems may show a new file only after a while.
_PATIENCE_SECONDS = 10.0


class Mark:
  """A file that shows others where this process writes."""

  def __init__(self, directory: str | os.PathLike):
    """Leaves the mark.

    Raises:
      ValueError: if nothing can be written there, naming the directory.
    """
    self.directory = os.path.abspath(directory)
    self.name = f'.calm_jax_{uuid.uuid4().hex}'
    self._path = _nearest_folder(self.directory) / self.name
    try:
      self._path.touch(exist_ok=False)
    except OSError as error:
      raise ValueError(
        f'cannot write to {self.directory} ({error.strerror}): choose another '
        'directory, or mend its permissions or its mount'
      ) from None

  def remove(self) -> None:
    """Takes the mark away."""
    self._path.unlink(missing_ok=True)


def not_shared(
  reports: Sequence[Report], *, patience_seconds: float = _PATIENCE_SECONDS
) -> list[str]:
  """Returns a line per directory that is not the same one everywhere.

  Args:
    reports: of all processes, that of this one first.
    patience_seconds: how long to look again for marks that are not there.
  """
  lines = []
  for purpose, (directory, _) in reports[0].marks.items():
    elsewhere = {
      report.marks[purpose][1]: f'{report} ({report.marks[purpose][0]})'
      for report in reports
      if purpose in report.marks
    }
    if missing := _unseen(directory, set(elsewhere), patience_seconds):
      them = ', '.join(sorted(elsewhere[name] for name in missing))
      lines.append(
        f'{purpose} is not shared: what {them} wrote is not to be seen in '
        f'{directory} on {reports[0].host}; give a directory on a file system '
        'that all hosts mount'
      )
  return lines


def _unseen(directory: str, names: set[str], patience_seconds: float):
  """Returns those marks that do not turn up in a directory."""
  folder = _nearest_folder(directory)
  deadline = time.monotonic() + patience_seconds
  # Listing, unlike asking for one name, makes a file system look anew.
  while missing := names - set(os.listdir(folder)):
    if time.monotonic() >= deadline:
      return missing
    time.sleep(0.2)
  return set()


def _nearest_folder(directory: str) -> pathlib.Path:
  """Returns the directory, or the nearest thing above it that exists."""
  path = pathlib.Path(directory)
  while not os.path.lexists(path):
    path = path.parent
  return path
