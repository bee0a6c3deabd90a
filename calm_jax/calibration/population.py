"""Is the guarantee kept? A stored loss table, taken for the whole population.

Nobody knows the risks of a real population. But the rows of a full loss table
may be taken for one: its column means ARE the risks then, and n rows drawn WITH
replacement are n independent examples. How often calibrations on such draws
choose a setting whose risk is above the tolerance is then counted, with no
noise but the binomial one.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.calibration import inputs, multiple_testing, p_values

# Fewer rows are no population: their 20 % are a handful of examples, and not
# even losses of 0 would certify a tolerance of 0.1.
FEWEST_ROWS = 30
# Losses of draws that are held in memory at once.
_MOST_LOSSES = 2_000_000
# Just below a risk means: below it by this share of it.
_SHARE_BELOW = 0.02


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What every calibration of a study tests with.

  Attributes:
    error_rate: the bound on the share of violations, in (0, 1).
    p_value: as for `calibrate`.
    procedure: as for `calibrate`.
  """

  error_rate: float = 0.05
  p_value: p_values.PValue = p_values.hoeffding_bentkus
  procedure: multiple_testing.Procedure = dataclasses.field(
    default_factory=multiple_testing.fixed_sequence
  )

  def __post_init__(self):
    """Raises ValueError for an error rate that is none."""
    inputs.check_error_rate(self.error_rate)

  @property
  def p_value_name(self) -> str:
    """How results name the p-value, with its parameters."""
    return getattr(self.p_value, 'name', None) or self.p_value.__name__


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
  """A full loss table whose column means are taken for true risks.

  Attributes:
    losses: [N, J], within loss_range, none missing.
    settings: [J], from conservative to aggressive.
    mean_exit_layers: [J], layers per token.
    num_layers: L, what the full model takes; None if not known.
    loss_range: the smallest and the largest value a loss can have.
  """

  losses: np.ndarray
  settings: Sequence[Any]
  mean_exit_layers: np.ndarray
  num_layers: int | None = None
  loss_range: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    """Brings the fields to one form.

    Raises:
      ValueError: for a table with missing columns, losses outside their range,
        settings out of order, or too few rows to stand for a population.
    """

    def put(name, value):
      object.__setattr__(self, name, value)

    losses = np.asarray(self.losses, np.float64)
    put('settings', tuple(inputs.check_settings(self.settings)))
    _check_losses(losses, self.settings, self.loss_range)
    put('losses', losses)
    put('mean_exit_layers', np.asarray(self.mean_exit_layers, np.float64))
    if self.mean_exit_layers.shape != losses.shape[1:]:
      raise ValueError(
        f'mean_exit_layers have shape {self.mean_exit_layers.shape}, expected '
        f'one number for each of the {losses.shape[1]} settings'
      )

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.losses)

  @functools.cached_property
  def risks(self) -> np.ndarray:
    """The risk of each setting [J]."""
    return self.losses.mean(axis=0)

  @functools.cached_property
  def mapped(self) -> np.ndarray:
    """The losses as p-values take them, in [0, 1]; by columns [J, N]."""
    low, high = self.loss_range
    mapped = np.clip((self.losses - low) / (high - low), 0, 1)
    return np.ascontiguousarray(mapped.T)

  def of_choices(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns risk [M] and mean exit layer [M] of chosen columns [M].

    -1 stands for the full model, which loses nothing and takes all layers.
    """
    layers = np.nan if self.num_layers is None else self.num_layers
    # Indexed by -1 as by any other column.
    return (
      np.append(self.risks, 0.0)[chosen],
      np.append(self.mean_exit_layers, layers)[chosen],
    )

  def above(self, risks: np.ndarray, tolerance: float) -> np.ndarray:
    """Says which risks are above the tolerance by more than rounding."""
    low, high = self.loss_range
    return risks > tolerance + 1e-12 * (high - low)


def choose(
  population: Population,
  rows: np.ndarray,
  *,
  tolerance: float,
  statistics: Statistics,
) -> np.ndarray:
  """Returns what `calibrate` would certify on each of M samples of rows.

  Only p-values that the procedure asks for are computed, those of one column
  for all samples at once.

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
  low, high = inputs.check_range(population.loss_range, tolerance)
  procedure, error_rate = statistics.procedure, statistics.error_rate
  mapped_tolerance = (tolerance - low) / (high - low)
  tests = np.full((len(rows), len(population.settings)), np.nan)
  waiting = np.arange(len(rows))
  while waiting.size:
    asked = [procedure.next_test(tests[m], error_rate) for m in waiting]
    asked = np.array([-1 if column is None else column for column in asked])
    for column in np.unique(asked[asked >= 0]):
      samples = waiting[asked == column]
      found = p_values.apply_rows(
        statistics.p_value,
        population.mapped[column][rows[samples]],
        tolerance=mapped_tolerance,
      )
      _check_tests(found, tests[samples, column], statistics, column)
      tests[samples, column] = found
    waiting = waiting[asked >= 0]
  return np.array(
    [max(procedure(test, error_rate), default=-1) for test in tests]
  )


def choose_on_draws(
  population: Population,
  *,
  tolerance: float,
  statistics: Statistics,
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
    ValueError: if there is nothing to draw, or as `choose`.
  """
  size = population.num_examples if draw_size is None else draw_size
  if num_draws < 1 or size < 1:
    raise ValueError(
      f'num_draws {num_draws} and draw_size {size} must be at least 1'
    )
  return np.concatenate(
    [
      choose(population, rows, tolerance=tolerance, statistics=statistics)
      for rows in _draws(population.num_examples, num_draws, size, seed)
    ]
  )


def count_violations(
  population: Population,
  *,
  tolerance: float,
  statistics: Statistics,
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
  chosen = choose_on_draws(
    population,
    tolerance=tolerance,
    statistics=statistics,
    num_draws=num_draws,
    draw_size=draw_size,
    seed=seed,
  )
  risks, layers = population.of_choices(chosen)
  violations = int(population.above(risks, tolerance).sum())
  rate_low, rate_high = rate_interval(violations, num_draws)
  return records.ViolationCount(
    tolerance=float(tolerance),
    p_value=statistics.p_value_name,
    near_setting=near_setting,
    num_draws=num_draws,
    draw_size=population.num_examples if draw_size is None else draw_size,
    num_violations=violations,
    rate_low=rate_low,
    rate_high=rate_high,
    num_certified=int((chosen >= 0).sum()),
    chosen=tuple(
      int((chosen == column).sum())
      for column in range(len(population.settings))
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

  >>> [round(end, 4) for end in rate_interval(0, 1000)]
  [0.0, 0.0037]
  """
  # Takes longer to load than all the rest of calibration.
  from scipy import stats

  interval = stats.binomtest(count, number).proportion_ci(0.95, method='exact')
  return float(interval.low), float(interval.high)


def _draws(
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


def _check_losses(losses: np.ndarray, settings, loss_range) -> None:
  """Raises ValueError unless the losses can stand for a population."""
  low, high = loss_range
  inputs.check_range(loss_range, (low + high) / 2)
  if losses.ndim != 2 or losses.shape[1] != len(settings):
    raise ValueError(
      f'losses have shape {losses.shape}, expected [N examples, '
      f'{len(settings)} settings]'
    )
  if len(losses) < FEWEST_ROWS:
    raise ValueError(
      f'{len(losses)} rows cannot stand for a population; it takes at least '
      f'{FEWEST_ROWS}, and some hundreds to learn anything'
    )
  missing = np.isnan(losses)
  for column in np.flatnonzero(missing.all(axis=0)):
    raise ValueError(
      f'column {column} (setting {settings[column]}) was not decoded, as are '
      f'{int(missing.all(axis=0).sum())} of {len(settings)}: a population has '
      'no gaps. Calibrate with --gin.FULL_GRID=True to fill every column'
    )
  slack = 1e-9 * (high - low)
  inside = (losses >= low - slack) & (losses <= high + slack)
  for row, column in np.argwhere(~inside):
    raise ValueError(
      f'the loss of row {row}, column {column} is {losses[row, column]}, not '
      f'within the loss_range {low:g} to {high:g}'
    )


def _check_tests(found, before, statistics, column) -> None:
  """Raises ValueError if p-values are none, or were there already."""
  if not ((found >= 0) & (found <= 1)).all():
    raise ValueError(
      f'{statistics.p_value_name} gave {found.min()} to {found.max()} for '
      f'column {column}; a p-value must be in [0, 1]'
    )
  if not np.isnan(before).all():
    raise ValueError(
      f'{statistics.procedure} asks for test {column} a second time'
    )
