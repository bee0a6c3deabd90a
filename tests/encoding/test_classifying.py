"""Rows leave an encoder by its heads, and replaying tells where."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_encoder import NUM_LAYERS, toy_encoder

from calm_jax import encoding, exits
from calm_jax.encoder_heads import EncoderHeads

ENCODER = toy_encoder()
ONE = jnp.float32(1.0)
# The class is how large the first channel is, told later the smaller it is.
HEADS = EncoderHeads(
  kernel=jnp.tile(jnp.array([[0.0, 1.0, 2.0], [0.0, -6.0, -16.0]]), (3, 1, 1)),
  bias=jnp.zeros((NUM_LAYERS, 3)),
)
INPUTS = np.array([[2, 4, 0], [9, 9, 9], [1, 0, 0], [30, 1, 0]], np.int32)
RULES = {
  'never': exits.NeverExit(),
  'at 1': exits.ConfidenceExit(exits.SoftmaxMaximum(), 1.0),
  'maximum': exits.ConfidenceExit(exits.SoftmaxMaximum(), 0.9),
  'tempered': exits.ConfidenceExit(
    exits.Tempered(exits.SoftmaxMaximum(), (0.5, 1.0, 2.0)), 0.9
  ),
  'patience': exits.PatienceExit(1),
  'quantile': exits.QuantileExit(exits.SoftmaxMargin(), 0.5),
  'fixed': exits.FixedExit(2),
  'state': exits.ConfidenceExit(exits.StateSimilarity(), 0.995),
}
# Asked always, and of the loop that has a branch per layer alone.
CHEAP = ('at 1', 'maximum', 'tempered', 'patience', 'quantile', 'state')


@pytest.fixture(scope='module')
def layers():
  return encoding.all_layers(ENCODER, ONE, INPUTS, HEADS)


def test_all_layers_by_hand(layers):
  means = np.array([3.0, 9.0, 1.0, 15.5])
  after = means + np.array([0, 1, 3, 6])[:, None]
  np.testing.assert_allclose(layers.pooled[..., 0], after)
  logits = np.stack([0 * after, after - 6, 2 * after - 16], axis=-1)
  np.testing.assert_allclose(layers.logits, logits[1:], atol=1e-5)


@pytest.mark.parametrize(
  'loop,name',
  [
    pytest.param(
      loop,
      name,
      marks=[] if cheap and name in CHEAP else [pytest.mark.slow],
    )
    for loop, cheap in (
      (encoding.UnrolledLayers(), True),
      (encoding.CompactedLayers(), False),
    )
    for name in RULES
  ],
)
def test_replaying_says_what_classifying_does(layers, loop, name):
  rule = RULES[name]
  found = encoding.classify(
    ENCODER, ONE, INPUTS, HEADS, exit_rule=rule, loop=loop
  )
  exit_layers, confidences = encoding.replay(ENCODER, rule, layers)
  np.testing.assert_array_equal(found.exit_layers, exit_layers)
  np.testing.assert_allclose(found.confidences, confidences, atol=1e-6)
  logits = np.asarray(layers.logits)[exit_layers - 1, np.arange(len(INPUTS))]
  np.testing.assert_allclose(found.logits, logits, atol=1e-5)
  np.testing.assert_array_equal(found.classes, logits.argmax(axis=1))


def test_where_rows_leave(layers):
  def leave(name):
    return encoding.replay(ENCODER, RULES[name], layers)[0].tolist()

  assert leave('never') == leave('at 1') == [3, 3, 3, 3]
  # Logits are 0, x - 6, 2 x - 16, and x is 4, 6, 9; 10, 12, 15; 2; 16.5.
  assert leave('maximum') == [3, 3, 1, 1]
  # 0, -4, -16 at temperature 1/2.
  assert leave('tempered') == [1, 3, 1, 1]
  # Classes 0, 0, 1; 1, 2, 2; 0, 0; 2, 2.
  assert leave('patience') == [2, 3, 2, 2]
  assert leave('fixed') == [2, 2, 2, 2]


def test_a_temperature_changes_no_class(layers):
  said = np.asarray(layers.logits).argmax(axis=-1)
  for place, temperature in enumerate((0.5, 1.0, 2.0)):
    tempered = np.asarray(layers.logits)[place] / temperature
    np.testing.assert_array_equal(tempered.argmax(axis=-1), said[place])


def test_a_quantile_never_leaves_earlier_at_a_larger_q(layers):
  depths = [
    np.asarray(
      encoding.replay(
        ENCODER, exits.QuantileExit(exits.SoftmaxMargin(), q), layers
      )[0]
    )
    for q in (0.0, 0.3, 0.9, 1.0)
  ]
  assert all((a <= b).all() for a, b in itertools.pairwise(depths))
  assert (depths[-1] == NUM_LAYERS).all()
  # The second row's best two classes tie after layer 1.
  assert depths[0].tolist() == [1, 2, 1, 1]


def test_heads_of_all_layers_are_those_of_each():
  rng = np.random.default_rng(0)
  heads = EncoderHeads(
    kernel=rng.normal(size=(3, 2, 5)),
    bias=rng.normal(size=(3, 4)),
    hidden_bias=rng.normal(size=(3, 5)),
    out=rng.normal(size=(3, 5, 4)),
  ).check(ENCODER)
  pooled = jnp.asarray(rng.normal(size=(3, 6, 2)), jnp.float32)
  each = [heads(pooled[layer], layer) for layer in range(3)]
  np.testing.assert_allclose(heads.all_logits(pooled), each, rtol=1e-5)
  inner = jax.nn.gelu(pooled[1] @ heads.kernel[1] + heads.hidden_bias[1])
  by_hand = inner @ heads.out[1] + heads.bias[1]
  np.testing.assert_allclose(each[1], by_hand, rtol=1e-5)
  assert (heads.num_layers, heads.num_classes) == (3, 4)


def test_heads_of_another_shape_are_refused(layers):
  bias = np.zeros((3, 4))
  for heads in (
    EncoderHeads(np.zeros((3, 3, 4)), bias),
    EncoderHeads(np.zeros((2, 2, 4)), np.zeros((2, 4))),
    EncoderHeads(np.zeros((3, 2, 4)), np.zeros(4)),
    EncoderHeads(np.zeros((3, 2, 5)), bias, hidden_bias=np.zeros((3, 5))),
  ):
    with pytest.raises(ValueError, match='encoder heads have shapes'):
      encoding.classify(ENCODER, ONE, INPUTS, heads)
  with pytest.raises(ValueError, match='kernel of the encoder heads nan'):
    EncoderHeads(np.full((3, 2, 4), np.nan), bias).check(ENCODER)
  # Whoever takes them: a layer beyond theirs would be read as their last.
  fewer = EncoderHeads(np.zeros((2, 2, 4)), np.zeros((2, 4)))
  rule = exits.ConfidenceExit(exits.SoftmaxMaximum(), 0.5)
  with pytest.raises(ValueError, match='encoder heads have shapes'):
    encoding.encode(ENCODER, ONE, INPUTS, exit_rule=rule, heads=fewer)
  for heads, message in (
    (EncoderHeads, 'heads is the class EncoderHeads'),
    (lambda pooled, layer: pooled, 'encoding.encode takes a function'),
    (None, 'heads is None; give those of runs.load_encoder_heads'),
  ):
    with pytest.raises(TypeError, match=message):
      encoding.classify(ENCODER, ONE, INPUTS, heads)
  with pytest.raises(TypeError, match='exit_rule of an encoder'):
    encoding.replay(ENCODER, exits.SoftmaxMaximum(), layers)
  rule = exits.ConfidenceExit(exits.Tempered(exits.SoftmaxMargin(), (1,)), 1)
  with pytest.raises(ValueError, match='temperature'):
    encoding.classify(ENCODER, ONE, INPUTS, HEADS, exit_rule=rule)
