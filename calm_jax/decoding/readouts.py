"""Readouts: over which candidates logits are computed.

The `readout` slot of a policy, called once per token or, where the exit rule
looks at logits, once per check.
"""

import dataclasses

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import BoundDecoder, Reading, ReadsAll
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class FullVocabulary(ReadsAll):
  """Reads every state out over the whole vocabulary. The null object."""

  reads_exit_states = False
  needs_whole_matrix = False
  chooses_from_all = True

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> int:
    """Returns V."""
    del layer, first
    return vocab_size

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    hidden: Array,
    layer: Array | int,
    first: Array | bool,
    active: Array,
  ) -> tuple[PyTree, Reading]:
    """Returns state, and logits float32 [B, V] of `hidden` [B, D]."""
    del layer, first, active
    return state, Reading(bound.logits(hidden))
