"""Windows of positions: a present position and the companions before it.

Positions that run a layer together must be consecutive, since the cache takes
them so. A window of W positions ends at the present one; where that is nearer
to the beginning than W, it begins at 0 and the present one stands inside it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array
from calm_jax.interfaces import Companions


def window_start(positions: Array, size: int) -> Array:
  """Returns where windows of `size` begin that hold positions [B]: int32 [B].

  Sizes of at most T stay inside 0..T-1.
  """
  return jnp.maximum(positions - (size - 1), 0)


def cut(states: Array, start: Array, size: int) -> Array:
  """Returns `size` positions of each row from `start` [B] on: [B, size, D]."""
  take = functools.partial(lax.dynamic_slice_in_dim, slice_size=size)
  return jax.vmap(take)(states, start)


def put(states: Array, start: Array, block: Array, where: Array) -> Array:
  """Returns states [B, T, D] with a block [B, P, D] written from `start` [B].

  Where `where`, bool [B, P], holds; the rest stays.
  """
  block = jnp.where(where[..., None], block, cut(states, start, block.shape[1]))

  def write(states, block, start):
    return lax.dynamic_update_slice_in_dim(states, block, start, 0)

  return jax.vmap(write)(states, block, start)


def with_present(window: Array, places: Array, hidden: Array) -> Array:
  """Returns windows [B, W, D] with present states [B, 1, D] at places [B]."""
  return put(window, places, hidden, jnp.ones(hidden.shape[:2], bool))


def are_companions(block: Array, positions: Array, counts: Array) -> Array:
  """Returns which positions of a block [B, P] are companions: bool [B, P].

  Args:
    block: int32 [B, P], positions.
    positions: int32 [B], the present ones.
    counts: int32 [B], how many companions these have.
  """
  before = positions[:, None] - block
  return (before > 0) & (before <= counts[:, None])


def rung(counts: Array, block_sizes: tuple[int, ...]) -> Array:
  """Returns which program runs: 0 without companions, i for block_sizes[i-1].

  Args:
    counts: int32 [B], companions of each row, none more than the last size.
    block_sizes: ascending.
  """
  return jnp.searchsorted(jnp.array((0, *block_sizes)), counts.max())


def run_together(
  run_layer: Callable[[Array, Array], Array],
  hidden: Array,
  positions: Array,
  companions: Companions,
) -> tuple[Array, Companions]:
  """Runs a layer on the present positions and their companions, in one pass.

  Args:
    run_layer: from states [B, P, D] and positions [B, P] to states.
    hidden: [B, 1, D], of the present positions.
    positions: int32 [B].
    companions: of them.

  Returns:
    The present states [B, 1, D] after the layer, and the companions after it.
  """

  def alone(companions):
    return run_layer(hidden, positions[:, None]), companions

  def together(size):
    def run(companions):
      start = window_start(positions, size)
      places = start - companions.first
      block = start[:, None] + jnp.arange(size)
      window = cut(companions.hidden, places, size)
      ran = run_layer(with_present(window, positions - start, hidden), block)
      present = cut(ran, positions - start, 1)
      everywhere = jnp.ones(block.shape, bool)
      window = put(companions.hidden, places, ran, everywhere)
      return present, dataclasses.replace(companions, hidden=window)

    return run

  return lax.switch(
    rung(companions.counts, companions.block_sizes),
    [alone, *(together(size + 1) for size in companions.block_sizes)],
    companions,
  )
