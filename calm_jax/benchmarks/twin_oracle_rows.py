"""The best pattern of feed-forwards for each token, under a budget.

Duo-LLM (arXiv 2410.10846) tries all patterns on each token and keeps the one
with the least loss. The least of hundreds of losses is small whether or not its
pattern suits the token, so beside that oracle stand what is best without a look
at the tokens, and the same oracle on labels that were permuted: what it gains
there is the winner's curse. NumPy only.
"""

from collections.abc import Sequence

import numpy as np

from calm_jax.benchmarks import oracle_luck
from calm_jax.benchmarks.blind_routes import best_mix, best_single
from calm_jax.benchmarks.route_oracles import Oracle
from calm_jax.benchmarks.twin_patterns import Pattern, costs_of
from calm_jax.records import TwinOracleRow


def rows_of(
  patterns: Sequence[Pattern],
  scores: np.ndarray,
  permuted: np.ndarray,
  *,
  own_units: int,
  twin_units: int,
  run: str = '',
  num_deals: int = 3,
  seed: int = 0,
) -> list[TwinOracleRow]:
  """Returns a row for each whole number of blocks from 1 to L.

  Args:
    patterns: R of them, the one of own blocks alone among them.
    scores: float [N, R], log-probability of each token's label.
    permuted: float [K, N, R], of labels that were permuted.
    own_units: hidden units of a block.
    twin_units: of a twin.
    run: what rows call it.
    num_deals: of `oracle_luck.luck`.
    seed: of these.

  Raises:
    ValueError: for arrays that do not fit together.
  """
  scores, permuted = np.asarray(scores), np.asarray(permuted)
  if permuted.ndim != 3 or permuted.shape[1:] != scores.shape:
    raise ValueError(
      f'scores are {scores.shape} and those of permuted labels '
      f'{permuted.shape}; give [N, R] and [K, N, R]'
    )
  layers = len(patterns[0])
  costs, block = costs_of(patterns, own_units=own_units, twin_units=twin_units)
  oracle = Oracle(scores, costs)
  budgets = [number * block for number in range(1, layers + 1)]
  curse = np.mean([_gains(one, costs, budgets) for one in permuted], axis=0)
  luck = oracle_luck.luck(
    scores,
    costs,
    budgets,
    num_draws=num_deals,
    rng=np.random.default_rng(seed),
    highest=0.0,
  )
  means, rows = scores.mean(axis=0), []
  for place, budget in enumerate(budgets):
    single = best_single(scores, costs, budget)
    rows.append(
      TwinOracleRow(
        run=run,
        budget=budget / block,
        full=float(means[patterns.index((1,) * layers)]),
        single=float(means[single]),
        pattern=patterns[single],
        mix=float(means @ best_mix(scores, costs, budget)),
        oracle=oracle.value(budget),
        permuted_gain=float(curse[place]),
        luck=float(luck[place]),
        mean_cost=float(costs[oracle.choose(budget)].mean()) / block,
      )
    )
  return rows


def _gains(
  scores: np.ndarray, costs: np.ndarray, budgets: Sequence[int]
) -> list[float]:
  """Returns the oracle's gain over the best blind mix, for each budget."""
  oracle = Oracle(scores, costs)
  return [
    oracle.value(budget)
    - float(scores.mean(axis=0) @ best_mix(scores, costs, budget))
    for budget in budgets
  ]
