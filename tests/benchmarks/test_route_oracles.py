"""Oracles over routes: exact, within their laws, and not fooled by luck."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize

from calm_jax.benchmarks import blind_routes, oracle_luck, routes
from calm_jax.benchmarks.route_oracles import Oracle


def brute_force(scores, costs, budget):
  """The largest mean score of all ways to give inputs routes."""
  best = -math.inf
  rows = np.arange(len(scores))
  for chosen in itertools.product(range(len(costs)), repeat=len(scores)):
    chosen = list(chosen)
    if costs[chosen].mean() <= budget + 1e-9:
      best = max(best, scores[rows, chosen].mean())
  return best


def instances(number, *, most_inputs=4):
  rng = np.random.default_rng(0)
  for _ in range(number):
    inputs, count = rng.integers(1, most_inputs + 1), rng.integers(1, 5)
    scores = rng.normal(size=(inputs, count))
    if rng.random() < 0.5:
      scores = scores.round()  # with ties
    yield scores, rng.integers(0, 6, count)


def test_it_is_brute_force_at_every_budget():
  for scores, costs in instances(18):
    oracle = Oracle(scores, costs)
    rows = np.arange(len(scores))
    for budget in np.arange(costs.min(), 6.01, 1 / len(scores)):
      expected = brute_force(scores, costs, budget)
      assert oracle.value(budget) == pytest.approx(expected)
      chosen = oracle.choose(budget)
      assert scores[rows, chosen].mean() == pytest.approx(expected)
      assert costs[chosen].mean() <= budget + 1e-9


def test_the_first_input_obeys_the_budget_too():
  """A released solver let the first group have its first item at any cost."""
  scores, costs = np.array([[1.0, 0.0], [1.0, 0.9]]), np.array([4, 1])
  oracle = Oracle(scores, costs)
  assert oracle.choose(1).tolist() == [1, 1]
  assert oracle.choose(2.5).tolist() == [0, 1]
  assert oracle.value(2.4) == pytest.approx(0.45)
  assert oracle.choose(4).tolist() == [0, 0]
  with pytest.raises(ValueError, match=r'budget of 0\.9 .* which has 1; give'):
    oracle.choose(0.9)


def lagrangian(scores, costs, price):
  """Returns mean score and cost of whoever pays a price per layer."""
  chosen = (scores - price * costs).argmax(axis=1)
  rows = np.arange(len(scores))
  return scores[rows, chosen].mean(), costs[chosen].mean()


def test_it_lies_between_hull_and_maximum():
  prices = np.linspace(0, 3, 61)
  for scores, costs in instances(40, most_inputs=9):
    oracle = Oracle(scores, costs)
    points = [lagrangian(scores, costs, price) for price in prices]
    highest = scores.max(axis=1).mean()
    for value, cost in points:
      # Whoever pays a price has the best of what costs as much.
      assert oracle.value(cost) == pytest.approx(value)
    values = []
    for budget in np.linspace(costs.min(), costs.max(), 7):
      values.append(oracle.value(budget))
      below = [value for value, cost in points if cost <= budget]
      dual = min(
        value + price * (budget - cost)
        for price, (value, cost) in zip(prices, points, strict=True)
      )
      assert max(below, default=-math.inf) - 1e-9 <= values[-1]
      assert values[-1] <= min(dual, highest) + 1e-9
    assert values == sorted(values)
    assert values[-1] == pytest.approx(highest)


def test_the_least_budget_of_a_score():
  scores, costs = np.array([[0.1, 0.9], [0.4, 0.5]]), np.array([1, 5])
  oracle = Oracle(scores, costs)
  assert oracle.least_budget(0.2) == 1.0
  assert oracle.least_budget(0.26) == 3.0
  assert oracle.least_budget(0.7) == 5.0
  assert math.isnan(oracle.least_budget(0.71))
  for target in (0.2, 0.26, 0.7):
    assert oracle.value(oracle.least_budget(target)) >= target - 1e-9


def test_the_best_single_route_is_the_cheapest_of_equals():
  scores = np.array([[0.5, 0.5, 0.9, 0.2], [0.5, 0.5, 0.3, 0.2]])
  costs = np.array([3, 2, 4, 1])
  assert blind_routes.best_single(scores, costs, 3) == 1
  assert blind_routes.best_single(scores, costs, 4) == 2
  assert blind_routes.best_single(scores, costs, 1.5) == 3
  with pytest.raises(ValueError, match=r'budget of 0\.5'):
    blind_routes.best_single(scores, costs, 0.5)


def test_the_blind_mix_is_the_best_of_all_shares():
  for scores, costs in instances(12):
    means, budgets = scores.mean(axis=0), np.linspace(costs.min(), 6, 4)
    for budget in budgets:
      shares = blind_routes.best_mix(scores, costs, budget)
      assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
      assert shares @ costs <= budget + 1e-9
      linear = optimize.linprog(
        -means,
        A_ub=[costs],
        b_ub=[budget],
        A_eq=[np.ones(len(costs))],
        b_eq=[1],
      )
      assert shares @ means == pytest.approx(-linear.fun, abs=1e-7)
  # Where nothing is gained by it, there is one route.
  shares = blind_routes.best_mix([[0.2, 0.4, 0.6]], [1, 2, 3], 2)
  assert shares.tolist() == [0, 1, 0]
  with pytest.raises(ValueError, match=r'budget of 0\.5'):
    blind_routes.best_mix([[0.2, 0.4]], [1, 2], 0.5)


@pytest.mark.parametrize(
  ('scores', 'costs', 'message'),
  [
    ([0.1], [1], r'\(1,\) and costs \(1,\)'),
    ([[0.1, 0.2]], [1], r'\(1, 2\) and costs \(1,\)'),
    (np.zeros((0, 1)), [1], r'\(0, 1\)'),
    ([[0.1, math.nan]], [1, 2], 'route 1 on input 0 is nan'),
    ([[0.1]], [1.5], r'costs are \[1\.5\]'),
    ([[0.1]], [-1], r'costs are \[-1\]'),
  ],
)
def test_bad_scores_are_named(scores, costs, message):
  with pytest.raises(ValueError, match=message):
    Oracle(scores, np.array(costs))
  with pytest.raises(ValueError, match=message):
    blind_routes.best_single(scores, np.array(costs), 3)


K, N, COSTS = 8, 150, np.array([1, 1, 1, 2, 2, 3])


def noise(seed):
  """Scores whose routes differ by luck alone: [K, N, R]."""
  rng = np.random.default_rng(seed)
  inputs = rng.uniform(0.4, 0.6, (N, 1))
  return inputs + rng.normal(0, 0.1, (K, N, len(COSTS)))


def held_out(scores, seed=0):
  (found,) = oracle_luck.held_out(
    scores, COSTS, [2.0], num_splits=4, rng=np.random.default_rng(seed)
  )
  return found


def test_luck_is_gone_on_the_other_half():
  found = held_out(noise(0))
  # Six routes whose means over four scores have an error of 0.05.
  assert found.seen - found.mix > 0.04
  assert abs(found.unseen - found.mix) < 4 * found.gain_error < 0.02
  assert found.mean_cost <= 2


def test_what_is_no_luck_stays():
  scores = noise(1)
  rng = np.random.default_rng(2)
  suits = rng.integers(0, 3, N)
  scores[:, np.arange(N), suits] += 0.3
  found = held_out(scores)
  assert found.unseen - found.mix > 0.15 > 10 * found.gain_error
  assert found.unseen <= found.seen
  # Dealt out, the same gain is luck: the other half knows nothing of it.
  dealt = held_out(oracle_luck.dealt_out(scores, rng))
  assert dealt.unseen - dealt.mix < 0.03 < dealt.seen - dealt.mix


def test_dealing_keeps_routes_and_inputs():
  scores = noise(3)[0] + np.arange(len(COSTS)) / 50
  dealt = oracle_luck.dealt_out(scores, np.random.default_rng(0))
  np.testing.assert_allclose(dealt.mean(axis=0), scores.mean(axis=0))
  assert np.corrcoef(dealt.mean(axis=1), scores.mean(axis=1))[0, 1] > 0.5
  assert not np.allclose(dealt, scores)
  # Without noise there is nothing to deal out, and nothing to gain.
  flat = np.arange(6)[:, None] / 10 + np.arange(6) / 20
  rng = np.random.default_rng(0)
  np.testing.assert_allclose(oracle_luck.dealt_out(flat, rng), flat, atol=1e-12)
  best = oracle_luck.dealt_out(flat + 0.5, rng)
  assert best.max() == 1.0
  # Logarithms of probabilities end at 0.
  logs = oracle_luck.dealt_out(noise(3)[0] - 1.0, rng, highest=0.0)
  assert logs.max() <= 0.0


def test_luck_is_as_large_as_the_gain_of_noise():
  scores = noise(4)[0]
  rng = np.random.default_rng(0)
  (gain,) = oracle_luck.luck(scores, COSTS, [2.0], num_draws=3, rng=rng)
  mix = scores.mean(axis=0) @ blind_routes.best_mix(scores, COSTS, 2.0)
  found = Oracle(scores, COSTS).value(2.0) - mix
  assert gain == pytest.approx(found, rel=0.15)
  assert found > 0.05


def test_halves_want_two_scores():
  rng = np.random.default_rng(0)
  for scores in (noise(0)[:1], noise(0)[0]):
    with pytest.raises(ValueError, match='K of at least 2'):
      oracle_luck.held_out(scores, COSTS, [2.0], num_splits=1, rng=rng)


def test_families_of_routes():
  assert routes.early_exit(2) == (0, 1)
  for number in range(1, 25):
    kept = routes.uniform(number, 24)
    assert len(set(kept)) == number and kept[0] == 0
    steps = set(np.diff(kept))
    assert len(steps) < 3 and (not steps or max(steps) - min(steps) <= 1)
    assert number == 1 or kept[-1] == 23
  drawn = routes.random_routes(3, 8, count=5, seed=1)
  assert drawn == routes.random_routes(3, 8, count=5, seed=1)
  assert drawn != routes.random_routes(3, 8, count=5, seed=2)
  assert len(set(drawn)) == 5 and all(len(set(one)) == 3 for one in drawn)
  assert routes.random_routes(1, 3, count=9) == [(0,), (1,), (2,)]
  every = routes.all_families(3, depths=range(1, 4), count=9)
  assert every == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
  assert routes.all_families(3, depths=[1], count=1)[-1] == (0, 1, 2)
  with pytest.raises(ValueError, match=r'depth 4 .* in 1\.\.3'):
    routes.all_families(3, depths=[4], count=1)
