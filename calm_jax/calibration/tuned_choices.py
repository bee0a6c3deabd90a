"""What `tune_on_table` would choose on each of many samples; how often wrong.

The guarantee, counted with the selection included: every draw is split in two,
screened, ordered and tested anew.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calm_jax import records
from calm_jax.calibration import p_values, pareto, tuning, violations
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.choices import Statistics
from calm_jax.calibration.population import Population


def choose_tuned(
  populations: Sequence[Population],
  rows: np.ndarray,
  times: ArrayLike,
  promises: Sequence[Bound],
  *,
  statistics: Statistics,
  share: float = tuning.SCREENING_SHARE,
  time_to_beat: float = np.inf,
) -> np.ndarray:
  """Returns what is chosen on each of M samples of rows.

  Args:
    populations: K tables of the same rows and C candidates, one per promise.
    rows: [M, n] indices of their rows; the first ones screen. (Samples come in
      any order, so that these are as good as any.)
    times: [C], as for `tune_on_table`.
    promises: K bounds, in the order of certificates.
    statistics: p-value and error rate; the procedure is not looked at.
    share: of the rows that screen.
    time_to_beat: as for `tune_on_table`.

  Returns:
    int [M], the candidate, -1 where none is certified.

  Raises:
    ValueError: for a p-value that does not keep to its interface, or samples
      of fewer than two rows.
  """
  times = np.asarray(times, np.float64)
  size = tuning.split_rows(rows.shape[1], share=share).size
  screens, tests = rows[:, :size], rows[:, size:]
  number = len(populations[0].settings)
  found = [
    _tests(populations, promises, screens, column, statistics)
    for column in range(number)
  ]
  screened, excess = (
    np.stack(part, axis=1) for part in zip(*found, strict=True)
  )
  order = pareto.safest_first(screened, excess, times)
  # The front of each: those faster than all before them.
  fastest = np.minimum.accumulate(times[order], axis=1)
  before = np.concatenate(
    [np.full((len(rows), 1), np.inf), fastest[:, :-1]], axis=1
  )
  in_front = times[order] < np.minimum(before, time_to_beat)
  chosen = np.full(len(rows), -1)
  testing = np.ones(len(rows), bool)
  for place in range(number):
    going = testing & in_front[:, place]
    for column in np.unique(order[going, place]):
      samples = np.flatnonzero(going & (order[:, place] == column))
      p, _ = _tests(populations, promises, tests[samples], column, statistics)
      passed = p <= statistics.error_rate
      chosen[samples[passed]] = column
      testing[samples[~passed]] = False
  return chosen


def count_tuned(
  populations: Sequence[Population],
  times: ArrayLike,
  promises: Sequence[Bound],
  *,
  statistics: Statistics,
  num_draws: int = 2000,
  draw_size: int | None = None,
  seed: int = 0,
  near_setting: Any = None,
  time_to_beat: float = np.inf,
) -> records.ViolationCount:
  """Tunes on many draws of a population and counts what breaks a promise.

  Args:
    populations: as for `choose_tuned`, and so are the next ones.
    times: see `choose_tuned`.
    promises: see `choose_tuned`.
    statistics: see `choose_tuned`.
    num_draws: how many draws, with replacement.
    draw_size: the rows of a draw, both halves; N if None.
    seed: of the draws.
    near_setting: kept in the result.
    time_to_beat: as for `tune_on_table`.

  Raises:
    ValueError: as `choose_tuned`; if there is nothing to draw.
  """
  first = populations[0]
  size = first.num_examples if draw_size is None else draw_size
  chosen = np.concatenate(
    [
      choose_tuned(
        populations,
        rows,
        times,
        promises,
        statistics=statistics,
        time_to_beat=time_to_beat,
      )
      for rows in violations.draws(first.num_examples, num_draws, size, seed)
    ]
  )
  count = violations.counted(
    populations,
    [bound.tolerance for bound in promises],
    chosen,
    statistics=statistics,
    draw_size=size,
  )
  promised = tuple(
    records.PromisedLoss(
      loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
    )
    for bound in promises
  )
  return dataclasses.replace(
    count, promises=promised, near_setting=near_setting
  )


def p_values_of(
  populations: Sequence[Population],
  promises: Sequence[Bound],
  rows: np.ndarray,
  column: int,
  statistics: Statistics,
) -> np.ndarray:
  """Returns the largest p-value of the promises for a candidate, [M].

  Args:
    populations: as for `choose_tuned`, and so is the next one.
    promises: see `choose_tuned`.
    rows: [M, n], samples.
    column: the candidate.
    statistics: has the p-value.
  """
  return _tests(populations, promises, rows, column, statistics)[0]


def _tests(populations, promises, rows, column, statistics):
  """Returns p-values [M] of one candidate, and how far it is above [M]."""
  found, above = [], []
  for population, bound in zip(populations, promises, strict=True):
    low, high = bound.loss_range
    tolerance = (bound.tolerance - low) / (high - low)
    losses = population.mapped[column][rows]
    found.append(
      p_values.apply_rows(statistics.p_value, losses, tolerance=tolerance)
    )
    above.append(losses.mean(axis=1) - tolerance)
  return np.max(found, axis=0), np.max(above, axis=0)
