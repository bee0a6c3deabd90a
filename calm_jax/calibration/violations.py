"""Is the guarantee kept? Calibrations on draws from a population, counted.

n rows drawn WITH replacement from a population are n independent examples. How
often calibrations on such draws choose a setting whose risk is above the
tolerance is then counted, with no noise but the binomial one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.calibration import choices
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.population import Population

# Losses of draws that are held in memory at once.
_MOST_LOSSES = 2_000_000
# Just below a risk means: below it by this share of it.
_SHARE_BELOW = 0.02


def choose_on_draws(
  population: Population,
  *,
  tolerance: float,
  statistics: choices.Statistics,
  num_draws: int,
  draw_size: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Returns what is certified on draws with replacement, -1 for nothing [M].

  Args:
    population: the table that is drawn from.
    tolerance: in the units of the losses.
    statistics: how each draw is calibrated.
    num_draws: M; the first draws of more draws are the same ones.
    draw_size: n, the rows of a draw; N if None.
    seed: of the draws, which are the same at every tolerance.

  Raises:
    ValueError: if there is nothing to draw, or as `choices.choose`.
  """
  return _choose_on_draws(
    [population],
    [tolerance],
    statistics,
    num_draws=num_draws,
    draw_size=draw_size,
    seed=seed,
  )


def _choose_on_draws(
  populations, tolerances, statistics, *, num_draws, draw_size, seed
) -> np.ndarray:
  """Does what `choose_on_draws` does, for K losses of the same rows."""
  number = populations[0].num_examples
  size = number if draw_size is None else draw_size
  if num_draws < 1 or size < 1:
    raise ValueError(
      f'num_draws {num_draws} and draw_size {size} must be at least 1'
    )
  return np.concatenate(
    [
      choices.choose_jointly(
        populations, rows, tolerances=tolerances, statistics=statistics
      )
      for rows in draws(number, num_draws, size, seed)
    ]
  )


def count_violations(
  population: Population,
  *,
  tolerance: float,
  statistics: choices.Statistics,
  num_draws: int = 1000,
  draw_size: int | None = None,
  seed: int = 0,
  near_setting: Any = None,
) -> records.ViolationCount:
  """Calibrates on many draws and counts the choices that are too risky.

  Args:
    population: the table that is drawn from.
    tolerance: in the units of the losses.
    statistics: how each draw is calibrated.
    num_draws: how many draws.
    draw_size: the rows of a draw; N if None.
    seed: of the draws.
    near_setting: kept in the result.

  Raises:
    ValueError: as `choose_on_draws`.
  """
  return _count(
    [population],
    [tolerance],
    statistics,
    num_draws=num_draws,
    draw_size=draw_size,
    seed=seed,
    near_setting=near_setting,
  )


def count_joint_violations(
  populations: Mapping[tuple[str, str], Population],
  *,
  promises: Sequence[Bound],
  statistics: choices.Statistics,
  num_draws: int = 1000,
  draw_size: int | None = None,
  seed: int = 0,
  near_setting: Any = None,
) -> records.ViolationCount:
  """Counts the choices that break any of several promises.

  Args:
    populations: (loss, metric) -> its table, all of the same rows and settings.
    promises: what is promised, in the order of certificates.
    statistics: how each draw is calibrated.
    num_draws: as for `count_violations`, and so are the others.
    draw_size: see `count_violations`.
    seed: see `count_violations`.
    near_setting: see `count_violations`.

  Raises:
    ValueError: as `choose_on_draws`.
  """
  count = _count(
    [populations[bound.loss, bound.metric] for bound in promises],
    [bound.tolerance for bound in promises],
    statistics,
    num_draws=num_draws,
    draw_size=draw_size,
    seed=seed,
    near_setting=near_setting,
  )
  promised = tuple(
    records.PromisedLoss(
      loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
    )
    for bound in promises
  )
  return dataclasses.replace(count, promises=promised)


