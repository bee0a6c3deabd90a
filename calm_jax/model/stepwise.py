"""T5 as a `LayeredDecoder`: pure functions over P positions and one layer.

`as_layered_decoder(config)` is cached on its configuration, so two decoders of
one configuration compile once. All functions go through the same Linen modules
as teacher forcing does, with the parameters of one layer at a time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from calm_jax import interfaces, sharding
from calm_jax.array_types import Array, Params, PyTree
from calm_jax.model import cache as cache_lib
from calm_jax.model import (
  layers,
  relative_positions,
  teacher_forcing,
  transformer,
)
from calm_jax.model.config import T5Config
from calm_jax.model.decode_params import DecodeParams, layer_params, prepare
from calm_jax.model.encoder_steps import as_layered_encoder, pool_source
from calm_jax.model.int8_params import quantise_params
from calm_jax.quantisation import Int8Matrix, is_quantised, rounded


def _apply(config: T5Config, layer_params: Params, method: str, *args):
  module = layers.DecoderLayer(config)
  return module.apply({'params': layer_params}, *args, method=method)


def encode(config: T5Config, params: DecodeParams, inputs: Array):
  """Runs the encoder on int32 [B, S]; see `LayeredDecoder.encode`."""
  tree = {'token_embedder': params.token_embedder, 'encoder': params.encoder}
  return teacher_forcing.encode(config, tree, inputs)


def source_states(encoded: transformer.Encoded) -> tuple[Array, Array]:
  """Returns the states [B, S, D] of sources, and bool [B, S] for tokens."""
  return encoded.hidden, encoded.mask


def select_source(
  encoded: transformer.Encoded, indices: Array, valid: Array
) -> transformer.Encoded:
  """Gathers positions [B, C]; cross-attention has no biases of positions."""
  hidden = jnp.take_along_axis(encoded.hidden, indices[..., None], axis=1)
  mask = jnp.take_along_axis(encoded.mask, indices, axis=1) & valid
  return transformer.Encoded(hidden=hidden, mask=mask)


def start(
  config: T5Config,
  params: DecodeParams,
  encoded: transformer.Encoded,
  max_length: int,
  layers: tuple[int, ...] | None = None,
) -> cache_lib.Cache:
  """Projects the cross-attention K/V of layers; empties the rest.

  Args:
    config: the model's shape.
    params: its parameters.
    encoded: the encoded sources.
    max_length: T.
    layers: those that ever run; None for all. Of others there are zeros, or
      nothing at all where every layer has arrays of its own.
  """

  def project(layer_params):
    return _apply(config, layer_params, 'project_cross_kv', encoded.hidden)

  batch_size = encoded.hidden.shape[0]
  shape = (batch_size, config.num_heads, max_length, config.head_dim)
  if not params.traced_layers:
    runs = [
      layers is None or layer in layers
      for layer in range(config.num_decoder_layers)
    ]
    nothing = (*shape[:2], 0, config.head_dim)

    def zeros(*shapes):
      # An array each: a buffer could not be donated twice.
      return tuple(
        jnp.zeros(shape, config.activation_dtype) for shape in shapes
      )

    cross = [
      project(layer_params) if is_run else zeros(nothing, nothing)
      for layer_params, is_run in zip(params.layers, runs, strict=True)
    ]
    cross_key, cross_value = (tuple(side) for side in zip(*cross, strict=True))
    empty = zeros(*(shape if is_run else nothing for is_run in runs))
  else:
    cross_key, cross_value = (
      jnp.moveaxis(side, 0, 1)
      for side in _project_stacked(params, project, layers)
    )
    empty = jnp.zeros(
      (batch_size, config.num_decoder_layers, *shape[1:]),
      config.activation_dtype,
    )
  keys_and_values = dict(
    self_key=empty,
    # Distinct buffers, so that both can be donated.
    self_value=jax.tree.map(jnp.copy, empty),
    cross_key=cross_key,
    cross_value=cross_value,
  )
  return cache_lib.Cache(
    **jax.tree.map(
      functools.partial(sharding.share_heads, axis=-3), keys_and_values
    ),
    cross_bias=relative_positions.mask_to_bias(encoded.mask[:, None, None, :]),
  )


def start_few(
  config: T5Config,
  params: DecodeParams,
  encoded: transformer.Encoded,
  max_length: int,
) -> cache_lib.Cache:
  """Makes the cache of a decode of few positions: `LayeredDecoder.start_few`.

  Below head_dim of them cross-attention reads the source as it is, without
  keys and values. Matrices in 8 bits cannot be taken so.
  """
  leaves = jax.tree.leaves(params.layers, is_leaf=is_quantised)
  if max_length >= config.head_dim or any(map(is_quantised, leaves)):
    return start(config, params, encoded, max_length)
  shape = (config.num_heads, max_length, config.head_dim)
  batch_size, layers = encoded.hidden.shape[0], config.num_decoder_layers

  def empty():
    dtype = config.activation_dtype
    if params.traced_layers:
      return jnp.zeros((batch_size, layers, *shape), dtype)
    return tuple(jnp.zeros((batch_size, *shape), dtype) for _ in range(layers))

  return cache_lib.Cache(
    **jax.tree.map(
      functools.partial(sharding.share_heads, axis=-3),
      dict(self_key=empty(), self_value=empty()),
    ),
    cross_key=(),
    cross_value=(),
    cross_bias=relative_positions.mask_to_bias(encoded.mask[:, None, None, :]),
    source=encoded.hidden,
  )


def _project_stacked(params, project, layers):
  """Returns what `project` makes of stacked layers, zeros of others."""
  if layers is None:
    return jax.lax.map(project, params.layers)
  places = jnp.array(layers)
  some = jax.lax.map(
    project, jax.tree.map(lambda leaf: leaf[places], params.layers)
  )

  def spread(side):
    zeros = jnp.zeros(
      (len(jax.tree.leaves(params.layers)[0]), *side.shape[1:]), side.dtype
    )
    return zeros.at[places].set(side, unique_indices=True)

  return tuple(spread(side) for side in some)


def embed(
  config: T5Config, params: DecodeParams, tokens: Array, positions: Array
) -> Array:
  """Embeds tokens [B, P]; T5's positions are relative, so none are added."""
  del positions
  table = params.token_embedder['embedding']
  return jnp.take(table, tokens, axis=0).astype(config.activation_dtype)


