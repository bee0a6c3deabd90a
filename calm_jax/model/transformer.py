"""T5 encoder-decoder: the two stacks and the whole, as Linen modules.

`teacher_forcing` has the pure functions over them, `stepwise` those for
incremental decoding.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from calm_jax import sharding
from calm_jax.array_types import Array
from calm_jax.model import layers, relative_positions
from calm_jax.model.config import T5Config
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Encoded:
  """What the decoder reads of the source.

  Attributes:
    hidden: [B, S, D], the encoder's output after its final norm.
    mask: bool [B, S], True where the source is not padding.
  """

  hidden: Array
  mask: Array


class Encoder(nn.Module):
  """The encoder stack."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    config = self.config
    self.relpos_bias = relative_positions.RelativePositionBias(
      config, bidirectional=True
    )
    self.layers = [
      layers.EncoderLayer(config) for _ in range(config.num_encoder_layers)
    ]
    self.encoder_norm = layers.RMSNorm(config)
    self.dropout = layers.dropout(config)

  def __call__(
    self,
    hidden: Array,
    mask: Array,
    exit_layers: Array | None = None,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Returns [B, S, D] after the final norm.

    Args:
      hidden: [B, S, D], embedded tokens.
      mask: bool, broadcastable to [B, 1, S, S].
      exit_layers: int32 [B], after how many layers a row's states are taken;
        None for all of them.
      deterministic: whether dropout is off.
    """
    states = self.states(hidden, mask, deterministic=deterministic)
    taken = states[-1]
    if exit_layers is not None:
      for number, hidden in enumerate(states[:-1], start=1):
        taken = jnp.where((exit_layers == number)[:, None, None], hidden, taken)
    taken = self.encoder_norm(taken)
    return self.dropout(taken, deterministic=deterministic)

  def states(
    self, hidden: Array, mask: Array, *, deterministic: bool = True
  ) -> list[Array]:
    """Returns the states after every layer, L times [B, S, D]."""
    length = hidden.shape[1]
    bias = self.relpos_bias(length, length)
    bias = bias + relative_positions.mask_to_bias(mask)
    hidden = self.dropout(hidden, deterministic=deterministic)
    states = []
    for layer in self.layers:
      hidden = layer(hidden, bias, deterministic=deterministic)
      states.append(hidden)
    return states


class Decoder(nn.Module):
  """The decoder stack with its final norm and, if untied, output matrix."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    config = self.config
    self.relpos_bias = relative_positions.RelativePositionBias(
      config, bidirectional=False
    )
    self.layers = [
      layers.DecoderLayer(config) for _ in range(config.num_decoder_layers)
    ]
    self.decoder_norm = layers.RMSNorm(config)
    self.dropout = layers.dropout(config)
    if not config.tied_embeddings:
      self.logits_dense = layers.Dense(
        config.vocab_size,
        use_bias=False,
        dtype=config.activation_dtype,
        product_dtype=jnp.float32,
        param_dtype=jnp.float32,
        dot_general=functools.partial(
          layers.flat_dot, preferred_element_type=jnp.float32
        ),
        kernel_init=nn.initializers.variance_scaling(
          1.0, 'fan_in', 'truncated_normal'
        ),
      )

  def __call__(
    self,
    hidden: Array,
    encoded: Encoded,
    mask: Array | None = None,
    ffn_mask: Array | None = None,
    *,
    source_bias: Array | None = None,
    segment_ids: relative_positions.SegmentIds | None = None,
    deterministic: bool = True,
  ) -> Array:
    """Returns the states after every layer, [L, B, T, D]."""
    length = hidden.shape[1]
    self_mask = jnp.tril(jnp.ones((length, length), bool))
    cross_mask = encoded.mask[:, None, None, :]
    if segment_ids is not None:
      source, target = segment_ids
      self_mask = self_mask & relative_positions.same_segment(target, target)
      cross_mask = cross_mask & relative_positions.same_segment(target, source)
    self_bias = self.relpos_bias(
      length, length
    ) + relative_positions.mask_to_bias(self_mask)
    cross_bias = relative_positions.mask_to_bias(cross_mask)
    if source_bias is not None:
      cross_bias = cross_bias + source_bias[:, None, None, :]
    hidden = self.dropout(hidden, deterministic=deterministic)
    states = []
    for index, layer in enumerate(self.layers):
      entering = hidden
      hidden = layer.attend(
        hidden,
        layer.project_self_kv(hidden),
        self_bias,
        layer.project_cross_kv(encoded.hidden),
        cross_bias,
        deterministic=deterministic,
      )
      if ffn_mask is None:
        hidden = layer.feed_forward(hidden, deterministic=deterministic)
      else:
        fed = layer.feed_forward(hidden, deterministic=deterministic)
        hidden = jnp.where(ffn_mask[:, :, index, None], fed, hidden)
      if mask is not None:
        hidden = jnp.where(mask[:, :, index, None], hidden, entering)
      states.append(hidden)
    return jnp.stack(states)

  def normed(self, hidden: Array, *, deterministic: bool = True) -> Array:
    """Applies the final norm."""
    return self.dropout(self.decoder_norm(hidden), deterministic=deterministic)

  def project(self, normed: Array) -> Array:
    """Applies the untied output projection: float32 [..., V]."""
    return self.logits_dense(normed)


class Transformer(nn.Module):
  """The whole model; its methods are what the functions below apply."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    config = self.config
    self.token_embedder = nn.Embed(
      config.vocab_size,
      config.embed_dim,
      dtype=config.activation_dtype,
      param_dtype=jnp.float32,
      embedding_init=nn.initializers.normal(1.0),
    )
    self.encoder = Encoder(config)
    self.decoder = Decoder(config)

  def encode(
    self,
    inputs: Array,
    exit_layers: Array | None = None,
    *,
    segment_ids: Array | None = None,
    deterministic: bool = True,
  ) -> Encoded:
    """Runs the encoder, each segment [B, S] by itself if ids are given."""
    hidden = self.encoder(
      sharding.share_rows(self.token_embedder(inputs)),
      _visible(inputs, segment_ids),
      exit_layers,
      deterministic=deterministic,
    )
    return Encoded(hidden=hidden, mask=inputs > 0)

  def encoder_states(
    self,
    inputs: Array,
    *,
    segment_ids: Array | None = None,
    deterministic: bool = True,
  ) -> Array:
    """Runs the encoder: states after every layer, [L, B, S, D]."""
    states = self.encoder.states(
      sharding.share_rows(self.token_embedder(inputs)),
      _visible(inputs, segment_ids),
      deterministic=deterministic,
    )
    return jnp.stack(states)

  def states(
    self,
    inputs: Array,
    tokens: Array,
    mask: Array | None = None,
    ffn_mask: Array | None = None,
    *,
    source_bias: Array | None = None,
    encoder_exit_layers: Array | None = None,
    segment_ids: relative_positions.SegmentIds | None = None,
    deterministic: bool = True,
  ) -> Array:
    """Runs encoder and decoder: states after every layer [L, B, T, D]."""
    encoded = self.encode(
      inputs,
      encoder_exit_layers,
      segment_ids=None if segment_ids is None else segment_ids.encoder,
      deterministic=deterministic,
    )
    return self.decoder(
      sharding.share_rows(self.token_embedder(tokens)),
      encoded,
      mask,
      ffn_mask,
      source_bias=source_bias,
      segment_ids=segment_ids,
      deterministic=deterministic,
    )

  def logits(self, hidden: Array, *, deterministic: bool = True) -> Array:
    """Final norm and shared output projection: float32 [..., V]."""
    normed = self.decoder.normed(hidden, deterministic=deterministic)
    if not self.config.tied_embeddings:
      return self.decoder.project(normed)
    normed = normed / jnp.sqrt(self.config.embed_dim).astype(normed.dtype)
    if self.decoder.has_variable('params', 'logits_dense'):
      output = self.decoder.get_variable('params', 'logits_dense')['int8']
      return output.multiply(normed)
    table = self.token_embedder.embedding.astype(normed.dtype)
    return layers.flat_dot(normed, table.T, preferred_element_type=jnp.float32)

  def __call__(self, inputs: Array, tokens: Array) -> Array:
    """Teacher-forced logits of the full model, float32 [B, T, V]."""
    return self.logits(self.states(inputs, tokens)[-1])


def _visible(inputs: Array, segment_ids: Array | None) -> Array:
  """Returns which source positions see which, to broadcast to [B, 1, S, S]."""
  visible = (inputs > 0)[:, None, None, :]
  if segment_ids is None:
    return visible
  return visible & relative_positions.same_segment(segment_ids, segment_ids)
