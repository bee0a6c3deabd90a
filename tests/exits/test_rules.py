"""Exit rules: where they look, when they fire, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import VOCAB_SIZE, toy_decoder

from calm_jax import exits
from calm_jax.interfaces import LayerView

B, T, L = 3, 4, 5
SIZE = (toy_decoder(L), B, T)
MARGIN = exits.SoftmaxMargin()


def view(layer, *, positions=(0, 1, 2), logits=None, token_ids=None):
  return LayerView(
    layer=layer,
    positions=jnp.asarray(positions),
    hidden=jnp.zeros((B, 2)),
    previous_hidden=jnp.zeros((B, 2)),
    logits=logits,
    token_ids=token_ids,
    log_total=None,
    active=jnp.ones((B,), bool),
  )


def step(rule, seen):
  rule = rule.check(*SIZE)
  return rule.step(rule.init(*SIZE), seen)


@pytest.mark.parametrize(
  ('options', 'looked_at'),
  [
    ({}, [1, 2, 3, 4, 5]),
    ({'minimum_exit_layer': 3}, [3, 4, 5]),
    ({'interval': 2}, [1, 3, 5]),
    ({'minimum_exit_layer': 2, 'interval': 2}, [2, 4]),
    ({'minimum_exit_layer': 5, 'interval': 3}, [5]),
    # FREE's shallow exit, as in policies/free.gin.
    ({'minimum_exit_layer': 2, 'interval': 1000}, [2]),
  ],
)
def test_confidence_exit_looks_on_its_grid(options, looked_at):
  rule = exits.ConfidenceExit(MARGIN, 0.5, **options)
  static = [layer + 1 for layer in range(L) if rule.looks(layer)]
  traced = jax.vmap(rule.looks)(jnp.arange(L))
  assert static == looked_at
  assert (np.flatnonzero(traced) + 1).tolist() == looked_at
  assert all(isinstance(rule.looks(layer), bool) for layer in range(L))


def test_similarity_is_not_checked_at_layer_1():
  rule = exits.ConfidenceExit(exits.StateSimilarity(), 0.5)
  assert [rule.looks(layer) for layer in range(3)] == [False, True, True]
  every_other = exits.ConfidenceExit(exits.StateSimilarity(), 0.5, interval=2)
  assert [every_other.looks(layer) for layer in range(5)] == [
    False,
    False,
    True,
    False,
    True,
  ]


def test_confidence_exit_stops_at_and_above_the_threshold():
  logits = jnp.log(jnp.array([[0.6, 0.4], [0.75, 0.25], [0.9, 0.1]]))
  _, stops, confidences = step(
    exits.ConfidenceExit(MARGIN, 0.5), view(0, logits=logits)
  )
  np.testing.assert_allclose(confidences, [0.2, 0.5, 0.8], atol=1e-6)
  np.testing.assert_array_equal(stops[::2], [False, True])
  _, stops, _ = step(
    exits.ConfidenceExit(MARGIN, np.float32(confidences[1])),
    view(0, logits=logits),
  )
  assert stops[1], 'a confidence equal to its threshold exits'


def test_a_saturated_confidence_does_not_pass_one():
  logits = jnp.array([[1e5, 0.0]] * B)
  _, stops, confidences = step(
    exits.ConfidenceExit(MARGIN, 1.0), view(0, logits=logits)
  )
  assert (confidences == 1.0).all() and not stops.any()


def test_nan_never_exits():
  logits = jnp.full((B, 2), jnp.nan)
  _, stops, _ = step(exits.ConfidenceExit(MARGIN, 0.0), view(0, logits=logits))
  assert not stops.any()


def test_fixed_exit_per_row():
  rule = exits.FixedExit([1, 2, 3])
  _, stops, confidences = step(rule, view(1))
  np.testing.assert_array_equal(stops, [True, True, False])
  assert np.isnan(confidences).all()


@pytest.mark.parametrize(
  'schedule', [[5, 2, 1, 1, 1, 1], np.tile([5, 2, 1, 1, 1, 1], (B, 1))]
)
def test_scheduled_exit_follows_positions(schedule):
  _, stops, _ = step(exits.ScheduledExit(schedule), view(1))
  np.testing.assert_array_equal(stops, [False, True, True])


def test_oracle_agrees_through_candidate_ids():
  targets = np.array([[7, 0, 0, 0], [0, 3, 0, 0], [0, 0, 9, 0]])
  logits = jnp.array([[0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
  ids = jnp.array([[1, 7], [4, 3], [8, 9]])
  seen = view(0, logits=logits, token_ids=ids)
  _, stops, confidences = step(exits.OracleExit(targets), seen)
  np.testing.assert_array_equal(stops, [True, False, True])
  np.testing.assert_array_equal(confidences, [1.0, 0.0, 1.0])


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (exits.FixedExit(0), 'exit_layer 0 .*5 layers'),
    (exits.FixedExit(6), 'exit_layer 6 .*5 layers'),
    (exits.FixedExit(2.5), '2.5 is not a whole number'),
    (exits.FixedExit([1, 2]), r'shape \[2\]'),
    (exits.ScheduledExit([1, 2]), 'each of the 4 positions'),
    (exits.ScheduledExit([1, 2, 3, 9]), 'exit_layers 9'),
    (exits.OracleExit(np.zeros((2, T), int)), r'shape \[2, 4\]'),
    (exits.OracleExit(np.zeros((B, T - 1), int)), r'shape \[3, 3\]'),
    (exits.OracleExit(np.full((B, T), VOCAB_SIZE)), 'target token 10'),
    (exits.ConfidenceExit(MARGIN, 1.3), 'threshold 1.3'),
    (exits.ConfidenceExit('softmax', 0.3), "'softmax' is not"),
    (
      exits.ConfidenceExit(MARGIN, 0.3, minimum_exit_layer=6),
      'minimum_exit_layer 6',
    ),
    (exits.ConfidenceExit(MARGIN, 0.3, interval=0), 'interval 0'),
    (exits.ConfidenceExit(MARGIN, 0.3, interval=1.5), 'interval 1.5'),
  ],
)
def test_bad_rules_are_refused(rule, message):
  with pytest.raises(ValueError, match=message):
    rule.check(*SIZE)


def test_traced_numbers_pass_unchecked():
  def first_threshold(value):
    rule = exits.ConfidenceExit(MARGIN, value).check(*SIZE)
    return rule.init(*SIZE).at(jnp.zeros((B,), jnp.int32))

  np.testing.assert_allclose(jax.jit(first_threshold)(0.25), [0.25] * B)
