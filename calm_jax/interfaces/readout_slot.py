"""The slot `readout`: over which candidates logits are computed."""

from typing import Protocol, Self

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.bound_decoder import BoundDecoder
from calm_jax.interfaces.policy_slots import PolicySlot, StatelessSlot
from calm_jax.interfaces.slot_views import Reading


class AddsNothing:
  """What a readout inherits that multiplies by the output matrix alone."""

  def extra_products(self, layer: Array | int) -> int:
    """Returns 0."""
    del layer
    return 0


class ReadsAll(AddsNothing, StatelessSlot):
  """What a readout over the whole vocabulary inherits."""

  def keep_rows(self, bound: BoundDecoder) -> Self:
    """Returns itself."""
    del bound
    return self

  def over_all(self) -> Self:
    """Returns itself."""
    return self


class Readout(PolicySlot, Protocol):
  """Decides over which candidates logits are computed.

  Called at every check of an exit rule that needs logits; after the last layer
  for one that needs none.
  """

  @property
  def reads_exit_states(self) -> bool:
    """Whether exit states are read once more after checks; static.

    The second read then chooses the tokens, and may be over other candidates.
    Otherwise the logits on which a row stopped choose its token.
    """
    ...

  @property
  def needs_whole_matrix(self) -> bool:
    """Whether rows of the output matrix are read by number; static.

    A mesh that splits the matrix over its axis 'model' cannot serve that.
    """
    ...

  @property
  def chooses_from_all(self) -> bool:
    """Whether a token after the last layer is chosen out of all of V; static.

    Where it is, a threshold of 1 is the full model.
    """
    ...

  def keep_rows(self, bound: BoundDecoder) -> 'Readout':
    """Returns itself with the rows of the output matrix that it always reads.

    Called before a loop over tokens: in it, what is cut out of the matrix is
    copied every time.
    """
    ...

  def over_all(self) -> 'Readout':
    """Returns the readout by which checked drafts are replaced: over all of V.

    Itself where it is that, and one without a state otherwise.
    """
    ...

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> Array | int:
    """Returns how many logits `step` computes for a row, for the ledger."""
    ...

  def extra_products(self, layer: Array | int) -> Array | int:
    """Returns what else it multiplies a row by, for the ledger.

    In products of a state with D weights that the decoder does not have; 0 by
    inheriting `AddsNothing`.

    Args:
      layer: as for `step`.
    """
    ...

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
    """Returns the new state and what `hidden` [B, D] reads as.

    Args:
      state: the slot's state.
      bound: the decoder with its parameters.
      hidden: [B, D], the states to read.
      layer: the layer they came out of: a scalar at a check, int32 [B] for exit
        states, after the layers.
      first: whether this is the first read of the present token; a Python bool
        where `layer` is a Python int, and for exit states.
      active: bool [B], the rows that are read. The loop does not mask what
        happens to the state of the others, as it does for the other slots.
    """
    ...
