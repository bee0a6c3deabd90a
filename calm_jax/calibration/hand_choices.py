"""What one would choose by hand: each policy calibrated, the best one taken.

The alternative to a tuning. Every policy gets a certificate of its own, on all
rows, and the fastest is kept; so that this is as good a promise, each is tested
at the error rate over the number of policies.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.calibration import tuned_choices
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.choices import Statistics
from calm_jax.calibration.population import Population


def choose_by_hand(
  populations: Sequence[Population],
  rows: np.ndarray,
  times: ArrayLike,
  promises: Sequence[Bound],
  policies: Sequence[str],
  *,
  statistics: Statistics,
  order: Sequence[int] | None = None,
  time_to_beat: float = np.inf,
) -> np.ndarray:
  """Returns what is chosen on each of M samples of rows.

  Each policy's settings are tested in their order until one fails, by fixed
  sequence at the error rate over the number of policies (Bonferroni), on all
  rows of the sample; the fastest that passed is chosen. Which order is safe is
  known beforehand, and the clock looks at no row.

  Args:
    populations: K tables of the same rows and C candidates, one per promise.
    rows: [M, n] indices of their rows.
    times: [C], of the candidates.
    promises: K bounds.
    policies: [C], the policy of each candidate.
    statistics: p-value and error rate; the procedure is not looked at.
    order: all candidates, in which the settings of a policy come from
      conservative to aggressive; as they are if None.
    time_to_beat: what needs no certificate takes so long.

  Returns:
    int [M], the candidate, -1 where none that is faster is certified.

  Raises:
    ValueError: unless there is a policy and a time for every candidate, and a
      place in the order.
  """
  times = np.asarray(times, np.float64)
  number = len(populations[0].settings)
  if not len(times) == len(policies) == number:
    raise ValueError(
      f'{len(times)} times and {len(policies)} policies should be one for each '
      f'of the {number} candidates'
    )
  order = range(number) if order is None else [int(place) for place in order]
  if sorted(order) != list(range(number)):
    raise ValueError(
      f'order is {order}; give each of 0..{number - 1} once, from conservative '
      'to aggressive'
    )
  families = list(dict.fromkeys(policies))
  error_rate = statistics.error_rate / len(families)
  statistics = dataclasses.replace(statistics, error_rate=error_rate)
  chosen = np.full(len(rows), -1)
  best = np.full(len(rows), time_to_beat)
  for family in families:
    testing = np.ones(len(rows), bool)
    for column in order:
      if policies[column] != family or not testing.any():
        continue
      samples = np.flatnonzero(testing)
      p = tuned_choices.p_values_of(
        populations, promises, rows[samples], column, statistics
      )
      testing[samples[p > error_rate]] = False
      better = testing & (times[column] < best)
      chosen[better], best[better] = column, times[column]
  return chosen
