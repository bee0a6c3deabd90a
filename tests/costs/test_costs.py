"""Costs: against XLA's own analysis, and against counts made by hand.

Ledgers are those of real decodes wherever a decode of known depths can be had.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax import costs, decoding, exits, model, quantisation
from calm_jax.benchmarks import forced_depths
from calm_jax.interfaces import Work
from calm_jax.source_scorer import SourceScorer

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
# Weights of a layer but for K/V, of its K/V projections, and K/V of a position.
ATTENTION, FFN, KV, POSITION = 4 * 128**2, 3 * 128 * 384, 2 * 128**2, 2 * 128
HEAD = 1536 * 128
DEPTHS = np.array([[1, 3, 2], [2, 1, 1]])


@pytest.fixture(scope='module')
def decode():
  """Decodes under a policy and returns its cost."""
  params = model.init_params(CONFIG, jax.random.key(0))
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)

  def run(rule, depths=DEPTHS, **slots):
    depths = np.asarray(depths)
    result = decoding.generate(
      bound,
      np.ones((len(depths), SOURCE), np.int32),
      policy=decoding.ComputePolicy(exit_rule=rule, **slots),
      max_length=depths.shape[1],
      eos_id=-1,
    )
    np.testing.assert_array_equal(result.exit_layers, depths)
    return costs.decode_cost(CONFIG, result.work, source_length=SOURCE)

  return run


def checked(depths=DEPTHS):
  return forced_depths.CheckedSchedule(exits.SoftmaxMargin(), depths)


def ledger(**columns):
  """Returns a ledger with these columns [B, T], the others 0."""
  shape = np.shape(next(iter(columns.values())))
  return dataclasses.replace(
    Work.none(shape), **{name: np.array(of) for name, of in columns.items()}
  )


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
    positions = jnp.arange(hidden.shape[1])
    for layer in range(CONFIG.num_decoder_layers):
      cache = decoder.fill_layer(params, layer, hidden, positions, cache)
      hidden = decoder.attend(params, layer, hidden, positions, cache)
      hidden = decoder.feed_forward(params, layer, hidden)
    return cache, decoder.logits(params, hidden[:, -1])

  encoder = jax.jit(encode).lower(params, inputs).compile().cost_analysis()
  prepared = decoder.prepare(params, traced_layers=False)
  cache = jax.eval_shape(encode, params, inputs)

  def step(num_positions):
    hidden = jnp.zeros((BATCH, num_positions, CONFIG.embed_dim))
    lowered = jax.jit(one_step, donate_argnums=1).lower(prepared, cache, hidden)
    return lowered.compile().cost_analysis()

  return analysed, encoder, step


def _one_step(companions=0, checks=1):
  """Returns the cost of full depth at the first of `TARGET` positions."""
  layers = CONFIG.num_decoder_layers
  work = ledger(
    attention=[layers],
    feed_forward=[layers],
    caught_up=[layers * companions],
    fills=[layers],
    projections=[layers * (1 + companions)],
    checks=[checks],
    outputs=[checks * CONFIG.vocab_size],
  )
  work = jax.tree.map(
    lambda column: np.pad([column] * BATCH, ((0, 0), (0, TARGET - 1))), work
  )
  return costs.decode_cost(CONFIG, work, source_length=SOURCE)


def _of_step(amounts):
  return sum(amounts.values()) - amounts['encoder'] - amounts['cross_fill']


@pytest.mark.slow
def test_a_step_is_what_xla_says(analysis):
  analysed, _, step = analysis
  cost = _one_step()
  for found in (analysed(exits.NeverExit()), step(1)):
    assert _of_step(cost.flops) == pytest.approx(found['flops'], rel=0.05)
  # Activations and masks come on top of what is counted. (Of a loop XLA counts
  # everything that is carried as well.)
  ours = _of_step(cost.bytes)
  assert ours < step(1)['bytes accessed'] < 1.35 * ours


@pytest.mark.slow
def test_companions_are_what_xla_says(analysis):
  """They are arithmetic: weights and K/V are read as if they were not there."""
  _, _, step = analysis
  alone, cost = _one_step(), _one_step(companions=4)
  assert _of_step(cost.flops) == pytest.approx(step(5)['flops'], rel=0.05)
  assert _of_step(cost.flops) > 3 * _of_step(alone.flops)
  for term in ('layers', 'self_attention', 'cross_attention', 'head'):
    assert cost.bytes[term] == alone.bytes[term]
  ours = _of_step(cost.bytes)
  assert ours < step(5)['bytes accessed'] < 1.6 * ours


@pytest.mark.slow
def test_checks_are_what_xla_says(analysis):
  analysed, _, _ = analysis
  rule = exits.ConfidenceExit(measure=exits.SoftmaxMargin(), threshold=1.0)
  more = analysed(rule)['flops'] - analysed(exits.NeverExit())['flops']
  cost = _one_step(checks=3)
  # Maxima and exponentials over V are not counted.
  assert cost.flops['checks'] == pytest.approx(more, rel=0.08)
  assert cost.flops['checks'] == 2 * cost.flops['head']
  assert cost.bytes['checks'] == 2 * cost.bytes['head']


def test_the_encoder_is_what_xla_says(analysis):
  _, found, _ = analysis
  cost = _one_step()
  ours = cost.flops['encoder'] + cost.flops['cross_fill']
  assert ours == pytest.approx(found['flops'], rel=0.05)


def test_layers_are_read_once_for_all_rows(decode):
  """Counts of a small decode, made by hand."""
  cost = decode(exits.ScheduledExit(DEPTHS))
  assert cost.num_steps == 3
  # Deepest rows: 2, 3, 2 layers; rows times layers: 3, 4, 3.
  assert cost.bytes['layers'] == 4 * 7 * (ATTENTION + FFN)
  assert cost.flops['layers'] == 2 * 10 * (ATTENTION + FFN)
  assert cost.bytes['self_attention'] == 4 * 10 * 3 * POSITION
  assert cost.flops['self_attention'] == 2 * 10 * 3 * POSITION
  assert cost.bytes['cross_attention'] == 4 * 10 * SOURCE * POSITION
  assert cost.bytes['head'] == 4 * 3 * HEAD
  assert cost.flops['head'] == 2 * 6 * HEAD
  assert cost.bytes['checks'] == cost.flops['checks'] == 0
  # All 3 layers, of 2 rows at 3 positions.
  assert cost.flops['fill'] == 2 * KV * 18
  assert cost.bytes['fill'] == 4 * (9 * KV + 18 * POSITION)


@pytest.mark.slow
def test_deferred_fills_are_of_layers_that_run(decode):
  eager = decode(exits.ScheduledExit(DEPTHS))
  cost = decode(
    exits.ScheduledExit(DEPTHS), cache_fill=decoding.DeferredExitState()
  )
  # Row 0 runs layers 1 to 3 last at positions 3, 3, 2; row 1 at 3, 1.
  assert cost.flops.pop('fill') == 2 * KV * (3 + 3 + 2 + 3 + 1)
  assert cost.bytes.pop('fill') == 4 * (7 * KV + 12 * POSITION)
  del eager.flops['fill'], eager.bytes['fill']
  assert cost == eager


def test_ended_rows_cost_nothing(decode):
  """The first row ends after two positions, the second after three."""
  alive = np.array([[1, 1, 0], [1, 1, 1]])
  cost = costs.decode_cost(
    CONFIG,
    ledger(
      attention=DEPTHS * alive,
      feed_forward=DEPTHS * alive,
      fills=3 * alive,
      projections=3 * alive,
      checks=alive,
      outputs=1536 * alive,
    ),
    source_length=SOURCE,
  )
  assert cost.bytes['layers'] == 4 * (2 + 3 + 1) * (ATTENTION + FFN)
  assert cost.bytes['fill'] == 4 * (9 * KV + 15 * POSITION)
  assert cost.flops['head'] == 2 * 5 * HEAD
  assert cost.num_steps == 3


@pytest.mark.slow
def test_companions_read_no_further_weights(decode):
  """Two tokens leave after layer 1, and the third takes them along."""
  depths = np.array([[1, 1, 3]])
  cost = decode(
    exits.ScheduledExit(depths), depths, cache_fill=decoding.CatchUp((4,))
  )
  assert cost.bytes['layers'] == 4 * 5 * (ATTENTION + FFN)
  assert cost.flops['layers'] == 2 * 9 * (ATTENTION + FFN)
  assert cost.bytes['self_attention'] == 4 * 5 * 3 * POSITION
  assert cost.flops['self_attention'] == 2 * 9 * 3 * POSITION
  assert cost.bytes['fill'] == 4 * (5 * KV + 9 * POSITION)
  assert cost.flops['fill'] == 2 * KV * 9


@pytest.mark.slow
def test_checks_read_the_whole_matrix_for_all_rows(decode):
  cost = decode(checked())
  # The deepest rows look 2, 3, 2 times, all of them 10 times.
  assert cost.bytes['head'] == 4 * 3 * HEAD
  assert cost.bytes['checks'] == 4 * 4 * HEAD
  assert cost.flops['checks'] == 2 * 4 * HEAD
  # One row leaves after layer 1, the other at the end; layer 2 is not looked
  # at, and the last one is read out where nothing before it stopped a row.
  sparse = decode(
    exits.ConfidenceExit(
      exits.SoftmaxMargin(), np.array([0.0, 1.0]), interval=2
    ),
    [[1, 1], [3, 3]],
  )
  assert sparse.bytes['head'] == sparse.bytes['checks'] == 4 * 2 * HEAD
  assert sparse.flops['checks'] == 2 * 2 * HEAD


@pytest.mark.slow
def test_candidates_make_checks_cheap(decode):
  pruned = decoding.PrunedVocabulary(num_blocks=16, block_size=4)
  cost = decode(checked(), readout=pruned)
  # Four looks more than tokens, each over the row's own 64 candidates.
  assert cost.bytes['head'] == 4 * 3 * HEAD
  assert cost.bytes['checks'] == 4 * 4 * 64 * 128
  assert cost.flops['head'] == 2 * 6 * HEAD
  assert cost.flops['checks'] == 2 * 4 * 64 * 128
  # The exit states are read once more over all of V.
  final = decode(checked(), readout=dataclasses.replace(pruned, final='full'))
  assert final.bytes['checks'] == 4 * (3 * HEAD + 4 * 64 * 128)
  assert final.flops['checks'] == 2 * (6 * HEAD + 4 * 64 * 128)


def test_a_check_of_drafts_reads_the_matrix_once():
  """Three tokens are chosen by one product with the output matrix."""
  work = ledger(
    attention=[[1, 1, 3]], checks=[[1, 1, 1]], outputs=[[1536, 1536, 3 * 1536]]
  )
  cost = costs.decode_cost(CONFIG, work, source_length=SOURCE)
  assert cost.bytes['head'] == 4 * 3 * HEAD
  assert cost.bytes['checks'] == 0
  assert cost.flops['head'] + cost.flops['checks'] == 2 * 5 * HEAD


def test_a_head_beside_the_model_is_not_free():
  """Two rows share its weights where both draft: 300 products of 128."""
  work = ledger(checks=[[1, 1], [1, 1]], extra_products=[[0, 300], [300, 300]])
  cost = costs.decode_cost(CONFIG, work, source_length=SOURCE)
  assert cost.flops['extra'] == 2 * 900 * 128
  assert cost.bytes['extra'] == 4 * 600 * 128


def test_layer_plans_leave_weights_out():
  work = ledger(
    attention=[[3, 1], [2, 1]],
    feed_forward=[[1, 1], [2, 0]],
    checks=[[1, 1], [1, 1]],
  )
  cost = costs.decode_cost(CONFIG, work, source_length=SOURCE)
  assert cost.bytes['layers'] == 4 * (4 * ATTENTION + 3 * FFN)
  assert cost.flops['layers'] == 2 * (7 * ATTENTION + 4 * FFN)


@pytest.mark.slow
def test_ceilings_are_ratios_per_step(decode):
  full = decode(exits.NeverExit(), [[3] * 4])
  short = decode(exits.NeverExit(), [[3] * 4])
  assert costs.speed_up_ceiling(full, short) == 1.0
  rule = exits.FixedExit(1)
  early = decode(rule, [[1] * 4])
  deferred = decode(rule, [[1] * 4], cache_fill=decoding.DeferredExitState())
  assert 1 < costs.speed_up_ceiling(full, early)
  assert costs.speed_up_ceiling(full, early) < costs.speed_up_ceiling(
    full, deferred
  )


def test_bytes_are_split_into_once_and_per_step():
  work = ledger(attention=[[3]], checks=[[1]], outputs=[[1536]])
  cost = costs.decode_cost(CONFIG, work, source_length=SOURCE)
  once, stepping = costs.bytes_of(CONFIG, SOURCE)(work)
  assert once == cost.bytes['encoder'] + cost.bytes['cross_fill']
  assert stepping == cost.stepping_bytes


def _everything():
  """Returns a ledger of one step, in which every weight is read once."""
  layers = CONFIG.num_decoder_layers
  return ledger(
    attention=[[layers]],
    feed_forward=[[layers]],
    fills=[[layers]],
    checks=[[1]],
    outputs=[[1536]],
  )


@functools.cache
def shapes_of(config):
  """Returns the shapes of a model's parameters."""
  return jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))


