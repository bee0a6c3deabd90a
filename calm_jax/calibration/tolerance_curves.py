"""What calibration gives at one tolerance after the other: risk and depth."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import records
from calm_jax.calibration import choices, split_studies, violations
from calm_jax.calibration import population as populations

_QUANTILES = (0.05, 0.95)


def sweep_tolerances(
  tables: Sequence[populations.Population],
  *,
  number: int = 25,
  at_least: float = 0.0,
) -> list[float]:
  """Returns equally spaced tolerances that show all there is to see.

  From just above 0 to just above the largest risk of any table, or to
  `at_least` if that is more, within the range of the losses.

  Args:
    tables: populations of one loss range.
    number: how many.
    at_least: a tolerance to be inside the sweep.

  Raises:
    ValueError: if there are no tables or no tolerances are asked for.

  >>> table = populations.Population(np.full((30, 1), 0.38), [0.5], [2.0])
  >>> sweep_tolerances([table], number=4)
  [0.1, 0.2, 0.3, 0.4]
  """
  if not tables or number < 1:
    raise ValueError(
      f'{len(tables)} tables and {number} tolerances; give at least one of each'
    )
  high = tables[0].loss_range[1]
  largest = max(float(table.risks.max()) for table in tables)
  end = min(max(1.05 * largest, 1.05 * at_least, 0.02 * high), 0.98 * high)
  # Round steps, as far as that stays within the range.
  step = end / number
  unit = 10.0 ** np.floor(np.log10(step))
  rounded = unit * np.ceil(10 * step / unit - 1e-9) / 10
  step = rounded if number * rounded < high else step
  return [round(float(step * (place + 1)), 12) for place in range(number)]


def tolerance_curve(
  population: populations.Population,
  tolerances: Sequence[float],
  *,
  statistics: choices.Statistics,
  num_draws: int = 200,
  draw_size: int | None = None,
  num_splits: int = 50,
  seed: int = 0,
  progress: Callable[[int], None] | None = None,
) -> records.ToleranceCurve:
  """Calibrates on draws and on splits at each of K tolerances.

  Args:
    population: the table.
    tolerances: K of them, ascending.
    statistics: how everything is calibrated.
    num_draws: draws with replacement per tolerance, the same at each.
    draw_size: the rows of a draw; N if None.
    num_splits: 80/20 splits per tolerance, the same at each.
    seed: of draws and splits.
    progress: gets the number of tolerances done.

  Raises:
    ValueError: for tolerances that do not ascend or lie outside the range.
  """
  if any(a >= b for a, b in itertools.pairwise(tolerances)):
    raise ValueError(f'tolerances must ascend, not {list(tolerances)}')
  points, speed_ups = [], []
  for done, tolerance in enumerate(tolerances, 1):
    at = {'tolerance': tolerance, 'statistics': statistics, 'seed': seed}
    chosen = violations.choose_on_draws(
      population, num_draws=num_draws, draw_size=draw_size, **at
    )
    risks, layers = population.of_choices(chosen)
    splits = split_studies.study_splits(population, num_splits=num_splits, **at)
    points.append(
      (
        float(tolerance),
        float(risks.mean()),
        *_quantiles(risks),
        float(layers.mean()),
        *_quantiles(layers),
        float(np.mean(splits.test_risks)),
      )
    )
    if (faster := population.speed_ups_of(chosen)) is not None:
      speed_ups.append(float(faster.mean()))
    if progress is not None:
      progress(done)
  return records.ToleranceCurve(
    statistics.p_value_name,
    num_draws,
    num_splits,
    *(tuple(column) for column in zip(*points, strict=True)),
    mean_speed_ups=tuple(speed_ups) or None,
  )


def _quantiles(values: np.ndarray) -> list[float]:
  """Returns the low and the high one, each of which is one of the values."""
  return np.quantile(values, _QUANTILES, method='inverted_cdf').tolist()
