"""What a watched certificate may meet, and the table of how it was found."""

import dataclasses
import math
from collections.abc import Callable

from calm_jax.benchmarks import loss_laws
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables

_DRIFT = 2000


@dataclasses.dataclass(frozen=True)
class Scenario:
  """What becomes of the mean loss.

  Attributes:
    description: in a few words.
    share: audits after the change (0 before) -> mean loss, as a share of the
      tolerance.
  """

  description: str
  share: Callable[[int], float]


def _jump(to: float) -> Scenario:
  return Scenario(
    f'jumps from 0.5 to {to:g}', lambda after: to if after else 0.5
  )


SCENARIOS = {
  'none': Scenario('stays at 0.5', lambda after: 0.5),
  'boundary': Scenario('stays at 1', lambda after: 1.0),
  'drift': Scenario(
    f'drifts from 0.5 to 2 in {_DRIFT:,} audits',
    # In steps of a hundredth.
    lambda after: round(0.5 + 1.5 * min(1.0, after / _DRIFT), 2),
  ),
  'jump_1.5': _jump(1.5),
  'jump_2': _jump(2.0),
  'jump_4': _jump(4.0),
}
# Guarantee -> error rate.
ERROR_RATES = {'ever': 0.01, 'on_average': 0.0001}


@dataclasses.dataclass(frozen=True)
class DelayRow:
  """What became of one scenario.

  Attributes:
    law: a key of `loss_laws.LAWS`.
    scenario: a key of `SCENARIOS`.
    guarantee: of `calibration.LossWatch`.
    error_rate: of the same.
    false_alarms: the share of streams with an alarm while the mean was
      tolerable.
    found: the share of the others with an alarm later; NaN where the mean stays
      tolerable.
    median_delay: audits from the first one of a mean above the tolerance to the
      alarm, in those others; NaN where half of them or more have none.
    late_delay: the same for one in ten that takes longest.
  """

  law: str
  scenario: str
  guarantee: str
  error_rate: float
  false_alarms: float
  found: float
  median_delay: float
  late_delay: float


def table(measured: Measured) -> tables.Table:
  """Returns the table: a line per law and scenario, columns per guarantee."""
  rows, flags = measured.rows, measured.flags
  by_key = {(row.law, row.scenario, row.guarantee): row for row in rows}
  names = {'ever': 'ever 1 %', 'on_average': 'one in 10,000'}
  lines = dict.fromkeys((row.law, row.scenario) for row in rows)
  return tables.Table(
    header=(
      'losses',
      'mean / tolerance',
      *(
        f'{names[guarantee]}: {column}'
        for guarantee in ERROR_RATES
        for column in ('false alarms', 'audits until an alarm')
      ),
    ),
    rows=tuple(
      (
        loss_laws.LAWS[law].description,
        _in_words(scenario),
        *(
          cell
          for guarantee in ERROR_RATES
          for cell in _cells(by_key[law, scenario, guarantee])
        ),
      )
      for law, scenario in lines
    ),
    notes=(
      f'{flags["streams"]:,} simulated streams of {flags["before"]:,} audits '
      f'and {flags["after"]:,} more, in which the mean changes; tolerance '
      f'{flags["tolerance"]:g}.',
      'false alarms: streams with an alarm while the mean is at most the '
      'tolerance.',
      'audits until an alarm: from the first one with a mean above it, in half '
      'of the other streams; in brackets, in nine of ten.',
    ),
  )


def _in_words(scenario: str) -> str:
  """Returns what a scenario is; its name if a file has another one."""
  known = SCENARIOS.get(scenario)
  return scenario if known is None else known.description


def _cells(row: DelayRow) -> tuple[str, str]:
  false = f'{100 * row.false_alarms:.1f} %'
  if math.isnan(row.found):
    return false, '-'
  delays = (
    'more' if math.isnan(delay) else f'{delay:,.0f}'
    for delay in (row.median_delay, row.late_delay)
  )
  return false, '{} ({})'.format(*delays)
