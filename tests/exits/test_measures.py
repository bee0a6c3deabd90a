"""Confidence measures: ranges, formulas, ties and names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import toy_decoder

from calm_jax import exits
from calm_jax.interfaces import LayerView


def view(logits=None, hidden=None, previous=None):
  batch_size = len(logits if logits is not None else hidden)
  return LayerView(
    layer=1,
    positions=jnp.zeros((batch_size,), jnp.int32),
    hidden=hidden,
    previous_hidden=previous,
    logits=logits,
    token_ids=None,
    log_total=None,
    active=jnp.ones((batch_size,), bool),
  )


def random(*shape, seed=0, scale=3.0):
  return np.random.default_rng(seed).normal(size=shape, scale=scale)


def softmax_of(logits):
  exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exponents / exponents.sum(axis=-1, keepdims=True)


def test_margin_and_maximum_are_those_of_a_sorted_softmax():
  logits = random(50, 17)
  top = np.sort(softmax_of(logits), axis=-1)
  margin = exits.SoftmaxMargin().confidence(view(jnp.asarray(logits)))
  maximum = exits.SoftmaxMaximum().confidence(view(jnp.asarray(logits)))
  np.testing.assert_allclose(margin, top[:, -1] - top[:, -2], atol=1e-6)
  np.testing.assert_allclose(maximum, top[:, -1], atol=1e-6)
  assert margin.dtype == maximum.dtype == jnp.float32


def test_a_tie_has_no_margin():
  logits = jnp.array([[2.0, 5.0, 5.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
  margin = exits.SoftmaxMargin().confidence(view(logits))
  np.testing.assert_array_equal(margin, [0.0, 0.0])


def test_margins_survive_extreme_and_suppressed_logits():
  logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 3.0, -jnp.inf]])
  for measure in (exits.SoftmaxMargin(), exits.SoftmaxMaximum()):
    np.testing.assert_array_equal(measure.confidence(view(logits)), [1.0, 1.0])


def test_shift_and_order_of_logits_change_nothing():
  logits = random(8, 11)
  order = np.random.default_rng(1).permutation(11)
  for measure in (exits.SoftmaxMargin(), exits.SoftmaxMaximum()):
    one = measure.confidence(view(jnp.asarray(logits)))
    other = measure.confidence(view(jnp.asarray(logits[:, order] + 7.0)))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_state_similarity_is_the_cosine_and_never_negative():
  hidden, previous = random(40, 16), random(40, 16, seed=1)
  lengths = np.linalg.norm(hidden, axis=-1) * np.linalg.norm(previous, axis=-1)
  cosine = (hidden * previous).sum(axis=-1) / lengths
  measure = exits.StateSimilarity()
  result = measure.confidence(
    view(hidden=jnp.asarray(hidden), previous=jnp.asarray(previous))
  )
  np.testing.assert_allclose(result, np.maximum(cosine, 0.0), atol=1e-6)
  assert (cosine < 0).any()
  assert (result >= 0).all() and (result <= 1).all()


def test_state_similarity_of_equal_opposite_and_zero_states():
  hidden = jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
  previous = jnp.array([[6.0, 8.0], [-3.0, -4.0], [3.0, 4.0]])
  result = exits.StateSimilarity().confidence(
    view(hidden=hidden, previous=previous)
  )
  np.testing.assert_allclose(result, [1.0, 0.0, 0.0], atol=1e-6)


def test_classifier_is_a_sigmoid_in_float32():
  kernel, hidden = random(16), random(5, 16, seed=2)
  classifier = exits.Classifier(kernel, -0.5)
  result = classifier.confidence(view(hidden=jnp.asarray(hidden)))
  expected = 1.0 / (1.0 + np.exp(-(hidden @ kernel - 0.5)))
  np.testing.assert_allclose(result, expected, atol=1e-6)
  low = classifier.confidence(view(hidden=jnp.asarray(hidden, jnp.bfloat16)))
  assert low.dtype == jnp.float32


def test_two_logits_become_their_difference():
  kernel, bias = random(16, 2), random(2)
  hidden = random(6, 16, seed=4)
  classifier = exits.Classifier(kernel[:, 1] - kernel[:, 0], bias[1] - bias[0])
  result = classifier.confidence(view(hidden=jnp.asarray(hidden)))
  two = jax.nn.softmax(hidden @ kernel + bias)[:, 1]
  np.testing.assert_allclose(result, two, atol=1e-5)


def test_a_classifier_of_another_width_is_refused():
  with pytest.raises(ValueError, match=r'kernel has shape \[16\]'):
    exits.Classifier(np.zeros(16), 0.0).check(toy_decoder(), 1, 1)
  with pytest.raises(ValueError, match=r'bias has shape \[2\]'):
    exits.Classifier(np.zeros(2), np.zeros(2)).check(toy_decoder(), 1, 1)


@pytest.mark.parametrize(
  'measure', [exits.SoftmaxMargin(), exits.SoftmaxMaximum()]
)
def test_logits_that_nobody_asked_for_are_missed_in_words(measure):
  states = view(hidden=jnp.ones((2, 2)))
  with pytest.raises(ValueError, match='needs_logits = True'):
    measure.confidence(states)


def test_measures_by_name():
  assert exits.get_measure('softmax_margin') == exits.SoftmaxMargin()
  assert exits.get_measure('softmax_maximum') == exits.SoftmaxMaximum()
  assert exits.get_measure('state_similarity') == exits.StateSimilarity()
  classifier = exits.Classifier(np.zeros(2), 0.0)
  assert exits.get_measure('classifier', classifier=classifier) is classifier
  with pytest.raises(ValueError, match="'entropy'.*softmax_margin"):
    exits.get_measure('entropy')
  with pytest.raises(ValueError, match='trained weights'):
    exits.get_measure('classifier')
