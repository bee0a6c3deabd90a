"""Lines of text files, however people save them.

A line is whatever ends in a newline (LF or CRLF) of a UTF-8 file, plain or
gzip'd (by content, not by name), with or without a byte order mark. A line that
cannot be used does not stop the reading: it comes out as a `BadLine` that says
why. Training and decoding read their files with this.
"""

import contextlib
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

_GZIP_MAGIC = b'\x1f\x8b'
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_UTF_16 = (b'\xff\xfe', b'\xfe\xff')


@dataclasses.dataclass(frozen=True)
class TextLine:
  """A line that is text.

  Attributes:
    number: of the line, from 1.
    text: without its newline.
  """

  number: int
  text: str


@dataclasses.dataclass(frozen=True)
class BadLine:
  """A line that cannot be used.

  Attributes:
    number: of the line, from 1.
    reason: why not, as in 'line 3 {reason}'.
  """

  number: int
  reason: str


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
  """Opens a file, unpacking it if it is gzip'd.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is a folder, or damaged, also while it is read.
  """
  try:
    with open(path, 'rb') as file:
      packed = file.peek(2)[:2] == _GZIP_MAGIC
      yield gzip.GzipFile(fileobj=file) if packed else file
  except IsADirectoryError:
    raise ValueError(f'{path} is a folder; name a file in it') from None
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{path} is a damaged or truncated gzip file ({error}). Copy it again.'
    ) from None


def decoded(lines: Iterable[bytes]) -> Iterator[TextLine | BadLine]:
  """Yields the lines of a binary file as text."""
  for number, line in enumerate(lines, 1):
    if number == 1:
      if line.startswith(_UTF_16):
        yield BadLine(number, 'is UTF-16: save the file as UTF-8')
        return
      line = line.removeprefix(_BYTE_ORDER_MARK)
    line = line.removesuffix(b'\n').removesuffix(b'\r')
    try:
      yield TextLine(number, line.decode('utf-8'))
    except UnicodeDecodeError as error:
      yield BadLine(
        number,
        f'is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start}',
      )


def parse_object(line: TextLine) -> dict[str, Any] | BadLine:
  """Returns the JSON object of a line."""
  try:
    row = json.loads(line.text)
  except (ValueError, RecursionError) as error:
    return BadLine(line.number, f'is not valid JSON: {error}')
  if not isinstance(row, dict):
    remedy = (
      "; write one a line, for example with jq -c '.[]'"
      if isinstance(row, list)
      else ''
    )
    return BadLine(
      line.number, f'is JSON, but not an object {{"inputs": "..."}}{remedy}'
    )
  if not is_text(row):
    return BadLine(
      line.number, 'holds half of a surrogate pair, which is no text'
    )
  return row


def is_text(value: Any) -> bool:
  """Says whether all strings in a JSON value can be written as UTF-8."""
  try:
    json.dumps(value, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True
