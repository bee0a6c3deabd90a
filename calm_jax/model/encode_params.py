"""T5's encoder parameters, laid out to be read one layer at a time."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, Params, PyTree
from calm_jax.model.config import T5Config
from calm_jax.model.decode_params import DecodeParams, cast_matrices
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class EncodeParams:
  """T5's encoder, laid out for running its layers one by one.

  Attributes:
    token_embedder: the input table, T5X's subtree.
    layers: one tree whose leaves lead with L if the layer is indexed by a
      traced number, else a tuple of L trees.
    relpos_bias: the encoder's relative-position table, T5X's subtree.
    encoder_norm: the final norm, T5X's subtree.
  """

  token_embedder: Params
  layers: PyTree
  relpos_bias: Params
  encoder_norm: Params

  @property
  def traced_layers(self) -> bool:
    """Whether layers are stacked, for loops that trace their index."""
    return not isinstance(self.layers, tuple)


def prepare_encoder(
  config: T5Config,
  params: Params | DecodeParams | EncodeParams,
  traced_layers: bool = False,
) -> EncodeParams:
  """Lays an encoder's parameters out; idempotent.

  Args:
    config: the model's shape.
    params: T5X's tree, or what `prepare` made of it, of which nothing is copied
      unless layers are stacked.
    traced_layers: whether they are.

  Raises:
    ValueError: if they were prepared for the other kind of loop, or lack what
      this configuration needs.
  """
  if isinstance(params, EncodeParams):
    if traced_layers != params.traced_layers:
      raise ValueError(
        'these parameters were prepared for '
        f'traced_layers={params.traced_layers}, this loop wants '
        f'traced_layers={traced_layers}; prepare the original tree'
      )
    return params
  is_cast = isinstance(params, DecodeParams)
  tree = vars(params) if is_cast else params
  try:
    encoder = tree['encoder']
    prepared = EncodeParams(
      token_embedder=tree['token_embedder'],
      layers=_layers(config, encoder),
      relpos_bias=encoder['relpos_bias'],
      encoder_norm=encoder['encoder_norm'],
    )
  except KeyError as error:
    raise ValueError(
      f'the parameters lack {error.args[0]!r}, which this configuration needs: '
      f'{config}'
    ) from None
  if not is_cast:
    prepared = cast_matrices(config, prepared)
  if not traced_layers:
    return prepared
  return dataclasses.replace(prepared, layers=_stacked(prepared.layers))


def _layers(config: T5Config, encoder: Params) -> tuple[Params, ...]:
  """Returns the trees of all layers, once there are as many as there should."""
  found = sum(name.startswith('layers_') for name in encoder)
  if found != config.num_encoder_layers:
    raise ValueError(
      f'the parameters have {found} encoder layers, the configuration says '
      f'{config.num_encoder_layers}; use the configuration they were trained '
      'with'
    )
  return tuple(encoder[f'layers_{layer}'] for layer in range(found))


def _stacked(layers: Sequence[Params]) -> Params:
  if len({jax.tree.structure(tree) for tree in layers}) > 1:
    raise ValueError(
      'this loop stacks all layers, but matrices are in 8 bits in some of them '
      'and in float in others: keep the same ones in every layer, or take '
      'encoding.UnrolledLayers()'
    )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def encoder_layer_params(params: EncodeParams, layer: Array | int) -> Params:
  """Returns a layer's parameters; `layer` may be traced if they are stacked."""
  if not params.traced_layers:
    return params.layers[layer]
  return jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False),
    params.layers,
  )
