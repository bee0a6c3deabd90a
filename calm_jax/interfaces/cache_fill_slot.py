"""The slot `cache_fill`: what keys and values are made from."""

from typing import Protocol

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.bound_decoder import BoundDecoder
from calm_jax.interfaces.ledger import FillWork
from calm_jax.interfaces.policy_slots import PolicySlot
from calm_jax.interfaces.slot_views import Companions


class NoCompanions:
  """What a cache fill inherits by which positions run layers once, or never."""

  @property
  def fills_left_over(self) -> bool:
    """Returns True: K/V of layers that no row runs are made, too."""
    return True

  def lacking(self, state: PyTree, positions: Array) -> Array | None:
    """Returns None: no position ever runs a layer later."""
    del state, positions

  def companions(self, state: PyTree, positions: Array) -> Companions | None:
    """Returns None: nothing runs beside the present position."""
    del state, positions

  def take_back(
    self, state: PyTree, companions: Companions, positions: Array
  ) -> PyTree:
    """Returns the state as it is."""
    del companions, positions
    return state

  def finish(
    self, state: PyTree, hidden: Array, positions: Array, alive: Array
  ) -> PyTree:
    """Returns the state as it is."""
    del hidden, positions, alive
    return state


class CacheFill(PolicySlot, Protocol):
  """Decides what the K/V of every layer are made from.

  Called for each layer before it runs and, once the last row has stopped, for
  each layer left over, so that it sees all L layers of every position. A layer
  left over has no active row. K/V of rows that are not active are not read now,
  but by later positions that run the layer.

  A fill may also have earlier positions run the layer beside the present one:
  `companions` hands them out after `step`, the layer runs them in the same pass
  over its weights, and `take_back` is given them afterwards. `finish` ends a
  token. Others inherit `NoCompanions`.
  """

  @property
  def fills_left_over(self) -> bool:
    """Whether layers left over are filled at all; static.

    Where not, `step` is called for layers that some row runs, and it may be
    for others, too, where it must change nothing.
    """
    ...

  def lacking(self, state: PyTree, positions: Array) -> Array | None:
    """Returns how many positions before `positions` [B] lack each layer.

    int32 [B, L], before a token; None if none ever run one later.
    """
    ...

  def companions(self, state: PyTree, positions: Array) -> Companions | None:
    """Returns who runs the layer beside `positions` [B]; always None if never.

    Before the first `step` of a token there are none.
    """
    ...

  def take_back(
    self, state: PyTree, companions: Companions, positions: Array
  ) -> PyTree:
    """Returns the state with what the layer made of the companions in it.

    There are no companions any more then.
    """
    ...

  def finish(
    self, state: PyTree, hidden: Array, positions: Array, alive: Array
  ) -> PyTree:
    """Returns the state after the last layer of a token.

    Args:
      state: the slot's state; companions have been taken back.
      hidden: [B, 1, D], the states in which rows left.
      positions: int32 [B].
      alive: bool [B], see `step`.
    """
    ...

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
    """Returns the new state, the cache, and what was done.

    Args:
      state: the slot's state.
      bound: the decoder with its parameters.
      layer: the layer about to run, or left over.
      hidden: [B, 1, D], the state entering it; for rows that have stopped,
        their exit state.
      positions: int32 [B].
      cache: the decoder's cache.
      active: bool [B], rows that still compute.
      alive: bool [B], rows whose sequence has not ended; of others neither
        the cache nor the state must be written.
    """
    ...
