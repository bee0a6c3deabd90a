"""Inputs made to delay exits: what they keep and what they reach."""

import numpy as np
import pytest

from calm_jax import evaluation

TOKEN_IDS = np.arange(5, 20)
SOURCES = [
  np.array([*np.random.default_rng(size).choice(TOKEN_IDS, size), 1])
  for size in (3, 6, 4)
]


def assert_shaped(inputs):
  assert [len(i) for i in inputs] == [len(s) for s in SOURCES]
  for made in inputs:
    assert made[-1] == 1 and np.isin(made[:-1], TOKEN_IDS).all()


def test_random_and_shuffled_tokens():
  made = evaluation.random_inputs(SOURCES, TOKEN_IDS, seed=3)
  assert_shaped(made)
  for one, other in zip(
    made, evaluation.random_inputs(SOURCES, TOKEN_IDS, seed=3), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  shuffled = evaluation.shuffled_inputs(SOURCES, seed=3)
  assert_shaped(shuffled)
  for one, source in zip(shuffled, SOURCES, strict=True):
    np.testing.assert_array_equal(np.sort(one), np.sort(source))
  assert any((a != b).any() for a, b in zip(shuffled, SOURCES, strict=True))


def search(costs, **options):
  options = {'num_rounds': 60, 'variants': 4, 'seed': 0, **options}
  return evaluation.delayed_inputs(SOURCES, TOKEN_IDS, costs, **options)


def test_the_search_climbs_and_counts_its_trials():
  calls = []

  def costs(inputs):
    calls.append(len(inputs))
    return np.array([made[:-1].mean() for made in inputs])

  found = search(costs)
  assert calls == [3] + 60 * [12]
  assert_shaped(found)
  # The dearest input there is repeats the last token.
  assert all(made[:-1].min() >= 17 for made in found)
  for one, other in zip(found, search(costs), strict=True):
    np.testing.assert_array_equal(one, other)
  other = search(costs, seed=1, num_rounds=3)
  fewer = search(costs, num_rounds=3)
  assert any((a != b).any() for a, b in zip(fewer, other, strict=True))
  # Sources are not written to.
  assert costs(SOURCES).max() < 17


@pytest.mark.parametrize('rounds', [0, 5])
def test_what_costs_no_more_is_not_taken(rounds):
  found = search(lambda inputs: np.ones(len(inputs)), num_rounds=rounds)
  for made, source in zip(found, SOURCES, strict=True):
    np.testing.assert_array_equal(made, source)


def test_bad_searches_are_refused():
  with pytest.raises(ValueError, match='num_rounds -1'):
    search(len, num_rounds=-1)
  with pytest.raises(ValueError, match='variants 0'):
    search(len, variants=0)
  with pytest.raises(ValueError, match='input 1 has 1 tokens'):
    evaluation.delayed_inputs(
      [SOURCES[0], np.array([1])],
      TOKEN_IDS,
      len,
      num_rounds=1,
      variants=1,
      seed=0,
    )
