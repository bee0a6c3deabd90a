"""Input lines of `generate`: plain text or JSON objects, the bad ones named.

A line is whatever ends in a newline (LF or CRLF) of a UTF-8 file, plain or
gzip'd, or of standard input. A line that cannot be used does not stop the
reading: it comes out as a `BadLine` that says why.
"""

import contextlib
import dataclasses
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

STANDARD_INPUT = '-'
FORMATS = ('auto', 'text', 'jsonl')
_TEXT_KEYS = ('inputs', 'text')
_GZIP_MAGIC = b'\x1f\x8b'
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'


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


@dataclasses.dataclass(frozen=True)
class BadLine:
  """A line that cannot be used.

  Attributes:
    number: of the line, from 1.
    reason: why not, as in 'line 3 {reason}'.
  """

  number: int
  reason: str


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
    ValueError: if it is a folder or a damaged gzip file.
  """
  check_format(input_format)
  name = path.removesuffix('.gz')
  if input_format == 'auto' and name.endswith(('.jsonl', '.txt')):
    input_format = 'jsonl' if name.endswith('.jsonl') else 'text'
  try:
    with _open(path) as file:
      yield from read_lines(file, input_format)
  except IsADirectoryError:
    raise ValueError(f'{path} is a folder; name a file in it') from None
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{path} is a damaged or truncated gzip file ({error}). Copy it again.'
    ) from None


def read_lines(
  lines: Iterable[bytes], input_format: str = 'auto'
) -> Iterator[InputLine | BadLine]:
  """Yields what the lines of a file hold; see `read_file`."""
  for number, line in enumerate(lines, 1):
    if number == 1:
      line = line.removeprefix(_BYTE_ORDER_MARK)
    line = line.removesuffix(b'\n').removesuffix(b'\r')
    if input_format == 'auto':
      found = isinstance(_parse_json(number, line), InputLine)
      input_format = 'jsonl' if found else 'text'
    parse = _parse_json if input_format == 'jsonl' else _parse_text
    yield parse(number, line)


@contextlib.contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
  """Opens a file, unpacking it if it is gzip'd by its content."""
  if path == STANDARD_INPUT:
    yield sys.stdin.buffer
    return
  with open(path, 'rb') as file:
    packed = file.peek(2)[:2] == _GZIP_MAGIC
    yield gzip.GzipFile(fileobj=file) if packed else file


def _parse_text(number: int, line: bytes) -> InputLine | BadLine:
  try:
    return _checked(number, line.decode('utf-8'), {})
  except UnicodeDecodeError as error:
    return BadLine(
      number,
      f'is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start}',
    )


def _parse_json(number: int, line: bytes) -> InputLine | BadLine:
  parsed = _parse_text(number, line)
  if isinstance(parsed, BadLine):
    return parsed
  try:
    row = json.loads(parsed.text)
  except (ValueError, RecursionError) as error:
    return BadLine(number, f'is not valid JSON: {error}')
  if not isinstance(row, dict):
    return BadLine(number, 'is JSON, but no object {"inputs": "..."}')
  key = next((key for key in _TEXT_KEYS if key in row), None)
  if key is None or not isinstance(row[key], str):
    return BadLine(number, 'has no text under "inputs" or "text"')
  fields = {name: value for name, value in row.items() if name != key}
  return _checked(number, row[key], fields)


def _checked(
  number: int, text: str, fields: Mapping[str, Any]
) -> InputLine | BadLine:
  if not text.strip():
    return BadLine(number, 'is empty')
  try:
    json.dumps([text, fields], ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError:
    return BadLine(number, 'holds half of a surrogate pair, which is no text')
  return InputLine(number, text, fields)
