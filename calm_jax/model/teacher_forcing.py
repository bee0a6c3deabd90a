"""Pure functions over the whole model, teacher forced.

They take the configuration and a parameter tree with T5X's names.
`layer_states` gives the residual stream after every decoder layer, which is all
that multi-exit training needs; `output_logits` is the ONE final norm and output
projection that all layers share. The model itself has never heard of exits.
"""

import jax.numpy as jnp

from calm_jax.array_types import Array, Params
from calm_jax.model import relative_positions
from calm_jax.model.config import T5Config
from calm_jax.model.transformer import Encoded, Transformer


def init_params(config: T5Config, key: Array) -> Params:
  """Returns freshly drawn float32 parameters under T5X's names.

  Args:
    config: the model's shape.
    key: a PRNG key, typed or raw.
  """
  tokens = jnp.ones((1, 2), jnp.int32)
  return Transformer(config).init({'params': key}, tokens, tokens)['params']


def encode(config: T5Config, params: Params, inputs: Array) -> Encoded:
  """Runs the encoder on tokens int32 [B, S]; 0 is padding."""
  return Transformer(config).apply({'params': params}, inputs, method='encode')


def encoder_states(
  config: T5Config,
  params: Params,
  encoder_input_tokens: Array,
  *,
  encoder_segment_ids: Array | None = None,
  dropout_rng: Array | None = None,
) -> Array:
  """Returns the residual stream after each encoder layer.

  Args:
    config: the model's shape.
    params: its parameters.
    encoder_input_tokens: int32 [B, S], 0 is padding.
    encoder_segment_ids: int32 [B, S], 0 is padding; None if nothing is packed.
    dropout_rng: a PRNG key switches dropout on.

  Returns:
    [L, B, S, D] in the activation dtype, before the final norm
    (`as_layered_encoder(config).finish`).
  """
  return Transformer(config).apply(
    {'params': params},
    encoder_input_tokens,
    segment_ids=encoder_segment_ids,
    deterministic=dropout_rng is None,
    rngs={} if dropout_rng is None else {'dropout': dropout_rng},
    method='encoder_states',
  )


def layer_states(
  config: T5Config,
  params: Params,
  encoder_input_tokens: Array,
  decoder_input_tokens: Array,
  *,
  encoder_segment_ids: Array | None = None,
  decoder_segment_ids: Array | None = None,
  layer_mask: Array | None = None,
  source_bias: Array | None = None,
  encoder_exit_layers: Array | None = None,
  dropout_rng: Array | None = None,
) -> Array:
  """Returns the residual stream after each decoder layer, teacher forced.

  Rows may hold several examples each, told apart by segment ids: a position
  then attends within its own segment only, and to the same segment of the
  source. No position numbers are needed with them. T5 knows positions by their
  distances alone, and as long as a segment lies in one piece (as seqio packs),
  the distance of two of its tokens is the same wherever the segment starts.

  Args:
    config: the model's shape.
    params: its parameters.
    encoder_input_tokens: int32 [B, S], 0 is padding.
    decoder_input_tokens: int32 [B, T], the targets shifted right (0 first, of
      every segment).
    encoder_segment_ids: int32 [B, S], 0 is padding; None if nothing is packed.
    decoder_segment_ids: int32 [B, T], likewise.
    layer_mask: bool [B, T, L], or [B, 1, L] for whole rows: a layer that does
      not run at a position hands its state on, and the layer's keys and values
      there are those of that state, as in `decode_with_layer_mask`. None if all
      run.
    source_bias: float32 [B, S], added to the logits of every cross-attention:
      the logarithm of how much a source position counts. None for nothing.
    encoder_exit_layers: int32 [B], 1..L_enc, after how many encoder layers the
      states of a row are taken, normed and read by the decoder; None for all.
    dropout_rng: a PRNG key switches dropout on.

  Returns:
    [L, B, T, D] in the activation dtype, before the final norm.

  Raises:
    ValueError: if only one of the segment ids is given, or one of a wrong
      shape, or such a mask, bias or exit layers.
  """
  _check_source_bias(source_bias, encoder_input_tokens)
  _check_exit_layers(encoder_exit_layers, encoder_input_tokens)
  if layer_mask is not None:
    rows, length = decoder_input_tokens.shape
    shapes = [(rows, at, config.num_decoder_layers) for at in (length, 1)]
    if layer_mask.shape not in shapes:
      raise ValueError(
        f'layer_mask must be [B, T, L] or [B, 1, L], {shapes[0]} or '
        f'{shapes[1]}: {layer_mask.shape}'
      )
  segment_ids = None
  if encoder_segment_ids is not None or decoder_segment_ids is not None:
    segment_ids = relative_positions.SegmentIds(
      encoder_segment_ids, decoder_segment_ids
    )
    tokens = (encoder_input_tokens, decoder_input_tokens)
    for side, ids, of in zip(
      segment_ids._fields, segment_ids, tokens, strict=True
    ):
      if ids is None or ids.shape != of.shape:
        raise ValueError(
          f'{side}_segment_ids must be given with the other ones, in the shape '
          f'{of.shape} of {side}_input_tokens; got '
          f'{None if ids is None else ids.shape}'
        )
  return Transformer(config).apply(
    {'params': params},
    encoder_input_tokens,
    decoder_input_tokens,
    layer_mask,
    source_bias=source_bias,
    encoder_exit_layers=encoder_exit_layers,
    segment_ids=segment_ids,
    deterministic=dropout_rng is None,
    rngs={} if dropout_rng is None else {'dropout': dropout_rng},
    method='states',
  )


