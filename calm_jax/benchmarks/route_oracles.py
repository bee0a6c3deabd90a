"""The best route for each input, under a budget of mean layers. NumPy only.

Whoever knows how good the output of every route is picks one route per input,
so that the sum of the scores is largest and the mean cost within the budget: a
knapsack of groups, as in "Dynamic layer selection in decoder-only transformers"
(arXiv 2410.20022), solved here exactly over whole total costs. What of its
gain is luck says `oracle_luck`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike


class Oracle:
  """The best routes of N inputs for every budget, by dynamic programming.

  >>> oracle = Oracle([[0.2, 0.9], [0.5, 0.6]], [1, 3])
  >>> oracle.choose(2.0), oracle.value(2.0)
  (array([1, 0]), 0.7)
  """

  def __init__(self, scores: ArrayLike, costs: ArrayLike):
    """Solves the problem for all budgets at once.

    Args:
      scores: float [N, R], of every route on every input; higher is better.
      costs: whole [R], in layers.

    Raises:
      ValueError: for scores or costs that are none.
    """
    scores, costs = check_scores(scores, costs)
    self._levels, level_of = np.unique(costs, return_inverse=True)
    # Of routes that cost the same only the best one matters: [N, levels].
    self._routes = np.stack(
      [
        routes[scores[:, routes].argmax(axis=1)]
        for routes in (
          np.flatnonzero(level_of == level)
          for level in range(len(self._levels))
        )
      ],
      axis=1,
    )
    best = np.take_along_axis(scores, self._routes, axis=1)
    self._sums, self._choices = _solve(best, self._levels)
    self._highest = float(best.max(axis=1).mean())

  @property
  def num_inputs(self) -> int:
    """N."""
    return len(self._routes)

  def value(self, budget: float) -> float:
    """Returns the largest mean score with a mean cost within the budget."""
    return float(self._sums[self._capacity(budget)]) / self.num_inputs

  def choose(self, budget: float) -> np.ndarray:
    """Returns the routes, int [N], that have it; cheap ones where they tie.

    Raises:
      ValueError: if the budget is below the cheapest route.
    """
    capacity = self._capacity(budget)
    levels = np.zeros(self.num_inputs, int)
    for row in reversed(range(self.num_inputs)):
      levels[row] = self._choices[row, capacity]
      capacity -= self._levels[levels[row]]
    return self._routes[np.arange(self.num_inputs), levels]

  def least_budget(self, target: float) -> float:
    """Returns the least mean cost of a mean score; NaN if none reaches it."""
    # Sums of equal scores in another order differ by their rounding.
    reached = self._sums / self.num_inputs >= target - 1e-9
    if not reached.any():
      return math.nan
    return float(reached.argmax()) / self.num_inputs

  def _capacity(self, budget: float) -> int:
    """Returns the total cost that a mean one allows."""
    least = self._levels[0]
    if not budget >= least:
      raise ValueError(
        f'a budget of {budget:g} layers is below the cheapest route, which has '
        f'{least}; give more'
      )
    # 2.3 layers of 10 inputs are 23, whatever 2.3 is in binary.
    total = math.floor(min(budget, self._levels[-1]) * self.num_inputs + 1e-6)
    return min(total, len(self._sums) - 1)


def _solve(
  best: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Solves the knapsack of groups.

  Args:
    best: float [N, K], the score of each input at each cost.
    levels: whole [K], the costs, rising.

  Returns:
    The largest sum for every total cost that may be spent, float [C], -inf
    where it is not enough; and the choices, int [N, C]: which cost each input
    has if so much may be spent on it and those before it.
  """
  size = len(best) * int(levels[-1]) + 1
  choices = np.zeros((len(best), size), np.int16)
  # Of no inputs the sum is 0, whatever may be spent.
  sums = np.zeros(size)
  for row, of_row in enumerate(best):
    options = np.full((len(levels), size), -np.inf)
    for option, cost, score in zip(options, levels, of_row, strict=True):
      option[cost:] = sums[: size - cost] + score
    choices[row] = options.argmax(axis=0)
    sums = options.max(axis=0)
  return sums, choices


def check_scores(
  scores: ArrayLike, costs: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Returns scores float64 [N, R] and costs int64 [R].

  Raises:
    ValueError: naming what is none.
  """
  scores, costs = np.asarray(scores, np.float64), np.asarray(costs)
  if scores.ndim != 2 or costs.shape != scores.shape[1:] or not scores.size:
    raise ValueError(
      f'scores are {scores.shape} and costs {costs.shape}; give [N, R] and [R]'
    )
  if not np.isfinite(scores).all():
    row, route = np.argwhere(~np.isfinite(scores))[0]
    raise ValueError(
      f'the score of route {route} on input {row} is {scores[row, route]}; '
      'give finite numbers'
    )
  whole = np.issubdtype(costs.dtype, np.integer)
  if not whole or costs.min() < 0:
    raise ValueError(f'costs are {costs}; give whole numbers from 0 on')
  return scores, costs.astype(np.int64)