def fill_layer(
  config: T5Config,
  params: DecodeParams,
  layer: Array | int,
  hidden: Array,
  positions: Array,
  cache: cache_lib.Cache,
  where: Array | None = None,
) -> cache_lib.Cache:
  """Writes the K/V that `layer` makes of the state entering it."""
  key, value = _apply(
    config, layer_params(params, layer), 'project_self_kv', hidden
  )
  write = functools.partial(
    cache_lib.write_layer, positions=positions, where=where
  )
  return dataclasses.replace(
    cache,
    self_key=write(cache.self_key, layer, key),
    self_value=write(cache.self_value, layer, value),
  )


def attend(
  config: T5Config,
  params: DecodeParams,
  layer: Array | int,
  hidden: Array,
  positions: Array,
  cache: cache_lib.Cache,
  context: PyTree = None,
) -> Array:
  """Runs both attention sub-layers over a cache that holds `positions`.

  `context` may say which positions lie where in the cache (`CachedPositions`),
  or be an additive float32 bias [B, 1, P, T] on self-attention.
  """
  in_places = isinstance(context, interfaces.CachedPositions)
  bias = relative_positions.RelativePositionBias(
    config, bidirectional=False
  ).apply(
    {'params': params.relpos_bias},
    positions,
    context.positions if in_places else cache.max_length,
    method='at_cached' if in_places else 'at_positions',
  )
  if context is not None and not in_places:
    bias = bias + context
  return _apply(
    config,
    layer_params(params, layer),
    'attend',
    hidden,
    cache_lib.read_layer(cache.self_key, cache.self_value, layer),
    bias,
    cache_lib.read_layer(cache.cross_key, cache.cross_value, layer)
    if cache.source is None
    else cache.source,
    cache.cross_bias,
  )


def feed_forward(
  config: T5Config, params: DecodeParams, layer: Array | int, hidden: Array
) -> Array:
  """Runs the feed-forward sub-layer with its residual."""
  return _apply(config, layer_params(params, layer), 'feed_forward', hidden)


def logits(
  config: T5Config,
  params: DecodeParams,
  hidden: Array,
  weights: Array | Int8Matrix | None = None,
) -> Array:
  """Final norm and output projection, over V or over gathered rows: float32."""
  normed = layers.RMSNorm(config).apply({'params': params.decoder_norm}, hidden)
  if config.tied_embeddings:
    normed = normed / jnp.sqrt(config.embed_dim).astype(normed.dtype)
  weights = params.output if weights is None else weights
  if is_quantised(weights):
    return weights.multiply(normed)
  if is_quantised(params.output):
    # Rows of it, in float.
    normed = rounded(normed)
  return jnp.einsum(
    '...d,vd->...v' if weights.ndim == 2 else '...d,...vd->...v',
    normed,
    weights,
    preferred_element_type=jnp.float32,
  )


def output_rows(params: DecodeParams, token_ids: Array) -> Array:
  """Gathers rows of the output matrix: [B, C] -> [B, C, D]."""
  if is_quantised(params.output):
    return params.output.take(token_ids).astype(
      params.token_embedder['embedding'].dtype
    )
  return jnp.take(params.output, token_ids, axis=0)


def output_block(
  params: DecodeParams, first: Array | int, count: int
) -> Array | Int8Matrix:
  """Returns `count` rows of the output matrix from `first` on: [count, D]."""
  if is_quantised(params.output):
    return params.output.cut(first, count)
  return jax.lax.dynamic_slice_in_dim(params.output, first, count)


def take_rows(cache: cache_lib.Cache, rows: Array) -> cache_lib.Cache:
  """Reorders or selects rows of every leaf (a plain gather)."""
  return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), cache)


@functools.cache
def as_layered_decoder(config: T5Config) -> interfaces.LayeredDecoder:
  """Returns T5 of this configuration as a `LayeredDecoder`.

  The same configuration gives the same object, so that programs compiled for it
  are found again.
  """
  bind = functools.partial
  return interfaces.LayeredDecoder(
    num_layers=config.num_decoder_layers,
    embed_dim=config.embed_dim,
    vocab_size=config.vocab_size,
    dtype=config.activation_dtype,
    prepare=bind(prepare, config),
    encode=bind(encode, config),
    start=bind(start, config),
    embed=bind(embed, config),
    fill_layer=bind(fill_layer, config),
    attend=bind(attend, config),
    feed_forward=bind(feed_forward, config),
    logits=bind(logits, config),
    output_rows=output_rows,
    take_rows=take_rows,
    output_block=output_block,
    quantise=bind(quantise_params, config),
    start_layers=bind(start, config),
    start_few=bind(start_few, config),
    pool_source=pool_source,
    source_states=source_states,
    select_source=select_source,
    encoder=as_layered_encoder(config),
    accepts_context=True,
  )
