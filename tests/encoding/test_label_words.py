"""Classes by what a decoder says first, of sources that leave the encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import encoding_cases as cases
from fakes.toy_encoder import toy_encoder

from calm_jax import decoding, encoding, exits, model
from calm_jax.label_trees import LabelTree
from calm_jax.label_words import LabelWords

DECODER = model.as_layered_decoder(cases.CONFIG)
# First tokens differ; and three labels of five begin alike.
APART = ((7, 1), (9, 4, 1), (30, 1))
ALIKE = ((7, 1), (7, 5, 1), (9, 4, 6, 1), (9, 4, 8, 8, 1), (12, 1))


@functools.cache
def words(tokens):
  return LabelWords.of(DECODER, cases.params(), tokens)


@functools.cache
def _forced(exit_layers, tokens):
  """Logits float32 [B, T, V] behind the forced tokens of one label."""
  targets = np.tile(tokens, (cases.B, 1))
  mask = np.ones((*targets.shape, cases.CONFIG.num_decoder_layers), bool)
  return np.asarray(
    _reference(cases.params(), np.array(exit_layers), targets, mask)
  )


@jax.jit
def _reference(params, exit_layers, targets, mask):
  return model.decode_with_layer_mask(
    cases.CONFIG,
    params,
    jnp.asarray(cases.inputs()),
    jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    mask,
    encoder_exit_layers=exit_layers,
  )


def log_softmax(logits):
  return logits - np.asarray(jax.nn.logsumexp(logits, axis=-1, keepdims=True))


def by_forcing(exit_layers, labels):
  """What decoding that says labels alone gives each of them, [B, C]."""
  found = np.zeros((cases.B, len(labels)))
  for column, label in enumerate(labels):
    padded = (*label, 0, 0, 0, 0)[:5]
    logits = _forced(tuple(exit_layers), padded)
    for end, token in enumerate(label):
      follow = sorted({x[end] for x in labels if x[:end] == label[:end]})
      shares = log_softmax(logits[:, end, follow])
      found[:, column] += shares[:, follow.index(token)]
  return found


@pytest.fixture(scope='module')
def all_layers():
  return encoding.all_layers(
    cases.ENCODER, cases.params(), cases.inputs(), words(APART)
  )


def test_they_are_the_first_step_of_the_decode_restricted_to_labels(all_layers):
  first = [label[0] for label in APART]
  for layer in (1, cases.L):
    expected = _forced((layer,) * cases.B, (7, 1, 0, 0, 0))[:, 0, first]
    # float32, in another order of products.
    np.testing.assert_allclose(
      all_layers.logits[layer - 1], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_the_last_layer_says_what_the_decode_says(all_layers):
  first = [label[0] for label in APART]
  found = decoding.generate(
    decoding.bind(DECODER, cases.params()),
    cases.inputs(),
    max_length=1,
    eos_id=-1,
    suppressed_tokens=[t for t in range(40) if t not in first],
  )
  said = np.asarray(all_layers.logits)[-1].argmax(axis=1)
  np.testing.assert_array_equal(np.array(first)[said], found.tokens[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
  'loop',
  [
    encoding.UnrolledLayers(),
    encoding.CompactedLayers(),
    encoding.WhileLayers(),
  ],
)
def test_rows_leave_by_them_as_replaying_says(all_layers, loop):
  measure = exits.SoftmaxMaximum()
  shares = np.exp(log_softmax(np.asarray(all_layers.logits))).max(axis=-1)
  at = float(np.sort(shares[:-1].ravel())[-4:-2].mean())
  rule = exits.ConfidenceExit(measure, at, interval=3)
  found = encoding.classify(
    cases.ENCODER,
    cases.params(),
    cases.inputs(),
    words(APART),
    exit_rule=rule,
    loop=loop,
  )
  exit_layers, _ = encoding.replay(cases.ENCODER, rule, all_layers)
  np.testing.assert_array_equal(found.exit_layers, exit_layers)
  assert len(set(exit_layers.tolist())) > 1
  logits = np.asarray(all_layers.logits)[exit_layers - 1, np.arange(cases.B)]
  np.testing.assert_allclose(found.logits, logits, atol=1e-5)


def test_labels_that_begin_alike_are_told_apart_by_forcing():
  @jax.jit
  def read(words, params, inputs):
    prepared = cases.ENCODER.prepare(params)
    hidden, mask = cases.ENCODER.embed(prepared, inputs)
    shared = cases.ENCODER.shared(prepared, inputs.shape[1])
    hidden = cases.ENCODER.layer(prepared, 0, hidden, mask, shared)
    return words.of_sources(cases.ENCODER.finish(prepared, hidden, mask), 0)

  found = read(words(ALIKE), cases.params(), cases.inputs())
  expected = by_forcing((1,) * cases.B, ALIKE)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-5)
  assert np.ptp(expected, axis=0).min() > 1e-3


def test_a_tree_has_no_more_nodes_than_tell_labels_apart():
  assert LabelTree(APART).nodes == ((),)
  tree = LabelTree(ALIKE)
  # Behind 9, 4 labels differ; behind 12 there is one.
  assert tree.nodes == ((), (7,), (9,), (9, 4))
  assert tree.inputs.tolist() == [0, 7, 9, 4]
  assert tree.read.tolist()[3] == [0, -1, 1, 2]
  assert tree.read.tolist()[1] == [0, 1, -1, -1]
  for label, steps in zip(ALIKE, tree.steps, strict=True):
    said = [tree.candidates[c] for _, c in steps if c >= 0]
    assert said == [t for t in said if t in label]
  counts = (tree.steps[..., 1] >= 0).sum(axis=1)
  assert counts.tolist() == [2, 2, 2, 2, 1]


def test_a_certificate_can_name_them():
  policy = decoding.ComputePolicy(
    encoder_exit=decoding.StoppedEncoder(
      exits.ConfidenceExit(exits.SoftmaxMaximum(), 0.5), heads=words(APART)
    )
  )
  described = decoding.describe(policy)['encoder_exit']['heads']
  assert described == {
    'type': 'LabelWords',
    'tokens': [list(label) for label in APART],
  }


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    ([(3, 1)], 'needs at least 2'),
    ([(3, 1), (3, 1)], 'two labels have the same'),
    ([(3,), (3, 4, 1)], r'label \[3\] begins another'),
    ([(3, 1), ()], r'label \[\] holds no token'),
    ([(3, 1), (4, 0)], 'which is padding'),
    ([(3, 1), (99, 1)], 'token of a label 99'),
  ],
)
def test_bad_labels_are_refused(tokens, message):
  with pytest.raises(ValueError, match=message):
    LabelWords.of(DECODER, cases.params(), tokens)


def test_another_models_encoder_is_refused():
  with pytest.raises(ValueError, match='are of another model'):
    encoding.classify(
      toy_encoder(), jnp.float32(1.0), cases.inputs(), words(APART)
    )
  found = words(APART)
  assert (found.num_layers, found.num_classes) == (cases.L, 3)
