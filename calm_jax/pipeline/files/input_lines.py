"""Input lines of `generate`: plain text or JSON objects, the bad ones named.

How lines are read is said in `text_lines`; here they become texts. Blank lines
of JSONL hold nothing and are passed over; blank lines of text are bad.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from calm_jax import text_lines
from calm_jax.text_lines import BadLine, TextLine

STANDARD_INPUT = '-'
FORMATS = ('auto', 'text', 'jsonl')
_TEXT_KEYS = ('inputs', 'text')
# Endings of names that say what is in a file.
_JSON_ENDINGS = ('.jsonl', '.ndjson', '.json')
_TABLE_ENDINGS = ('.tsv', '.csv', '.psv')


@dataclasses.dataclass(frozen=True)
class InputLine:
  """A line with a text.

  Attributes:
    number: of the line, from 1.
    text: what is to be decoded.
    fields: what else a JSON object held.
  """

  number: int
  text: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_format(input_format: str) -> None:
  """Raises ValueError unless it is one of `FORMATS`."""
  if input_format not in FORMATS:
    raise ValueError(f'input_format is {input_format!r}; use one of {FORMATS}')


def read_file(
  path: str, input_format: str = 'auto'
) -> Iterator[InputLine | BadLine]:
  """Yields the lines of a file, or of standard input if `path` is '-'.

  Args:
    path: the file.
    input_format: 'text', 'jsonl' or 'auto': by the end of the file's name, or,
      where that says nothing, JSON if the first line is an object with a text.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is a folder or a damaged gzip file, or one of columns
      that is to be read as it comes.
  """
  check_format(input_format)
  if input_format == 'auto':
    input_format = _format_of(path)
  if path == STANDARD_INPUT:
    yield from read_lines(sys.stdin.buffer, input_format)
    return
  with text_lines.opened(path) as file:
    yield from read_lines(file, input_format)


def _format_of(path: str) -> str:
  """Returns the format that a file's name says; raises ValueError."""
  name = path.removesuffix('.gz').lower()
  if name.endswith(_TABLE_ENDINGS):
    raise ValueError(
      f'{path} has columns by its name, and texts are read one a line: give '
      'JSON objects {"inputs": "..."}, or say INPUT_FORMAT=text to decode '
      'whole lines'
    )
  if name.endswith(_JSON_ENDINGS):
    return 'jsonl'
  return 'text' if name.endswith('.txt') else 'auto'


def read_lines(
  lines: Iterable[bytes], input_format: str = 'auto'
) -> Iterator[InputLine | BadLine]:
  """Yields what the lines of a file hold; see `read_file`."""
  for line in text_lines.decoded(lines):
    if isinstance(line, BadLine):
      yield line
      continue
    blank = not line.text.strip()
    if input_format == 'auto' and not blank:
      input_format, refusal = _guessed(line)
      if refusal is not None:
        yield refusal
        continue
    if input_format == 'jsonl':
      if not blank:
        yield _parse_json(line)
    elif blank:
      yield BadLine(line.number, 'is empty')
    else:
      yield InputLine(line.number, line.text)


def _guessed(line: TextLine) -> tuple[str, BadLine | None]:
  """Returns the format of a file by its first line, or why there is none."""
  row = text_lines.parse_object(line)
  if isinstance(row, dict):
    parsed = _parse_json(line)
    if isinstance(parsed, InputLine):
      return 'jsonl', None
    reason = parsed.reason
  elif row.reason.startswith('is JSON') and line.text.lstrip()[0] in '[{':
    reason = row.reason
  else:
    return 'text', None
  return 'text', BadLine(
    line.number,
    f'{reason}; if the file is plain text, say INPUT_FORMAT=text',
  )


def _parse_json(line: TextLine) -> InputLine | BadLine:
  row = text_lines.parse_object(line)
  if isinstance(row, BadLine):
    return row
  key = next((key for key in _TEXT_KEYS if key in row), None)
  if key is None or not isinstance(row[key], str):
    there = ', '.join(map(repr, list(row)[:8]))
    return BadLine(
      line.number,
      f'has no text under "inputs" or "text"{there and f"; it has {there}"}',
    )
  if not row[key].strip():
    return BadLine(line.number, 'is empty')
  fields = {name: value for name, value in row.items() if name != key}
  return InputLine(line.number, row[key], fields)
