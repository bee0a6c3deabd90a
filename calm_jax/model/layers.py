"""The building blocks of T5 in Flax Linen, with T5X's parameter names.

Blocks are written so that a decoder layer can be run whole (teacher forcing) or
in the three pieces that incremental decoding needs: project keys and values,
attend over keys and values from elsewhere, feed forward. Both go through the
same code. Sources: T5 (arXiv 1910.10683), GLU variants (arXiv 2002.05202).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, Params
from calm_jax.model.config import T5Config
from calm_jax.quantisation import join_matrices

_ACTIVATIONS = {
  'gelu': nn.gelu,
  'relu': nn.relu,
  'silu': nn.silu,
  'linear': lambda hidden: hidden,
}


class RMSNorm(nn.Module):
  """Root-mean-square layer norm, computed in float32 (arXiv 1910.07467)."""

  config: T5Config

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    """Returns the states [..., D], scaled to a mean square of about 1."""
    scale = self.param(
      'scale', nn.initializers.ones_init(), (hidden.shape[-1],), jnp.float32
    )
    wide = hidden.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + 1e-6) * scale
    return normed.astype(self.config.activation_dtype)


def flat_dot(
  lhs: Array,
  rhs: Array,
  dimension_numbers=None,
  *,
  preferred_element_type=None,
  **options,
) -> Array:
  """Multiplies [..., D] by a matrix [D, F] as [N, D] by [D, F].

  With one leading axis the gradient by the matrix is one plain matmul; with
  two, XLA on CPU first copies both operands into another layout, which takes
  longer than the matmul. Has the signature of `jax.lax.dot_general`, for
  `nn.Dense`; the dimension numbers are always those above.
  """
  del dimension_numbers, options
  flat = lhs.reshape(-1, lhs.shape[-1])
  product = jnp.matmul(flat, rhs, preferred_element_type=preferred_element_type)
  return product.reshape(*lhs.shape[:-1], rhs.shape[-1])


class Dense(nn.Dense):
  """`nn.Dense` whose matrix may lie in 8 bits instead, as 'int8'.

  Attributes:
    product_dtype: of what it returns then; that of activations if None.
  """

  product_dtype: Any = None

  def __call__(self, inputs: Array) -> Array:
    """Returns the states [..., D], multiplied: [..., F]."""
    if not self.has_variable('params', 'int8'):
      return super().__call__(inputs)
    product = self.get_variable('params', 'int8').multiply(inputs)
    return product.astype(self.product_dtype or self.dtype)


def _dense(
  config: T5Config,
  features: int,
  scale: float = 1.0,
  name: str | None = None,
) -> Dense:
  initializer = nn.initializers.variance_scaling(scale, 'fan_in', 'normal')
  return Dense(
    features,
    use_bias=False,
    dtype=config.activation_dtype,
    param_dtype=jnp.float32,
    kernel_init=initializer,
    dot_general=flat_dot,
    name=name,
  )


def dropout(config: T5Config) -> nn.Dropout:
  """T5's dropout: one mask shared along the length axis.

  It stands where T5X and Flaxformer (CALM's network) have it: after embedding,
  on attention weights, on the feed-forward's hidden units, on the output of
  each sub-layer and after the final norms. One detail differs between these
  two: after the encoder's norm T5X draws per position, Flaxformer, like the
  rest of T5, per row; so does this.
  """
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


class Attention(nn.Module):
  """Multi-head attention without biases and without 1/sqrt(K) scaling."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    config = self.config
    inner = config.num_heads * config.head_dim
    # T5 folds the missing 1/sqrt(K) into the initial query kernel.
    self.query = _dense(config, inner, scale=1.0 / config.head_dim)
    self.key = _dense(config, inner)
    self.value = _dense(config, inner)
    self.out = _dense(config, config.embed_dim)
    self.dropout = dropout(config)

  def _split_heads(self, projected: Array) -> Array:
    config = self.config
    heads = projected.reshape(
      *projected.shape[:-1], config.num_heads, config.head_dim
    )
    return jnp.swapaxes(heads, -2, -3)

  def project_kv(self, hidden: Array) -> tuple[Array, Array]:
    """Projects [B, T, D] to keys and values [B, H, T, K]."""
    key = self._split_heads(self.key(hidden))
    return key, self._split_heads(self.value(hidden))

  def attend(
    self,
    hidden: Array,
    key: Array,
    value: Array,
    bias: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Attends from [B, P, D] over keys and values [B, H, T, K].

    Args:
      hidden: normed states of the queries, [B, P, D].
      key: [B, H, T, K].
      value: [B, H, T, K].
      bias: float32, broadcastable to [B, H, P, T].
      deterministic: whether dropout is off.

    Returns:
      [B, P, D], without the residual.
    """
    query = self._split_heads(self.query(hidden))
    weights = jnp.einsum(
      'bhpk,bhtk->bhpt', query, key, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(weights + bias, axis=-1).astype(value.dtype)
    weights = self.dropout(weights, deterministic=deterministic)
    mixed = jnp.einsum('bhpt,bhtk->bhpk', weights, value)
    mixed = jnp.swapaxes(mixed, -2, -3)
    return self.out(mixed.reshape(*mixed.shape[:-2], -1))

  def attend_states(self, hidden: Array, states: Array, bias: Array) -> Array:
    """Attends over states [B, T, D] whose keys and values are never made.

    What `project_kv` and `attend` say, in another order of products: less work
    for fewer queries than K.

    Args:
      hidden: normed states of the queries, [B, P, D].
      states: [B, T, D].
      bias: float32, broadcastable to [B, H, P, T].

    Returns:
      [B, P, D], without the residual.
    """
    config = self.config
    key, value = (
      jnp.asarray(part.get_variable('params', 'kernel'), states.dtype).reshape(
        -1, config.num_heads, config.head_dim
      )
      for part in (self.key, self.value)
    )
    query = self._split_heads(self.query(hidden))
    query = jnp.einsum('bhpk,dhk->bhpd', query, key)
    weights = jnp.einsum(
      'bhpd,btd->bhpt', query, states, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(weights + bias, axis=-1).astype(states.dtype)
    mixed = jnp.einsum('bhpt,btd->bhpd', weights, states)
    mixed = jnp.einsum('bhpd,dhk->bphk', mixed, value)
    return self.out(mixed.reshape(*mixed.shape[:-2], -1))


class FeedForward(nn.Module):
  """The feed-forward block, gated if two activations are given.

  The matrices of both gates may come as one, 'gates' [D, 2, F]
  (`join_gates`): decoding reads them faster.
  """

  config: T5Config

  @nn.compact
  def __call__(self, hidden: Array, *, deterministic: bool = True) -> Array:
    """Returns what the block adds to states [..., D]."""
    config = self.config
    product = None
    for name, projected in zip(
      config.mlp_activations, self._project(hidden), strict=True
    ):
      branch = _ACTIVATIONS[name](projected)
      product = branch if product is None else product * branch
    product = dropout(config)(product, deterministic=deterministic)
    return _dense(config, config.embed_dim, name='wo')(product)

  def _project(self, hidden: Array) -> list[Array]:
    """Returns the input of every activation, [..., F] each."""
    if self.has_variable('params', 'gates'):
      gates = self.get_variable('params', 'gates')
      if 'int8' in gates:
        joint = gates['int8'].multiply(hidden)
        joint = joint.astype(self.config.activation_dtype)
        return [joint[..., gate] for gate in range(joint.shape[-1])]
      joint = jnp.einsum('...d,dgf->...gf', hidden, gates['kernel'])
      return [joint[..., gate, :] for gate in range(joint.shape[-2])]
    return [
      _dense(self.config, self.config.mlp_dim, name=name)(hidden)
      for name in _gate_names(self.config)
    ]


def join_gates(config: T5Config, params: Params) -> Params:
  """Returns a feed-forward's subtree with its gates' matrices as one.

  Two matrices of T5-small's size are below what XLA on CPU reads with more than
  one core; as one they are above it, and elsewhere one kernel is launched
  instead of two. A block without gates comes back as it is, as one does whose
  gates are not both in 8 bits, or both not.

  Raises:
    KeyError: if a gate is missing.
  """
  names = _gate_names(config)
  if len(names) == 1:
    return params
  gates = [params[name] for name in names]
  rest = {name: leaf for name, leaf in params.items() if name not in names}
  if all('int8' in gate for gate in gates):
    joint = join_matrices([gate['int8'] for gate in gates])
    return {**rest, 'gates': {'int8': joint}}
  if any('int8' in gate for gate in gates):
    return params
  kernels = [gate['kernel'] for gate in gates]
  return {**rest, 'gates': {'kernel': jnp.stack(kernels, axis=1)}}


def _gate_names(config: T5Config) -> list[str]:
  """Returns what T5X calls the matrices into the feed-forward block."""
  count = len(config.mlp_activations)
  return [f'wi_{index}' for index in range(count)] if count > 1 else ['wi']


class EncoderLayer(nn.Module):
  """One encoder layer: self-attention, feed-forward, pre-norm residuals."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    self.pre_attention_layer_norm = RMSNorm(self.config)
    self.attention = Attention(self.config)
    self.pre_mlp_layer_norm = RMSNorm(self.config)
    self.mlp = FeedForward(self.config)
    self.dropout = dropout(self.config)

  def __call__(
    self, hidden: Array, bias: Array, *, deterministic: bool = True
  ) -> Array:
    """Returns states [B, S, D]; see `Attention.attend` for `bias`."""
    normed = self.pre_attention_layer_norm(hidden)
    attended = self.attention.attend(
      normed,
      *self.attention.project_kv(normed),
      bias,
      deterministic=deterministic,
    )
    hidden = hidden + self.dropout(attended, deterministic=deterministic)
    fed = self.mlp(self.pre_mlp_layer_norm(hidden), deterministic=deterministic)
    return hidden + self.dropout(fed, deterministic=deterministic)


class DecoderLayer(nn.Module):
  """One decoder layer, whole or in the pieces that decoding needs."""

  config: T5Config

  def setup(self):
    """Makes the parts that the methods share."""
    self.pre_self_attention_layer_norm = RMSNorm(self.config)
    self.self_attention = Attention(self.config)
    self.pre_cross_attention_layer_norm = RMSNorm(self.config)
    self.encoder_decoder_attention = Attention(self.config)
    self.pre_mlp_layer_norm = RMSNorm(self.config)
    self.mlp = FeedForward(self.config)
    self.dropout = dropout(self.config)

  def project_self_kv(self, hidden: Array) -> tuple[Array, Array]:
    """Projects the state that ENTERS the layer to its own keys and values."""
    return self.self_attention.project_kv(
      self.pre_self_attention_layer_norm(hidden)
    )

  def project_cross_kv(self, encoded: Array) -> tuple[Array, Array]:
    """Projects the encoder's output to the layer's cross keys and values."""
    return self.encoder_decoder_attention.project_kv(encoded)

  def attend(
    self,
    hidden: Array,
    self_kv: tuple[Array, Array],
    self_bias: Array,
    cross_kv: tuple[Array, Array] | Array,
    cross_bias: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Runs both attention sub-layers with their residuals, [B, P, D].

    `cross_kv` may be the encoder's output itself, [B, S, D], without dropout.
    """
    attended = self.self_attention.attend(
      self.pre_self_attention_layer_norm(hidden),
      *self_kv,
      self_bias,
      deterministic=deterministic,
    )
    hidden = hidden + self.dropout(attended, deterministic=deterministic)
    normed, cross = (
      self.pre_cross_attention_layer_norm(hidden),
      self.encoder_decoder_attention,
    )
    if isinstance(cross_kv, tuple):
      attended = cross.attend(
        normed, *cross_kv, cross_bias, deterministic=deterministic
      )
    else:
      attended = cross.attend_states(normed, cross_kv, cross_bias)
    return hidden + self.dropout(attended, deterministic=deterministic)

  def feed_forward(self, hidden: Array, *, deterministic: bool = True) -> Array:
    """Runs the feed-forward sub-layer with its residual, [B, P, D]."""
    fed = self.mlp(self.pre_mlp_layer_norm(hidden), deterministic=deterministic)
    return hidden + self.dropout(fed, deterministic=deterministic)
