"""The marked places of READMEs that hold generated tables.

A place begins with the line `<!-- table: NAME -->` and ends with the line
`<!-- end of table: NAME -->`; what stands between them is written by
`calm_jax.benchmarks.tables`. Fenced code is left alone.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator

_MARKER = re.compile(r'<!-- (end of )?table: (\S+) -->')
# What was probably meant as one.
_LIKE_A_MARKER = re.compile(r'\s*<!--\s*(end\b.*)?\btable\b', re.IGNORECASE)
_FENCES = ('```', '~~~')
# Folders of a checkout that hold what was made, not what was written.
_MADE = {'build', 'dist', 'runs'}


@dataclasses.dataclass(frozen=True)
class Place:
  """One marked place.

  Attributes:
    name: of the table.
    first: number of the line with the first marker, from 1.
    last: number of the line with the second marker.
  """

  name: str
  first: int
  last: int


def find_readmes(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields every README.md below a folder, without hidden and made ones."""
  for folder, names, files in os.walk(root):
    at_top = pathlib.Path(folder) == root
    names[:] = sorted(
      name
      for name in names
      if not name.startswith('.') and not (at_top and name in _MADE)
    )
    if 'README.md' in files:
      yield pathlib.Path(folder) / 'README.md'


def find_places(text: str, where: str) -> Iterator[Place]:
  """Yields the places of a README in their order.

  Args:
    text: its content.
    where: how errors call it.

  Raises:
    ValueError: for markers that do not belong together or are misspelt, with
      file and line.
  """
  opened: tuple[str, int] | None = None
  fence = ''
  for number, line in enumerate(text.split('\n'), 1):
    if not opened and line.lstrip().startswith(fence or _FENCES):
      fence = '' if fence else line.lstrip()[:3]
    marker = _MARKER.fullmatch(line)
    if fence or not (marker or _LIKE_A_MARKER.match(line)):
      continue
    if not marker:
      raise ValueError(
        f'{where}:{number}: {line!r} is no marker; on a line of its own write '
        '<!-- table: NAME --> or <!-- end of table: NAME -->'
      )
    is_end, name = bool(marker[1]), marker[2]
    if is_end != bool(opened) or (opened and opened[0] != name):
      raise ValueError(
        f'{where}:{number}: {line} stands '
        + (f'inside table {opened[0]}' if opened else 'outside any table')
        + (f' of line {opened[1]}; end that one first' if opened else '')
      )
    if opened:
      yield Place(name, opened[1], number)
    opened = None if is_end else (name, number)
  if opened:
    raise ValueError(
      f'{where}:{opened[1]}: table {opened[0]} has no end; write '
      f'<!-- end of table: {opened[0]} --> below it'
    )


def fill(
  text: str, where: str, content_of: Callable[[str], str]
) -> tuple[str, list[str]]:
  """Writes the tables into their places.

  Args:
    text: the content of a README.
    where: how errors call it.
    content_of: name of a table -> its Markdown.

  Returns:
    The README with every table in its place, and the names of those that were
    not there already.

  Raises:
    ValueError: as `find_places`; and what `content_of` raises as `ValueError`
      or `OSError`, with file and line.
  """
  lines = text.split('\n')
  stale = []
  for place in reversed(list(find_places(text, where))):
    try:
      content = ['', *content_of(place.name).strip().splitlines(), '']
    except (OSError, ValueError) as error:
      raise ValueError(f'{where}:{place.first}: {error}') from error
    inside = slice(place.first, place.last - 1)
    if lines[inside] != content:
      stale.insert(0, place.name)
      lines[inside] = content
  return '\n'.join(lines), stale
