"""How many calibration examples does a certificate take? A table by p-value.

  python -m calm_jax.benchmarks.calibration_power --output=power.json

For every law of the losses, p-value and tolerance: the number of examples at
which a setting is certified with the given power, when its risk is half the
tolerance (0 where all losses are 0). By the binomial law for losses of 0 and 1,
else by 1,000 simulated calibrations per number tried, so that figures are good
to about 3 %. NumPy and SciPy only; about two and a half minutes on one core.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from calm_jax import calibration
from calm_jax.benchmarks import loss_laws, measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables

TOLERANCES = (0.02, 0.05, 0.1, 0.25)


@dataclasses.dataclass(frozen=True)
class PowerRow:
  """One cell of the table.

  Attributes:
    law: a key of `loss_laws.LAWS`.
    p_value: a key of `calibration.P_VALUES`.
    tolerance: in the units of the losses.
    risk: the expected loss, in their units.
    num_examples: what it takes; None if more than the planner tries.
  """

  law: str
  p_value: str
  tolerance: float
  risk: float
  num_examples: int | None


def measure(
  *,
  laws: Sequence[str] = tuple(loss_laws.LAWS),
  p_values: Sequence[str] = tuple(calibration.P_VALUES),
  tolerances: Sequence[float] = TOLERANCES,
  error_rate: float = 0.05,
  power: float = 0.8,
  seed: int = 0,
) -> Iterator[PowerRow]:
  """Yields rows: every law with every p-value that is for it.

  Args:
    laws: keys of `loss_laws.LAWS`.
    p_values: keys of `calibration.P_VALUES`.
    tolerances: in the units of the losses.
    error_rate: in (0, 1); the bets of betting aim at it.
    power: how likely a certificate shall be, in (0, 1).
    seed: of the simulations and of the order of the bets.

  Raises:
    ValueError: for a name that is unknown or a number outside its range.
  """
  for names, known in (
    (laws, loss_laws.LAWS),
    (p_values, calibration.P_VALUES),
  ):
    for name in names:
      if name not in known:
        raise ValueError(f'{name!r} is none of {", ".join(known)}')
  functions = dict(calibration.P_VALUES)
  functions['betting'] = calibration.Betting(seed=seed, level=error_rate)
  for name in laws:
    law = loss_laws.LAWS[name]
    for p_value in p_values:
      if p_value == 'exact_binomial' and not law.binary:
        continue
      for tolerance in tolerances:
        risk = tolerance * law.risk_share
        number = _required(
          law,
          functions[p_value],
          tolerance=tolerance,
          risk=risk,
          error_rate=error_rate,
          power=power,
          seed=seed,
        )
        yield PowerRow(name, p_value, tolerance, risk, number)


def _required(
  law, p_value, *, tolerance, risk, error_rate, power, seed
) -> int | None:
  """Returns the number of examples, None if more than the planner tries."""
  if not risk:
    known = dict(expected_risk=0.0, power=None)
  elif law.binary:
    known = dict(expected_risk=risk, power=power)
  else:
    known = dict(pilot_losses=law.of_risk(risk), power=power)
  try:
    return calibration.required_examples(
      tolerance,
      error_rate,
      p_value=p_value,
      loss_range=law.loss_range,
      seed=seed,
      **known,
    )
  except calibration.TooManyExamples:
    return None


def table(measured: Measured) -> tables.Table:
  """Returns the table: a line per law and p-value, a column per tolerance."""
  rows, flags = measured.rows, measured.flags
  tolerances = sorted({row.tolerance for row in rows})
  numbers = {
    (row.law, row.p_value, row.tolerance): row.num_examples for row in rows
  }
  return tables.Table(
    header=('losses', 'p-value', *(f'{value:g}' for value in tolerances)),
    rows=tuple(
      (
        loss_laws.LAWS[law].description,
        p_value,
        *(_in_words(numbers[law, p_value, value]) for value in tolerances),
      )
      for law, p_value in dict.fromkeys((row.law, row.p_value) for row in rows)
    ),
    notes=(
      f'Calibration examples for {flags["power"]:.0%} power at error rate '
      f'{flags["error_rate"]:g}, by tolerance; the risk is half the tolerance, '
      'or 0 where all losses are.',
    ),
  )


def _in_words(number: int | None) -> str:
  return 'too many' if number is None else f'{number:,}'


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('calibration_power', __doc__)
  add = parser.add
  add(
    'laws',
    ','.join(loss_laws.LAWS),
    'what losses look like, separated by commas',
  )
  add(
    'p_values',
    ','.join(calibration.P_VALUES),
    'which p-values, separated by commas',
  )
  add(
    'tolerances',
    ','.join(map(str, TOLERANCES)),
    'bounds on the expected loss, separated by commas; the risk is half of it',
  )
  add('error_rate', 0.05, 'how often a certificate may be wrong', type=float)
  add('power', 0.8, 'how likely a certificate shall be', type=float)
  add('seed', 0, 'of the simulations', type=int)
  add('output', None, 'a JSON file to write the rows to')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  measured_rows.publish_simulated(
    lambda: measure(
      laws=flags.laws.split(','),
      p_values=flags.p_values.split(','),
      tolerances=[float(item) for item in flags.tolerances.split(',')],
      seed=flags.seed,
      error_rate=flags.error_rate,
      power=flags.power,
    ),
    flags,
    table,
  )


if __name__ == '__main__':
  main()
