"""From the scores of routes to rows: who does best, budget by budget."""

import math
from collections.abc import Sequence

import numpy as np

from calm_jax.benchmarks import oracle_luck, routes
from calm_jax.benchmarks.blind_routes import best_mix, best_single
from calm_jax.benchmarks.route_oracles import Oracle
from calm_jax.benchmarks.route_scores import SCORES, Scores
from calm_jax.records import OracleRow

_QUANTILES = (0.05, 0.5, 0.95)
_NONE = (math.nan,) * len(_QUANTILES)


def rows_of(
  scores: Scores,
  budgets: Sequence[int],
  *,
  run: str,
  metric: str,
  random_routes: Sequence[routes.Route],
  num_splits: int,
  seed: int,
) -> list[OracleRow]:
  """Returns the rows of all budgets, by each score, greedy and sampled.

  Args:
    scores: of all routes, those of the full model among them.
    budgets: mean layers, 1..L.
    run: what a table calls it.
    metric: of the scores.
    random_routes: which of the routes are the random ones.
    num_splits: splits into halves, and deals of the control.
    seed: of these.
  """
  found = []
  for name in SCORES:
    about = dict(run=run, score=name, metric=metric)
    rng = np.random.default_rng(seed)
    options = dict(num=num_splits, rng=rng)
    baselines = _Baselines(scores.routes, random_routes)
    found += _greedy(scores.greedy[name], budgets, baselines, about, **options)
    if len(scores.sampled[name]):
      found += _sampled(
        scores.sampled[name], budgets, baselines, about, **options
      )
  return found


class _Baselines:
  """What is no oracle: families of routes, by their mean scores."""

  def __init__(
    self,
    every: Sequence[routes.Route],
    random_routes: Sequence[routes.Route],
  ):
    self._place = {route: place for place, route in enumerate(every)}
    self._random = random_routes
    self.costs = np.array([len(route) for route in every])
    self._num_layers = int(self.costs.max())

  def __call__(self, means: np.ndarray, budget: int) -> dict:
    """Returns columns of a row; `means` is float [R]."""
    drawn = [
      means[self._place[route]]
      for route in self._random
      if len(route) == budget
    ]
    band = _NONE
    if drawn:
      low, middle, high = np.quantile(drawn, _QUANTILES).tolist()
      band = low, middle, high
    return dict(
      budget=float(budget),
      full=self._of(means, routes.early_exit(self._num_layers)),
      early_exit=self._of(means, routes.early_exit(budget)),
      uniform=self._of(means, routes.uniform(budget, self._num_layers)),
      random=band,
    )

  def _of(self, means: np.ndarray, route: routes.Route) -> float:
    place = self._place.get(route)
    return math.nan if place is None else float(means[place])


def _greedy(scores, budgets, baselines, about, *, num, rng) -> list[OracleRow]:
  """Returns rows of scores [N, R], chosen and judged by the same ones."""
  means, costs = scores.mean(axis=0), baselines.costs
  oracle = Oracle(scores, costs)
  gains = oracle_luck.luck(scores, costs, budgets, num_draws=num, rng=rng)
  rows = []
  for budget, gain in zip(budgets, gains, strict=True):
    columns = baselines(means, budget)
    rows.append(
      OracleRow(
        **about,
        **columns,
        decoding='greedy',
        single=float(means[best_single(scores, costs, budget)]),
        mix=float(means @ best_mix(scores, costs, budget)),
        oracle=oracle.value(budget),
        held_out=math.nan,
        gain_error=math.nan,
        luck=float(gain),
        mean_layers=float(costs[oracle.choose(budget)].mean()),
        matches_full=oracle.least_budget(columns['full']),
      )
    )
  return rows


def _sampled(scores, budgets, baselines, about, *, num, rng) -> list[OracleRow]:
  """Returns rows of scores [K, N, R], chosen and judged by halves of them."""
  means, costs = scores.mean(axis=(0, 1)), baselines.costs
  halves = oracle_luck.held_out(scores, costs, budgets, num_splits=num, rng=rng)
  half = scores[: len(scores) // 2].mean(axis=0)
  gains = oracle_luck.luck(half, costs, budgets, num_draws=num, rng=rng)
  full = baselines(means, budgets[0])['full']
  enough = [
    budget
    for budget, one in zip(budgets, halves, strict=True)
    if one.unseen >= full - 1e-9
  ]
  return [
    OracleRow(
      **about,
      **baselines(means, budget),
      decoding='sampled',
      single=one.single,
      mix=one.mix,
      oracle=one.seen,
      held_out=one.unseen,
      gain_error=one.gain_error,
      luck=float(gain),
      mean_layers=one.mean_cost,
      matches_full=float(min(enough, default=math.nan)),
    )
    for budget, one, gain in zip(budgets, halves, gains, strict=True)
  ]
