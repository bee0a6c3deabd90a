"""Reading JSONL files of `inputs`, `targets` and, optionally, `references`.

Plain or gzip'd (by content, not by name). A bad line is named by its file and
number, so that a defect in a file of a million rows can be found.
"""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

GZIP_MAGIC = b'\x1f\x8b'


@dataclasses.dataclass(frozen=True)
class TextExample:
  """One example as text.

  Attributes:
    inputs: the source text, without any task prefix.
    targets: the text to generate.
    references: all texts that count as right; `targets` alone if the file names
      no others.
  """

  inputs: str
  targets: str
  references: tuple[str, ...]


def resolve_path(path: str | os.PathLike, directory: str = '') -> str:
  """Expands `~` and variables; a relative path is taken from `directory`."""
  joined = os.path.join(os.path.expandvars(directory), os.path.expandvars(path))
  return os.path.expanduser(joined)


def read_examples(path: str | os.PathLike) -> Iterator[TextExample]:
  """Yields the examples of a JSONL(.gz) file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: on a line that is not JSON, lacks a field, or has an empty or
      non-text one; on a truncated gzip file; on a file without rows.
  """
  path = os.fspath(path)
  number, empty = 0, True
  try:
    with _open_text(path) as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          empty = False
          yield _parse(line, f'{path} line {number}')
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{path} is a damaged or truncated gzip file after line {number} '
      f'({error}). Copy it again.'
    ) from None
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path} is not UTF-8 after line {number} ({error}).'
    ) from None
  if empty:
    raise ValueError(f'{path} has no rows.')


def _open_text(path: str):
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no JSONL file {path} (looked from {os.getcwd()}).'
    )
  with open(path, 'rb') as file:
    compressed = file.read(2) == GZIP_MAGIC
  if compressed:
    return gzip.open(path, 'rt', encoding='utf-8')
  return open(path, encoding='utf-8')


def _parse(line: str, where: str) -> TextExample:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where} is not valid JSON: {error}') from None
  if not isinstance(row, dict):
    raise ValueError(
      f'{where} is not an object with "inputs" and "targets": {line[:60]!r}'
    )
  inputs = _text(row, 'inputs', where)
  targets = _text(row, 'targets', where)
  references = row.get('references') or [targets]
  if not isinstance(references, list) or not all(
    isinstance(text, str) for text in references
  ):
    raise ValueError(f'{where}: "references" must be a list of texts.')
  return TextExample(inputs, targets, tuple(references))


def _text(row: dict[str, Any], field: str, where: str) -> str:
  value = row.get(field)
  if not isinstance(value, str):
    found = 'is missing' if field not in row else f'is {value!r}'
    raise ValueError(f'{where}: "{field}" {found}; it must be a text.')
  if not value.strip():
    raise ValueError(f'{where}: "{field}" is empty; remove the row.')
  return value
