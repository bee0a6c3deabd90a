"""Deferred state propagation: K/V of skipped layers, made when first needed.

Eager propagation reads the K/V projections of all layers at every position,
also of layers that the token never runs. But K/V of a layer for a position that
left below it depend only on that position's exit state, so they can wait until
a later token runs the layer: then all positions it still lacks are projected
together, and the layer's weights are read once for many of them. Layers that no
token reaches again are never projected.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array, PyTree
from calm_jax.exits import checks
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class PendingStates:
  """What has not been projected yet.

  Attributes:
    exit_states: [B, T, D], the state each position had when it was last seen:
      its exit state, for positions that are done.
    filled: int32 [B, L], how many positions of a row have K/V in a layer. These
      are its first ones, for a row that runs a layer first fills all it lacks.
  """

  exit_states: Array
  filled: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class DeferredExitState:
  """Fills a layer when it is about to run, from all exit states it lacks: CALM.

  The same K/V as `ProjectExitState` has, wherever they are read; elsewhere the
  cache stays empty.

  Attributes:
    block_size: P, how many positions are projected together, at least 1.
  """

  block_size: int = dataclasses.field(default=8, metadata=dict(static=True))

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError if the block size is not positive."""
    del decoder, batch_size, max_length
    checks.check_whole(self.block_size, 'block_size', low=1)
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PendingStates:
    """Returns no states, and no layer filled."""
    return PendingStates(
      exit_states=jnp.zeros(
        (batch_size, max_length, decoder.embed_dim), decoder.dtype
      ),
      filled=jnp.zeros((batch_size, decoder.num_layers), jnp.int32),
    )

  def step(
    self,
    state: PendingStates,
    decoder: LayeredDecoder,
    params: PyTree,
    *,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    active: Array,
    alive: Array,
  ) -> tuple[PendingStates, PyTree]:
    """Returns the state and the cache, filled where `active` rows will read.

    A layer left over is nobody's: no block is filled, no weight read.
    """
    batch_size, length, _ = state.exit_states.shape
    size = min(self.block_size, length)
    rows = jnp.arange(batch_size)
    exit_states = state.exit_states.at[
      rows, jnp.where(alive, positions, length)
    ].set(hidden[:, 0], mode='drop')
    filled = state.filled[:, layer]

    def missing(first):
      return active & (first <= positions)

    def fill_block(carry):
      first, cache = carry
      start = jnp.minimum(first, length - size)
      block = start[:, None] + jnp.arange(size)
      states = jax.vmap(
        lambda states, start: lax.dynamic_slice_in_dim(states, start, size)
      )(exit_states, start)
      where = (first[:, None] <= block) & (block <= positions[:, None])
      cache = decoder.fill_layer(
        params, layer, states, block, cache, where & active[:, None]
      )
      return first + size, cache

    _, cache = lax.while_loop(
      lambda carry: missing(carry[0]).any(), fill_block, (filled, cache)
    )
    filled = state.filled.at[:, layer].set(
      jnp.where(active, positions + 1, filled)
    )
    return PendingStates(exit_states=exit_states, filled=filled), cache
