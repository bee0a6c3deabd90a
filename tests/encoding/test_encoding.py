"""The laws of an encoder with exits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import encoding_cases as cases

from calm_jax import decoding, encoding, exits, model
from calm_jax.encoding import encoding as encoding_lib
from calm_jax.encoding import exit_checks

LOOPS = [
  encoding.UnrolledLayers(),
  encoding.CompactedLayers(),
  encoding.WhileLayers(),
]
by_loop = pytest.mark.parametrize(
  'loop', LOOPS, ids=lambda loop: type(loop).__name__
)


def encode(rule=None, inputs=None, **options):
  inputs = cases.inputs() if inputs is None else inputs
  return encoding.encode(
    cases.ENCODER, cases.params(), inputs, exit_rule=rule, **options
  )


@pytest.mark.parametrize(
  'loop',
  [
    LOOPS[0],
    *(pytest.param(loop, marks=pytest.mark.slow) for loop in LOOPS[1:]),
  ],
)
def test_who_never_leaves_is_encoded_as_ever(loop):
  decoder = model.as_layered_decoder(cases.CONFIG)
  bound = decoding.bind(decoder, cases.params())
  # In one program, as decoding runs it; operations one by one round otherwise.
  expected = jax.jit(lambda bound, ids: bound.encode(ids))(
    bound, cases.inputs()
  )
  result = encode(loop=loop)
  np.testing.assert_allclose(
    result.encoded.hidden,
    expected.hidden,
    rtol=0,
    atol=1e-5 * loop.traced_layers,
  )
  np.testing.assert_array_equal(result.encoded.mask, expected.mask)
  np.testing.assert_array_equal(result.exit_layers, np.full(cases.B, cases.L))
  assert np.isnan(result.confidences).all() and result.logits is None
  assert int(result.computed) == cases.B * cases.L


@by_loop
def test_rows_leave_where_their_pooled_states_no_longer_turn(loop):
  at = cases.threshold()
  exit_layers, confidences = cases.expected_exits(at)
  assert set(exit_layers) == {2, 3, cases.L}
  result = encode(cases.similar(at), loop=loop)
  np.testing.assert_array_equal(result.exit_layers, exit_layers)
  np.testing.assert_allclose(result.confidences, confidences, atol=1e-5)
  left_with = cases.normed()[exit_layers, np.arange(cases.B)]
  read = np.asarray(result.encoded.mask)[..., None]
  np.testing.assert_allclose(
    result.encoded.hidden * read, left_with * read, atol=1e-5
  )
  # What was computed: nobody runs layers behind the deepest row.
  still = [(exit_layers > layer).sum() for layer in range(cases.L)]
  masked = cases.B * exit_layers.max()
  if not isinstance(loop, encoding.CompactedLayers):
    assert int(result.computed) == masked
  else:
    # Before the rule has looked there is nothing to compact.
    buckets = np.array(loop.buckets(cases.B))
    ran = [buckets[buckets >= rows][0] for rows in still[2:]]
    assert int(result.computed) == 2 * cases.B + sum(ran) < masked
  assert sum(still) <= int(result.computed)


def test_a_threshold_of_one_is_the_encoder_and_others_compile_nothing():
  whole = encode()
  encode(cases.similar(cases.threshold()))
  programs = encoding_lib._encode._cache_size()
  one = encode(cases.similar(1.0))
  np.testing.assert_array_equal(one.exit_layers, whole.exit_layers)
  np.testing.assert_allclose(
    one.encoded.hidden, whole.encoded.hidden, atol=1e-5
  )
  np.testing.assert_array_equal(encode(cases.similar(0)).exit_layers, 2)
  assert encoding_lib._encode._cache_size() == programs


def test_a_row_knows_nothing_of_its_batch():
  rule = cases.similar(cases.threshold())
  result = encode(rule)
  # Others beside it, in the same program: to the bit.
  order = np.array([3, 1, 1, 0, 3, 1])
  again = encode(rule, cases.inputs()[order])
  np.testing.assert_array_equal(again.exit_layers, result.exit_layers[order])
  np.testing.assert_array_equal(
    again.encoded.hidden, result.encoded.hidden[order]
  )
  # Alone, with more padding.
  for row, source in enumerate(cases.inputs()):
    alone = encode(rule, np.pad(source, (0, 2))[None])
    assert alone.exit_layers[0] == result.exit_layers[row]
    length = (source > 0).sum()
    np.testing.assert_allclose(
      alone.encoded.hidden[0, :length],
      result.encoded.hidden[row, :length],
      atol=1e-5,
    )
    # At batch 1 no layer runs that the row does not need.
    assert alone.computed == alone.exit_layers[0]


@pytest.mark.parametrize(
  'loop', [LOOPS[0], pytest.param(LOOPS[1], marks=pytest.mark.slow)]
)
def test_rules_that_read_logits_read_those_of_heads(loop):
  logits = np.einsum('lbd,ldc->lbc', cases.pooled()[1:], cases.heads().kernels)
  shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
  shares /= shares.sum(axis=-1, keepdims=True)
  values = np.sort(shares.max(axis=-1)[:-1].ravel())
  at = values[len(values) // 2 :][:2].mean()
  stops = shares.max(axis=-1) >= at
  stops[-1] = True
  exit_layers = stops.argmax(axis=0) + 1
  assert len(set(exit_layers)) > 1
  rule = exits.ConfidenceExit(exits.SoftmaxMaximum(), float(at))
  result = encode(rule, heads=cases.heads(), loop=loop)
  np.testing.assert_array_equal(result.exit_layers, exit_layers)
  at_exit = (exit_layers - 1, np.arange(cases.B))
  np.testing.assert_allclose(result.logits, logits[at_exit], atol=1e-4)
  np.testing.assert_allclose(
    result.confidences, shares.max(axis=-1)[at_exit], atol=1e-5
  )


@pytest.mark.slow
def test_any_rule_of_tokens_is_one_of_rows():
  wanted = np.array([1, 2, 3, 4, 1, 2])

  def heads(pooled, layer):
    return pooled[:, :2] + layer

  result = encode(exits.FixedExit(wanted), heads=heads)
  np.testing.assert_array_equal(result.exit_layers, wanted)
  pooled = cases.pooled()[wanted, np.arange(cases.B), :2]
  np.testing.assert_allclose(
    result.logits, pooled + wanted[:, None] - 1, atol=1e-5
  )
  capped = exits.LayerBudget(cases.similar(1.0), per_token=3)
  np.testing.assert_array_equal(encode(capped).exit_layers, 3)
  gate = exits.Gate(
    layer_bias=np.zeros((cases.L - 1, 1)),
    bias=np.full((1,), 9.0),
    state=np.zeros((1, cases.D, 1)),
  )
  result = encode(exits.QuantileExit(gate, 0.9))
  np.testing.assert_array_equal(result.exit_layers, 1)
  best = np.einsum(
    'lbd,ldc->lbc', cases.pooled()[1:], cases.heads().kernels
  ).argmax(axis=-1)
  patient = encode(exits.PatienceExit(1), heads=cases.heads())
  again = np.vstack([best[1:] == best[:-1], np.ones((1, cases.B), bool)])
  expected = np.minimum(again.argmax(axis=0) + 2, cases.L)
  np.testing.assert_array_equal(patient.exit_layers, expected)


def refused(words, error=ValueError, inputs=None, **options):
  with pytest.raises(error, match=words):
    encode(inputs=inputs, **options)


def test_bad_rules_are_refused():
  margin = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
  refused('ConfidenceExit reads logits, and an encoder has none', rule=margin)
  routed = exits.RoutedExit(None, 0.5)
  refused('RoutedExit sees encoded sources, which', rule=routed)
  refused('threshold 1.5 is outside', rule=cases.similar(1.5))
  refused('exit_layer 5 is outside', rule=exits.FixedExit(5))
  refused('exit_rule.* is the class NeverExit', TypeError, rule=exits.NeverExit)
  refused('give an exit rule, such as', TypeError, rule=exits.StateSimilarity())
  refused('loop is 3; give', TypeError, loop=3)
  refused('loop is <class', TypeError, loop=encoding.WhileLayers)
  with pytest.raises(ValueError, match='smallest 0 must be'):
    encoding.CompactedLayers(0)


def test_a_measure_that_could_never_let_a_row_leave_is_refused():
  rule = cases.similar(0.5)
  two, three = (
    model.T5Config(
      vocab_size=9, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4,
      num_encoder_layers=layers, num_decoder_layers=1,
    )
    for layers in (2, 3)
  )  # fmt: skip
  with pytest.raises(ValueError, match='from layer 2 on, and this encoder has'):
    exit_checks.check_rule(rule, model.as_layered_encoder(two), None, 1)
  exit_checks.check_rule(rule, model.as_layered_encoder(three), None, 1)


def test_bad_heads_and_inputs_are_refused():
  refused('heads is 3; give an object or a function', heads=3)
  refused('heads is <class', heads=cases.LinearHeads)
  for heads in (
    lambda pooled, layer: pooled[0],
    lambda pooled, layer: pooled[:, :1],
    lambda pooled, layer: pooled.astype(jnp.int32),
    lambda pooled, layer: None,
  ):
    refused('heads make .* of pooled states', heads=heads)
  batch = {'encoder_input_tokens': cases.inputs(), 'encoder_segment_ids': None}
  refused('Packed rows, which hold several', TypeError, inputs=batch)
  refused('is all padding', inputs=np.zeros((1, 3), int))
  refused('token id 40 in row 0', inputs=np.array([[40]]))
  refused('dtype float', inputs=np.ones((1, 3)))
  stacked = cases.ENCODER.prepare(cases.params(), traced_layers=True)
  with pytest.raises(ValueError, match='this loop wants traced_layers=False'):
    encoding.encode(cases.ENCODER, stacked, cases.inputs())


def test_parameters_may_be_prepared_before():
  rule = cases.similar(cases.threshold())
  expected = encode(rule, loop=LOOPS[2])
  stacked = cases.ENCODER.prepare(cases.params(), traced_layers=True)
  result = encoding.encode(
    cases.ENCODER, stacked, cases.inputs(), exit_rule=rule, loop=LOOPS[2]
  )
  jax.tree.map(np.testing.assert_array_equal, result, expected)
