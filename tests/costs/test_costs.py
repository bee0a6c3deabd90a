"""Costs: against XLA's own analysis, and against counts made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax import costs, decoding, exits, model

CONFIG = model.T5Config(
  vocab_size=1536,
  embed_dim=128,
  num_heads=4,
  head_dim=32,
  mlp_dim=384,
  num_encoder_layers=2,
  num_decoder_layers=3,
)
BATCH, SOURCE, TARGET = 2, 16, 24


@pytest.fixture(scope='module')
def analysis():
  """XLA's analysis of the token loop, the encoder, and one step by itself."""
  decoder = model.as_layered_decoder(CONFIG)
  params = model.init_params(CONFIG, jax.random.key(0))
  inputs = jnp.ones((BATCH, SOURCE), jnp.int32)

  def analysed(rule):
    policy = decoding.ComputePolicy(exit_rule=rule)
    state = decoding.start(
      decoding.bind(decoder, params, depth_loop=decoding.UnrolledDepthLoop()),
      inputs,
      policy=policy,
      max_length=TARGET,
      eos_id=-1,
    )
    # The body of a loop of unknown length is counted once.
    compiled = jax.jit(decoding.advance).lower(state).compile()
    return compiled.cost_analysis()

  def encode(params, inputs):
    prepared = decoder.prepare(params, traced_layers=False)
    return decoder.start(prepared, decoder.encode(prepared, inputs), TARGET)

  def one_step(params, cache, hidden):
    positions = jnp.zeros((1,), jnp.int32)
    for layer in range(CONFIG.num_decoder_layers):
      cache = decoder.fill_layer(params, layer, hidden, positions, cache)
      hidden = decoder.attend(params, layer, hidden, positions, cache)
      hidden = decoder.feed_forward(params, layer, hidden)
    return cache, decoder.logits(params, hidden[:, 0])

  encoder = jax.jit(encode).lower(params, inputs).compile().cost_analysis()
  prepared = decoder.prepare(params, traced_layers=False)
  cache = jax.eval_shape(encode, params, inputs)
  hidden = jnp.zeros((BATCH, 1, CONFIG.embed_dim))
  step = jax.jit(one_step, donate_argnums=1).lower(prepared, cache, hidden)
  return analysed, encoder, step.compile().cost_analysis()


def _one_step(**arguments):
  depth = np.full((BATCH, TARGET), -1)
  depth[:, 0] = CONFIG.num_decoder_layers
  return costs.decode_cost(CONFIG, depth, source_length=SOURCE, **arguments)


def _of_step(amounts):
  return sum(amounts.values()) - amounts['encoder'] - amounts['cross_fill']


def test_a_step_is_what_xla_says(analysis):
  analysed, _, step = analysis
  cost = _one_step()
  for found in (analysed(exits.NeverExit()), step):
    assert _of_step(cost.flops) == pytest.approx(found['flops'], rel=0.05)
  # Activations and masks come on top of what is counted. (Of a loop XLA counts
  # everything that is carried as well.)
  ours = _of_step(cost.bytes)
  assert ours < step['bytes accessed'] < 1.35 * ours


def test_checks_are_what_xla_says(analysis):
  analysed, _, _ = analysis
  rule = exits.ConfidenceExit(measure=exits.SoftmaxMargin(), threshold=1.0)
  more = analysed(rule)['flops'] - analysed(exits.NeverExit())['flops']
  cost = _one_step(looks=[True] * 3)
  # Maxima and exponentials over V are not counted.
  assert cost.flops['checks'] == pytest.approx(more, rel=0.08)
  assert cost.flops['checks'] == 2 * cost.flops['head']
  assert cost.bytes['checks'] == 2 * cost.bytes['head']


def test_the_encoder_is_what_xla_says(analysis):
  _, found, _ = analysis
  cost = _one_step()
  ours = cost.flops['encoder'] + cost.flops['cross_fill']
  assert ours == pytest.approx(found['flops'], rel=0.05)


def test_layers_are_read_once_for_all_rows():
  """Counts of a small decode, made by hand."""
  depth = [[1, 3, 2], [2, 1, -1]]
  cost = costs.decode_cost(CONFIG, depth, source_length=SOURCE)
  layer = 4 * 128 * 128 + 3 * 128 * 384
  assert cost.num_steps == 3
  # Deepest rows: 2, 3, 2 layers; rows times layers: 3, 4, 2.
  assert cost.bytes['layers'] == 4 * 7 * layer
  assert cost.flops['layers'] == 2 * 9 * layer
  assert cost.bytes['self_attention'] == 4 * 9 * 3 * 2 * 128
  assert cost.bytes['cross_attention'] == 4 * 9 * SOURCE * 2 * 128
  assert cost.bytes['head'] == 4 * 3 * 1536 * 128
  assert cost.bytes['checks'] == 0
  kv = 2 * 128 * 128
  assert cost.flops['fill'] == 2 * kv * 3 * 5
  deferred = costs.decode_cost(
    CONFIG, depth, source_length=SOURCE, fill='deferred'
  )
  # Row 0 runs layers 1 to 3 last at positions 3, 3, 2; row 1 at 2, 1.
  assert deferred.flops['fill'] == 2 * kv * (3 + 3 + 2 + 2 + 1)
  assert deferred.bytes['fill'] == 4 * (7 * kv + 11 * 2 * 128)


def test_candidates_make_checks_cheap():
  depth = [[1, 3], [3, 3]]
  common = dict(source_length=SOURCE, looks=[True, True, True])
  full = costs.decode_cost(CONFIG, depth, **common)
  pruned = costs.decode_cost(CONFIG, depth, num_candidates=64, **common)
  # Two looks more than tokens for three of four tokens.
  assert pruned.bytes['checks'] == 4 * 6 * 64 * 128
  assert full.bytes['checks'] == 4 * 4 * 1536 * 128
  sparse = costs.decode_cost(
    CONFIG, depth, source_length=SOURCE, looks=[True, False, False]
  )
  assert sparse.bytes['checks'] == 4 * 2 * 1536 * 128


def test_ceilings_are_ratios_per_step():
  full = costs.decode_cost(CONFIG, [[3] * 4], source_length=SOURCE)
  short = costs.decode_cost(CONFIG, [[3] * 4 + [-1] * 0], source_length=SOURCE)
  assert costs.speed_up_ceiling(full, short) == 1.0
  early = costs.decode_cost(CONFIG, [[1] * 4], source_length=SOURCE)
  deferred = costs.decode_cost(
    CONFIG, [[1] * 4], source_length=SOURCE, fill='deferred'
  )
  assert 1 < costs.speed_up_ceiling(full, early)
  assert costs.speed_up_ceiling(full, early) < costs.speed_up_ceiling(
    full, deferred
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'exit_layers': [[4]]}, 'maximum of 4; give .* in 1..3'),
    ({'exit_layers': [[-1]]}, 'give .* in 1..3'),
    ({'exit_layers': [[1]], 'fill': 'lazy'}, "fill is 'lazy'"),
    ({'exit_layers': [[1]], 'looks': [True]}, 'one for each of the 3 layers'),
  ],
)
def test_bad_input_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    costs.decode_cost(CONFIG, source_length=SOURCE, **arguments)
