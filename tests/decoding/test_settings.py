"""A policy's setting, and the description that leaves it out."""

import numpy as np
import pytest

from calm_jax import decoding, exits


def policy(threshold, measure=None):
  measure = exits.SoftmaxMargin() if measure is None else measure
  return decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(measure=measure, threshold=threshold)
  )


def decaying(value, temperature=4.0):
  return exits.DecayingThreshold(value, temperature=temperature, max_length=8)


@pytest.mark.parametrize(
  'threshold', [0.9, decaying(0.9), exits.ConstantThreshold(0.9)]
)
def test_a_setting_is_all_that_with_setting_changes(threshold):
  before = policy(threshold)
  after = decoding.with_setting(before, 0.25)
  assert decoding.describe(after) == decoding.describe(before)
  rule = after.exit_rule.threshold
  assert getattr(rule, 'value', rule) == 0.25
  if hasattr(threshold, 'temperature'):
    assert rule.temperature == threshold.temperature


def test_everything_else_is_described():
  described = [
    decoding.describe(other)
    for other in (
      policy(0.5),
      policy(decaying(0.5)),
      policy(decaying(0.5, temperature=0.0)),
      policy(0.5, exits.StateSimilarity()),
      policy(0.5, exits.Classifier(np.ones(3), np.zeros(()))),
      policy(0.5, exits.Classifier(np.zeros(3), np.zeros(()))),
      decoding.full_model(policy(0.5)),
      decoding.ComputePolicy(cache_fill=decoding.ProjectFirstExitState()),
    )
  ]
  for i, one in enumerate(described):
    assert described.index(one) == i


def test_samplers_are_described_with_their_numbers():
  assert decoding.describe(decoding.Greedy()) == {'type': 'Greedy'}
  one, other = (decoding.Nucleus(top_p=p) for p in (0.9, 0.8))
  assert decoding.describe(one) != decoding.describe(other)


def test_rules_without_a_threshold_are_refused():
  with pytest.raises(ValueError, match='FixedExit has no threshold'):
    decoding.with_setting(
      decoding.ComputePolicy(exit_rule=exits.FixedExit(2)), 0.5
    )


@pytest.mark.parametrize('first', ['max_layers', 'min_layers'])
@pytest.mark.parametrize('most, least', [(2, 1), (9, 8)])
def test_fields_of_one_object_are_set_together(first, most, least):
  """Each by itself would be refused: depth would rise."""
  numbers = {'max_layers': most, 'min_layers': least}
  numbers = {first: numbers.pop(first), **numbers}
  plan = decoding.SkipDecode(6, 4)
  after = decoding.with_setting(
    decoding.ComputePolicy(layer_plan=plan),
    {f'layer_plan.{name}': number for name, number in numbers.items()},
  )
  assert after.layer_plan == decoding.SkipDecode(most, least)


@pytest.mark.parametrize(
  'path, message',
  [
    ('exit_rule', "'exit_rule' is a whole ConfidenceExit"),
    ('exit_rule.threshold.', 'threshold of ConfidenceExit is 0.9, and has no'),
    ('exit_rule.threshold.value', 'and has no fields'),
    ('exit_rule.no', "'exit_rule.no': ConfidenceExit has no field 'no'"),
    ('', "ComputePolicy has no field ''"),
  ],
)
def test_paths_that_lead_nowhere_are_named(path, message):
  with pytest.raises(ValueError, match=message):
    decoding.with_setting(policy(0.9), {path: 1})


def test_a_budget_around_a_plan_is_no_full_model_at_one():
  """The budget may stop a token whatever the plan's threshold."""
  plan = decoding.SkipSaturatedFeedForward(1.0)
  alone = decoding.ComputePolicy(layer_plan=plan)
  assert decoding.is_full_at_one(alone)
  budget = exits.LayerBudget(exits.NeverExit(), per_token=1, max_length=8)
  within = decoding.ComputePolicy(layer_plan=plan, exit_rule=budget)
  assert not decoding.is_full_at_one(within)