@pytest.mark.parametrize(
  'weights',
  [
    quantisation.Int8Weights(),
    quantisation.Int8Weights(encoder=True),
    quantisation.Int8Weights(
      keep=(r'.*/mlp/wo', r'decoder/layers_0/.*', 'decoder/logits_dense')
    ),
    quantisation.Int8Weights(encoder=True, keep=(r'.*attention/value',)),
    None,
  ],
)
@pytest.mark.parametrize(
  'changes',
  [{}, {'dtype': 'bfloat16'}, {'mlp_activations': ('relu',)}],
  ids=['float32', 'bfloat16', 'no gates'],
)
def test_weights_have_the_bytes_of_their_leaves(weights, changes):
  """All of a model's matrices are read once: what `bind` holds of them."""
  config = dataclasses.replace(CONFIG, **changes)
  bound = decoding.bind(
    model.as_layered_decoder(config),
    shapes_of(config),
    depth_loop=decoding.UnrolledDepthLoop(),
    weights=weights,
  )
  cost = costs.decode_cost(
    config, _everything(), source_length=SOURCE, weights=weights
  )

  def held(*trees):
    # Norms and position biases are no matrices.
    return sum(
      leaf.size * leaf.dtype.itemsize
      for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
      if not {'scale', 'rel_embedding'}
      & {getattr(entry, 'key', None) for entry in path}
    )

  width = config.activation_dtype.itemsize
  # K/V of all source positions, in the dtype of activations.
  written = 3 * SOURCE * POSITION * width
  assert cost.bytes['head'] == held(bound.params.output)
  assert cost.bytes['encoder'] == held(bound.params.encoder)
  assert cost.bytes['layers'] + cost.bytes['fill'] + cost.bytes[
    'cross_fill'
  ] - written == held(bound.params.layers)
  assert (
    cost.flops
    == costs.decode_cost(config, _everything(), source_length=SOURCE).flops
  )


