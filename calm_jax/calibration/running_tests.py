"""What a table of losses that grows by blocks of rows has told so far."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np

from calm_jax.calibration import anytime, inputs, p_values
from calm_jax.calibration.anytime import AnytimeSequence
from calm_jax.calibration.bounds import Bound, TestedBound


class Block(NamedTuple):
  """Losses that are needed next: those of rows start to stop of a column."""

  column: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class RunningTests:
  """What came out so far.

  Attributes:
    needed: the losses that are needed next, None if testing is over.
    bounds: K bounds with the means of the rows looked at, and their p-values.
    counts: int [J], the rows of each column that were looked at.
    verdict: what the last column tested has come to, of those in `anytime`.
  """

  needed: Block | None
  bounds: tuple[TestedBound, ...]
  counts: np.ndarray
  verdict: int


class RunningPValue(p_values.PValue, Protocol):
  """A p-value that may be looked at while losses come in: `Betting`."""

  def order(self, number: int, /) -> np.ndarray:
    """Returns the order of N losses, int [N]."""
    ...

  def path(
    self, samples: np.ndarray, /, *, tolerance: float, number: int
  ) -> np.ndarray:
    """Returns ln of the wealth after each of the first m losses, [M, m]."""
    ...


def running(p_value: p_values.PValue) -> RunningPValue:
  """Returns a p-value that may be looked at while losses come in.

  Raises:
    ValueError: for one of all rows or of none.
  """
  if not all(hasattr(p_value, name) for name in ('order', 'path')):
    raise ValueError(
      f'{p_values.name_of(p_value)} holds for a number of rows that was fixed '
      'beforehand, and AnytimeSequence stops when it likes; use '
      'calibration.betting, or another procedure, such as fixed_sequence()'
    )
  return cast(RunningPValue, p_value)


def run_tests(
  tables: Sequence[np.ndarray],
  promises: Sequence[Bound],
  error_rate: float,
  p_value: p_values.PValue,
  procedure: AnytimeSequence,
  number: int | None = None,
) -> RunningTests:
  """Tests one column after the other, as far as their losses are there.

  Args:
    tables: K of losses [N, J], NaN where they are not computed yet.
    promises: K bounds.
    error_rate: in (0, 1).
    p_value: one that may be looked at while losses come in.
    procedure: what is looked at when.
    number: how many rows there may be; N if None.

  Raises:
    ValueError: for a p-value or losses that are not for it.
  """
  bettor = running(p_value)
  inputs.check_error_rate(error_rate)
  tables = [inputs.check_table(table) for table in tables]
  for table, bound in zip(tables, promises, strict=True):
    inputs.check_inside(table, bound.loss_range, where=~np.isnan(table))
  seen = _rows_seen(tables)
  rows, columns = tables[0].shape
  total = rows if number is None else number
  counts = np.zeros(columns, int)
  tests = np.full((len(tables), columns), np.nan)
  verdict = anytime.REJECTED
  needed = None
  for column in range(columns):
    known = int(seen[column])
    if known:
      paths = np.stack(
        [
          _path(table[:known, column], bound, bettor, total)
          for table, bound in zip(tables, promises, strict=True)
        ]
      )
      (end,), (verdict,) = procedure.stops(paths, error_rate)
      counts[column] = end
      best = paths[:, 0, :end].max(axis=1)
      tests[:, column] = np.exp(-np.maximum(best, 0.0))
    if not known or (verdict == anytime.OPEN and known < total):
      needed = Block(column, known, min(known + procedure.block, total))
    if needed is not None or verdict != anytime.REJECTED:
      break
  found = _bounds(tables, promises, tests, counts)
  return RunningTests(needed, found, counts, int(verdict))


def _rows_seen(tables: Sequence[np.ndarray]) -> np.ndarray:
  """Returns how many rows of every column are there, int [J]."""
  missing = np.isnan(tables[0])
  for table in tables:
    if not np.array_equal(np.isnan(table), missing):
      raise ValueError(
        'some losses lack rows that others have; one decode of a block serves '
        'them all'
      )
  seen = (~missing).sum(axis=0)
  for column in np.flatnonzero(missing.argmax(axis=0) != seen % len(missing)):
    raise ValueError(
      f'the loss of row {missing[:, column].argmax()}, column {column} is NaN, '
      'but those of later rows are not: blocks come in the order of the rows'
    )
  return seen


def _path(
  losses: np.ndarray, bound: Bound, p_value: RunningPValue, number: int
) -> np.ndarray:
  """Returns ln of the wealth after each of the losses [m], as [1, m]."""
  mapped, tolerance = inputs.to_unit(losses, bound.tolerance, bound.loss_range)
  return p_value.path(mapped[np.newaxis], tolerance=tolerance, number=number)


def _bounds(tables, promises, tests, counts) -> tuple[TestedBound, ...]:
  """Returns the bounds with what the rows looked at say of them."""
  return tuple(
    TestedBound(
      loss=bound.loss,
      metric=bound.metric,
      tolerance=bound.tolerance,
      loss_range=bound.loss_range,
      risks=tuple(
        float(np.mean(table[:count, column], dtype=np.float64))
        if count
        else float('nan')
        for column, count in enumerate(counts)
      ),
      p_values=tuple(row.tolist()),
    )
    for table, bound, row in zip(tables, promises, tests, strict=True)
  )
