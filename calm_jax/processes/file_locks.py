"""Locks that keep two jobs from writing one file.

The kernel holds them for as long as the job lives, so that a killed one leaves
none behind, whatever files it leaves. The `filelock` package does not serve: it
does not say who holds a lock, leaves its file behind, and fails on file systems
that know no locks (ENOLCK, ENOTSUP), where jobs here go on.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import TextIO

# Of file systems that know no locks; jobs there have to keep apart themselves.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def held_by_job(path: str, option: str) -> Iterator[None]:
  """Keeps other jobs from a file; of several processes the first one does.

  The arguments, and what is raised, are those of `FileLock`.
  """
  # Some jobs that lock files do without JAX.
  from calm_jax.processes import collectives

  if not collectives.is_main_process():
    yield
    return
  lock = FileLock(path, option)
  try:
    yield
  finally:
    lock.release()


class FileLock:
  """The lock of a file, held from construction to `release`.

  It is on `<path>.lock`, which says who holds it and goes with it.
  """

  def __init__(self, path: str, option: str = 'OUTPUT_FILE'):
    """Takes the lock.

    Args:
      path: the file that is to be written.
      option: what names another place to write to.

    Raises:
      ValueError: if another job holds it, or nothing can be written there.
    """
    self._path = f'{path}.lock'
    self._option = option
    folder = os.path.dirname(os.path.abspath(path))
    try:
      os.makedirs(folder, exist_ok=True)
      file = self._open()
      # Whoever held it may have removed the file while it was opened here.
      while not self._is_current(file):
        file.close()
        file = self._open()
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
      raise ValueError(f'{path} cannot be written: {error}') from None
    self._file = file
    file.seek(0)
    file.truncate()
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()

  def release(self) -> None:
    """Gives the lock back; again is no harm."""
    if self._file.closed:
      return
    if self._is_current(self._file):
      os.remove(self._path)
    self._file.close()

  def _open(self) -> TextIO:
    """Returns the file of the lock, locked."""
    file = open(self._path, 'a+', encoding='utf-8')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or 'another process'
      file.close()
      raise ValueError(
        f'{self._path.removesuffix(".lock")} is being written by {holder}: '
        f'wait for it or end it, or name another {self._option}'
      ) from None
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
    return file

  def _is_current(self, file: TextIO) -> bool:
    """Says whether an open file is still the one that has the lock's name."""
    try:
      return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
    except FileNotFoundError:
      return False
