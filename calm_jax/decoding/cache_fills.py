"""Cache fills: what the K/V of layers a token never ran are made from.

The `cache_fill` slot of a policy; those here write all layers of a position at
once. Because the K/V of a layer come from the state that enters it, and a row
that stopped keeps its exit state as `hidden`, the paper's state propagation is
the plain fill of every layer.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import (
  BoundDecoder,
  FillWork,
  LayeredDecoder,
  NoCompanions,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class ProjectExitState(NoCompanions, StatelessSlot):
  """Fills every layer from the row's state, frozen at its exit: CALM.

  A skipped layer projects the copied exit state by its own weights.
  """

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    active: Array,
    alive: Array,
  ) -> tuple[PyTree, PyTree, FillWork]:
    """Returns the state, the cache with this layer's K/V, and the work."""
    del active
    cache = bound.fill_layer(layer, hidden, positions[:, None], cache, alive)
    return state, cache, FillWork(alive.astype(jnp.int32))


@register_pytree
@dataclasses.dataclass(frozen=True)
class ProjectFirstExitState(NoCompanions):
  """Fills layers a row did not run from its state after layer 1.

  That is what the official release does (t5x/contrib/calm propagates the state
  of the FIRST exit), against its paper. It is here to
  reproduce and to measure that behaviour, not to be used. Its state is the
  hidden state after layer 1 of the position being decoded, [B, 1, D].
  """

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns an empty first state for each row, [B, 1, D]."""
    del max_length
    return jnp.zeros((batch_size, 1, decoder.embed_dim), decoder.dtype)

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    active: Array,
    alive: Array,
  ) -> tuple[PyTree, PyTree, FillWork]:
    """Returns the state after layer 1, the cache with K/V, and the work."""
    # What enters the layer of index 1 is what left the first one.
    first = jnp.equal(layer, 1) & alive
    state = jnp.where(first[:, None, None], hidden, state)
    source = jnp.where(active[:, None, None], hidden, state)
    cache = bound.fill_layer(layer, source, positions[:, None], cache, alive)
    return state, cache, FillWork(alive.astype(jnp.int32))
