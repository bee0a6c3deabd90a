"""Mean exit layers at a disagreement, against trying every threshold."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import toy_decoder

from calm_jax import exits
from calm_jax.interfaces import LayerView
from calm_jax.pytrees import register_pytree
from calm_jax.training import exit_depths

ALLOWED = (0.0, 0.01, 0.05, 0.2, 1.0)


def tokens(seed, count=400, exits=5, digits=None):
  random = np.random.default_rng(seed)
  quality = np.sort(random.uniform(size=(exits, count)), axis=0)
  consistent = random.uniform(size=(exits, count)) < quality
  confidences = 0.6 * consistent + 0.4 * random.uniform(size=(exits, count))
  if digits is not None:
    confidences = confidences.round(digits)
  return confidences.astype(np.float32), consistent


def by_hand(confidences, consistent, allowed):
  """Tries every confidence below 1 as a threshold, and 1."""
  exits = len(confidences)
  everything = np.concatenate([consistent, np.ones_like(consistent[:1])])
  best = exits + 1.0
  # A threshold of 1 is never reached; the largest one below it, by ones.
  for threshold in np.unique(np.minimum(confidences, np.float32(1 - 6e-8))):
    reached = confidences >= threshold
    reached = np.concatenate([reached, np.ones_like(reached[:1])])
    layers = reached.argmax(axis=0)
    apart = np.mean(~np.take_along_axis(everything, layers[None], axis=0))
    if apart <= allowed:
      best = min(best, (layers + 1).mean())
  return best


@pytest.mark.parametrize('digits', [None, 2])
def test_every_threshold_is_tried(digits):
  """Also where many confidences are equal, and some are 1."""
  confidences, consistent = tokens(0, digits=digits)
  found = exit_depths.exit_depths('x', confidences, consistent, ALLOWED)
  for depth in found:
    expected = by_hand(confidences, consistent, depth.allowed)
    np.testing.assert_allclose(depth.mean_exit_layer, expected, rtol=1e-6)
    assert depth.disagreement <= depth.allowed
  layers = [depth.mean_exit_layer for depth in found]
  assert layers == sorted(layers, reverse=True) and layers[-1] == 1.0
  assert layers[0] > layers[-2] > 1.0


def test_the_threshold_found_does_what_is_said():
  confidences, consistent = tokens(1)
  (depth,) = exit_depths.exit_depths('x', confidences, consistent, (0.05,))
  reached = confidences >= np.float32(depth.threshold)
  reached = np.concatenate([reached, np.ones_like(reached[:1])])
  layers = reached.argmax(axis=0) + 1
  np.testing.assert_allclose(layers.mean(), depth.mean_exit_layer, rtol=1e-6)


def test_a_measure_that_is_sure_of_the_wrong_ones_leaves_nothing_early():
  consistent = np.zeros((3, 10), bool)
  confidences = np.full((3, 10), 0.9, np.float32)
  (depth,) = exit_depths.exit_depths('x', confidences, consistent, (0.01,))
  assert (depth.mean_exit_layer, depth.threshold) == (4.0, 1.0)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Given:
  """Reads its confidence from the state."""

  needs_logits = False
  minimum_exit_layer = 1

  def check(self, decoder, batch_size, max_length):
    return self

  def confidence(self, view):
    return view.hidden[:, 0]


def left_at(rule, confidences):
  """Returns the layers, in 1..L, after which a rule lets each token go."""
  exits_, count = confidences.shape
  size = (toy_decoder(exits_ + 1), count, 1)
  rule = rule.check(*size)
  state = rule.init(*size)
  left = np.full(count, exits_ + 1)
  for layer, values in enumerate(confidences):
    view = LayerView(
      layer=layer,
      positions=jnp.zeros((count,), jnp.int32),
      hidden=jnp.asarray(values)[:, None],
      previous_hidden=None,
      logits=None,
      token_ids=None,
      log_total=None,
      active=jnp.ones((count,), bool),
    )
    state, stops, _ = rule.step(state, view)
    left = np.minimum(left, np.where(stops, layer + 1, exits_ + 1))
  return left


def halves():
  """Tokens that leave with 1/2 at each layer, never, or surely."""
  confidences = np.full((3, 5), 0.5, np.float32)
  confidences[:, 3:] = [0.0, 1.0]
  return confidences, np.ones((3, 5), bool)


@pytest.mark.parametrize(
  'some', [halves, lambda: tokens(2), lambda: tokens(3, digits=1)]
)
@pytest.mark.parametrize('accumulated', [False, True])
def test_the_rule_does_what_is_said_of_its_threshold(some, accumulated):
  """Of `ConfidenceExit`, and of `QuantileExit`, which compares strictly."""
  given, consistent = some()
  values, rule = given, exits.ConfidenceExit
  if accumulated:
    rule = exits.QuantileExit
    values = 1.0 - np.cumprod(1.0 - given, axis=0, dtype=np.float32)
  everything = np.concatenate([consistent, np.ones_like(consistent[:1])])
  for depth in exit_depths.exit_depths(
    'x', values, consistent, ALLOWED, strictly=accumulated
  ):
    left = left_at(rule(Given(), depth.threshold), given)
    apart = ~np.take_along_axis(everything, left[None] - 1, axis=0)
    np.testing.assert_allclose(left.mean(), depth.mean_exit_layer, rtol=1e-6)
    np.testing.assert_allclose(apart.mean(), depth.disagreement, atol=1e-9)


def test_a_confidence_of_zero_never_exceeds_a_threshold():
  nothing = np.zeros((2, 4), np.float32)
  (depth,) = exit_depths.exit_depths(
    'x', nothing, nothing == 0, (1.0,), strictly=True
  )
  assert (depth.threshold, depth.mean_exit_layer) == (1.0, 3.0)


def test_oracles():
  consistent = np.array(
    # First agrees at 1, 2, 4, 1; settled from 3, 2, 4, 1 on.
    [[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]],
    bool,
  )
  first, settled = exit_depths.oracle_layers(consistent)
  assert first == (1 + 2 + 4 + 1) / 4
  assert settled == (3 + 2 + 4 + 1) / 4


def test_what_cannot_be_measured_is_named():
  nothing = np.zeros((3, 0), np.float32)
  with pytest.raises(ValueError, match='no tokens'):
    exit_depths.exit_depths('x', nothing, nothing > 0, (0.1,))
  bad = np.full((3, 2), np.nan, np.float32)
  with pytest.raises(ValueError, match='confidence of margin is not finite'):
    exit_depths.exit_depths('margin', bad, bad > 0, (0.1,))
