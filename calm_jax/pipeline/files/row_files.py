"""Rows of JSON on disk in the order of their input lines, resumable.

Rows come as batches are decoded, and those that must wait for an earlier line
lie meanwhile in a second file, so that a job that is killed has lost one batch
at most and an interrupted file ends up equal to an uninterrupted one. A third
says how the rows were made: those of another model or other options are
refused, as are rows of other inputs. Only one job at a time may write.

  predictions.jsonl            the rows so far, in order
  predictions.jsonl.about      how they are made
  predictions.jsonl.waiting    rows ahead of their turn; gone at the end
  predictions.jsonl.lock       which job writes; gone with it
"""

import collections
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self, TextIO

from calm_jax import records
from calm_jax.processes.file_locks import FileLock

Row = Mapping[str, Any]
# Bytes that the file of rows that wait may have, whatever waits.
_LARGE = 2**20


class RowFile:
  """Rows in the order of their lines, in a file or on a stream.

  Every row has the keys 'line', from 1, and 'inputs', the line's text. A
  context: what it holds open is let go of at its end, whatever that is.
  """

  def __init__(
    self,
    path: str | None,
    about: Mapping[str, Any],
    *,
    context: Any = None,
    stream: TextIO | None = None,
  ):
    """Opens a file, new or to go on with.

    Args:
      path: the file; None to write to `stream` and keep nothing.
      about: everything that rows depend on but their inputs.
      context: how they came about besides, not compared.
      stream: where rows go without a path.

    Raises:
      ValueError: if the file is not of this job, was made otherwise, cannot
        be read, or is being written by another job.
    """
    self._path = path
    self._said = {
      'made_with': records.to_jsonable(dict(about)),
      'context': context,
    }
    self._file = stream if path is None else None
    self._ahead: TextIO | None = None
    # What the line of each finished row said, by its number.
    self._inputs: dict[int, int] = {}
    self._written: set[int] = set()
    self._waiting: dict[int, str] = {}
    self._queue: collections.deque[int] = collections.deque()
    self._lock = None if path is None else FileLock(path, 'OUTPUT_FILE')
    try:
      if path is not None:
        self._check_made_alike(path)
        self._read(path)
    except BaseException:
      self._let_go()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error) -> None:
    self._let_go()

  def __contains__(self, line: int) -> bool:
    """Says whether a line's row is there."""
    return line in self._inputs

  def __len__(self) -> int:
    return len(self._inputs)

  def check(self, line: int, inputs: str) -> None:
    """Checks that the row of a line, if there is one, is of this input.

    Raises:
      ValueError: if it is of another.
    """
    if self._inputs.get(line, hash(inputs)) != hash(inputs):
      raise ValueError(
        f'{self._path} holds a row of another text for line {line}: it belongs '
        f'to another input. {self._remedy()}'
      )

  def check_last(self, line: int) -> None:
    """Checks that no row is of a later line than the last one there is.

    Raises:
      ValueError: if one is.
    """
    if self._inputs and max(self._inputs) > line:
      raise ValueError(
        f'{self._path} holds a row of line {max(self._inputs)}, and the input '
        f'ends with line {line}: it belongs to another input. {self._remedy()}'
      )

  def expect(self, line: int, inputs: str) -> None:
    """Says that the row of a line comes next, after those expected before.

    Raises:
      ValueError: as `check`.
    """
    self.check(line, inputs)
    if line not in self._written:
      self._queue.append(line)

  def add(self, rows: list[Row]) -> None:
    """Keeps the rows of a batch and writes those whose turn it is."""
    lines = {row['line']: self._to_line(row) for row in rows}
    for row in rows:
      self._inputs[row['line']] = hash(row['inputs'])
    self._waiting.update(lines)
    self._begin()
    if self._ahead is not None:
      self._ahead.write(''.join(lines.values()))
      self._ahead.flush()
    self._write()

  def finish(self) -> None:
    """Writes what is left and removes the file of rows that waited."""
    self._begin()
    self._write()
    if self._path is not None and not self._waiting:
      os.remove(f'{self._path}.waiting')

  def _to_line(self, row: Row) -> str:
    """Returns a row as JSON that the file's encoding can write."""
    encoding = getattr(self._file, 'encoding', None) or 'utf-8'
    text = json.dumps(
      records.to_jsonable(dict(row)),
      ensure_ascii=not encoding.lower().startswith('utf'),
      allow_nan=False,
    )
    return text + '\n'

  def _let_go(self) -> None:
    """Closes files and gives the lock back."""
    if self._ahead is not None:
      self._file.close()
      self._ahead.close()
    if self._lock is not None:
      self._lock.release()

  def _begin(self) -> None:
    """Makes the files, unless they are open; nothing is made before."""
    if self._file is not None:
      return
    path = self._path
    if not os.path.exists(f'{path}.about'):
      records.write_json(f'{path}.about', self._said)
    self._file = open(path, 'a', encoding='utf-8', newline='')
    self._ahead = open(f'{path}.waiting', 'a', encoding='utf-8', newline='')

  def _write(self) -> None:
    turn = []
    while self._queue and self._queue[0] in self._waiting:
      line = self._queue.popleft()
      turn.append(self._waiting.pop(line))
      self._written.add(line)
    self._file.write(''.join(turn))
    self._file.flush()
    if self._ahead is not None:
      self._shorten()

  def _shorten(self) -> None:
    """Keeps the file of rows that wait from growing with those that did."""
    if not self._waiting:
      self._ahead.seek(0)
      self._ahead.truncate()
      return
    # A character has up to 4 bytes: then half of the file at least is of use.
    useful = 8 * sum(map(len, self._waiting.values()))
    if self._ahead.tell() <= max(_LARGE, useful):
      return
    self._ahead.close()
    path = f'{self._path}.waiting'
    records.write_text(path, ''.join(self._waiting.values()))
    self._ahead = open(path, 'a', encoding='utf-8', newline='')

  def _read(self, path: str) -> None:
    """Reads the rows that are there, written and waiting."""
    for row, _ in _whole_rows(path):
      self._inputs[row['line']] = hash(row['inputs'])
    self._written = set(self._inputs)
    for row, text in _whole_rows(f'{path}.waiting'):
      if row['line'] not in self._written:
        self._inputs[row['line']] = hash(row['inputs'])
        self._waiting[row['line']] = text

  def _check_made_alike(self, path: str) -> None:
    """Refuses a file that is there and was made otherwise."""
    if not os.path.exists(f'{path}.about'):
      if os.path.exists(path):
        raise ValueError(
          f'{path} exists, and without {path}.about nobody knows what made it. '
          'Name another OUTPUT_FILE'
        )
      return
    here = self._said['made_with']
    about = records.read_json(f'{path}.about')
    there = about.get('made_with') if isinstance(about, dict) else None
    if not isinstance(there, dict):
      raise ValueError(
        f'{path}.about does not say how {path} was made: it was altered. '
        + self._remedy()
      )
    differing = [
      f'{name} {there.get(name)!r} there, {here.get(name)!r} here'
      for name in sorted({*there, *here})
      if there.get(name) != here.get(name)
    ]
    if differing:
      raise ValueError(
        f'{path} was made otherwise: {"; ".join(differing)}. {self._remedy()}'
      )

  def _remedy(self) -> str:
    return (
      'Name another OUTPUT_FILE, or delete this one with its .about and '
      '.waiting'
    )


def _whole_rows(path: str) -> Iterator[tuple[dict, str]]:
  """Yields the rows of a file with their text, cutting off half a last one.

  Raises:
    ValueError: if another line of it is no row.
  """
  if not os.path.exists(path):
    return
  with open(path, 'rb+') as file:
    whole = 0
    for number, line in enumerate(file, 1):
      if not line.endswith(b'\n'):
        file.truncate(whole)
        return
      whole += len(line)
      try:
        row = json.loads(line)
        row['line'] + 0, row['inputs'] + ''
      except (ValueError, KeyError, TypeError):
        raise ValueError(
          f'{path} line {number} is no row of this job: it was altered. Delete '
          'it, and what it held is decoded again'
        ) from None
      yield row, line.decode('utf-8')
