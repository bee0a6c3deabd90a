"""What each process says of itself, and how two of them differ.

A difference that would make processes compute different programs, or wait for
each other for ever, is said with the hosts and the values, before anything is
compiled.
"""

import dataclasses
import difflib
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Self

# Lines of a long value that are shown where two processes differ.
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Report:
  """What one process says of itself.

  Attributes:
    index: which process it is.
    count: how many processes it was told there are.
    host: where it runs.
    facts: what must be the same everywhere, by name: versions, configuration.
    marks: what a directory is for -> the directory, and the name of the mark
      that this process left there.
    error: why it cannot go on; None if it can.
  """

  index: int
  count: int
  host: str = dataclasses.field(default_factory=socket.gethostname)
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  marks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  error: str | None = None

  @classmethod
  def from_message(cls, message: Any) -> Self:
    """Returns the report that came over the network.

    Raises:
      ValueError: unless every field is there and of its type.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(message, dict) or set(message) != names:
      raise ValueError('a report has other fields')
    report = cls(**message)
    texts = [report.host, *report.facts, *report.marks]
    good = (
      type(report.index) is int
      and type(report.count) is int
      and 0 <= report.index < report.count
      and isinstance(report.facts, dict)
      and isinstance(report.marks, dict)
      and all(isinstance(text, str) and text.isprintable() for text in texts)
      and all(isinstance(value, str) for value in report.facts.values())
      and all(map(_is_mark, report.marks.values()))
      and (report.error is None or isinstance(report.error, str))
    )
    if not good:
      raise ValueError('a report has a field of another type')
    return report

  def __str__(self) -> str:
    """Says who it is."""
    return f'process {self.index} on {self.host}'


def _is_mark(value: Any) -> bool:
  """Says whether a value is a directory and the name of a mark in it."""
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(text, str) for text in value)
  )


def disagreements(reports: Sequence[Report]) -> list[str]:
  """Returns what keeps these processes from running one job, a line each.

  Args:
    reports: of all processes, that of process 0 first.
  """
  failed: dict[str, list[Report]] = {}
  for report in reports:
    if report.error:
      failed.setdefault(report.error, []).append(report)
  errors = [f'{_who(them)}: {error}' for error, them in failed.items()]
  # One that failed early does not know all its facts.
  sound = [report for report in reports if not report.error]
  if not sound:
    return errors
  names = dict.fromkeys(name for report in sound for name in report.facts)
  for name in names:
    errors += _different_facts(name, sound)
  return errors


def _different_facts(name: str, reports: Sequence[Report]) -> list[str]:
  """Returns a line about a fact that is not the same everywhere."""
  holders: dict[str, list[Report]] = {}
  for report in reports:
    holders.setdefault(report.facts.get(name, 'missing'), []).append(report)
  if len(holders) == 1:
    return []
  if any('\n' in value for value in holders):
    values = list(holders)
    return [
      f'{name}: {_who(holders[value])} and {reports[0]} differ: '
      + _different_lines(values[0], value)
      for value in values[1:]
    ]
  shown = (f'{value} ({_who(them)})' for value, them in holders.items())
  return [f'{name} differs: {", ".join(shown)}']


def _different_lines(ours: str, theirs: str) -> str:
  """Returns the lines that only one of two texts has."""
  lines = difflib.unified_diff(
    theirs.splitlines(), ours.splitlines(), lineterm='', n=0
  )
  changed = [line for line in lines if not line.startswith(('---', '+++', '@'))]
  shown = [f'{line[1:].strip()!r} ({_side(line)})' for line in changed]
  if len(shown) > _SHOWN:
    shown = [*shown[:_SHOWN], f'and {len(shown) - _SHOWN} more lines']
  return ', '.join(shown)


def _side(line: str) -> str:
  return 'the former' if line.startswith('-') else 'the latter'


def _who(reports: Sequence[Report]) -> str:
  """Names processes, and of many only the first ones."""
  shown = [str(report) for report in reports[:3]]
  if len(reports) > len(shown):
    shown.append(f'{len(reports) - len(shown)} others')
  return ', '.join(shown)
