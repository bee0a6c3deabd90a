"""Budgets as part of a policy: its setting, its description, certificates."""

import dataclasses
import functools
import types

import numpy as np
import pytest
from cases import policy_cases as cases
from cases.budget_cases import MARGIN, B, T

from calm_jax import decoding, exits, runs
from calm_jax.calibration import calibrate


def test_the_setting_is_that_of_the_rule_inside():
  policy = decoding.ComputePolicy(exit_rule=exits.LayerBudget(MARGIN, 20, 3))
  changed = decoding.with_setting(policy, 0.25)
  assert changed.exit_rule.threshold == 0.25
  assert changed.exit_rule.per_request == 20
  assert changed.exit_rule.measure == exits.SoftmaxMargin()
  assert decoding.describe(changed) == decoding.describe(policy)
  for other in (
    exits.LayerBudget(MARGIN, 21, 3),
    exits.LayerBudget(MARGIN, 20),
    exits.LayerBudget(MARGIN, 20, 3, 9),
    MARGIN,
  ):
    other = dataclasses.replace(policy, exit_rule=other)
    assert decoding.describe(other) != decoding.describe(policy)
  assert decoding.full_model(policy) == decoding.ComputePolicy()
  within = decoding.full_within_budget(policy).exit_rule
  assert within == exits.LayerBudget(exits.NeverExit(), 20, 3)
  fixed = dataclasses.replace(
    policy, exit_rule=exits.LayerBudget(exits.FixedExit(2), 20)
  )
  assert not hasattr(fixed.exit_rule, 'threshold')
  with pytest.raises(ValueError, match='FixedExit has no threshold to set'):
    decoding.with_setting(fixed, 0.5)
  per_row = exits.LayerBudget(MARGIN, np.full(B, 20))
  with pytest.raises(ValueError, match='a number per row'):
    per_row.thresholds(T)


def certify(policy, *, losses, setting=0.5):
  made_for = dict(
    params=cases.params(),
    tokenizer=types.SimpleNamespace(fingerprint='none'),
    sampler=decoding.Greedy(),
  )
  certificate = calibrate(
    np.full((200, 1), losses),
    [setting],
    tolerance=0.1,
    error_rate=0.05,
    context=runs.decoding_context(policy, **made_for).write(),
  )
  return functools.partial(
    runs.apply_certificate,
    certificate,
    context=runs.decoding_context(**made_for),
  )


def test_a_certificate_holds_for_its_budget_alone():
  policy, other, without = (
    decoding.ComputePolicy(exit_rule=rule)
    for rule in (
      exits.LayerBudget(MARGIN, 20),
      exits.LayerBudget(MARGIN, 24),
      MARGIN,
    )
  )
  apply = certify(policy, losses=0.0)
  assert apply(policy) == policy
  for refused in (other, without):
    with pytest.raises(ValueError, match=r'policy\S*: certified for'):
      apply(refused)
  # A budget stays where the threshold is 1, which without one is full depth.
  assert certify(policy, losses=0.0, setting=1.0)(policy) == (
    decoding.with_setting(policy, 1.0)
  )
  full = certify(without, losses=0.0, setting=1.0)(without)
  assert full == decoding.full_model(without)


def test_nothing_certified_does_not_lift_a_budget():
  policy = decoding.ComputePolicy(exit_rule=exits.LayerBudget(MARGIN, 20))
  apply = certify(policy, losses=0.9)
  with pytest.raises(ValueError, match='full model.*would exceed it'):
    apply(policy)
  allowed = apply(policy, allow_uncertified=True)
  assert allowed == decoding.full_within_budget(policy)
