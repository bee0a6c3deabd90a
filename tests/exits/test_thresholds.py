"""Thresholds: the paper's formula, the release's, and what 1.0 means."""

import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import toy_decoder

from calm_jax import decoding, exits

POSITIONS = np.array([0, 1, 5, 19])
SIZE = (toy_decoder(), 4, 20)


def at(threshold):
  state = threshold.check(*SIZE).init(*SIZE)
  return np.asarray(state.at(jnp.asarray(POSITIONS)))


def decaying(value, temperature=4.0, max_length=20):
  return exits.DecayingThreshold(
    value, temperature=temperature, max_length=max_length
  )


def release(value, temperature=4.0, max_length=20):
  return exits.ReleaseDecayThreshold(
    value, temperature=temperature, max_length=max_length
  )


def test_constant():
  np.testing.assert_allclose(at(exits.ConstantThreshold(0.3)), [0.3] * 4)


@pytest.mark.parametrize('value', [0.0, 0.4, 0.99])
@pytest.mark.parametrize('temperature', [0.0, 4.0])
def test_eq_5(value, temperature):
  decay = np.exp(-temperature * POSITIONS / 20)
  expected = np.clip(0.9 * value + 0.1 * decay, 0.0, 1.0)
  result = at(decaying(value, temperature))
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert (np.diff(result) <= 0).all()


@pytest.mark.parametrize('kind', [decaying, release])
def test_a_length_that_is_left_open_is_that_of_the_outputs(kind):
  left_open = kind(0.4, max_length=None)
  np.testing.assert_array_equal(at(left_open), at(kind(0.4, max_length=20)))
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), left_open)
  np.testing.assert_allclose(
    rule.thresholds(20)[POSITIONS], at(kind(0.4, max_length=20)), rtol=1e-6
  )
  budget = exits.LayerBudget(rule, exits.PerPosition(2.5))
  policy = decoding.at_output_length(
    decoding.ComputePolicy(exit_rule=budget), 20
  )
  assert policy.exit_rule == exits.LayerBudget(
    exits.ConfidenceExit(exits.SoftmaxMargin(), kind(0.4, max_length=20)),
    per_request=50,
    max_length=20,
  )
  # What was given stays, and what has no length is left alone.
  assert decoding.at_output_length(policy, 7) == policy
  for rule in (exits.NeverExit(), 0.5):
    if rule == 0.5:
      rule = exits.ConfidenceExit(exits.SoftmaxMargin(), rule)
    policy = decoding.ComputePolicy(exit_rule=rule)
    assert decoding.at_output_length(policy, 7) == policy


def test_eq_5_is_not_the_release():
  decay = np.exp(-4.0 * POSITIONS / 20)
  expected = 0.4 * (0.9 + 0.1 * decay)
  np.testing.assert_allclose(at(release(0.4)), expected, rtol=1e-6)
  assert (at(release(0.4)) < at(decaying(0.4))).all()


@pytest.mark.parametrize(
  'threshold', [exits.ConstantThreshold(1.0), decaying(1.0), release(1.0)]
)
def test_one_means_never(threshold):
  assert np.isposinf(at(threshold)).all()


def test_one_row_may_never_stop():
  result = at(decaying(np.array([0.2, 1.0, 0.2, 1.0])))
  np.testing.assert_array_equal(np.isinf(result), [False, True, False, True])


def test_max_length_belongs_to_the_threshold():
  threshold = decaying(0.5)
  longer = threshold.check(toy_decoder(), 4, 500).init(toy_decoder(), 4, 500)
  np.testing.assert_array_equal(longer.at(POSITIONS), at(threshold))


@pytest.mark.parametrize(
  ('threshold', 'named'),
  [
    (exits.ConstantThreshold(1.3), '1.3'),
    (exits.ConstantThreshold(-0.1), '-0.1'),
    (exits.ConstantThreshold(float('nan')), 'nan'),
    (exits.ConstantThreshold('high'), 'high'),
    (exits.ConstantThreshold((0.5, 0.5)), 'one'),
    (exits.ConstantThreshold(np.array([0.5, 0.5, 7.0, 0.5])), '7.0'),
    (decaying(0.5, temperature=-1.0), 'temperature -1.0'),
    (decaying(0.5, max_length=0), 'max_length 0'),
  ],
)
def test_bad_numbers_are_named(threshold, named):
  with pytest.raises(ValueError, match='threshold') as error:
    threshold.check(*SIZE)
  if named != 'one':
    assert named in str(error.value)
