"""T5 encoder-decoder: the stacks, and the teacher-forced functions over them.

The functions take the configuration and a parameter tree with T5X's names and
are pure. `layer_states` gives the residual stream after every decoder layer,
which is all that multi-exit training needs; `output_logits` is the ONE final
norm and output projection that all layers share. The model itself has never
heard of exits.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from calm_jax.array_types import Array, Params
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
    self, hidden: Array, mask: Array, *, deterministic: bool = True
  ) -> Array:
    length = hidden.shape[1]
    bias = self.relpos_bias(length, length)
    bias = bias + relative_positions.mask_to_bias(mask[:, None, None, :])
    hidden = self.dropout(hidden, deterministic=deterministic)
    for layer in self.layers:
      hidden = layer(hidden, bias, deterministic=deterministic)
    hidden = self.encoder_norm(hidden)
    return self.dropout(hidden, deterministic=deterministic)


class Decoder(nn.Module):
  """The decoder stack with its final norm and, if untied, output matrix."""

  config: T5Config

  def setup(self):
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
      self.logits_dense = nn.Dense(
        config.vocab_size,
        use_bias=False,
        dtype=config.activation_dtype,
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
    deterministic: bool = True,
  ) -> Array:
    """Returns the states after every layer, [L, B, T, D]."""
    length = hidden.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    self_bias = self.relpos_bias(
      length, length
    ) + relative_positions.mask_to_bias(causal)
    cross_bias = relative_positions.mask_to_bias(encoded.mask[:, None, None, :])
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

  def encode(self, inputs: Array, *, deterministic: bool = True) -> Encoded:
    """Runs the encoder."""
    mask = inputs > 0
    hidden = self.encoder(
      self.token_embedder(inputs), mask, deterministic=deterministic
    )
    return Encoded(hidden=hidden, mask=mask)

  def states(
    self,
    inputs: Array,
    tokens: Array,
    mask: Array | None = None,
    ffn_mask: Array | None = None,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Runs encoder and decoder: states after every layer [L, B, T, D]."""
    encoded = self.encode(inputs, deterministic=deterministic)
    return self.decoder(
      self.token_embedder(tokens),
      encoded,
      mask,
      ffn_mask,
      deterministic=deterministic,
    )

  def logits(self, hidden: Array, *, deterministic: bool = True) -> Array:
    """Final norm and shared output projection: float32 [..., V]."""
    normed = self.decoder.normed(hidden, deterministic=deterministic)
    if not self.config.tied_embeddings:
      return self.decoder.project(normed)
    normed = normed / jnp.sqrt(self.config.embed_dim).astype(normed.dtype)
    table = self.token_embedder.embedding.astype(normed.dtype)
    return layers.flat_dot(normed, table.T, preferred_element_type=jnp.float32)

  def __call__(self, inputs: Array, tokens: Array) -> Array:
    """Teacher-forced logits of the full model, float32 [B, T, V]."""
    return self.logits(self.states(inputs, tokens)[-1])


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


def layer_states(
  config: T5Config,
  params: Params,
  encoder_input_tokens: Array,
  decoder_input_tokens: Array,
  *,
  dropout_rng: Array | None = None,
) -> Array:
  """Returns the residual stream after each decoder layer, teacher forced.

  Args:
    config: the model's shape.
    params: its parameters.
    encoder_input_tokens: int32 [B, S], 0 is padding.
    decoder_input_tokens: int32 [B, T], the targets shifted right (0 first).
    dropout_rng: a PRNG key switches dropout on.

  Returns:
    [L, B, T, D] in the activation dtype, before the final norm.
  """
  return Transformer(config).apply(
    {'params': params},
    encoder_input_tokens,
    decoder_input_tokens,
    deterministic=dropout_rng is None,
    rngs={} if dropout_rng is None else {'dropout': dropout_rng},
    method='states',
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
  """
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
    method='states',
  )
  return output_logits(config, params, states[-1])
