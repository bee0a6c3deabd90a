"""Exact K/V under early exits: positions that left early catch up.

CALM projects the K/V of layers that a token did not run from the state in which
it left, and that approximation is most of what early exits lose at careful
thresholds. Here nothing is projected for layers that were not run. A position
that left early keeps its state, and the first later token of its row that goes
deeper takes it along: both run the layer in the same pass over its weights. So
when a row has run a layer, all its positions so far have, and the K/V that are
read are those of the full model, teacher forced with the same tokens.

FREE (arXiv 2310.05424) does so for two exits; this does it for any exit rule,
row by row. The arithmetic of a token is only put off until a deeper one needs
it, or spared if none does. Where reading weights is the cost, at small batches,
companions ride along for little.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import companions as company
from calm_jax.interfaces import (
  BoundDecoder,
  Companions,
  FillWork,
  LayeredDecoder,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class ReachedStates:
  """How far each position has come.

  Attributes:
    hidden: [B, T, D], the state of each position after the layers it has run,
      all L of them for one that is ready to be checked.
    ran: int32 [B, L], 0..T, how many positions have run a layer and have K/V in
      it. They are the row's first ones: a row that runs a layer takes along all
      that have not.
    counts: int32 [B], companions of the present position in the present layer.
  """

  hidden: Array
  ran: Array
  counts: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class CatchUp:
  """Runs a layer for all earlier positions that lack it, beside the present.

  The K/V that are read equal the full model's, for any exit rule and any depth
  loop; an output is the full model's for as long as each of its tokens is.

  Attributes:
    block_sizes: how many companions programs are made for, ascending, each at
      least 1; the smallest that holds those of all rows runs. Where there are
      more than the last, blocks of that size run before, in passes over the
      weights of their own.
  """

  block_sizes: tuple[int, ...] = dataclasses.field(
    default=(4, 16), metadata=dict(static=True)
  )

  fills_left_over: ClassVar[bool] = False

  def __post_init__(self):
    """Makes a tuple of a list, as which JSON writes it down."""
    if isinstance(self.block_sizes, list):
      object.__setattr__(self, 'block_sizes', tuple(self.block_sizes))

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError for block sizes that are none."""
    del decoder, batch_size, max_length
    sizes = self.block_sizes
    if not isinstance(sizes, tuple) or not sizes:
      raise ValueError(
        f'block_sizes is {sizes!r}; give one or more, such as (4, 16)'
      )
    for size in sizes:
      checks.check_whole(size, 'a block size of CatchUp', low=1)
    if sorted(set(sizes)) != list(sizes):
      raise ValueError(
        f'block_sizes is {sizes}; give them ascending, such as (4, 16)'
      )
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> ReachedStates:
    """Returns no states, and no layer run."""
    shape = (batch_size, max_length, decoder.embed_dim)
    return ReachedStates(
      hidden=jnp.zeros(shape, decoder.dtype),
      ran=jnp.zeros((batch_size, decoder.num_layers), jnp.int32),
      counts=jnp.zeros((batch_size,), jnp.int32),
    )

  def lacking(self, state: ReachedStates, positions: Array) -> Array:
    """Returns how many positions before `positions` lack each layer, [B, L]."""
    return jnp.maximum(positions[:, None] - state.ran, 0)

  def companions(self, state: ReachedStates, positions: Array) -> Companions:
    """Returns the companions of `positions` [B], and the window around."""
    sizes = self._sizes(state)
    width = 1 + max(sizes, default=0)
    first = company.window_start(positions, width)
    return Companions(
      hidden=company.cut(state.hidden, first, width),
      first=first,
      counts=state.counts,
      block_sizes=sizes,
    )

  def take_back(
    self, state: ReachedStates, companions: Companions, positions: Array
  ) -> ReachedStates:
    """Returns the state with what a layer made of the companions in it."""
    first, hidden = companions.first, companions.hidden
    block = first[:, None] + jnp.arange(hidden.shape[1])
    where = company.are_companions(block, positions, companions.counts)
    return dataclasses.replace(
      state,
      hidden=company.put(state.hidden, first, hidden, where),
      counts=jnp.zeros_like(state.counts),
    )

  def finish(
    self, state: ReachedStates, hidden: Array, positions: Array, alive: Array
  ) -> ReachedStates:
    """Returns the state with the exit states [B, 1, D] of a token in it."""
    kept = company.put(state.hidden, positions, hidden, alive[:, None])
    return dataclasses.replace(state, hidden=kept)

  def keep_first(
    self, state: ReachedStates, lengths: Array, where: Array
  ) -> ReachedStates:
    """Returns the state of rows that go back to their first positions.

    Args:
      state: the state.
      lengths: int32 [B], how many they keep.
      where: bool [B], the rows that go back.
    """
    kept = jnp.minimum(state.ran, lengths[:, None])
    ran = jnp.where(where[:, None], kept, state.ran)
    return dataclasses.replace(state, ran=ran)

  def step(
    self,
    state: ReachedStates,
    bound: BoundDecoder,
    *,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    active: Array,
    alive: Array,
  ) -> tuple[ReachedStates, PyTree, FillWork]:
    """Returns the state, the cache filled where active rows read, the work."""
    del alive
    sizes = self._sizes(state)
    ran, states = state.ran[:, layer], state.hidden
    lacking = jnp.where(active, positions - ran, 0)
    if sizes:
      ran, states, cache = _catch_up_before(
        bound, layer, max(sizes), positions, active, (ran, states, cache)
      )
    counts = jnp.where(active, positions - ran, 0)
    program = company.rung(counts, sizes)

    def fill(carry, width):
      _, cache = carry
      start = company.window_start(positions, width)
      block = start[:, None] + jnp.arange(width)
      window = company.with_present(
        company.cut(states, start, width), positions - start, hidden
      )
      here = block == positions[:, None]
      here |= company.are_companions(block, positions, counts)
      here &= active[:, None]
      cache = bound.fill_layer(layer, window, block, cache, here)
      return jnp.zeros((), bool), cache

    # Loops of one turn or none: branches would copy the cache.
    for number, size in enumerate((0, *sizes)):
      runs = active.any() & (program == number)
      _, cache = lax.while_loop(
        lambda carry: carry[0],
        functools.partial(fill, width=1 + size),
        (runs, cache),
      )
    ran = state.ran.at[:, layer].set(jnp.where(active, positions + 1, ran))
    state = ReachedStates(hidden=states, ran=ran, counts=counts)
    return state, cache, FillWork(lacking + active, caught_up=lacking)

  def _sizes(self, state: ReachedStates) -> tuple[int, ...]:
    """Returns the block sizes that outputs of this length have use for."""
    longest = state.hidden.shape[1] - 1
    return tuple(sorted({min(size, longest) for size in self.block_sizes}))