def test_int8_weights_are_counted_by_hand():
  work = dataclasses.replace(
    _everything(), projections=np.array([[3]]), outputs=np.array([[1536 + 40]])
  )
  work = dataclasses.replace(work, checks=np.array([[2]]))
  cost = costs.decode_cost(CONFIG, work, source_length=SOURCE, weights='int8')
  scales = 4 * 128
  assert cost.bytes['layers'] == 3 * (
    ATTENTION + 4 * scales + FFN + 4 * (2 * 384 + 128)
  )
  # What is written of K/V stays float32, and so do caches.
  assert cost.bytes['fill'] == 3 * (KV + 2 * scales) + 4 * 3 * POSITION
  assert cost.bytes['cross_fill'] == 3 * (
    KV + 2 * scales + 4 * SOURCE * POSITION
  )
  assert cost.bytes['self_attention'] == 4 * 3 * POSITION
  assert cost.bytes['head'] == HEAD + 4 * 1536
  assert cost.bytes['checks'] == 40 * (128 + 4)
  assert cost.bytes['encoder'] == 4 * 2 * (4 * 128**2 + FFN)
  moved = costs.bytes_of(CONFIG, SOURCE)(work, quantisation.Int8Weights())
  assert sum(moved) == cost.total_bytes
  with pytest.raises(ValueError, match="give 'float', 'int8'"):
    costs.decode_cost(CONFIG, work, source_length=SOURCE, weights='int4')


