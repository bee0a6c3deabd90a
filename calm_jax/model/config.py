"""The shape of a T5 model, as one frozen and hashable value.

`T5Config.named` knows the published sizes: T5 v1.1 and mT5 (gated GELU, untied
output) and T5 1.0 (ReLU, the input table used as output matrix and logits
divided by sqrt(D)). A configuration compares by value, so that everything
compiled for it is compiled once.
"""

import dataclasses
from typing import Any, Self

import jax.numpy as jnp

from calm_jax import checks

_DTYPES = ('float32', 'bfloat16')
_ACTIVATIONS = ('gelu', 'relu', 'silu', 'linear')


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Sizes and variants of a T5 encoder-decoder.

  Attributes:
    vocab_size: V, rows of the embedding table, padding rows included.
    embed_dim: D, width of the residual stream.
    num_heads: H.
    head_dim: K; H * K need not equal D.
    mlp_dim: F, the feed-forward width.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: L, layers of the decoder; each one is an exit.
    mlp_activations: one name for a plain feed-forward (T5 1.0: `('relu',)`),
      two for a gated one (v1.1: `('gelu', 'linear')`, GELU in its tanh form).
    tied_embeddings: whether the input table is the output matrix (T5 1.0).
    dropout_rate: used in training only, in [0, 1).
    dtype: dtype of activations, 'float32' or 'bfloat16'. Parameters are trained
      in float32 (decoding casts matrices to this dtype); norms, attention
      weights before the softmax and logits are float32.
    relative_buckets: number of relative-position buckets.
    relative_max_distance: distance from which all positions share a bucket.
  """

  vocab_size: int
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  tied_embeddings: bool = False
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  relative_buckets: int = 32
  relative_max_distance: int = 128

  def __post_init__(self):
    # gin and JSON hand over lists; a list would make the config unhashable.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    for name in (
      'vocab_size embed_dim num_heads head_dim mlp_dim num_encoder_layers'
      ' num_decoder_layers relative_buckets relative_max_distance'
    ).split():
      checks.check_whole(getattr(self, name), name, low=1)
    if self.dtype not in _DTYPES:
      raise ValueError(f'dtype must be one of {_DTYPES}, got {self.dtype!r}')
    unknown = set(self.mlp_activations) - set(_ACTIVATIONS)
    if unknown or len(self.mlp_activations) not in (1, 2):
      raise ValueError(
        'mlp_activations must be one or two of '
        f'{_ACTIVATIONS}, got {self.mlp_activations!r}'
      )
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(
        f'dropout_rate must lie in [0, 1), got {self.dropout_rate!r}'
      )
    if self.relative_buckets % 4:
      raise ValueError(
        'relative_buckets must be a multiple of 4 (half of them are exact '
        f'distances, half of those per direction), got {self.relative_buckets}'
      )
    if self.relative_max_distance <= self.relative_buckets // 2:
      raise ValueError(
        'relative_max_distance must be above relative_buckets / 2 = '
        f'{self.relative_buckets // 2}, got {self.relative_max_distance}'
      )

  @property
  def activation_dtype(self) -> Any:
    """The dtype of activations as a JAX dtype."""
    return jnp.dtype(self.dtype)

  @classmethod
  def named(cls, name: str, **changes: Any) -> Self:
    """Returns a published configuration, with fields changed by keyword.

    Args:
      name: for example 't5_v1_1_small', 't5_base' or 'mt5_large'.
      **changes: fields to replace, for example `dtype='bfloat16'`.

    Raises:
      ValueError: for an unknown name, listing the known ones.
    """
    if name not in _NAMED:
      raise ValueError(
        f'unknown configuration {name!r}; known: {", ".join(sorted(_NAMED))}'
      )
    return cls(**{**_NAMED[name], **changes})


def _sizes(layers: int, heads: int, head_dim: int, embed: int, mlp: int):
  return dict(
    num_encoder_layers=layers,
    num_decoder_layers=layers,
    num_heads=heads,
    head_dim=head_dim,
    embed_dim=embed,
    mlp_dim=mlp,
  )


_V1_1 = {
  'tiny': _sizes(4, 6, 64, 256, 512),
  'small': _sizes(8, 6, 64, 512, 1024),
  'base': _sizes(12, 12, 64, 768, 2048),
  'large': _sizes(24, 16, 64, 1024, 2816),
  'xl': _sizes(24, 32, 64, 2048, 5120),
  'xxl': _sizes(24, 64, 64, 4096, 10240),
}
_V1_0 = {
  'small': _sizes(6, 8, 64, 512, 2048),
  'base': _sizes(12, 12, 64, 768, 3072),
  'large': _sizes(24, 16, 64, 1024, 4096),
  '3b': _sizes(24, 32, 128, 1024, 16384),
  '11b': _sizes(24, 128, 128, 1024, 65536),
}
_NAMED = {
  **{
    f't5_v1_1_{size}': dict(sizes, vocab_size=32128)
    for size, sizes in _V1_1.items()
  },
  **{
    f'mt5_{size}': dict(sizes, vocab_size=250112)
    for size, sizes in _V1_1.items()
    if size != 'tiny'
  },
  **{
    f't5_{size}': dict(
      sizes, vocab_size=32128, mlp_activations=('relu',), tied_embeddings=True
    )
    for size, sizes in _V1_0.items()
  },
}