def _catch_up_before(
  bound: BoundDecoder,
  layer: Array | int,
  size: int,
  positions: Array,
  active: Array,
  carry: tuple[Array, Array, PyTree],
) -> tuple[Array, Array, PyTree]:
  """Runs a layer for the first companions, until no row has more than `size`.

  Args:
    bound: the decoder with its parameters.
    layer: the layer.
    size: P, positions that run together.
    positions: int32 [B], the present ones.
    active: bool [B], rows that run the layer.
    carry: positions that have run it [B], states [B, T, D], and the cache.

  Returns:
    What became of `carry`.
  """

  def too_many(carry):
    return (active & (positions - carry[0] > size)).any()

  def run_block(carry):
    ran, states, cache = carry
    start = jnp.minimum(ran, states.shape[1] - size)
    block = start[:, None] + jnp.arange(size)
    where = (block >= ran[:, None]) & (block < positions[:, None])
    where &= active[:, None]
    hidden = company.cut(states, start, size)
    cache = bound.fill_layer(layer, hidden, block, cache, where)
    hidden = bound.attend(layer, hidden, block, cache)
    hidden = bound.feed_forward(layer, hidden)
    states = company.put(states, start, hidden, where)
    return ran + where.sum(axis=1), states, cache

  return lax.while_loop(too_many, run_block, carry)
