"""How full the caches of a pruned context were, for who chooses their room."""

from typing import NamedTuple

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.decoding.pruned_context import HeldContext
from calm_jax.decoding.states import DecodeState


class ContextUse(NamedTuple):
  """How full the places of every layer were.

  Attributes:
    most: int32 [R, L], how many positions a row held at once, at most.
    overflow: int32 [R, L], positions that no token had dropped and that were
      evicted for want of room.
  """

  most: Array
  overflow: Array


def context_use(state: DecodeState) -> ContextUse:
  """Returns how full the places of a decode under `PrunedContext` were so far.

  Args:
    state: of `decoding.advance`.

  Raises:
    ValueError: for a decode with another layer plan.
  """
  held = state.carry.policy.layer_plan
  if not isinstance(held, HeldContext):
    raise ValueError(
      f'the layer plan {type(state.policy.layer_plan).__name__} prunes no '
      'context; decode with decoding.PrunedContext(gates)'
    )
  # Copies, because advancing the state would take the carry's buffers.
  return ContextUse(jnp.copy(held.most), jnp.copy(held.overflow))
