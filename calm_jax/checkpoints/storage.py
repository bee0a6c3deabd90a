"""Folders that checkpoints are read from, local or in a cloud, by one path.

Everything goes through tensorstore's key-value stores, so that `gs://` works
wherever a local path does. A checkpoint names its own files (in an index, in
specifications of arrays); such a name is used only if it is a relative path
inside the checkpoint. Links of the file system are followed: Hugging Face's
cache is made of them.
"""

import dataclasses
import functools
import os
import posixpath
import socket
import urllib.parse
import urllib.request
from typing import Any, Self

import tensorstore as ts

# How long whoever holds buckets may take to answer the telephone, and then for
# a read. tensorstore itself tries again for many minutes, and while it looks
# for credentials no other thread of Python runs.
_CONNECT_SECONDS = 20.0
_ANSWER_SECONDS = 600.0
_GOOGLE = 'https://storage.googleapis.com'


def is_url(path: str | os.PathLike) -> bool:
  """Whether a path is a URL like 'gs://bucket/folder'."""
  return '://' in os.fspath(path)


@functools.cache
def _check_reachable(address: str) -> None:
  """Raises ConnectionError unless something listens at a URL's host."""
  proxies = urllib.request.getproxies()
  scheme = urllib.parse.urlsplit(address).scheme
  parts = urllib.parse.urlsplit(proxies.get(scheme, address))
  port = parts.port or (443 if parts.scheme == 'https' else 80)
  try:
    socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
  except OSError as error:
    raise ConnectionError(
      f'no way to {parts.hostname} ({error}): gs:// needs a network. Copy the '
      'folder to this machine (gcloud storage cp --recursive) and name the copy'
    ) from None


def wait_for(path: str, future: Any) -> Any:
  """Returns what a read gives.

  Args:
    path: what is read; local ones are waited for however long they take.
    future: tensorstore's.

  Raises:
    TimeoutError: if a bucket does not answer, saying what to do.
  """
  if not is_url(path):
    return future.result()
  try:
    return future.result(timeout=_ANSWER_SECONDS)
  except TimeoutError:
    future.cancel()
    raise TimeoutError(
      f'{path} has not answered for {_ANSWER_SECONDS:g} s. May you read it '
      '(gcloud auth application-default login)? Else copy the folder (gcloud '
      'storage cp --recursive) and name the copy'
    ) from None


def checked_name(path: str, name: str) -> str:
  """Returns a name found in the checkpoint `path`, if it stays inside it.

  Raises:
    ValueError: if it is absolute, a URL, or leads out of the folder.
  """
  plain = name.rstrip('/')
  parts = plain.replace('\\', '/').split('/')
  leaves = not plain or plain.startswith('/') or ':' in parts[0]
  if leaves or '..' in parts or '\0' in plain:
    raise ValueError(
      f'{path} refers to {name!r}, which is not a path inside the checkpoint: '
      'nothing outside it is opened. The files were altered; get them again'
    )
  return posixpath.normpath(plain)


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder with its reader.

  Attributes:
    path: as given, without a slash at its end; local ones are absolute.
    store: the key-value store of what is in it.
  """

  path: str
  store: ts.KvStore

  @classmethod
  def open(cls, path: str | os.PathLike) -> Self:
    """Opens a folder; nothing is read yet.

    Raises:
      ValueError: for a URL that tensorstore does not know.
      ConnectionError: if no network leads to it.
    """
    path = os.path.expanduser(path).rstrip('/')
    if not is_url(path):
      path = os.path.abspath(path)
      spec: Any = {'driver': 'file', 'path': path.rstrip('/') + '/'}
    else:
      spec = path + '/'
      if path.startswith('gs://'):
        _check_reachable(os.environ.get('TENSORSTORE_GCS_HTTP_URL', _GOOGLE))
    try:
      return cls(path, wait_for(path, ts.KvStore.open(spec)))
    except ValueError as error:
      raise ValueError(
        f'cannot open {path}: {first_line(error)}; give a local path or '
        'gs://bucket/folder'
      ) from error

  def inside(self, name: str) -> Self:
    """Returns a folder in this one."""
    return Folder.open(f'{self.path}/{checked_name(self.path, name)}')

  def read(
    self, name: str, start: int | None = None, stop: int | None = None
  ) -> bytes:
    """Returns a file's bytes, all or those from `start` to `stop`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is shorter than `stop`, or cannot be read.
    """
    name = checked_name(self.path, name)
    part = None if start is stop is None else slice(start, stop)
    try:
      result = wait_for(self.path, self.store.read(name, byte_range=part))
    except TimeoutError:
      raise
    except Exception as error:
      cut = 'OUT_OF_RANGE' in str(error)
      why = 'it is shorter than it says' if cut else first_line(error)
      raise ValueError(
        f'{self.path}/{name} cannot be read: {why}. Get it again'
      ) from error
    if result.state != 'value':
      raise FileNotFoundError(f'there is no {name} in {self.path}')
    return result.value

  def has(self, name: str) -> bool:
    """Whether there is a file of this name."""
    try:
      # One byte, as some of them are gigabytes long.
      self.read(name, 0, 1)
    except FileNotFoundError:
      return False
    except ValueError:
      return True
    return True

  def names(self, limit: int = 100_000) -> list[str]:
    """Returns what is in the folder, names of subfolders with a slash."""
    if is_url(self.path):
      found = wait_for(self.path, self.store.list())[:limit]
      keys = [key.decode('utf-8', 'replace') for key in found]
      return sorted(
        {key.partition('/')[0] + ('/' if '/' in key else '') for key in keys}
      )
    if not os.path.isdir(self.path):
      return []
    return sorted(
      entry.name + ('/' if entry.is_dir() else '')
      for entry in os.scandir(self.path)
    )

  def location(self, name: str) -> dict[str, Any]:
    """Returns the key-value store of a subfolder, for tensorstore's drivers."""
    spec = self.store.spec().to_json()
    spec['path'] += checked_name(self.path, name) + '/'
    return spec


def first_line(error: BaseException) -> str:
  """Returns what an error says, on one line of at most 300 characters."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:300]
