"""Where dropout stands, in the manner of T5X and Flaxformer."""

import collections
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, training
from calm_jax.model import layers
from calm_jax.training import step as step_lib

CONFIG = model.T5Config(
  vocab_size=20,
  embed_dim=12,
  num_heads=2,
  head_dim=4,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=3,
  dropout_rate=0.25,
)
B, S, T, D, H, F = 2, 5, 7, 12, 2, 24


def dropout_calls(config):
  """Returns how often dropout was applied at which place, to which shape."""
  calls = collections.Counter()

  def note(next_function, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      path = '/'.join(context.module.path[:-1])
      assert context.module.rate == config.dropout_rate
      assert tuple(context.module.broadcast_dims) == (-2,)
      assert kwargs['deterministic'] is False
      calls[path, args[0].shape] += 1
    return next_function(*args, **kwargs)

  def run():
    params = model.init_params(config, jax.random.key(0))
    with nn.intercept_methods(note):
      states = model.layer_states(
        config,
        params,
        jnp.ones((B, S), jnp.int32),
        jnp.ones((B, T), jnp.int32),
        dropout_rng=jax.random.key(1),
      )
      model.output_logits(
        config, params, states[-1], dropout_rng=jax.random.key(2)
      )

  jax.eval_shape(run)
  return calls


def test_dropout_stands_where_t5_has_it():
  expected = {
    # The embedded source and the normed output.
    ('encoder', (B, S, D)): 2,
    # The embedded target, and the normed state that the logits are made of.
    ('decoder', (B, T, D)): 2,
  }
  for layer in range(2):
    path = f'encoder/layers_{layer}'
    expected[path, (B, S, D)] = 2  # What each sub-layer adds.
    expected[f'{path}/attention', (B, H, S, S)] = 1
    expected[f'{path}/mlp', (B, S, F)] = 1
  for layer in range(3):
    path = f'decoder/layers_{layer}'
    expected[path, (B, T, D)] = 3
    expected[f'{path}/self_attention', (B, H, T, T)] = 1
    expected[f'{path}/encoder_decoder_attention', (B, H, T, S)] = 1
    expected[f'{path}/mlp', (B, T, F)] = 1
  assert dropout_calls(CONFIG) == expected


def test_a_mask_is_shared_along_the_length_and_not_between_rows():
  dropped = layers.dropout(CONFIG).apply(
    {},
    jnp.ones((2, 5, 64)),
    deterministic=False,
    rngs={'dropout': jax.random.key(0)},
  )
  np.testing.assert_array_equal(dropped, dropped[:, :1] + jnp.zeros((2, 5, 64)))
  assert (dropped[0] != dropped[1]).any()
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}


def test_every_exit_has_a_mask_of_its_own():
  random = np.random.default_rng(0)
  state = random.normal(size=(1, B, T, D)).astype(np.float32)
  kernel = random.normal(size=(D, CONFIG.vocab_size)).astype(np.float32)
  # All that the output head reads.
  params = {
    'decoder': {
      'decoder_norm': {'scale': np.ones(D, np.float32)},
      'logits_dense': {'kernel': kernel},
    }
  }

  def losses(rate, rng):
    config = dataclasses.replace(CONFIG, dropout_rate=rate)
    return training.multi_exit_loss(
      step_lib.logits_fn(config),
      params,
      state.repeat(3, axis=0),
      targets=jnp.ones((B, T), jnp.int32),
      weights=jnp.ones((B, T)),
      settings=training.LossSettings(training.uniform_weights(3)),
      dropout_rng=rng,
    )[1].losses

  losses = jax.jit(losses, static_argnums=0)
  same = losses(0.25, None)
  np.testing.assert_array_equal(same, same[:1].repeat(3))
  np.testing.assert_array_equal(losses(0.0, jax.random.key(0)), same)
  assert len(set(losses(0.25, jax.random.key(0)).tolist())) == 3
