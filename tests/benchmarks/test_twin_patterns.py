"""Patterns of feed-forwards, and what an oracle over them gains by luck."""

import itertools

import numpy as np
import pytest

from calm_jax.benchmarks import twin_oracle_rows, twin_patterns

UNITS = {'own_units': 8, 'twin_units': 2}


def test_patterns_are_all_of_them_or_drawn_ones():
  for layers in (1, 2, 6):
    found = twin_patterns.patterns_of(layers, count=3)
    assert len(set(found)) == len(found) == 3**layers
  drawn = twin_patterns.patterns_of(12, count=40, seed=1)
  assert len(set(drawn)) == 40 and {len(pattern) for pattern in drawn} == {12}
  assert {(option,) * 12 for option in range(3)} <= {*drawn}
  assert drawn == twin_patterns.patterns_of(12, count=40, seed=1)
  assert drawn != twin_patterns.patterns_of(12, count=40, seed=2)


def test_a_pattern_costs_the_sum_of_its_blocks():
  patterns = [(0, 0, 0), (1, 2, 0), (1, 1, 1), (2, 2, 2)]
  costs, block = twin_patterns.costs_of(patterns, own_units=24, twin_units=9)
  np.testing.assert_array_equal(costs, [0, 11, 24, 9])
  assert block == 8


def scored(layers=2, tokens=40, suits=0.0, seed=0):
  """Scores of all patterns, noise but for what suits tokens."""
  rng = np.random.default_rng(seed)
  patterns = twin_patterns.patterns_of(layers, count=3)
  scores = -5.0 + rng.normal(size=(tokens, len(patterns)))
  permuted = -5.0 + rng.normal(size=(3, tokens, len(patterns)))
  best = rng.integers(len(patterns), size=tokens)
  scores[np.arange(tokens), best] += suits
  return patterns, scores, permuted


def test_the_oracle_is_the_best_of_all_choices():
  """By brute force over the patterns of four tokens."""
  patterns, scores, permuted = scored(tokens=4)
  rows = twin_oracle_rows.rows_of(patterns, scores, permuted, **UNITS)
  costs, block = twin_patterns.costs_of(patterns, **UNITS)
  assert [row.budget for row in rows] == [1.0, 2.0]
  for row in rows:
    best = max(
      np.mean([scores[token, place] for token, place in enumerate(places)])
      for places in itertools.product(range(len(patterns)), repeat=4)
      if costs[list(places)].mean() <= row.budget * block
    )
    np.testing.assert_allclose(row.oracle, best)
    assert row.mean_cost <= row.budget
    within = costs <= row.budget * block
    assert row.single == scores.mean(axis=0)[within].max()
    assert row.pattern in [patterns[place] for place in np.flatnonzero(within)]
    assert row.full == scores.mean(axis=0)[patterns.index((1, 1))]


def test_more_budget_is_never_worse():
  given = scored(layers=3, tokens=60)
  rows = twin_oracle_rows.rows_of(*given, **UNITS)
  for column in ('single', 'mix', 'oracle'):
    values = [getattr(row, column) for row in rows]
    assert values == sorted(values)
  for row in rows:
    assert row.single <= row.mix + 1e-9 and row.mix <= row.oracle + 1e-9


def test_the_curse_is_told_from_what_suits():
  """Of noise alone the oracle gains what it does on permuted labels."""
  for suits in (0.0, 6.0):
    given = scored(layers=3, tokens=150, suits=suits)
    row = twin_oracle_rows.rows_of(*given, **UNITS)[-1]
    assert row.permuted_gain > 1.0, 'the best of 27 draws is above their mean'
    if suits:
      assert row.gain > 3 * row.permuted_gain / 2
    else:
      np.testing.assert_allclose(row.gain, row.permuted_gain, atol=0.2)
      np.testing.assert_allclose(row.luck, row.permuted_gain, atol=0.3)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: twin_patterns.patterns_of(0, count=3), 'num_layers 0 must be'),
    (lambda: twin_patterns.patterns_of(9, count=2), 'patterns 2 must be'),
    (
      lambda: twin_oracle_rows.rows_of(
        [(1,), (0,)], np.zeros((4, 2)), np.zeros((4, 2)), **UNITS
      ),
      r'\(4, 2\); give \[N, R\] and \[K, N, R\]',
    ),
    (
      lambda: twin_oracle_rows.rows_of(
        [(1,), (0,)], np.full((4, 2), np.nan), np.zeros((1, 4, 2)), **UNITS
      ),
      'the score of route 0 on input 0 is nan',
    ),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
