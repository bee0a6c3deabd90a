"""T5's encoder as a `LayeredEncoder`: pure functions over one layer.

`as_layered_encoder(config)` is cached on its configuration. All functions go
through the Linen modules of `transformer.Encoder`: the layers one after the
other are what `encode` computes, to the bit.
"""

import functools

import jax.numpy as jnp

from calm_jax import interfaces, sharding
from calm_jax.array_types import Array
from calm_jax.model import layers, relative_positions, transformer
from calm_jax.model.config import T5Config
from calm_jax.model.encode_params import (
  EncodeParams,
  encoder_layer_params,
  prepare_encoder,
)


def embed_source(
  config: T5Config, params: EncodeParams, inputs: Array
) -> tuple[Array, Array]:
  """Embeds inputs [B, S]: states [B, S, D], and bool [B, S] for tokens."""
  table = params.token_embedder['embedding']
  hidden = jnp.take(table, inputs, axis=0).astype(config.activation_dtype)
  return sharding.share_rows(hidden), inputs > 0


def position_bias(
  config: T5Config, params: EncodeParams, source_length: int
) -> Array:
  """Returns the biases of relative positions, float32 [1, H, S, S]."""
  return relative_positions.RelativePositionBias(
    config, bidirectional=True
  ).apply({'params': params.relpos_bias}, source_length, source_length)


def run_layer(
  config: T5Config,
  params: EncodeParams,
  layer: Array | int,
  hidden: Array,
  mask: Array,
  shared: Array,
) -> Array:
  """Runs a layer on states [B, S, D]."""
  bias = shared + relative_positions.mask_to_bias(mask[:, None, None, :])
  return layers.EncoderLayer(config).apply(
    {'params': encoder_layer_params(params, layer)}, hidden, bias
  )


def finish(
  config: T5Config, params: EncodeParams, hidden: Array, mask: Array
) -> transformer.Encoded:
  """Applies the encoder's final norm to the states after any layer."""
  normed = layers.RMSNorm(config).apply({'params': params.encoder_norm}, hidden)
  return transformer.Encoded(hidden=normed, mask=mask)


def pool_source(encoded: transformer.Encoded) -> tuple[Array, Array]:
  """Returns mean states float32 [B, D] and lengths int32 [B] of sources."""
  mask = encoded.mask[..., None]
  lengths = encoded.mask.sum(axis=1, dtype=jnp.int32)
  total = jnp.where(mask, encoded.hidden.astype(jnp.float32), 0.0).sum(axis=1)
  return total / jnp.maximum(lengths, 1)[:, None], lengths


@functools.cache
def as_layered_encoder(config: T5Config) -> interfaces.LayeredEncoder:
  """Returns the encoder of T5 of this configuration as a `LayeredEncoder`.

  The same configuration gives the same object, so that programs compiled for it
  are found again.
  """
  bind = functools.partial
  return interfaces.LayeredEncoder(
    num_layers=config.num_encoder_layers,
    embed_dim=config.embed_dim,
    vocab_size=config.vocab_size,
    dtype=config.activation_dtype,
    prepare=bind(prepare_encoder, config),
    embed=bind(embed_source, config),
    shared=bind(position_bias, config),
    layer=bind(run_layer, config),
    finish=bind(finish, config),
    pool=pool_source,
  )
