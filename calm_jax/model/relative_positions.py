"""Which positions attend to which, and how strongly: masks and biases.

T5 knows positions only by their distance: a learned bias per head and bucket of
distances is added to attention logits, shared by the layers of a stack (arXiv
1910.10683, section 2.1). Masks are additive biases too.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array
from calm_jax.model.config import T5Config

# Added to attention logits of positions that must not be seen. Finite, so that
# a row that sees nothing (an all-padding source) stays free of NaN.
MASKED = -1e10


def mask_to_bias(mask: Array) -> Array:
  """Turns a boolean mask (True = visible) into an additive float32 bias."""
  return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


class SegmentIds(NamedTuple):
  """Which of the examples packed into a row each position belongs to.

  Attributes:
    encoder: int32 [B, S], 1, 2, ... and 0 at padding.
    decoder: int32 [B, T], the same numbers for the targets.
  """

  encoder: Array
  decoder: Array


def same_segment(query_ids: Array, key_ids: Array) -> Array:
  """Returns the mask bool [B, 1, P, T] of positions in the same segment.

  Args:
    query_ids: int32 [B, P].
    key_ids: int32 [B, T].
  """
  return (query_ids[:, :, None] == key_ids[:, None, :])[:, None]


def relative_buckets(
  relative_position: np.ndarray, config: T5Config, *, bidirectional: bool
) -> np.ndarray:
  """Returns T5's bucket of each relative position (key minus query).

  Half of the buckets of a direction are exact distances, the other half grow
  logarithmically up to `relative_max_distance` (arXiv 1910.10683, section 2.1).
  """
  buckets = config.relative_buckets
  distance = -np.asarray(relative_position, np.int64)
  offset = np.zeros_like(distance)
  if bidirectional:
    buckets //= 2
    offset = np.where(distance < 0, buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(distance, 0)
  exact = buckets // 2
  # float32 throughout: the official code truncates a float32 logarithm, and a
  # float64 one falls on the other side at a few distances.
  ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
  scale = np.float32(np.log(config.relative_max_distance / exact))
  logarithmic = exact + (
    np.log(ratio + np.finfo(np.float32).eps)
    / scale
    * np.float32(buckets - exact)
  ).astype(np.int64)
  far = np.minimum(logarithmic, buckets - 1)
  return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """The table of relative-position biases that the layers of a stack share."""

  config: T5Config
  bidirectional: bool

  def setup(self):
    """Makes the table, float32 [H, buckets]."""
    self.rel_embedding = self.param(
      'rel_embedding',
      nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
      (self.config.num_heads, self.config.relative_buckets),
      jnp.float32,
    )

  def __call__(self, query_length: int, key_length: int) -> Array:
    """Returns the bias float32 [1, H, query_length, key_length]."""
    relative = np.arange(key_length)[None] - np.arange(query_length)[:, None]
    buckets = relative_buckets(
      relative, self.config, bidirectional=self.bidirectional
    )
    return self.rel_embedding[:, buckets][None]

  def at_positions(self, positions: Array, key_length: int) -> Array:
    """Returns the bias and causal mask for queries at traced positions.

    Args:
      positions: int32 [P] or [B, P].
      key_length: T, the length of the cache.

    Returns:
      float32 [1 or B, H, P, T]: the bias where key <= query, else -1e10.
    """
    # One bias per distance; which distance stands where is a plain gather.
    buckets = relative_buckets(
      -np.arange(key_length), self.config, bidirectional=False
    )
    by_distance = self.rel_embedding[:, buckets]
    positions = jnp.atleast_2d(positions)
    distance = positions[:, :, None] - jnp.arange(key_length)
    bias = by_distance[:, jnp.maximum(distance, 0)]
    return jnp.where(
      distance[:, None] >= 0, jnp.moveaxis(bias, 0, 1), MASKED
    ).astype(jnp.float32)

  def at_cached(self, positions: Array, cached: Array) -> Array:
    """Returns the bias and mask over keys that lie in any order.

    Args:
      positions: int32 [P] or [B, P], of the queries.
      cached: int32 [B, C], of the keys, or [B, P, C], as each query reads
        them; negative for what is not read.

    Returns:
      float32 [B, H, P, C]: the bias where 0 <= key <= query, else -1e10.
    """
    # Everything further away is in the last bucket.
    far = self.config.relative_max_distance
    buckets = relative_buckets(
      -np.arange(far + 1), self.config, bidirectional=False
    )
    by_distance = self.rel_embedding[:, buckets]
    keys = cached[:, None] if cached.ndim == 2 else cached
    distance = jnp.atleast_2d(positions)[:, :, None] - keys
    bias = by_distance[:, jnp.clip(distance, 0, far)]
    read = (distance >= 0) & (keys >= 0)
    return jnp.where(read[:, None], jnp.moveaxis(bias, 0, 1), MASKED).astype(
      jnp.float32
    )