def test_encoder_layers_that_do_not_run_cost_nothing():
  layers = CONFIG.num_encoder_layers
  work = ledger(attention=[[1]] * 2, checks=[[1]] * 2, outputs=[[1536]] * 2)

  def cost(*depths):
    given = {'encoder_exit_layers': np.array(depths)} if depths else {}
    return costs.decode_cost(CONFIG, work, source_length=SOURCE, **given)

  whole, part, one = cost(), cost(1, 1), cost(1, layers)
  assert cost(layers, layers) == whole
  # Each source has its own arithmetic, and the deepest one reads weights.
  assert part.flops['encoder'] == whole.flops['encoder'] / layers
  assert part.bytes['encoder'] == whole.bytes['encoder'] / layers
  share = (1 + layers) / (2 * layers)
  assert one.flops['encoder'] == whole.flops['encoder'] * share
  assert one.bytes == whole.bytes
  for name in ('flops', 'bytes'):
    before, after = dict(getattr(whole, name)), dict(getattr(part, name))
    assert before.pop('encoder') > after.pop('encoder')
    assert before == after
  for bad in ((0, 1), (1, layers + 1), (1,), (1.0, 2.0)):
    with pytest.raises(ValueError, match='encoder_exit_layers is'):
      cost(*bad)


def test_source_positions_that_are_not_read_cost_nothing():
  layers = CONFIG.num_decoder_layers
  work = ledger(attention=[[layers]], checks=[[1]], outputs=[[1536]])
  whole, part, unread = (
    costs.decode_cost(CONFIG, work, source_length=SOURCE, **kept)
    for kept in ({}, {'source_kept': 4}, {'source_kept': SOURCE})
  )
  assert unread == whole
  for term in whole.bytes:
    for name in ('flops', 'bytes'):
      before, after = (getattr(one, name)[term] for one in (whole, part))
      if term == 'cross_attention':
        assert after == before * 4 / SOURCE > 0
      elif term == 'cross_fill':
        assert 0 < after < before
      else:
        assert after == before, term
  for bad in (0, SOURCE + 1, 2.5):
    with pytest.raises(ValueError, match=f'source_kept {bad} must be a whole'):
      costs.decode_cost(CONFIG, work, source_length=SOURCE, source_kept=bad)


