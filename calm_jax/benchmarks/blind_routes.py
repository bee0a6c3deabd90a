"""The best that can be done under a budget without a look at the inputs.

What an oracle has to be held against. NumPy only.
"""

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.benchmarks.route_oracles import check_scores


def best_single(scores: ArrayLike, costs: ArrayLike, budget: float) -> int:
  """Returns the one route that is best for all inputs, the cheapest of equals.

  Args:
    scores: float [N, R].
    costs: whole [R].
    budget: at most such a cost.

  Raises:
    ValueError: if no route is within the budget.
  """
  scores, costs = check_scores(scores, costs)
  if not (costs <= budget).any():
    raise ValueError(
      f'a budget of {budget:g} layers is below the cheapest route, which has '
      f'{costs.min()}; give more'
    )
  means = np.where(costs <= budget, scores.mean(axis=0), -np.inf)
  return int(np.lexsort((costs, -means))[0])


def best_mix(scores: ArrayLike, costs: ArrayLike, budget: float) -> np.ndarray:
  """Returns the best shares of routes for inputs that nobody looks at.

  A budget of mean layers lets some inputs go deeper than others. Whoever knows
  nothing of them can still do that, at random: by the best single route, or by
  one of at most so many layers and one of more. The oracle's gain over this is
  what it knows of inputs.

  Args:
    scores: float [N, R].
    costs: whole [R].
    budget: at most such a mean cost.

  Returns:
    Shares, float [R], of at most two routes.

  Raises:
    ValueError: if no route is within the budget.

  >>> best_mix([[0.2, 0.3, 0.8]], [1, 2, 3], 2.0)
  array([0.5, 0. , 0.5])
  """
  single = best_single(scores, costs, budget)
  scores, costs = check_scores(scores, costs)
  means, shares = scores.mean(axis=0), np.eye(len(costs))[single]
  below, above = np.flatnonzero(costs <= budget), np.flatnonzero(costs > budget)
  if not above.size:
    return shares
  # Of every pair the share that may have the dearer one: [below, above].
  share = (budget - costs[below])[:, None] / np.subtract.outer(
    costs[above], costs[below]
  ).T
  values = (1 - share) * means[below][:, None] + share * means[above]
  one, other = np.unravel_index(values.argmax(), values.shape)
  if values[one, other] <= means[single] + 1e-12:
    return shares
  shares = np.zeros(len(costs))
  shares[below[one]] = 1 - share[one, other]
  shares[above[other]] = share[one, other]
  return shares