def _check_source_bias(bias: Array | None, source: Array) -> None:
  """Raises ValueError for a bias that is not of the source's shape [B, S]."""
  if bias is not None and bias.shape != source.shape:
    raise ValueError(
      f'source_bias must be [B, S] = {source.shape}, a number for every source '
      f'position: {bias.shape}'
    )


def _check_exit_layers(exit_layers: Array | None, source: Array) -> None:
  """Raises ValueError for exit layers that are not one number per row."""
  if exit_layers is not None and jnp.shape(exit_layers) != source.shape[:1]:
    raise ValueError(
      f'encoder_exit_layers must be [B] = {source.shape[:1]}, a number of '
      f'encoder layers for every row: {jnp.shape(exit_layers)}'
    )


def output_logits(
  config: T5Config,
  params: Params,
  hidden: Array,
  *,
  dropout_rng: Array | None = None,
) -> Array:
  """Applies final norm and output projection to [..., D]: float32 [..., V]."""
  return Transformer(config).apply(
    {'params': params},
    hidden,
    deterministic=dropout_rng is None,
    rngs={} if dropout_rng is None else {'dropout': dropout_rng},
    method='logits',
  )


def decode_with_layer_mask(
  config: T5Config,
  params: Params,
  encoder_input_tokens: Array,
  decoder_input_tokens: Array,
  mask: Array,
  ffn_mask: Array | None = None,
  *,
  source_bias: Array | None = None,
  encoder_exit_layers: Array | None = None,
) -> Array:
  """The reference of every depth-adaptive decoder: logits float32 [B, T, V].

  The state of a position is replaced by layer l's output only where the mask is
  true; keys and values of layer l are always projected from the state that
  enters it, frozen or not. A decoder that propagates exit states (CALM, arXiv
  2207.07061) must agree with it, position by position.

  Args:
    config: the model's shape.
    params: its parameters.
    encoder_input_tokens: int32 [B, S], 0 is padding.
    decoder_input_tokens: int32 [B, T], the decoded tokens shifted right.
    mask: bool [B, T, L], whether layer l runs at a position.
    ffn_mask: bool [B, T, L], whether its feed-forward runs; everywhere if None.
    source_bias: as for `layer_states`.
    encoder_exit_layers: likewise.
  """
  _check_source_bias(source_bias, encoder_input_tokens)
  _check_exit_layers(encoder_exit_layers, encoder_input_tokens)
  expected = (*decoder_input_tokens.shape, config.num_decoder_layers)
  for name, value in (('mask', mask), ('ffn_mask', ffn_mask)):
    if value is not None and value.shape != expected:
      raise ValueError(f'{name} must be [B, T, L] = {expected}: {value.shape}')
  states = Transformer(config).apply(
    {'params': params},
    encoder_input_tokens,
    decoder_input_tokens,
    mask,
    ffn_mask,
    source_bias=source_bias,
    encoder_exit_layers=encoder_exit_layers,
    method='states',
  )
  return output_logits(config, params, states[-1])
