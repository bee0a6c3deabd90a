"""The conformance check: good decoders pass, every fault is named."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from fakes import routed_decoder as routed
from fakes import sourced_decoder as sourced
from fakes import toy_decoder as toy
from flax import nnx

from calm_jax import interfaces, model
from calm_jax.examples import nnx_model

T5 = model.T5Config(
  vocab_size=24,
  embed_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=12,
  num_encoder_layers=1,
  num_decoder_layers=2,
)


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [{}, pytest.param({'dtype': 'bfloat16'}, marks=pytest.mark.slow)],
)
def test_t5_passes(changes):
  config = dataclasses.replace(T5, **changes)
  interfaces.check_decoder(
    model.as_layered_decoder(config),
    model.init_params(config, jax.random.key(0)),
    batch_size=2,
    max_length=3,
  )


@pytest.mark.slow
def test_an_nnx_model_passes():
  decoder, params = nnx_model.as_layered_decoder(nnx_model.Model(nnx.Rngs(0)))
  interfaces.check_decoder(decoder, params, batch_size=2, max_length=3)


def check(**faults):
  """Checks the toy decoder, which can read blocks, with functions replaced."""
  functions = {'output_block': output_block, **faults}
  decoder = dataclasses.replace(toy.toy_decoder(2), **functions)
  interfaces.check_decoder(decoder, toy.toy_params(2), source_length=2)


GOOD = toy.toy_decoder(2)


def output_block(params, first, count):
  del params
  x = (first + jnp.arange(count)).astype(jnp.float32)
  return jnp.stack([x, jnp.zeros_like(x)], axis=-1)


@pytest.mark.slow
def test_the_toy_decoder_passes():
  check()
  check(output_block=None)


def prepare_again(params, traced_layers=True):
  return {'step': params['step'] + 1}


def prepare_deeper(params, traced_layers=True):
  return {'step': params['step'], 'prepared': params}


def encode_for_all(params, inputs):
  return {**GOOD.encode(params, inputs), 'mean': inputs.mean(axis=0)}


def encode_mates(params, inputs):
  encoded = GOOD.encode(params, inputs)
  return {'ease': encoded['ease'] + encoded['ease'].mean()}


def start_with_a_length(params, encoded, max_length):
  cache = GOOD.start(params, encoded, max_length)
  return {**cache, 'length': jnp.int32(max_length)}


def start_with_mates(params, encoded, max_length):
  cache = GOOD.start(params, encoded, max_length)
  return {**cache, 'ease': jnp.roll(cache['ease'], 1)}


def start_eased(params, encoded, max_length, layers=None):
  cache = GOOD.start(params, encoded, max_length)
  return {**cache, 'ease': cache['ease'] + 1}


def embed_in_half(params, tokens, positions):
  return GOOD.embed(params, tokens, positions).astype(jnp.bfloat16)


def embed_too_wide(params, tokens, positions):
  hidden = GOOD.embed(params, tokens, positions)
  return jnp.concatenate([hidden, hidden], axis=-1)


def embed_later(params, tokens, positions):
  hidden = GOOD.embed(params, tokens, positions)
  return hidden + hidden[:, -1:]


def fill_by_adding(params, layer, hidden, positions, cache, where=None):
  filled = GOOD.fill_layer(params, layer, hidden, positions, cache, where)
  return {**filled, 'values': filled['values'] + cache['values']}


def fill_everywhere(params, layer, hidden, positions, cache, where=None):
  return GOOD.fill_layer(params, layer, hidden, positions, cache)


def fill_rows_only(params, layer, hidden, positions, cache, where=None):
  if where is not None and where.ndim == 2:
    where = where.any(axis=1)
  return GOOD.fill_layer(params, layer, hidden, positions, cache, where)


def fill_in_half(params, layer, hidden, positions, cache, where=None):
  filled = GOOD.fill_layer(params, layer, hidden, positions, cache, where)
  return {**filled, 'values': filled['values'].astype(jnp.bfloat16)}


def fill_where_the_first_row_is(
  params, layer, hidden, positions, cache, where=None
):
  positions = positions[0] if positions.ndim == 2 else positions
  return GOOD.fill_layer(params, layer, hidden, positions, cache, where)


def fill_from_the_first(params, layer, hidden, positions, cache, where=None):
  hidden = jnp.broadcast_to(hidden[:, :1], hidden.shape)
  return GOOD.fill_layer(params, layer, hidden, positions, cache, where)


def attend_ahead(params, layer, hidden, positions, cache, context=None):
  return GOOD.attend(params, layer, hidden, positions * 0 + 99, cache)


def attend_to_mates(params, layer, hidden, positions, cache, context=None):
  values = jnp.broadcast_to(cache['values'].mean(axis=0), cache['values'].shape)
  cache = {**cache, 'values': values}
  return GOOD.attend(params, layer, hidden, positions, cache)


def attend_where_the_first_row_is(
  params, layer, hidden, positions, cache, context=None
):
  positions = positions[0] if positions.ndim == 2 else positions
  return GOOD.attend(params, layer, hidden, positions, cache)


def attend_by_number(params, layer, hidden, positions, cache, context=None):
  return GOOD.attend(params, int(layer), hidden, positions, cache)


def feed_the_mean(params, layer, hidden):
  fed = GOOD.feed_forward(params, layer, hidden)
  return fed + hidden.mean(axis=1, keepdims=True)


def feed_nothing(params, layer, hidden):
  return GOOD.feed_forward(params, layer, hidden) * jnp.nan


def logits_in_half(params, hidden, weights=None):
  return GOOD.logits(params, hidden, weights).astype(jnp.bfloat16)


def logits_but_one(params, hidden, weights=None):
  return GOOD.logits(params, hidden, weights)[..., :-1]


def rows_of_the_next(params, token_ids):
  return GOOD.output_rows(params, token_ids + 1)


def block_from_zero(params, first, count):
  return output_block(params, 0, count)


@pytest.mark.parametrize(
  ('name', 'fault', 'words'),
  [
    ('prepare', prepare_again, 'once more, comes back with other numbers'),
    ('prepare', prepare_deeper, 'once more, comes back in another form'),
    ('encode', encode_for_all, r"leaf \['mean'\] has shape \[2\] and does not"),
    ('encode', encode_mates, 'row 0 alone is not row 0 among 3'),
    ('start', start_with_a_length, r"\['length'\] .* put the batch axis first"),
    ('start', start_with_mates, r'row \d alone is not row \d among 3'),
    ('start_few', start_eased, 'from its cache other states come out than'),
    ('start_layers', start_eased, 'make all that the layers given read, or'),
    ('embed', embed_in_half, r'returns bfloat16\[3, 4, 2\].* return float32'),
    ('embed', embed_too_wide, r'returns float32\[3, 4, 4\]'),
    ('embed', embed_later, 'P positions at once are not P positions one by'),
    ('fill_layer', fill_by_adding, 'filling the same positions twice'),
    ('fill_layer', fill_everywhere, r'`where` of shape \[3\] is not what'),
    ('fill_layer', fill_rows_only, r'`where` of shape \[3, 4\] is not what'),
    ('fill_layer', fill_in_half, 'keep their shapes and dtypes'),
    ('fill_layer', fill_where_the_first_row_is, 'that differ by row'),
    ('fill_layer', fill_from_the_first, 'are not P positions one by one'),
    ('attend', attend_ahead, 'a later position changes what an earlier one'),
    ('attend', attend_to_mates, 'alone is not row'),
    ('attend', attend_where_the_first_row_is, 'that differ by row'),
    ('attend', attend_by_number, 'fails with ConcretizationTypeError'),
    ('feed_forward', feed_the_mean, 'are not P positions one by one'),
    ('feed_forward', feed_nothing, 'numbers that are NaN'),
    ('logits', logits_in_half, r'returns bfloat16\[3, 4, 10\] of all tokens'),
    ('logits', logits_but_one, r'return float32\[3, 4, 10\]'),
    ('output_rows', rows_of_the_next, 'are not those of the tokens'),
    ('output_block', block_from_zero, 'logits over 5 rows from 3 on are not'),
    ('take_rows', lambda cache, rows: cache, r'rows \[2, 0, 0\] of the cache'),
  ],
)
def test_a_planted_fault_is_named(name, fault, words):
  with pytest.raises(ValueError, match=f'^{name}[: ].*{words}'):
    check(**{name: fault})


def pool_padding(encoded):
  inputs = encoded['inputs']
  _, lengths = routed.DECODER.pool_source(encoded)
  mean = jnp.mean(inputs, axis=1, dtype=jnp.float32)
  return jnp.stack([mean, mean], axis=-1), lengths


def pool_places(encoded):
  pooled, lengths = routed.DECODER.pool_source(encoded)
  return pooled, jnp.full_like(lengths, encoded['inputs'].shape[1])


def pool_mates(encoded):
  pooled, lengths = routed.DECODER.pool_source(encoded)
  return pooled - pooled.mean(axis=0), lengths


@pytest.mark.parametrize(
  ('fault', 'words'),
  [
    (pool_padding, 'with more padding .* not padding'),
    (pool_places, r'lengths are .* count the tokens that are not 0'),
    (pool_mates, 'row 0 alone is not row 0 among 3'),
    (lambda encoded: encoded['inputs'], 'mean states'),
  ],
)
def test_faults_of_a_source_that_is_summed_up(fault, words):
  decoder = dataclasses.replace(routed.DECODER, pool_source=fault)
  with pytest.raises(ValueError, match=f'^pool_source: .*{words}'):
    interfaces.check_decoder(decoder, toy.toy_params(3), source_length=2)


def select_in_place(encoded, indices, valid):
  """As if C = S: what is left out is masked, and stays."""
  return {**encoded, 'mask': encoded['mask'] & valid[:, :1]}


def select_all_that_is_kept(encoded, indices, valid):
  return sourced.DECODER.select_source(encoded, indices, valid | True)


def select_padding(encoded, indices, valid):
  found = sourced.DECODER.select_source(encoded, indices, valid)
  return {**found, 'mask': valid}


@pytest.mark.parametrize(
  ('name', 'fault', 'words'),
  [
    ('select_source', select_in_place, 'what is left out is not what is not'),
    ('select_source', select_all_that_is_kept, 'let nothing be read where'),
    ('select_source', select_padding, 'with all of their positions other'),
    ('source_states', lambda encoded: encoded['states'], 'return states'),
    (
      'source_states',
      lambda encoded: (encoded['states'], encoded['mask'] | True),
      'return False where inputs are 0',
    ),
  ],
)
def test_faults_of_a_source_to_choose_from(name, fault, words):
  decoder = dataclasses.replace(sourced.DECODER, **{name: fault})
  with pytest.raises(ValueError, match=f'^{name}: .*{words}'):
    interfaces.check_decoder(decoder, toy.toy_params(3), source_length=3)


def attend_what_is_dropped(
  params, layer, hidden, positions, cache, context=None
):
  """As if a negative position were one that comes before all others."""
  if context is None:
    return GOOD.attend(params, layer, hidden, positions, cache)
  positions = jnp.broadcast_to(positions, hidden.shape[:2])
  before = context.positions[:, None] < positions[..., None]
  read = jnp.where(before, cache['values'][:, layer, None], 0.0).sum(axis=-1)
  ease = jnp.broadcast_to(cache['ease'][:, None], read.shape)
  return hidden + jnp.stack([read, ease], axis=-1)


@pytest.mark.parametrize(
  ('attend', 'words'),
  [
    (GOOD.attend, 'K/V in other places than their positions are read other'),
    (attend_what_is_dropped, 'a place whose position is negative is read'),
  ],
)
def test_faults_of_a_context_in_other_places(attend, words):
  with pytest.raises(ValueError, match=f'^attend: .*{words}'):
    check(attend=attend, accepts_context=True)


@pytest.mark.slow
def test_a_source_to_choose_from_passes():
  for length in (2, 5):
    interfaces.check_decoder(
      sourced.DECODER, toy.toy_params(3), source_length=length
    )


@pytest.mark.slow
def test_a_source_that_is_summed_up_passes():
  interfaces.check_decoder(routed.DECODER, toy.toy_params(3))


def test_what_cannot_be_tried_is_refused():
  decoder = dataclasses.replace(GOOD, dtype=[])
  with pytest.raises(ValueError, match='cannot be hashed'):
    interfaces.check_decoder(decoder, toy.toy_params(2), tolerance=1e-4)
  with pytest.raises(ValueError, match='batch_size is 1; give at least 2'):
    interfaces.check_decoder(GOOD, toy.toy_params(2), batch_size=1)
