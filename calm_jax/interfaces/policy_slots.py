"""The policy side: the five slots, and what they see and say.

A policy decides, the loops in `calm_jax.decoding` obey.
"""

from typing import Protocol, Self, runtime_checkable

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.bound_decoder import BoundDecoder
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.interfaces.ledger import FillWork
from calm_jax.interfaces.slot_views import (
  Companions,
  LayerView,
  LayerWork,
  Reading,
)


class PolicySlot(Protocol):
  """What the five slots share."""

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself with float32 leaves; raises ValueError on bad numbers.

    Called on the host at the entry of decoding. Numbers that are being traced
    cannot be looked at and pass unchecked.
    """
    ...

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the slot's state; per-row numbers are copied into it."""
    ...


class StatelessSlot:
  """What a slot with nothing to check and no state inherits."""

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns no state."""
    del decoder, batch_size, max_length


class LayerPlan(PolicySlot, Protocol):
  """Decides, before a layer, which of its sub-layers run for which rows."""

  def step(
    self, state: PyTree, layer: Array | int, positions: Array
  ) -> tuple[PyTree, LayerWork]:
    """Returns the new state and the work of `layer` at `positions` [B]."""
    ...


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


class ReadsAll(StatelessSlot):
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


@runtime_checkable
class ExitRule(PolicySlot, Protocol):
  """Decides, after a layer, which rows stop."""

  @property
  def needs_logits(self) -> bool:
    """Whether `step` reads `view.logits`; static: the matmul is left out."""
    ...

  def looks(self, layer: Array | int) -> Array | bool:
    """Whether the rule looks at this layer at all (a scalar).

    A Python bool for a Python int, the same for every token.
    """
    ...

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Returns state, stop bool [B] and confidence float32 [B] in [0, 1] or NaN.

    Called only where `looks(layer)`. The loop ends every row at layer L-1
    whatever this says, and ignores rows that are not active.
    """
    ...


class Verification(PolicySlot, Protocol):
  """Decides when drafted tokens are checked at full depth.

  A verification that says so at all makes outputs the full model's.
  """

  @property
  def drafts_ahead(self) -> bool:
    """Whether it drafts with a head of its own, and no token exits; static."""
    ...

  @property
  def tokens(self) -> int:
    """The most drafts between two checks; 0 if none are checked. Static."""
    ...

  def due(self, state: PyTree, drafts: Array, confidences: Array) -> Array:
    """Returns the rows whose drafts are to be checked, bool [B].

    Args:
      state: the slot's state.
      drafts: int32 [B], how many there are since the last check.
      confidences: float32 [B], of the last one; NaN if nothing looked.
    """
    ...

  def observe(
    self, state: PyTree, checked: Array, accepted: Array, rejected: Array
  ) -> PyTree:
    """Returns the state after checks of rows.

    Args:
      state: the slot's state.
      checked: bool [B], rows that had drafts checked; of others nothing is to
        be learnt.
      accepted: int32 [B], drafts that the full model agreed with.
      rejected: bool [B], whether it said another token than one of them.
    """
    ...