def _count(
  populations,
  tolerances,
  statistics,
  *,
  num_draws,
  draw_size,
  seed,
  near_setting,
) -> records.ViolationCount:
  """Counts draws whose choice has any risk above its tolerance."""
  chosen = _choose_on_draws(
    populations,
    tolerances,
    statistics,
    num_draws=num_draws,
    draw_size=draw_size,
    seed=seed,
  )
  found = counted(
    populations,
    tolerances,
    chosen,
    statistics=statistics,
    draw_size=populations[0].num_examples if draw_size is None else draw_size,
  )
  return dataclasses.replace(found, near_setting=near_setting)


def counted(
  populations: Sequence[Population],
  tolerances: Sequence[float],
  chosen: np.ndarray,
  *,
  statistics: choices.Statistics,
  draw_size: int,
) -> records.ViolationCount:
  """Counts the choices whose risk by any loss is above its tolerance.

  Args:
    populations: K tables, one per loss, of the same rows and settings.
    tolerances: K of them.
    chosen: int [M], the settings that M draws chose, -1 for none.
    statistics: how each draw was calibrated.
    draw_size: the rows of a draw.
  """
  first = populations[0]
  above = [
    population.above(population.of_choices(chosen)[0], tolerance)
    for population, tolerance in zip(populations, tolerances, strict=True)
  ]
  risks, layers = first.of_choices(chosen)
  # Where nothing was certified nothing was promised, whatever the tolerance.
  violations = int((np.any(above, axis=0) & (chosen >= 0)).sum())
  rate_low, rate_high = rate_interval(violations, len(chosen))
  return records.ViolationCount(
    tolerance=float(tolerances[0]),
    p_value=statistics.p_value_name,
    near_setting=None,
    num_draws=len(chosen),
    draw_size=draw_size,
    num_violations=violations,
    rate_low=rate_low,
    rate_high=rate_high,
    num_certified=int((chosen >= 0).sum()),
    chosen=tuple(
      int((chosen == column).sum()) for column in range(len(first.settings))
    ),
    mean_risk=float(risks.mean()),
    mean_exit_layer=float(layers.mean()),
  )


def near_tolerances(population: Population) -> list[tuple[Any, float]]:
  """Returns settings with a tolerance just below the risk of each.

  That is 0.98 x the risk: certifying the setting is a violation there, by so
  little that it happens as often as anywhere. Risks at the ends of the range
  are left out, and so are those of 0. (A negative risk of signed losses is
  lowered by 2 % of its size.)

  Args:
    population: the table; its settings in their order.

  Returns:
    Pairs of a setting and a tolerance, in the units of the losses.

  >>> losses = np.repeat([[0.0, 0.1, 0.5]], 30, axis=0)
  >>> table = Population(losses, [0.9, 0.5, 0.1], [3.0, 2.0, 1.0])
  >>> [(setting, round(at, 3)) for setting, at in near_tolerances(table)]
  [(0.5, 0.098), (0.1, 0.49)]
  """
  low, high = population.loss_range
  near = []
  for setting, risk in zip(population.settings, population.risks, strict=True):
    tolerance = float(risk - _SHARE_BELOW * abs(risk))
    if low < tolerance < risk < high:
      near.append((setting, tolerance))
  return near


def rate_interval(count: int, number: int) -> tuple[float, float]:
  """Returns the Clopper-Pearson interval (95 %) of a rate.

  Exact: it holds the rate with probability at least 0.95, whatever that is.
  Clopper and Pearson (1934).

  Args:
    count: how often it happened, 0..number.
    number: of independent trials, at least 1.

  Returns:
    Its ends, in [0, 1].

  Raises:
    ValueError: for a count or number outside its range.

  >>> [round(end, 4) for end in rate_interval(0, 1000)]
  [0.0, 0.0037]
  """
  # Takes longer to load than all the rest of calibration.
  from scipy import stats

  interval = stats.binomtest(count, number).proportion_ci(0.95, method='exact')
  return float(interval.low), float(interval.high)


def draws(
  num_rows: int, num_draws: int, size: int, seed: int
) -> Iterator[np.ndarray]:
  """Yields blocks [M, n] of row indices, drawn with replacement."""
  block = max(1, _MOST_LOSSES // size)
  for start in range(0, num_draws, block):
    # A generator per draw: a draw depends on its number, not on the block.
    yield np.stack(
      [
        np.random.default_rng([seed, draw]).integers(num_rows, size=size)
        for draw in range(start, min(start + block, num_draws))
      ]
    )
