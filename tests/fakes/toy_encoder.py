"""An encoder of three layers whose states are worked out by hand.

Tokens are their own states, [t, 1]; a layer adds its number to the first of the
two channels; nothing is normed. The mean of the tokens 2 and 4 is [3, 1], after
the layers [4, 1], [6, 1] and [9, 1].
"""

import functools

import jax.numpy as jnp

from calm_jax import interfaces

NUM_LAYERS = 3


def _prepare(params, traced_layers=False):
  del traced_layers
  return params


def _embed(params, inputs):
  del params
  hidden = jnp.stack([inputs, jnp.ones_like(inputs)], axis=-1)
  return hidden.astype(jnp.float32), inputs > 0


def _shared(params, source_length):
  del params, source_length


def _layer(params, layer, hidden, mask, shared):
  del mask, shared
  return hidden + params * (layer + 1) * jnp.array([1.0, 0.0])


def _finish(params, hidden, mask):
  del params
  return hidden, mask


def _pool(encoded):
  hidden, mask = encoded
  lengths = mask.sum(axis=1)
  total = (hidden * mask[..., None]).sum(axis=1)
  return total / jnp.maximum(lengths, 1)[:, None], lengths


@functools.cache
def toy_encoder() -> interfaces.LayeredEncoder:
  """Returns the encoder; its parameters are the number 1."""
  return interfaces.LayeredEncoder(
    num_layers=NUM_LAYERS,
    embed_dim=2,
    vocab_size=100,
    dtype=jnp.float32,
    prepare=_prepare,
    embed=_embed,
    shared=_shared,
    layer=_layer,
    finish=_finish,
    pool=_pool,
  )
