"""Rows of JSON on disk in the order of their input lines, resumable.

Rows come as batches are decoded, and those that must wait for an earlier line
lie meanwhile in a second file, so that a job that is killed has lost one batch
at most and an interrupted file ends up equal to an uninterrupted one. A third
says how the rows were made: those of another model or other options are
refused, as are rows of other inputs.

  predictions.jsonl            the rows so far, in order
  predictions.jsonl.about      how they are made
  predictions.jsonl.waiting    rows ahead of their turn; gone at the end
"""

import collections
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from calm_jax import records

Row = Mapping[str, Any]


class RowFile:
  """Rows in the order of their lines, in a file or on a stream.

  Every row has the keys 'line', from 1, and 'inputs', the line's text.
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
      ValueError: if the file is not of this job, was made otherwise, or cannot
        be read.
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
    if path is not None:
      self._check_made_alike(path)
      self._read(path)

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
    lines = {row['line']: _to_line(row) for row in rows}
    for row in rows:
      self._inputs[row['line']] = hash(row['inputs'])
    self._waiting.update(lines)
    self._begin()
    if self._ahead is not None:
      self._ahead.write(''.join(lines.values()))
      self._ahead.flush()
    self._write()

  def close(self) -> None:
    """Writes what is left and removes the file of rows that waited."""
    self._begin()
    self._write()
    if self._path is not None:
      self._file.close()
      self._ahead.close()
      if not self._waiting:
        os.remove(f'{self._path}.waiting')

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
    if self._ahead is not None and not self._waiting:
      self._ahead.seek(0)
      self._ahead.truncate()

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
          + self._remedy()
        )
      return
    here = self._said['made_with']
    there = records.read_json(f'{path}.about').get('made_with', {})
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


def _to_line(row: Row) -> str:
  text = json.dumps(
    records.to_jsonable(dict(row)), ensure_ascii=False, allow_nan=False
  )
  return text + '\n'


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
