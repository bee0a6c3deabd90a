"""The gate: its formula, what it reads, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import toy_decoder

from calm_jax import exits
from calm_jax.interfaces import LayerView

L, D, U, B = 4, 6, 5, 3
RANDOM = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


GATE = exits.Gate(
  layer_bias=normal(L - 1, U),
  bias=normal(L - 1),
  out=normal(L - 1, U),
  state=normal(L - 1, D, U),
  previous=normal(L - 1, D, U),
  logits=normal(L - 1, 3, U),
)
LINEAR = exits.Gate(
  layer_bias=normal(1, 1), bias=normal(1), state=normal(1, D, 1)
)
HIDDEN, PREVIOUS, LOGITS = normal(B, D), normal(B, D), normal(B, 7)


def view(layer=1, **changes):
  seen = LayerView(
    layer=layer,
    positions=jnp.zeros((B,), jnp.int32),
    hidden=HIDDEN,
    previous_hidden=PREVIOUS,
    logits=LOGITS,
    token_ids=None,
    log_total=None,
    active=jnp.ones((B,), bool),
  )
  return dataclasses.replace(seen, **changes)


def normed(states):
  return states / np.sqrt(np.square(states).mean(-1, keepdims=True) + 1e-6)


@dataclasses.dataclass
class Decoder:
  embed_dim: int = D
  num_layers: int = L


def test_the_features_are_those_of_a_sorted_softmax():
  shares = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  top = np.sort(shares)
  entropy = -(shares * np.log(shares)).sum(-1) / np.log(7)
  expected = np.stack([top[:, -1], top[:, -1] - top[:, -2], entropy], -1)
  np.testing.assert_allclose(exits.features_of(LOGITS), expected, atol=1e-6)


def test_the_fourth_feature_is_the_entropy_of_squared_probabilities():
  squared = np.exp(2 * np.asarray(LOGITS))
  squared /= squared.sum(-1, keepdims=True)
  entropy = -(squared * np.log(squared)).sum(-1) / np.log(7)
  found = exits.features_of(LOGITS, 4)
  np.testing.assert_allclose(found[:, 3], entropy, atol=1e-6)
  np.testing.assert_array_equal(found[:, :3], exits.features_of(LOGITS))
  gate = exits.Gate(
    layer_bias=np.zeros((1, 1)),
    bias=np.zeros(1),
    logits=np.array([[[0.0], [0.0], [0.0], [2.0]]]),
  ).check(Decoder(), B, 1)
  expected = 1 / (1 + np.exp(-2 * entropy))
  np.testing.assert_allclose(gate.confidence(view()), expected, atol=1e-6)
  five = dataclasses.replace(gate, logits=np.zeros((1, 5, 1)))
  with pytest.raises(ValueError, match='logits of the gate'):
    five.check(Decoder(), B, 1)


def test_the_features_of_extreme_and_suppressed_logits_are_finite():
  logits = jnp.array([[-jnp.inf, 3.0, -jnp.inf], [2.0, 2.0, 2.0]])
  expected = [[1.0, 1.0, 0.0], [1 / 3, 0.0, 1.0]]
  np.testing.assert_allclose(exits.features_of(logits), expected, atol=1e-6)


@pytest.mark.parametrize('layer', [0, 2, 3])
def test_the_confidence_is_the_formula(layer):
  """The last layer, whose answer nobody needs, is judged as the one before."""
  at = min(layer, L - 2)
  inner = normed(HIDDEN) @ GATE.state[at] + normed(PREVIOUS) @ GATE.previous[at]
  inner += exits.features_of(LOGITS) @ GATE.logits[at] + GATE.layer_bias[at]
  score = np.asarray(jax.nn.gelu(inner)) @ GATE.out[at] + GATE.bias[at]
  confidence = GATE.confidence(view(layer))
  np.testing.assert_allclose(confidence, 1 / (1 + np.exp(-score)), atol=1e-5)
  traced = jax.jit(lambda layer: GATE.confidence(view(layer)))(layer)
  np.testing.assert_allclose(traced, confidence, atol=1e-6)


def test_a_linear_gate_is_shared_and_reads_the_state_alone():
  score = normed(HIDDEN) @ LINEAR.state[0, :, 0]
  score += LINEAR.layer_bias[0, 0] + LINEAR.bias[0]
  for layer in range(L):
    confidence = LINEAR.confidence(view(layer, logits=None))
    np.testing.assert_allclose(confidence, 1 / (1 + np.exp(-score)), atol=1e-6)
  assert (GATE.needs_logits, LINEAR.needs_logits) == (True, False)


def test_scores_of_training_are_those_of_decoding():
  """On [L-1, B, T, D] states at once."""
  shape = (L - 1, B, 2)
  hidden, previous = normal(*shape, D), normal(*shape, D)
  logits = normal(*shape, 7)
  features = exits.features_of(logits.reshape(-1, 7)).reshape(*shape, 3)
  scores = GATE.scores(hidden, previous, features)
  assert scores.shape == shape
  for layer in range(L - 1):
    seen = view(
      layer,
      hidden=hidden[layer, :, 1],
      previous_hidden=previous[layer, :, 1],
      logits=logits[layer, :, 1],
    )
    np.testing.assert_allclose(
      jax.nn.sigmoid(scores[layer, :, 1]), GATE.confidence(seen), atol=1e-6
    )


@pytest.mark.parametrize('gate', [GATE, LINEAR])
def test_a_gate_that_fits_is_checked_into_float32(gate):
  doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gate)
  checked = doubled.check(Decoder(), B, 8)
  assert jax.tree.structure(checked) == jax.tree.structure(gate)
  assert {leaf.dtype for leaf in jax.tree.leaves(checked)} == {
    np.dtype('float32')
  }


@pytest.mark.parametrize(
  ('gate', 'decoder', 'message'),
  [
    (GATE, Decoder(embed_dim=8), r'state of the gate has shape \[3, 6, 5\]'),
    (LINEAR, Decoder(embed_dim=8), r'wanted \[1, 8, 1\].*width 8'),
    (GATE, Decoder(num_layers=6), 'layer_bias of the gate.*5 exits before'),
    (
      dataclasses.replace(GATE, out=None),
      Decoder(),
      'no out; wanted.*U = 1',
    ),
    (
      dataclasses.replace(LINEAR, state=None),
      Decoder(),
      'the gate reads nothing',
    ),
    (
      dataclasses.replace(LINEAR, bias=np.array([np.nan])),
      Decoder(),
      'bias of the gate nan',
    ),
  ],
)
def test_gates_of_other_models_are_refused(gate, decoder, message):
  with pytest.raises(ValueError, match=message):
    gate.check(decoder, B, 8)


def test_a_policy_with_a_gate_of_another_width_is_refused():
  rule = exits.ConfidenceExit(LINEAR, 0.5)
  with pytest.raises(ValueError, match='give the gate trained with this model'):
    rule.check(toy_decoder(L), B, 8)


def test_the_entropy_of_a_part_is_refused():
  with pytest.raises(ValueError, match='the best of them only'):
    GATE.confidence(view(log_total=jnp.zeros((B,))))
