"""The decoder's cache: keys and values of every layer, in one of two layouts.

Stacked, [B, L, H, T, K], where a depth loop indexes layers by a traced number;
one [B, H, T, K] array per layer where the layer is a Python number, so that no
loop ever copies what it does not touch. Every leaf leads with the batch axis.
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.pytrees import register_pytree

LayerKV = tuple[Array, Array]


@register_pytree
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of self- and cross-attention.

  Attributes:
    self_key: [B, L, H, T, K], or a tuple of L arrays [B, H, T, K].
    self_value: the same.
    cross_key: [B, L, H, S, K], or a tuple of L arrays [B, H, S, K].
    cross_value: the same.
    cross_bias: float32 [B, 1, 1, S], 0 at source tokens, -1e10 at padding.
    source: [B, S, D], the encoded source, where cross-attention reads it as it
      is and there are no cross keys and values; else None.
  """

  self_key: Array | tuple[Array, ...]
  self_value: Array | tuple[Array, ...]
  cross_key: Array | tuple[Array, ...]
  cross_value: Array | tuple[Array, ...]
  cross_bias: Array
  source: Array | None = None

  @property
  def stacked(self) -> bool:
    """Whether layers are stacked on axis 1."""
    return not isinstance(self.self_key, tuple)

  @property
  def max_length(self) -> int:
    """T, the number of target positions."""
    if isinstance(self.self_key, tuple):
      # Layers that never run have no room for any.
      return max(key.shape[-2] for key in self.self_key)
    return self.self_key.shape[-2]


def read_layer(
  key: Array | tuple[Array, ...], value: Array | tuple[Array, ...], layer
) -> LayerKV:
  """Returns the keys and values of one layer, each [B, H, T, K]."""
  if isinstance(key, tuple):
    return key[layer], value[layer]
  return tuple(
    jax.lax.dynamic_index_in_dim(array, layer, 1, keepdims=False)
    for array in (key, value)
  )


def write_layer(
  array: Array | tuple[Array, ...],
  layer,
  update: Array,
  positions: Array,
  where: Array | None,
) -> Array | tuple[Array, ...]:
  """Writes [B, H, P, K] of one layer at positions [P] or [B, P].

  Args:
    array: self-attention keys or values, in either layout.
    layer: which layer; a Python int if layers are not stacked.
    update: [B, H, P, K].
    positions: int32 [P] or [B, P]. A row's positions are consecutive and must
      lie in [0, T).
    where: bool [B] or [B, P], rows or positions to write; all if None.
  """
  if isinstance(array, tuple):
    rows = _write(array[layer][:, None], 0, update, positions, where)
    return (*array[:layer], rows[:, 0], *array[layer + 1 :])
  return _write(array, layer, update, positions, where)


def _write(array, layer, update, positions, where):
  update = update.astype(array.dtype)
  batch_size, length = array.shape[0], array.shape[-2]
  positions = jnp.atleast_2d(positions)
  if where is not None and where.ndim == 1:
    where = where[:, None]
  if positions.shape[0] == 1:
    # The same positions for all rows: a slice update, which XLA does in place.
    start = (0, layer, 0, positions[0, 0], 0)
    if where is not None:
      sizes = (batch_size, 1, *update.shape[1:])
      old = jax.lax.dynamic_slice(array, start, sizes)[:, 0]
      update = jnp.where(where[:, None, :, None], update, old)
    return jax.lax.dynamic_update_slice(array, update[:, None], start)
  positions = jnp.broadcast_to(positions, (batch_size, positions.shape[1]))
  if where is not None:
    # Out of range on purpose: the scatter drops those positions.
    positions = jnp.where(where, positions, length)
  rows = jnp.arange(batch_size)[:, None]
  return array.at[rows, layer, :, positions].set(
    jnp.swapaxes(update, 1, 2), mode='drop'
  )
