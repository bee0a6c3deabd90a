"""What gates are trained for: labels and losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax import training
from calm_jax.training import classifier_losses
from calm_jax.training.gate_states import GateExamples

L, B, T = 5, 3, 4
RANDOM = np.random.default_rng(0)
FALLING = np.linspace(2.0, 0.2, L)[:, None, None]
LOSSES = FALLING * RANDOM.exponential(size=(L, B, T))
EXAMPLES = GateExamples(
  hidden=None,
  previous_hidden=None,
  features=None,
  consistent=jnp.asarray(RANDOM.uniform(size=(L - 1, B, T)) < 0.6),
  cross_entropies=jnp.asarray(LOSSES, jnp.float32),
  weights=jnp.asarray(np.arange(T) < [[4], [2], [1]], jnp.float32),
)
SCORES = jnp.asarray(RANDOM.normal(size=(L - 1, B, T)), jnp.float32)


@pytest.mark.parametrize('price', [0.0, 0.5, 3.0, 1e6])
def test_the_label_is_the_layer_where_loss_plus_price_is_least(price):
  labels = training.CostAware(price).labels(EXAMPLES)
  for b, t in np.ndindex(B, T):
    totals = [LOSSES[l, b, t] + price * (l + 1) / L for l in range(L)]
    best = int(np.argmin(totals)) + 1
    assert labels[:, b, t].tolist() == [l + 1 >= best for l in range(L - 1)]


def test_the_ends_of_the_price():
  """Nothing asks for the layer of least loss, everything for the first."""
  free = np.asarray(training.CostAware(0.0).labels(EXAMPLES))
  np.testing.assert_array_equal(
    (~free).sum(axis=0), np.minimum(LOSSES.argmin(axis=0), L - 1)
  )
  assert training.CostAware(1e6).labels(EXAMPLES).all()
  assert not free.all()


@pytest.mark.parametrize('form', ['independent', 'balanced', 'geometric'])
def test_losses_of_the_classifier_serve(form):
  loss = classifier_losses.get_classifier_loss(form)
  for target in (training.Consistency(form), training.CostAware(0.3, form)):
    expected = loss(SCORES, target.labels(EXAMPLES), EXAMPLES.weights)
    np.testing.assert_array_equal(target.loss(SCORES, EXAMPLES), expected)


def probabilities(chances):
  """Leaving at layers 1..L, the last one taking the rest."""
  stayed = np.cumprod(1 - chances, axis=0)
  before = np.concatenate([np.ones_like(stayed[:1]), stayed])
  return before * np.concatenate([chances, np.ones_like(chances[:1])])


def test_the_quantile_loss_is_ponder_nets():
  """KL(p || prior), of probabilities that sum to 1."""
  p = probabilities(1 / (1 + np.exp(-np.asarray(SCORES, np.float64))))
  np.testing.assert_allclose(p.sum(axis=0), 1.0)
  prior = probabilities(np.full(L - 1, 0.3))
  divergence = (p * np.log(p / prior[:, None, None])).sum(axis=0)
  other_way = (prior[:, None, None] * np.log(prior[:, None, None] / p)).sum(0)
  weights = np.asarray(EXAMPLES.weights)

  def mean(per_token):
    return (per_token * weights).sum() / weights.sum()

  expected = mean((p * LOSSES).sum(axis=0) + 0.7 * divergence)
  found = training.Quantile(0.3, 0.7).loss(SCORES, EXAMPLES)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert abs(mean(0.7 * other_way) - mean(0.7 * divergence)) > 0.05


def test_a_gate_that_is_the_prior_has_no_divergence():
  odds = np.log(0.3 / 0.7)
  scores = jnp.full(SCORES.shape, odds, jnp.float32)
  with_kl, without = (
    training.Quantile(0.3, beta).loss(scores, EXAMPLES) for beta in (9.0, 0.0)
  )
  np.testing.assert_allclose(with_kl, without, rtol=1e-5)
  # And 0 is where it is least.
  gradient = jax.grad(
    lambda scores: (
      training.Quantile(0.3, 9.0).loss(scores, EXAMPLES)
      - training.Quantile(0.3, 0.0).loss(scores, EXAMPLES)
    )
  )(scores)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize('name', ['consistency', 'cost_aware', 'quantile'])
def test_saturated_gates_have_finite_losses_and_gradients(name):
  target = training.get_gate_target(name)
  for scores in (SCORES * 1e4, -abs(SCORES) * 1e4):
    value, gradient = jax.value_and_grad(target.loss)(scores, EXAMPLES)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_targets_have_names():
  find = training.get_gate_target
  assert find('consistency') == training.Consistency()
  assert find('balanced') == training.Consistency('balanced')
  assert find('geometric') == training.Consistency('geometric')
  target = training.CostAware(0.7)
  assert find(target) is target
  with pytest.raises(ValueError, match="'bce'; known: balanced, consist"):
    find('bce')
  with pytest.raises(ValueError, match='no target of a gate'):
    find(training.CostAware)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: training.CostAware(-1.0), 'price -1.0'),
    (lambda: training.CostAware(float('nan')), 'price nan'),
    (lambda: training.CostAware('free'), "price 'free'"),
    (lambda: training.CostAware(form='x'), 'known: balanced'),
    (lambda: training.Consistency('x'), 'known: balanced'),
    (lambda: training.Quantile(0.0), 'prior 0.0'),
    (lambda: training.Quantile(1.0), 'prior 1.0'),
    (lambda: training.Quantile(beta=-0.1), 'beta -0.1'),
    (lambda: training.GateShape(-1), 'hidden_units -1'),
    (lambda: training.GateShape(inputs=('states',)), "'states'"),
    (lambda: training.GateShape(inputs='state'), 'give a tuple'),
    (lambda: training.GateShape(inputs=None), 'inputs None .* give a tuple'),
    (lambda: training.GateShape(inputs=(['state'],)), 'give a tuple'),
    (lambda: training.GateShape(inputs=('layer',)), 'sees nothing'),
    (lambda: training.get_gate_states('own'), 'known: exact, own_exits'),
  ],
)
def test_bad_numbers_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
