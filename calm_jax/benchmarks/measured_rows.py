"""Rows that a benchmark measured, with how they came about; as a file, too."""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from calm_jax import records
from calm_jax.records import provenance
from calm_jax.reporting import tables

_LIBRARIES = ('jax', 'jaxlib', 'numpy', 'calm_jax')


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one run of a benchmark found.

  Attributes:
    rows: one dataclass per row of its table.
    context: command, versions, device; `details['flags']` are the flags.
  """

  rows: tuple[Any, ...]
  context: records.RunContext

  @property
  def flags(self) -> dict[str, Any]:
    """The flags that the benchmark ran with."""
    return self.context.details['flags']

  @property
  def machine(self) -> str:
    """What computed, in words."""
    context = self.context
    return f'{context.device} ({context.machine}) in {context.dtype}'


def of_this_process(
  rows: Iterable[Any],
  flags: argparse.Namespace,
  *,
  device: str,
  dtype: str,
  libraries: Sequence[str] = _LIBRARIES,
  **details: Any,
) -> Measured:
  """Returns rows that this process measured.

  Args:
    rows: one dataclass per row of the table.
    flags: the command line.
    device: what computed.
    dtype: of what was computed.
    libraries: whose versions matter.
    **details: what else is to be kept in the context's details.
  """
  context = provenance.run_context(
    device=device,
    dtype=dtype,
    libraries=libraries,
    details={'flags': vars(flags), **details},
  )
  return Measured(tuple(rows), context)


def publish_simulated(
  rows: Callable[[], Iterable[Any]],
  flags: argparse.Namespace,
  table: Callable[[Measured], tables.Table],
) -> None:
  """Publishes what needs no device, saying each row as it is found.

  Args:
    rows: gives the rows; what it refuses ends the program in one line.
    flags: the command line, with `output`.
    table: as for `publish`.
  """
  found = []
  try:
    for row in rows():
      found.append(row)
      print(row, file=sys.stderr, flush=True)
  except (OSError, ValueError) as error:
    sys.exit(f'{pathlib.Path(sys.argv[0]).stem}: {error}')
  measured = of_this_process(
    found, flags, device='cpu', dtype='float64', libraries=('numpy', 'scipy')
  )
  publish(measured, table, flags.output)


def publish(
  measured: Measured,
  table: Callable[[Measured], tables.Table],
  output: str | None,
) -> None:
  """Writes the rows where an output is named, and prints the table.

  In this order: what took an hour is not lost to a table that fails.
  """
  if output:
    records.write_json(output, measured)
  print(tables.with_notes(table(measured)))


def read(path: str | os.PathLike, kind: type) -> Measured:
  """Reads what `publish` wrote.

  Args:
    path: the file.
    kind: the dataclass of its rows.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it does not hold such rows, naming the place.
  """
  measured = records.read_record(path, Measured)
  rows = records.from_jsonable(
    tuple[kind, ...], list(measured.rows), where=f'{os.fspath(path)}.rows'
  )
  return dataclasses.replace(measured, rows=rows)
