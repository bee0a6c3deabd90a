"""The encoder layer by layer is the encoder that the decoder reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import model, quantisation

CONFIG = model.T5Config(
  vocab_size=40,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=3,
  num_decoder_layers=2,
)
INPUTS = jnp.array([[3, 9, 7, 2, 5], [8, 4, 0, 0, 0]], jnp.int32)


@functools.cache
def params_of(config=CONFIG):
  return training_cases.random_params(config)


@functools.partial(jax.jit, static_argnames=('encoder', 'depth'))
def layer_by_layer(encoder, params, inputs, depth):
  """Returns what the decoder would read after some layers."""
  params = encoder.prepare(params)
  hidden, mask = encoder.embed(params, inputs)
  shared = encoder.shared(params, inputs.shape[1])
  for layer in range(depth):
    hidden = encoder.layer(params, layer, hidden, mask, shared)
  return encoder.finish(params, hidden, mask)


@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)]
)
def test_all_layers_are_the_encoder_to_the_bit(dtype):
  config = model.T5Config(**{**vars(CONFIG), 'dtype': dtype})
  decoder = model.as_layered_decoder(config)
  params = decoder.prepare(params_of(), traced_layers=True)
  expected = jax.jit(decoder.encode)(params, INPUTS)
  found = layer_by_layer(decoder.encoder, params, INPUTS, 3)
  again = layer_by_layer(decoder.encoder, params_of(), INPUTS, 3)
  np.testing.assert_array_equal(again.hidden, found.hidden)
  assert found.hidden.dtype == config.activation_dtype
  np.testing.assert_array_equal(found.hidden, expected.hidden)
  np.testing.assert_array_equal(found.mask, expected.mask)


STATES = jax.jit(model.encoder_states, static_argnums=0)
ENCODE = jax.jit(model.encode, static_argnums=0)


@pytest.mark.slow
def test_some_layers_are_the_smaller_encoder():
  encoder = model.as_layered_encoder(CONFIG)
  states = STATES(CONFIG, params_of(), INPUTS)
  assert states.shape == (3, 2, 5, 16)
  prepared = encoder.prepare(params_of())
  for depth in (1, 2, 3):
    found = layer_by_layer(encoder, params_of(), INPUTS, depth)
    of_states = encoder.finish(prepared, states[depth - 1], found.mask)
    np.testing.assert_allclose(found.hidden, of_states.hidden, atol=1e-5)
    smaller, cut = cut_encoder(depth)
    expected = ENCODE(smaller, cut, INPUTS)
    np.testing.assert_allclose(found.hidden, expected.hidden, atol=1e-5)


def cut_encoder(depth):
  """Returns the model of the first encoder layers."""
  config = model.T5Config(**{**vars(CONFIG), 'num_encoder_layers': depth})
  gone = {f'layers_{layer}' for layer in range(depth, 3)}
  encoder = params_of()['encoder']
  kept = {name: encoder[name] for name in encoder if name not in gone}
  return config, {**params_of(), 'encoder': kept}


@pytest.mark.slow
def test_rows_that_left_are_read_by_the_teacher_forced_decoder():
  tokens = jnp.array([[0, 3, 4], [0, 7, 1]], jnp.int32)
  depths = jnp.array([1, 3], jnp.int32)
  args = (params_of(), INPUTS, tokens)
  states = jax.jit(model.layer_states, static_argnums=0)

  @jax.jit
  def logits(params, exit_layers):
    args, ran = (params, INPUTS, tokens), jnp.ones((2, 3, 2), bool)
    left = dict(encoder_exit_layers=exit_layers)
    found = model.layer_states(CONFIG, *args, **left)
    masked = model.decode_with_layer_mask(CONFIG, *args, ran, **left)
    return found, model.output_logits(CONFIG, params, found[-1]), masked

  found, expected, masked = logits(params_of(), depths)
  np.testing.assert_allclose(masked, expected, atol=1e-5)
  for row, depth in enumerate((1, 3)):
    smaller, cut = cut_encoder(depth)
    expected = states(smaller, cut, INPUTS, tokens)
    np.testing.assert_allclose(found[:, row], expected[:, row], atol=1e-5)
  with pytest.raises(ValueError, match=r'encoder_exit_layers must be \[B\]'):
    model.layer_states(CONFIG, *args, encoder_exit_layers=jnp.int32(1))


def test_the_pooled_state_is_what_a_router_sees():
  decoder = model.as_layered_decoder(CONFIG)
  encoder = decoder.encoder
  assert encoder is model.as_layered_encoder(CONFIG)
  params = decoder.prepare(params_of())
  encoded = ENCODE(CONFIG, params_of(), INPUTS)
  prepared = encoder.prepare(params)
  hidden = STATES(CONFIG, params_of(), INPUTS)[-1]
  pooled = encoder.pooled(prepared, hidden, encoded.mask)
  expected, _ = decoder.pool_source(encoded)
  np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_layouts():
  encoder = model.as_layered_encoder(CONFIG)
  unrolled = encoder.prepare(params_of())
  stacked = encoder.prepare(params_of(), traced_layers=True)
  assert encoder.prepare(unrolled) is unrolled
  assert (unrolled.traced_layers, stacked.traced_layers) == (False, True)
  assert all(len(leaf) == 3 for leaf in jax.tree.leaves(stacked.layers))
  with pytest.raises(ValueError, match='prepared for traced_layers=False'):
    encoder.prepare(unrolled, traced_layers=True)
  with pytest.raises(ValueError, match="lack 'encoder'"):
    encoder.prepare({})
  with pytest.raises(ValueError, match='have 2 encoder layers'):
    encoder.prepare(cut_encoder(2)[1])
  some = quantisation.Int8Weights(encoder=True, keep=('encoder/layers_0/.*',))
  decoder = model.as_layered_decoder(CONFIG)
  with pytest.raises(ValueError, match='this loop stacks all layers'):
    encoder.prepare(decoder.quantise(params_of(), some), traced_layers=True)
