"""Teacher forcing, incremental decoding, padding and the named sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import model

SMALL = model.T5Config(
  vocab_size=40,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=3,
)
VARIANTS = {
  'v1.1': SMALL,
  'v1.0': dataclasses.replace(
    SMALL, mlp_activations=('relu',), tied_embeddings=True
  ),
}

# Compiled once per configuration: operation by operation costs ten times more.
layer_states = jax.jit(model.layer_states, static_argnums=0)
output_logits = jax.jit(model.output_logits, static_argnums=0)
layer_mask_logits = jax.jit(model.decode_with_layer_mask, static_argnums=0)

RNG = np.random.default_rng(0)
INPUTS = RNG.integers(2, 40, (3, 7)) * (np.arange(7) < [[7], [5], [2]])
TOKENS = RNG.integers(2, 40, (3, 6)) * (np.arange(6) > 0)


@pytest.fixture(scope='module', params=VARIANTS)
def variant(request):
  config = VARIANTS[request.param]
  return config, training_cases.random_params(config, seed=1)


# For what neither ReLU nor tied embeddings have a part in.
by_default = pytest.mark.parametrize(
  'variant',
  ['v1.1', pytest.param('v1.0', marks=pytest.mark.slow)],
  indirect=True,
)


@functools.partial(jax.jit, static_argnums=(0, 2))
def started(decoder, params, max_length):
  """Returns the cache of a decode of INPUTS that has not begun."""
  return decoder.start(params, decoder.encode(params, INPUTS), max_length)


def decode_step_by_step(config, params, *, traced_layers, positions_of):
  decoder = model.as_layered_decoder(config)
  params = decoder.prepare(params, traced_layers=traced_layers)
  cache = started(decoder, params, 6)

  def step(cache, tokens, position):
    positions = positions_of(position)
    hidden = decoder.embed(params, tokens, positions)
    for layer in range(decoder.num_layers):
      cache = decoder.fill_layer(params, layer, hidden, positions, cache)
      hidden = decoder.attend(params, layer, hidden, positions, cache)
      hidden = decoder.feed_forward(params, layer, hidden)
    return cache, decoder.logits(params, hidden[:, 0])

  step = jax.jit(step)
  logits = []
  for position in range(6):
    cache, row = step(cache, TOKENS[:, position, None], position)
    logits.append(row)
  return np.stack(logits, axis=1)


def shared(position):
  return jnp.array([position])


def per_row(position):
  return jnp.full((3, 1), position)


# Each layout of the layers and each form of positions once; the rest is slow.
@pytest.mark.parametrize(
  ('traced_layers', 'positions_of'),
  [
    (True, shared),
    (False, per_row),
    pytest.param(True, per_row, marks=pytest.mark.slow),
    pytest.param(False, shared, marks=pytest.mark.slow),
  ],
)
def test_incremental_equals_teacher_forced(
  variant, traced_layers, positions_of
):
  config, params = variant
  with jax.default_matmul_precision('highest'):
    states = layer_states(config, params, INPUTS, TOKENS)
    expected = output_logits(config, params, states[-1])
    actual = decode_step_by_step(
      config, params, traced_layers=traced_layers, positions_of=positions_of
    )
  np.testing.assert_allclose(actual, expected, atol=2e-5)


@by_default
def test_padding_changes_nothing(variant):
  config, params = variant
  with jax.default_matmul_precision('highest'):
    padded = layer_states(
      config, params, np.pad(INPUTS, ((0, 0), (0, 5))), TOKENS
    )
    row = layer_states(config, params, INPUTS[2:, :2], TOKENS[2:])
    batch = layer_states(config, params, INPUTS, TOKENS)
  np.testing.assert_allclose(padded, batch, atol=1e-5)
  np.testing.assert_allclose(row[:, 0], batch[:, 2], atol=1e-5)


@by_default
def test_targets_do_not_see_the_future(variant):
  config, params = variant
  changed = TOKENS.copy()
  changed[:, 4:] = 7
  states = layer_states(config, params, INPUTS, TOKENS)
  others = layer_states(config, params, INPUTS, changed)
  np.testing.assert_array_equal(states[:, :, :4], others[:, :, :4])
  assert not np.allclose(states[:, :, 4:], others[:, :, 4:])


def test_layer_mask_of_ones_is_the_full_model(variant):
  config, params = variant
  ones = np.ones((3, 6, 3), bool)
  full = output_logits(
    config, params, layer_states(config, params, INPUTS, TOKENS)[-1]
  )
  masked = layer_mask_logits(config, params, INPUTS, TOKENS, ones, ones)
  np.testing.assert_array_equal(masked, full)
  with pytest.raises(ValueError, match=r'mask must be \[B, T, L\]'):
    layer_mask_logits(config, params, INPUTS, TOKENS, ones[:1])


def test_layer_mask_of_zeros_reads_out_the_embedding(variant):
  config, params = variant
  zeros = np.zeros((3, 6, 3), bool)
  masked = layer_mask_logits(config, params, INPUTS, TOKENS, zeros)
  embedded = params['token_embedder']['embedding'][TOKENS]
  np.testing.assert_allclose(
    masked, output_logits(config, params, embedded), atol=1e-5
  )


def test_bfloat16_keeps_logits_in_float32_and_stays_close(variant):
  config, params = variant
  half = dataclasses.replace(config, dtype='bfloat16')
  states = layer_states(half, params, INPUTS, TOKENS)
  assert states.dtype == jnp.bfloat16
  logits = output_logits(half, params, states[-1])
  assert logits.dtype == jnp.float32
  full = output_logits(
    config, params, layer_states(config, params, INPUTS, TOKENS)[-1]
  )
  assert np.abs(logits - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.slow
def test_dropout_is_random_only_when_asked_for():
  config = dataclasses.replace(SMALL, dropout_rate=0.3)
  params = training_cases.random_params(config)

  def run(**kwargs):
    return layer_states(config, params, INPUTS, TOKENS, **kwargs)

  np.testing.assert_array_equal(run(), run())
  first = run(dropout_rng=jax.random.key(0))
  np.testing.assert_array_equal(first, run(dropout_rng=jax.random.key(0)))
  assert not np.allclose(first, run(dropout_rng=jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, millions',
  [
    # Sizes as published with T5 1.0, v1.1 and mT5.
    ('t5_small', 60.5),
    ('t5_base', 222.9),
    ('t5_v1_1_small', 77.0),
    ('t5_v1_1_base', 247.6),
    ('t5_v1_1_large', 783.2),
    ('t5_v1_1_xl', 2849.8),
    ('t5_v1_1_xxl', 11135.3),
    ('mt5_small', 300.2),
  ],
)
def test_named_sizes_have_the_published_parameter_counts(name, millions):
  config = model.T5Config.named(name)
  shapes = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(embed_dim=0), 'embed_dim 0 must be a whole number at least 1'),
    (dict(num_heads='4'), "num_heads '4' must be a whole number at least 1"),
    (dict(dtype='float16'), "got 'float16'"),
    (dict(mlp_activations=('swish',)), 'swish'),
    (dict(dropout_rate=1.0), 'dropout_rate'),
    (dict(relative_buckets=30), 'multiple of 4'),
    (dict(relative_max_distance=16), 'above relative_buckets / 2 = 16'),
  ],
)
def test_bad_configurations_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change)


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match='t5_v1_1_small'):
    model.T5Config.named('t5_huge')


def test_prepare_is_idempotent_and_refuses_what_does_not_fit(variant):
  config, params = variant
  decoder = model.as_layered_decoder(config)
  assert decoder is model.as_layered_decoder(dataclasses.replace(config))
  prepared = decoder.prepare(params)
  assert decoder.prepare(prepared) is prepared
  with pytest.raises(ValueError, match='traced_layers'):
    decoder.prepare(prepared, traced_layers=False)
  with pytest.raises(ValueError, match='lack'):
    decoder.prepare({'decoder': {}})
  shallower = dataclasses.replace(config, num_decoder_layers=2)
  with pytest.raises(ValueError, match='3 decoder layers, the .* says 2'):
    model.as_layered_decoder(shallower).prepare(params)
  table = params['token_embedder']['embedding'][:-1]
  short = dict(params, token_embedder={'embedding': table})
  if not config.tied_embeddings:
    kernel = params['decoder']['logits_dense']['kernel'][:, :-1]
    decoder_params = dict(params['decoder'], logits_dense={'kernel': kernel})
    short = dict(short, decoder=decoder_params)
  with pytest.raises(ValueError, match='39'):
    decoder.prepare(short)


def test_gates_are_joined_for_decoding_and_a_missing_one_is_named():
  params = training_cases.random_params(SMALL)
  decoder = model.as_layered_decoder(SMALL)
  mlp = params['decoder']['layers_1']['mlp']
  joined = decoder.prepare(params, traced_layers=False).layers[1]['mlp']
  assert set(joined) == {'gates', 'wo'}
  np.testing.assert_array_equal(
    joined['gates']['kernel'],
    np.stack([mlp['wi_0']['kernel'], mlp['wi_1']['kernel']], axis=1),
  )
  del mlp['wi_1']
  with pytest.raises(ValueError, match="lack 'wi_1'"):
    decoder.prepare(params)


def test_take_rows_and_output_rows(variant):
  config, params = variant
  decoder = model.as_layered_decoder(config)
  prepared = decoder.prepare(params)
  cache = started(decoder, prepared, 4)
  taken = decoder.take_rows(cache, jnp.array([2, 0]))
  np.testing.assert_array_equal(
    taken.cross_key, np.asarray(cache.cross_key)[[2, 0]]
  )
  hidden = jax.random.normal(jax.random.key(3), (3, config.embed_dim))
  ids = jnp.array([[3, 1], [0, 39], [5, 5]])
  rows = decoder.output_rows(prepared, ids)
  np.testing.assert_allclose(
    decoder.logits(prepared, hidden, rows),
    np.take_along_axis(
      np.asarray(decoder.logits(prepared, hidden)), ids, axis=1
    ),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.slow
def test_packed_rows_may_come_as_numpy_arrays():
  params = training_cases.random_params(SMALL)
  ids = np.where(INPUTS > 0, 1, 0), np.where(TOKENS > 0, 1, 0)
  states, traced = (
    run(
      SMALL,
      params,
      INPUTS,
      TOKENS,
      encoder_segment_ids=ids[0],
      decoder_segment_ids=ids[1],
    )
    for run in (model.layer_states, layer_states)
  )
  np.testing.assert_allclose(states, traced, atol=1e-5)
