"""What of an oracle's gain is luck: routes chosen and judged by other scores.

The largest of many noisy scores is large whether or not its route is a good
one. So routes are chosen by one half of repeated scores and judged by the other
(`held_out`), and an oracle chooses where no route suits any input (`luck`).
NumPy only.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from calm_jax.benchmarks.blind_routes import best_mix, best_single
from calm_jax.benchmarks.route_oracles import Oracle


def dealt_out(
  scores: np.ndarray, rng: np.random.Generator, highest: float = 1.0
) -> np.ndarray:
  """Deals what routes are to single inputs out to other inputs, at random.

  What is left of a score without its route's mean and its input's changes
  hands among the inputs, route by route and repetition by repetition. Routes
  keep their means, and inputs theirs but for chance; no route suits an input
  any more. What is above the best score that there is, is cut.

  Args:
    scores: float [N, R] or [K, N, R].
    rng: draws.
    highest: the best score there is: 1 of similarities, 0 of logarithms of
      probabilities.
  """
  of_routes = scores.mean(axis=-2, keepdims=True)
  of_inputs = scores.mean(axis=-1, keepdims=True)
  if scores.ndim == 3:
    of_routes = of_routes.mean(axis=0, keepdims=True)
    of_inputs = of_inputs.mean(axis=0, keepdims=True)
  additive = of_routes + of_inputs - scores.mean()
  rest = rng.permuted(scores - additive, axis=-2)
  return np.minimum(additive + rest, highest)


def luck(
  scores: np.ndarray,
  costs: np.ndarray,
  budgets: Sequence[float],
  *,
  num_draws: int,
  rng: np.random.Generator,
  highest: float = 1.0,
) -> np.ndarray:
  """Returns what an oracle gains by luck alone, for each budget.

  The oracle's mean score over that of the best blind mix, on scores that
  were dealt out (`dealt_out`). That is rather more than the luck of the real
  oracle: what is dealt holds what routes truly are to inputs as well, and like
  routes no longer share their scores.

  Args:
    scores: float [N, R].
    costs: whole [R].
    budgets: mean costs.
    num_draws: deals; their mean is returned.
    rng: draws them.
    highest: as for `dealt_out`.
  """
  gains = []
  for _ in range(num_draws):
    dealt = dealt_out(scores, rng, highest)
    oracle = Oracle(dealt, costs)
    gains.append(
      [
        oracle.value(budget)
        - dealt.mean(axis=0) @ best_mix(dealt, costs, budget)
        for budget in budgets
      ]
    )
  return np.mean(gains, axis=0)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Routes chosen by one half of repeated scores, at one budget.

  Attributes:
    seen: the oracle's mean score on the half by which it chose.
    unseen: on the other one.
    single: that of the best single route, chosen and judged likewise.
    mix: that of the best blind mix, likewise.
    gain_error: the standard error of unseen - mix over the inputs.
    mean_cost: of the oracle's routes.
  """

  seen: float
  unseen: float
  single: float
  mix: float
  gain_error: float
  mean_cost: float


def held_out(
  scores: np.ndarray,
  costs: np.ndarray,
  budgets: Sequence[float],
  *,
  num_splits: int,
  rng: np.random.Generator,
) -> list[HeldOut]:
  """Chooses on one half of repeated scores and judges on the other.

  Args:
    scores: float [K, N, R]: K independent outputs of every route on every
      input. Each split takes K // 2 of them for either half.
    costs: whole [R].
    budgets: mean costs.
    num_splits: splits, each used both ways; means are returned.
    rng: draws them.

  Raises:
    ValueError: if there are fewer than two repetitions.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 3 or len(scores) < 2:
    raise ValueError(
      f'scores are {scores.shape}; give [K, N, R] with K of at least 2, a half '
      'to choose by and one to judge by'
    )
  half = len(scores) // 2
  rows = np.arange(scores.shape[1])
  # Per budget and way: seen, unseen, single, mix and costs, [5, N].
  found: list[list[np.ndarray]] = [[] for _ in budgets]
  for _ in range(num_splits):
    order = rng.permutation(len(scores))
    one, other = (
      scores[part].mean(axis=0)
      for part in (order[:half], order[half : 2 * half])
    )
    for choose, judge in ((one, other), (other, one)):
      oracle = Oracle(choose, costs)
      for place, budget in enumerate(budgets):
        routes = oracle.choose(budget)
        single = best_single(choose, costs, budget)
        found[place].append(
          np.stack(
            [
              choose[rows, routes],
              judge[rows, routes],
              judge[:, single],
              judge @ best_mix(choose, costs, budget),
              np.asarray(costs)[routes],
            ]
          )
        )
  return [_summary(np.mean(of_budget, axis=0)) for of_budget in found]


def _summary(means: np.ndarray) -> HeldOut:
  """Returns the means over the inputs of what is known of each, [5, N]."""
  seen, unseen, single, mix, cost = means
  error = math.nan
  if len(unseen) > 1:
    error = float((unseen - mix).std(ddof=1) / math.sqrt(len(unseen)))
  return HeldOut(
    seen=float(seen.mean()),
    unseen=float(unseen.mean()),
    single=float(single.mean()),
    mix=float(mix.mean()),
    gain_error=error,
    mean_cost=float(cost.mean()),
  )
