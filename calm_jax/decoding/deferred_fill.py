"""Deferred state propagation: K/V of skipped layers, made when first needed.

Eager propagation reads the K/V projections of all layers at every position,
also of layers that the token never runs. But K/V of a layer, at a position that
left below it, depend on that position's exit state alone, so they can wait
until a later token runs the layer: then all positions it lacks are projected
together, and its weights are read once for many of them. What no later token
needs is never projected.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import companions
from calm_jax.interfaces import (
  BoundDecoder,
  FillWork,
  LayeredDecoder,
  NoCompanions,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class PendingStates:
  """What K/V can still be made from, and how far each layer has them.

  Attributes:
    exit_states: [B, T, D], the state of each position when it was last seen:
      once its layers are done, its exit state.
    filled: int32 [B, L], 0..T, how many positions have K/V in a layer. They are
      the row's first ones: a row that runs a layer fills all it lacks.
  """

  exit_states: Array
  filled: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class DeferredExitState(NoCompanions):
  """Fills a layer that is about to run, from all the exit states it lacks.

  CALM's propagation, as `ProjectExitState` does it, but late: K/V that are read
  are the same, and those that are not read are not made. Nothing is done for a
  layer that no row runs.

  Attributes:
    block_size: P, at least 1: how many positions of each row are projected
      together. A layer that lacks only the present position takes it alone.
  """

  block_size: int = dataclasses.field(default=16, metadata=dict(static=True))

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError if the block size is not positive."""
    del decoder, batch_size, max_length
    checks.check_whole(self.block_size, 'block_size', low=1)
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PendingStates:
    """Returns no states, and no layer filled."""
    shape = (batch_size, max_length, decoder.embed_dim)
    return PendingStates(
      exit_states=jnp.zeros(shape, decoder.dtype),
      filled=jnp.zeros((batch_size, decoder.num_layers), jnp.int32),
    )

  def step(
    self,
    state: PendingStates,
    bound: BoundDecoder,
    *,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    active: Array,
    alive: Array,
  ) -> tuple[PendingStates, PyTree, FillWork]:
    """Returns the state, the cache filled where active rows read, the work."""
    batch_size, length, _ = state.exit_states.shape
    # The last of these writes, for a layer left over, is of the exit state.
    exit_states = state.exit_states.at[
      jnp.arange(batch_size), jnp.where(alive, positions, length)
    ].set(hidden[:, 0], mode='drop')
    filled = state.filled[:, layer]

    def lacks(carry, count):
      first, _ = carry
      return (active & (first + count <= positions + 1)).any()

    def fill_block(carry, size):
      """Fills positions first, first + 1, ..., as many as `size`."""
      first, cache = carry
      # A block that would end behind T begins earlier, and writes less.
      start = jnp.minimum(first, length - size)
      block = start[:, None] + jnp.arange(size)
      where = (block >= first[:, None]) & (block <= positions[:, None])
      cache = bound.fill_layer(
        layer,
        companions.cut(exit_states, start, size),
        block,
        cache,
        where & active[:, None],
      )
      return first + size, cache

    # Loops change the cache in place, and cost next to nothing where they need
    # not run; branches may copy it. At batch 1 one position alone, the usual
    # case in deep decodes, is a matrix-vector product, cheaper than a block.
    carry = filled, cache
    for size, least in ((min(self.block_size, length), 2), (1, 1)):
      carry = lax.while_loop(
        functools.partial(lacks, count=least),
        functools.partial(fill_block, size=size),
        carry,
      )
    _, cache = carry
    work = FillWork(jnp.where(active, positions + 1 - filled, 0))
    filled = state.filled.at[:, layer].set(
      jnp.where(active, positions + 1, filled)
    )
    state = PendingStates(exit_states=exit_states, filled=filled)
    return state, cache, work
