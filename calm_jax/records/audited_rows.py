"""Audits in the rows that `generate` writes, each read once.

A file of rows grows while its job runs, and is read on where it was read to: a
digest of what was read says whether it is still the same file.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

from calm_jax.records.json_files import from_jsonable
from calm_jax.records.monitoring import Audit, ReadRows

# What a row has its audit under.
AUDITED = 'audited'
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewRows:
  """The rows of a file that were not read before.

  Attributes:
    rows: how many.
    audits: those of them that were audited, by their place from 0.
    read: what was read of the file by now.
    is_cut: whether a last line without its end was left for the next time.
  """

  rows: int
  audits: Mapping[int, Audit]
  read: ReadRows
  is_cut: bool


def read_new_rows(
  path: str | os.PathLike, before: Sequence[ReadRows] = ()
) -> NewRows:
  """Reads on in a file of rows.

  Args:
    path: the file.
    before: what was read of this file and of others.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if what was read of it is no longer there, if it is another
      file's copy, or if a line is no row, naming it.
  """
  path = os.path.abspath(os.path.expanduser(path))
  if os.path.isdir(path):
    raise ValueError(f'{path} is a folder; name a file of rows in it')
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there are no rows {path}; calm_jax.cli.generate writes them'
    )
  start, hasher = _start(path, before)
  rows, size, is_cut = 0, start.size, False
  audits = {}
  with open(path, 'rb') as file:
    file.seek(start.size)
    for line in file:
      if not line.endswith(b'\n'):
        is_cut = True
        break
      audit = _audit(line, f'{path} line {start.rows + rows + 1}')
      if audit is not None:
        audits[rows] = audit
      rows += 1
      size += len(line)
      hasher.update(line)
  read = ReadRows(
    path=path, rows=start.rows + rows, size=size, digest=_digest(hasher)
  )
  return NewRows(rows=rows, audits=audits, read=read, is_cut=is_cut)


def _start(path: str, before: Sequence[ReadRows]) -> tuple[ReadRows, Any]:
  """Returns what was read of a file, and the hash of it to go on with.

  Raises:
    ValueError: if that is no longer there, or it is another file's copy.
  """
  own = _whole_size(path)
  hashes = _hashes(path, {0, own, *(one.size for one in before)})
  start = ReadRows(path=path, rows=0, size=0, digest=_digest(hashes[0]))
  for one in before:
    same = one.size in hashes and _digest(hashes[one.size]) == one.digest
    if one.path == path and not same:
      raise ValueError(
        f'{path} no longer begins with the {one.rows} rows that were read of '
        'it: it was made anew or altered. Give rows of another job a name of '
        'their own'
      )
    if one.path == path:
      start = one
    elif same and one.rows:
      raise ValueError(
        f'{path} begins with the {one.rows} rows that were read of '
        f'{one.path}, and a request counts once: leave it out'
      )
    elif 0 < own < one.size and _begins_with(one.path, hashes[own], own):
      raise ValueError(
        f'{path} is the beginning of {one.path}, of which {one.rows} rows were '
        'read, and a request counts once: leave it out'
      )
  return start, hashes[start.size]


def _whole_size(path: str) -> int:
  """Returns the bytes of a file up to the end of its last whole line."""
  with open(path, 'rb') as file:
    place = file.seek(0, os.SEEK_END)
    while place:
      start = max(0, place - _CHUNK)
      file.seek(start)
      found = file.read(place - start).rfind(b'\n')
      if found >= 0:
        return start + found + 1
      place = start
  return 0


def _begins_with(path: str, hasher: Any, size: int) -> bool:
  """Whether a file, if it is still there, begins with what was hashed."""
  if not os.path.exists(path):
    return False
  found = _hashes(path, {size}).get(size)
  return found is not None and _digest(found) == _digest(hasher)


def _hashes(path: str, sizes: Set[int]) -> dict[int, Any]:
  """Returns the hash of the first bytes of a file, for every size it has."""
  found, hasher, place = {}, hashlib.sha256(), 0
  with open(path, 'rb') as file:
    for size in sorted(sizes):
      while place < size and (chunk := file.read(min(_CHUNK, size - place))):
        hasher.update(chunk)
        place += len(chunk)
      if place == size:
        found[size] = hasher.copy()
  return found


def _audit(line: bytes, where: str) -> Audit | None:
  """Returns the audit of a row, None if it has none."""
  try:
    row = json.loads(line)
    row['line'] + 0, row['inputs'] + ''
  except (ValueError, KeyError, TypeError, RecursionError):
    raise ValueError(
      f'{where} is no row that calm_jax.cli.generate writes'
    ) from None
  found = row.get(AUDITED)
  if found is None:
    return None
  audit = from_jsonable(Audit, found, where=f'{where}: {AUDITED}')
  if isinstance(found.get('value'), bool) or not math.isfinite(audit.value):
    raise ValueError(f'{where} has a loss of {found.get("value")!r}: no number')
  return audit


def _digest(hasher: Any) -> str:
  return f'sha256:{hasher.hexdigest()}'
