"""Budgets of requests: beams, samples, forced prefixes, refilled slots."""

import jax
import numpy as np
import pytest
from cases import policy_cases as cases
from cases.budget_cases import MARGIN, B, L, T, decode, used

from calm_jax import decoding, exits


@pytest.mark.slow
def test_beams_and_samples_have_a_budget_each():
  per_request = np.array([11, 14, 19, 24])
  rule = exits.LayerBudget(MARGIN, per_request)
  for options in (
    dict(sampler=decoding.BeamSearch(3)),
    dict(sampler=decoding.Temperature(), rng=jax.random.key(2)),
  ):
    result = decode(rule, num_samples=2, **options)
    assert used(result).shape == (B, 2)
    assert (used(result) <= per_request[:, None]).all()


def test_a_forced_prefix_is_full_and_not_counted():
  per_request = np.array([9, 12, 17, 20])
  result = decode(
    exits.LayerBudget(exits.NeverExit(), per_request),
    forced_prefix=cases.PREFIXES,
  )
  forced = np.arange(T) < result.prefix_lengths[:, None]
  assert forced.any() and (result.exit_layers[forced] == L).all()
  chosen = np.where(result.is_chosen, result.exit_layers, 0).sum(axis=1)
  assert (chosen <= per_request).all()
  # What is kept for the forced positions is the only thing not spent.
  np.testing.assert_array_equal(chosen, per_request - result.prefix_lengths)


def test_a_refilled_slot_has_its_budget_anew():
  rule = exits.LayerBudget(exits.NeverExit(), per_request=13)
  requests = [row[row > 0] for row in cases.inputs()] * 2
  results = decoding.decode_queue(
    cases.bound(),
    requests,
    num_slots=2,
    source_length=cases.S,
    policy=decoding.ComputePolicy(exit_rule=rule),
    max_length=T,
    eos_id=-1,
  )
  layers = [result.exit_layers.tolist() for _, result in results]
  assert layers == [[4, 3, 1, 1, 1, 1, 1, 1]] * 8
