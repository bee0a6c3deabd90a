"""Rows that a lower threshold leaves alone: told exactly, and not decoded."""

import dataclasses
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, evaluation, exits
from calm_jax.evaluation.decode_store import FIELDS
from calm_jax.evaluation.setting_grid import SettingGrid

THRESHOLDS = np.linspace(0.9, 0.0, 13)
N = 22


def batches():
  rng = np.random.default_rng(5)
  inputs = rng.integers(2, cases.V, (24, cases.S))
  return [
    {
      'encoder_input_tokens': inputs[start : start + 4],
      'num_valid': min(4, N - start),
    }
    for start in range(0, 24, 4)
  ]


def policy_of(kind):
  measure = (
    exits.StateSimilarity() if kind == 'state' else exits.SoftmaxMargin()
  )

  def at(value):
    threshold = exits.ConstantThreshold(value)
    if kind == 'decaying':
      threshold = exits.DecayingThreshold(value, temperature=4.0, max_length=8)
    rule = exits.ConfidenceExit(measure, threshold)
    if kind == 'budget':
      # Both caps bite.
      rule = exits.LayerBudget(rule, per_request=16, per_token=3)
    readout = cases.PRUNED if kind == 'pruned' else decoding.FullVocabulary()
    return decoding.ComputePolicy(exit_rule=rule, readout=readout)

  return at


@pytest.fixture(scope='module')
def decode():
  bound = cases.bound(decoding.UnrolledDepthLoop())

  def decode(policy, store=None):
    return evaluation.decode_dataset(
      bound,
      batches(),
      detokenize=str,
      max_length=cases.T,
      eos_id=cases.EOS_ID,
      policy=policy,
      store=store,
    )

  return decode


def assert_same(one, other):
  for name in FIELDS:
    if name != 'seconds':
      np.testing.assert_array_equal(
        getattr(one, name), getattr(other, name), err_msg=name
      )
  assert one.texts == other.texts
  assert one.example_ids == other.example_ids


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind',
  [
    'margin',
    'budget',
    *(
      pytest.param(kind, marks=pytest.mark.slow)
      for kind in ('decaying', 'state', 'pruned')
    ),
  ],
)
def test_a_walk_down_the_grid_equals_decoding_everything(decode, kind):
  """To the bit, whichever rows share a batch."""
  policy_at = policy_of(kind)
  latest, decoded_rows = None, []
  for threshold in THRESHOLDS:
    policy = policy_at(threshold)
    everything = decode(policy)
    assert np.count_nonzero(everything.seconds) == N
    if latest is None:
      latest = everything
      continue
    changed = evaluation.changed_rows(latest, policy)
    store = evaluation.DecodeStore(None, {})
    assert evaluation.take_over(store, latest, policy) == N - changed.sum()
    reused = decode(policy, store)
    assert_same(reused, everything)
    np.testing.assert_array_equal(reused.seconds > 0, changed)
    decoded_rows.append(int(changed.sum()))
    latest = reused
  assert 0 < sum(decoded_rows) < N * len(decoded_rows), decoded_rows


def test_what_was_not_rejected_below_the_new_threshold_does_not_count(decode):
  policy_at = policy_of('margin')
  earlier = decode(policy_at(0.9))
  rejected = earlier.rejected_confidences
  highest = rejected.max()
  assert not evaluation.changed_rows(earlier, policy_at(highest + 1e-4)).any()
  changed = evaluation.changed_rows(earlier, policy_at(highest - 1e-4))
  np.testing.assert_array_equal(changed, rejected.max(axis=1) == highest)


def test_rules_without_thresholds_are_refused(decode):
  earlier = decode(policy_of('margin')(0.5))
  fixed = decoding.ComputePolicy(exit_rule=exits.FixedExit(2))
  with pytest.raises(ValueError, match='FixedExit has no thresholds'):
    evaluation.changed_rows(earlier, fixed)
  fixed = decoding.ComputePolicy(
    exit_rule=exits.LayerBudget(exits.FixedExit(2), per_request=20)
  )
  with pytest.raises(ValueError, match='LayerBudget has no thresholds'):
    evaluation.changed_rows(earlier, fixed)
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), jnp.array([0.5, 0.4]))
  with pytest.raises(ValueError, match='a number per row'):
    rule.thresholds(4)
  plain = dataclasses.replace(rule, threshold=0.25)
  np.testing.assert_array_equal(plain.thresholds(3), [0.25] * 3)
  never = dataclasses.replace(rule, threshold=1.0)
  assert np.isinf(never.thresholds(3)).all()


@pytest.mark.parametrize('by_plan', [False, True], ids=['exits', 'plan'])
def test_thresholds_of_layer_plans_say_nothing_of_lower_ones(by_plan):
  """Calibrations walk down a grid; nothing exits where a plan has it."""
  seen = []

  def decode(batches, *, policy, earlier, traces):
    seen.append((decoding.threshold_of(policy), earlier))
    return f'at {decoding.threshold_of(policy)}'

  policy = policy_of('margin')(1.0)
  if by_plan:
    policy = decoding.ComputePolicy(layer_plan=cases.SATURATED)
  grid = SettingGrid(decode, [], policy, mock.Mock())
  for setting in (0.9, 0.5):
    grid.at(setting)
  assert seen == [(0.9, None), (0.5, None if by_plan else 'at 0.9')]
