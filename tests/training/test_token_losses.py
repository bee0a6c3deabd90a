"""The loss of one exit against T5X's formulas, and T5's normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calm_jax.training import losses, token_losses


def t5x_cross_entropy(logits, targets, weights, settings):
  """T5X's `compute_weighted_cross_entropy`, from its formulas."""
  vocab = logits.shape[-1]
  confidence = 1.0 - settings.label_smoothing
  low_confidence = (1.0 - confidence) / (vocab - 1)
  normalizing_constant = -(
    confidence * np.log(confidence)
    + (vocab - 1) * low_confidence * np.log(low_confidence + 1e-20)
  )
  hot = jax.nn.one_hot(targets, vocab)
  soft_targets = hot * confidence + (1 - hot) * low_confidence
  loss = optax.softmax_cross_entropy(logits, soft_targets)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  loss = loss + settings.z_loss * log_z**2 - normalizing_constant
  return (loss * weights).sum() / (settings.loss_normalizer or 1.0)


def problem(vocab=13):
  keys = jax.random.split(jax.random.key(4), 2)
  logits = 3 * jax.random.normal(keys[0], (8, vocab))
  targets = jax.random.randint(keys[1], (8,), 0, vocab)
  weights = jnp.array([1.0, 1, 1, 1, 1, 1, 0, 0])
  return logits, targets, weights


@pytest.mark.parametrize('z_loss', [0.0, 1e-4, 0.3])
@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.9])
def test_smoothing_and_z_loss_are_those_of_t5x(z_loss, label_smoothing):
  settings = losses.LossSettings((1.0,), z_loss, label_smoothing)
  logits, targets, weights = problem()
  want, gradient = jax.value_and_grad(t5x_cross_entropy)(
    logits, targets, weights, settings
  )
  parts = token_losses.token_loss(logits, targets, weights, settings)
  np.testing.assert_allclose(parts.loss, want, rtol=2e-6)
  got = token_losses.logits_gradient(logits, targets, weights, parts, settings)
  np.testing.assert_allclose(got, gradient, rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnums=3)
def exit_loss(states, targets, weights, settings):
  """The loss of two exits, with logits for states."""
  return losses.multi_exit_loss(
    lambda params, hidden, _: hidden + params,
    jnp.float32(0.0),
    states,
    targets=targets,
    weights=weights,
    settings=settings,
  )


def test_a_normalizer_divides_the_sum_over_tokens():
  settings = losses.LossSettings((0.25, 0.75), 0.01, 0.1, loss_normalizer=50.0)
  logits, targets, weights = problem()
  targets, weights = targets.reshape(2, 4), weights.reshape(2, 4)
  states = jnp.stack([logits, 0.5 * logits]).reshape(2, 2, 4, -1)

  @jax.jit
  @jax.value_and_grad
  def t5x(states):
    per_exit = [
      t5x_cross_entropy(state, targets, weights, settings) for state in states
    ]
    return 0.25 * per_exit[0] + 0.75 * per_exit[1]

  want, gradient = t5x(states)
  (got, metrics), got_gradient = jax.value_and_grad(exit_loss, has_aux=True)(
    states, targets, weights, settings
  )
  np.testing.assert_allclose(got, want, rtol=2e-6)
  np.testing.assert_allclose(got_gradient, gradient, rtol=1e-5, atol=1e-7)
  plain = losses.LossSettings((0.25, 0.75), 0.01, 0.1)
  mean, per_token = exit_loss(states, targets, weights, plain)
  np.testing.assert_allclose(got, mean * 6 / 50, rtol=1e-6)
  # What is reported stays per token, whatever the loss is divided by.
  np.testing.assert_allclose(metrics.losses, per_token.losses, rtol=1e-6)
  np.testing.assert_array_equal(metrics.accuracies, per_token.accuracies)
  # Half the batch has half the tokens' loss, not a mean of its own.
  halves = [
    float(exit_loss(states, targets, weights * rows, settings)[0])
    for rows in (np.array([[1.0], [0]]), np.array([[0.0], [1]]))
  ]
  np.testing.assert_allclose(sum(halves), got, rtol=1e-6)
  assert exit_loss(states, targets, weights * 0, settings)[0] == 0


@pytest.mark.parametrize('bad', [0.0, -1.0, np.inf, np.nan, 'many', True])
def test_bad_normalizers_are_named(bad):
  with pytest.raises(ValueError, match='loss_normalizer must be a finite'):
    losses.LossSettings((1.0,), loss_normalizer=bad)
