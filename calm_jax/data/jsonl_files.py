"""Reading JSONL files of `inputs`, `targets` and, optionally, `references`.

How lines are read is said in `text_lines`. A bad line is named by its file and
number, so that a defect in a file of a million rows can be found.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from calm_jax import text_lines
from calm_jax.text_lines import BadLine


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
  if not os.path.isfile(path):
    kind = 'a folder' if os.path.isdir(path) else 'no file'
    raise FileNotFoundError(
      f'There is no JSONL file {path}: it is {kind} (looked from '
      f'{os.getcwd()}).'
    )
  empty = True
  with text_lines.opened(path) as file:
    for line in text_lines.decoded(file):
      if isinstance(line, BadLine):
        raise ValueError(f'{path} line {line.number} {line.reason}')
      if line.text.strip():
        empty = False
        yield _parse(line, f'{path} line {line.number}')
  if empty:
    raise ValueError(f'{path} has no rows.')


def _parse(line: text_lines.TextLine, where: str) -> TextExample:
  row = text_lines.parse_object(line)
  if isinstance(row, BadLine):
    raise ValueError(f'{where} {row.reason}')
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