def test_places_that_there_are_not_cost_nothing():
  layers = CONFIG.num_decoder_layers
  column = [[layers] * 4]
  work = ledger(attention=column, checks=[[1] * 4], outputs=[[1536] * 4])
  whole, part = (
    costs.decode_cost(CONFIG, work, source_length=SOURCE, context_room=room)
    for room in (None, 3)
  )
  for name in ('flops', 'bytes'):
    before, after = (getattr(one, name) for one in (whole, part))
    assert after['self_attention'] == before['self_attention'] * 3 / 4 > 0
    rest = {**before, 'self_attention': 0}
    assert {**after, 'self_attention': 0} == rest
  for bad in (0, 5, 2.5):
    with pytest.raises(ValueError, match=f'context_room {bad} must be a whole'):
      costs.decode_cost(CONFIG, work, source_length=SOURCE, context_room=bad)


def test_layers_that_are_left_out_have_no_source():
  layers = CONFIG.num_decoder_layers
  work = ledger(attention=[[2] * 4], checks=[[1] * 4], outputs=[[1536] * 4])
  whole, part = (
    costs.decode_cost(CONFIG, work, source_length=SOURCE, layers_kept=kept)
    for kept in (None, 2)
  )
  for name in ('flops', 'bytes'):
    before, after = (getattr(one, name) for one in (whole, part))
    assert after['cross_fill'] == before['cross_fill'] * 2 / layers > 0
    assert {**after, 'cross_fill': 0} == {**before, 'cross_fill': 0}
  plan = decoding.ComputePolicy(layer_plan=decoding.KeepLayers(2))
  once, stepping = costs.bytes_of(CONFIG, SOURCE)(work, policy=plan)
  assert stepping == part.stepping_bytes
  assert once + stepping == part.total_bytes
  for bad in (0, layers + 1, 2.5):
    with pytest.raises(ValueError, match=f'layers_kept {bad} must be a whole'):
      costs.decode_cost(CONFIG, work, source_length=SOURCE, layers_kept=bad)


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    ({'checks': [1]}, r'shape \[\(1,\)\] and 1 checks; give the \[B, T\]'),
    ({'checks': [[0]]}, r'0 checks; give the \[B, T\] of a decode'),
  ],
)
def test_bad_input_is_named(columns, message):
  with pytest.raises(ValueError, match=message):
    costs.decode_cost(CONFIG, ledger(**columns), source_length=SOURCE)


def test_bytes_of_a_policy_are_those_of_its_rooms():
  """A ceiling of all of the source and the past would be too low."""
  work = ledger(attention=[[3]], checks=[[1]], outputs=[[1536]])
  scorer = SourceScorer(np.ones(CONFIG.embed_dim, 'f4'), np.float32(0))
  policy = decoding.ComputePolicy(source_plan=decoding.PrunedSource(scorer, 2))
  moved = costs.bytes_of(CONFIG, SOURCE)
  once, stepping = moved(work, policy=policy)
  kept = costs.decode_cost(CONFIG, work, source_length=SOURCE, source_kept=2)
  assert stepping == kept.stepping_bytes < moved(work)[1]
  assert once < moved(work)[0]
  wide = decoding.ComputePolicy(
    source_plan=decoding.PrunedSource(scorer, SOURCE + 5)
  )
  assert moved(work, policy=wide) == moved(work)
