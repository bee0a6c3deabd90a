"""The policy side: what the five slots share, and three of them.

A policy decides, the loops in `calm_jax.decoding` obey. `cache_fill_slot` and
`readout_slot` hold the other two.
"""

from typing import Any, Protocol, Self, runtime_checkable

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.interfaces.slot_views import LayerView, LayerWork


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


class SourceRule(ExitRule, Protocol):
  """An exit rule that sees the encoded source once, before the first token.

  Other rules have neither of these, and sources are not pooled for them. A rule
  around another one hands both on. In `check` such a rule refuses a decoder
  without `pool_source`.
  """

  @property
  def reads_source(self) -> bool:
    """Whether `see_source` is called; static."""
    ...

  def see_source(self, state: PyTree, pooled: Array, lengths: Array) -> PyTree:
    """Returns the state of rows that have seen their sources.

    Args:
      state: of `init`, with a row per request.
      pooled: float32 [B, D], of `LayeredDecoder.pool_source`.
      lengths: int32 [B], tokens of the sources.
    """
    ...


def reads_source(rule: Any) -> bool:
  """Whether an exit rule wants to see the encoded source, static."""
  return getattr(rule, 'reads_source', False)


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
