"""What `calibrate` would choose on each of many samples, quickly."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from calm_jax.calibration import bets, inputs, multiple_testing, p_values
from calm_jax.calibration.population import Population


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What every calibration of a study tests with.

  Attributes:
    error_rate: the bound on the share of violations, in (0, 1).
    p_value: as for `calibrate`.
    procedure: as for `calibrate`.
  """

  error_rate: float = 0.05
  p_value: p_values.PValue = bets.betting
  procedure: multiple_testing.Procedure = dataclasses.field(
    default_factory=multiple_testing.fixed_sequence
  )

  def __post_init__(self):
    """Raises ValueError for an error rate that is none."""
    inputs.check_error_rate(self.error_rate)

  @property
  def p_value_name(self) -> str:
    """How results name the p-value, with its parameters."""
    return p_values.name_of(self.p_value)


def choose(
  population: Population,
  rows: np.ndarray,
  *,
  tolerance: float,
  statistics: Statistics,
) -> np.ndarray:
  """Returns what `calibrate` would certify on each of M samples of rows.

  Args:
    population: the table.
    rows: [M, n] indices of its rows.
    tolerance: in the units of the losses, strictly inside their range.
    statistics: how each sample is calibrated.

  Returns:
    int [M], the column, -1 where nothing is certified.

  Raises:
    ValueError: for a tolerance outside the range, or a p-value or procedure
      that does not keep to its interface.
  """
  return choose_jointly(
    [population], rows, tolerances=[tolerance], statistics=statistics
  )


def choose_jointly(
  populations: Sequence[Population],
  rows: np.ndarray,
  *,
  tolerances: Sequence[float],
  statistics: Statistics,
) -> np.ndarray:
  """Returns what `calibrate_jointly` would certify on each of M samples.

  Only p-values that the procedure asks for are computed, those of one column
  for all samples at once.

  Args:
    populations: K tables, one per loss, of the same rows and settings.
    rows: as for `choose`, and so are the others.
    tolerances: K of them.
    statistics: see `choose`.

  Raises:
    ValueError: as `choose`.
  """
  mapped_tolerances = []
  for population, tolerance in zip(populations, tolerances, strict=True):
    low, high = inputs.check_range(population.loss_range, tolerance)
    mapped_tolerances.append((tolerance - low) / (high - low))
  procedure, error_rate = statistics.procedure, statistics.error_rate
  tests = np.full((len(rows), len(populations[0].settings)), np.nan)
  waiting = np.arange(len(rows))
  while waiting.size:
    asked = [procedure.next_test(tests[m], error_rate) for m in waiting]
    asked = np.array([-1 if column is None else column for column in asked])
    for column in np.unique(asked[asked >= 0]):
      samples = waiting[asked == column]
      found = [
        p_values.apply_rows(
          statistics.p_value,
          population.mapped[column][rows[samples]],
          tolerance=tolerance,
        )
        for population, tolerance in zip(
          populations, mapped_tolerances, strict=True
        )
      ]
      if not np.isnan(tests[samples, column]).all():
        raise ValueError(f'{procedure} asks for test {column} a second time')
      tests[samples, column] = np.max(found, axis=0)
    waiting = waiting[asked >= 0]
  return np.array(
    [max(procedure(test, error_rate), default=-1) for test in tests]
  )
