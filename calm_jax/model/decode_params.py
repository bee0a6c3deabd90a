"""T5's parameters laid out for decoding.

Incremental decoding reads one layer at a time: from a stack where a depth loop
indexes layers by a traced number, else from one tree per layer.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, Params, PyTree
from calm_jax.model import layers
from calm_jax.model.config import T5Config
from calm_jax.pytrees import register_pytree
from calm_jax.quantisation import Int8Matrix, is_quantised


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecodeParams:
  """T5's parameters laid out for decoding.

  Attributes:
    token_embedder: the input table, T5X's subtree.
    encoder: T5X's subtree of the encoder.
    layers: the decoder's layers, gates joined (`layers.join_gates`): one tree
      whose leaves lead with L if the layer is indexed by a traced number, else
      a tuple of L trees.
    relpos_bias: the decoder's relative-position table, T5X's subtree.
    decoder_norm: the final norm, T5X's subtree.
    output: [V, D], the output matrix, in float or in 8 bits; for a tied model
      the input table.
  """

  token_embedder: Params
  encoder: Params
  layers: PyTree
  relpos_bias: Params
  decoder_norm: Params
  output: Array | Int8Matrix

  @property
  def traced_layers(self) -> bool:
    """Whether layers are stacked, for depth loops that trace their index."""
    return not isinstance(self.layers, tuple)


def prepare(
  config: T5Config, params: Params | DecodeParams, traced_layers: bool = True
) -> DecodeParams:
  """Lays a parameter tree out for decoding; idempotent.

  Raises:
    ValueError: if `params` were prepared for the other kind of depth loop, or
      lack what this configuration needs.
  """
  if isinstance(params, DecodeParams):
    if traced_layers != params.traced_layers:
      raise ValueError(
        'these parameters were prepared for '
        f'traced_layers={params.traced_layers}, this depth loop wants '
        f'traced_layers={traced_layers}; prepare the original tree'
      )
    return params
  try:
    decoder = params['decoder']
    names = [f'layers_{i}' for i in range(config.num_decoder_layers)]
    trees = [
      {**decoder[name], 'mlp': layers.join_gates(config, decoder[name]['mlp'])}
      for name in names
    ]
    if 'int8' in decoder.get('logits_dense', {}):
      output = decoder['logits_dense']['int8']
    elif config.tied_embeddings:
      output = params['token_embedder']['embedding']
    else:
      output = jnp.swapaxes(decoder['logits_dense']['kernel'], 0, 1)
    prepared = DecodeParams(
      token_embedder=params['token_embedder'],
      encoder=params['encoder'],
      layers=tuple(trees),
      relpos_bias=decoder['relpos_bias'],
      decoder_norm=decoder['decoder_norm'],
      output=output,
    )
  except KeyError as error:
    raise ValueError(
      f'the parameters lack {error.args[0]!r}, which this configuration needs: '
      f'{config}'
    ) from None
  if output.shape != (config.vocab_size, config.embed_dim):
    raise ValueError(
      f'the output matrix is {output.shape} as (V, D), but the configuration '
      f'says ({config.vocab_size}, {config.embed_dim})'
    )
  _check_sizes(config, params)
  prepared = cast_matrices(config, prepared)
  if not traced_layers:
    return prepared
  if len({jax.tree.structure(tree) for tree in prepared.layers}) > 1:
    raise ValueError(
      'this depth loop stacks all layers, but matrices are in 8 bits in some '
      'of them and in float in others: keep the same ones in every layer, or '
      'bind with depth_loop=decoding.UnrolledDepthLoop()'
    )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prepared.layers)
  return dataclasses.replace(prepared, layers=stacked)


def _check_sizes(config: T5Config, params: Params) -> None:
  """Raises ValueError if a tree was made for more layers or another table."""
  for stack, count in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    found = sum(name.startswith('layers_') for name in params[stack])
    if found != count:
      raise ValueError(
        f'the parameters have {found} {stack} layers, the configuration says '
        f'{count}; use the configuration they were trained with'
      )
  table = params['token_embedder']['embedding'].shape
  if table != (config.vocab_size, config.embed_dim):
    raise ValueError(
      f'the input table is {table} as (V, D), but the configuration says '
      f'({config.vocab_size}, {config.embed_dim})'
    )


def cast_matrices(config: T5Config, tree: Any) -> Any:
  """Casts matrices to the activation dtype; norms and biases stay float32.

  Matrices in 8 bits stay as they are.
  """
  return jax.tree_util.tree_map_with_path(
    functools.partial(_cast, config.activation_dtype),
    tree,
    is_leaf=is_quantised,
  )


def _cast(dtype, path, leaf):
  if is_quantised(leaf):
    return leaf
  names = {getattr(entry, 'key', None) for entry in path}
  keep = names & {'scale', 'rel_embedding'}
  return jnp.asarray(leaf, jnp.float32 if keep else dtype)


def layer_params(params: DecodeParams, layer) -> Params:
  """Returns a layer's parameters; `layer` may be traced if they are stacked."""
  if not params.traced_layers:
    return params.layers[layer]
  return jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False),
    params.layers,
  )
