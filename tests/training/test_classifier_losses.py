"""Labels and losses of the early-exit classifier against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calm_jax import exits, model
from calm_jax.training import classifier_evaluation as evaluation
from calm_jax.training import classifier_losses as losses

NAMES = ('balanced', 'geometric', 'independent')
L, B, T, D, V = 4, 3, 5, 6, 7


def logits_fn(params, hidden, dropout_rng):
  assert dropout_rng is None
  return hidden @ params


def problem(seed=0):
  """States, head, classifier and weights, the last positions padding."""
  random = np.random.default_rng(seed)
  states = random.normal(size=(L, B, T, D)).astype(np.float32)
  states[1:] = 0.6 * states[:1] + 0.5 * states[1:]
  head = random.normal(size=(D, V)).astype(np.float32)
  classifier = exits.Classifier(
    jnp.asarray(random.normal(size=D), jnp.float32), jnp.float32(0.3)
  )
  weights = (np.arange(T) < [[5], [3], [1]]).astype(np.float32)
  return jnp.asarray(states), jnp.asarray(head), classifier, weights


def slow_labels(states, head):
  """All logits at once."""
  best = np.asarray(states @ head).argmax(-1)
  return best[:-1] == best[-1:]


def slow_loss(name, weights_of_classifier, states, labels, weights):
  """The definitions in float64 probabilities, token by token."""
  *kernel, bias = weights_of_classifier
  scores = np.asarray(states[:-1], np.float64) @ np.array(kernel) + bias
  confidence = 1 / (1 + np.exp(-scores))
  total = weights.sum()
  if name == 'geometric':
    loss = 0.0
    for b, t in np.ndindex(B, T):
      probability = 1.0
      for layer in range(L - 1):
        if labels[layer, b, t]:
          probability *= confidence[layer, b, t]
          break
        probability *= 1 - confidence[layer, b, t]
      loss -= np.log(probability) * weights[b, t] / total
    return loss
  loss = 0.0
  for layer in range(L - 1):
    share = (labels[layer] * weights).sum() / total
    for b, t in np.ndindex(B, T):
      consistent = labels[layer, b, t]
      right = confidence[layer, b, t]
      right, class_weight = (
        (right, 1 - share) if consistent else (1 - right, share)
      )
      if name == 'independent':
        class_weight = 1.0
      loss -= np.log(right) * class_weight * weights[b, t] / total
  return loss / (L - 1)


def test_labels_are_those_of_all_logits_at_once():
  states, head, _, _ = problem()
  labels = jax.jit(
    lambda params, states: losses.consistency_labels(logits_fn, params, states)
  )(head, states)
  want = slow_labels(states, head)
  np.testing.assert_array_equal(labels, want)
  assert 0.2 < want.mean() < 0.8


@pytest.mark.parametrize('name', NAMES)
def test_value_and_gradient_equal_the_definition(name):
  loss = losses.get_classifier_loss(name)

  @jax.jit
  @jax.value_and_grad
  def ours(classifier, head, states, weights):
    labels = losses.consistency_labels(logits_fn, head, states)
    return loss(classifier.log_odds(states[:-1]), labels, weights)

  for seed in range(3):
    states, head, classifier, weights = problem(seed)
    value, gradient = ours(classifier, head, states, weights)
    labels = slow_labels(states, head)

    def slow(x, states=states, labels=labels, weights=weights):
      return slow_loss(name, x, states, labels, weights)

    at = np.array([*classifier.kernel, classifier.bias], np.float64)
    np.testing.assert_allclose(value, slow(at), rtol=1e-5)
    differences = [
      (slow(at + step) - slow(at - step)) / 2e-5
      for step in 1e-5 * np.eye(D + 1)
    ]
    np.testing.assert_allclose(
      [*gradient.kernel, gradient.bias], differences, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('name', NAMES)
def test_padding_counts_nothing(name):
  states, head, _, weights = problem()
  labels = slow_labels(states, head)
  scores = np.random.default_rng(1).normal(size=labels.shape)
  loss = jax.jit(losses.get_classifier_loss(name))
  pads = weights == 0
  changed = np.where(pads, 50.0, scores), np.where(pads, ~labels, labels)
  np.testing.assert_array_equal(
    loss(scores, labels, weights), loss(*changed, weights)
  )
  assert loss(scores, labels, weights) != loss(*changed, 1 - weights)
  assert loss(scores, labels, np.zeros_like(weights)) == 0


def test_balanced_weights_by_hand():
  """At layer 1, 3 of 4 tokens agree: they count 1/4 each, the other 3/4."""
  labels = np.array([[[1, 1, 1, 0]], [[1, 1, 1, 1]]], bool)
  scores = np.zeros((2, 1, 4), np.float32)
  weights = np.ones((1, 4), np.float32)
  half = np.log(2.0)
  # Layer 1: (3 * 1/4 + 1 * 3/4) log 2 / 4; layer 2 has one class: nothing.
  want = (1.5 * half / 4 + 0.0) / 2
  got = losses.balanced_loss(scores, labels, weights)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  gradient = jax.jit(jax.grad(losses.balanced_loss))(scores, labels, weights)
  # Both classes pull alike, so that at confidence 1/2 they cancel.
  np.testing.assert_allclose(gradient.sum(), 0.0, atol=1e-7)
  np.testing.assert_allclose(
    gradient[0, 0], np.array([-1, -1, -1, 3]) / 4 / 2 / 4 / 2, rtol=1e-6
  )


def test_first_exits_are_a_distribution():
  scores = np.random.default_rng(0).normal(size=(7, 50), scale=5.0)
  log_probabilities = jax.jit(losses.exit_log_probabilities)(
    scores.astype(np.float32)
  )
  assert log_probabilities.shape == (8, 50)
  np.testing.assert_allclose(np.exp(log_probabilities).sum(0), 1.0, rtol=1e-5)
  confidence = 1 / (1 + np.exp(-scores))
  third = confidence[2] * (1 - confidence[0]) * (1 - confidence[1])
  np.testing.assert_allclose(np.exp(log_probabilities[2]), third, rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_saturated_scores_give_finite_values_and_gradients(name):
  scores = np.array([[[1e4, -1e4, 1e4]], [[-1e4, 1e4, 1e-3]]], np.float32)
  labels = np.array([[[0, 1, 1]], [[1, 0, 0]]], bool)
  weights = np.ones((1, 3), np.float32)
  value, gradient = jax.jit(
    jax.value_and_grad(losses.get_classifier_loss(name))
  )(scores, labels, weights)
  assert np.isfinite(value) and value > 100
  assert np.isfinite(gradient).all() and gradient.any()


def test_layers_after_the_oracle_get_no_gradient_from_the_geometric_loss():
  labels = np.array([0, 1, 0], bool).reshape(3, 1, 1)
  gradient = jax.jit(jax.grad(losses.geometric_loss))(
    np.zeros((3, 1, 1), np.float32), labels, np.ones((1, 1), np.float32)
  )
  np.testing.assert_allclose(gradient[:, 0, 0], [0.5, -0.5, 0.0])


@pytest.mark.parametrize('name', NAMES)
def test_a_separable_problem_is_learnt(name):
  """One coordinate tells whether a layer's token is the last layer's."""
  random = np.random.default_rng(0)
  tokens = random.integers(0, 5, (L, 40, T))
  same = random.random((L - 1, 40, T)) < np.reshape([0.5, 0.7, 0.9], (3, 1, 1))
  tokens[:-1] = np.where(same, tokens[-1], (tokens[-1] + 1) % 5)
  flag = np.where(same, 1.0, -1.0) + random.normal(size=same.shape, scale=0.2)
  states = np.zeros((L, 40, T, 6), np.float32)
  states[..., :5] = np.eye(5)[tokens]
  states[:-1, ..., 5] = flag
  head = np.eye(6, dtype=np.float32)[:, :5]
  weights = np.ones((40, T), np.float32)
  loss = losses.get_classifier_loss(name)
  optimizer = optax.adam(0.1)

  @jax.jit
  def train(states, head):
    labels = losses.consistency_labels(logits_fn, head, states)

    def step(_, carry):
      classifier, state = carry
      gradient = jax.grad(
        lambda classifier: loss(
          classifier.log_odds(states[:-1]), labels, weights
        )
      )(classifier)
      updates, state = optimizer.update(gradient, state)
      return optax.apply_updates(classifier, updates), state

    classifier = exits.Classifier(jnp.zeros(6), jnp.zeros(()))
    start = classifier, optimizer.init(classifier)
    classifier, _ = jax.lax.fori_loop(0, 150, step, start)
    scores = classifier.log_odds(states[:-1])
    return labels, evaluation.count_decisions(scores, labels, weights)

  labels, counts = train(states, head)
  np.testing.assert_array_equal(labels, same)
  for layer in jax.device_get(counts).layers():
    apart = 1 - layer.agreement
    always_held_back = 2 * apart / (1 + apart)
    assert layer.f1 > 0.95 > always_held_back


def test_unknown_losses_are_named():
  with pytest.raises(
    ValueError, match="'bce'; known: balanced, geometric, independent"
  ):
    losses.get_classifier_loss('bce')


def test_memory_does_not_grow_with_exits_times_vocabulary():
  batch, length = 4, 16
  config = model.T5Config(
    vocab_size=32128,
    embed_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  shape = jax.ShapeDtypeStruct

  def peak(exits_):
    def loss(classifier, params, states, weights):
      labels = losses.consistency_labels(
        lambda params, hidden, _: model.output_logits(config, params, hidden),
        params,
        states,
      )
      return losses.independent_loss(
        classifier.log_odds(states[:-1]), labels, weights
      )

    compiled = (
      jax.jit(jax.value_and_grad(loss))
      .lower(
        exits.Classifier(shape((8,), jnp.float32), shape((), jnp.float32)),
        params,
        shape((exits_, batch, length, config.embed_dim), jnp.float32),
        shape((batch, length), jnp.float32),
      )
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  logits_of_one_exit = batch * length * config.vocab_size * 4
  two = peak(2)
  assert two >= logits_of_one_exit, 'the measure must see the logits'
  assert peak(12) < 1.2 * two
