"""The policy side: what slots share, and three of the seven.

A policy decides, the loops in `calm_jax.decoding` obey. `cache_fill_slot` and
`readout_slot` hold two more, `source_plan_slot` and `encoder_exit_slot` those
that are asked once per request.
"""

from typing import Any, Protocol, Self, runtime_checkable

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.interfaces.slot_views import (
  LayerView,
  LayerWork,
  PlanView,
  Segment,
)


class PolicySlot(Protocol):
  """What the slots share that have a state."""

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


class FeedForwardTwins(Protocol):
  """Feed-forward blocks that a layer plan brings, one beside each layer's."""

  @property
  def products(self) -> int:
    """Products with D weights that a state takes, for the ledger."""
    ...

  def __call__(self, hidden: Array, layer: Array | int) -> Array:
    """Returns states [..., D] after the twin of a layer, residual included."""
    ...


@runtime_checkable
class LayerPlan(PolicySlot, Protocol):
  """Decides, before a layer, which of its sub-layers run for which rows.

  The order inside a layer is `before`, fill, run, exit rule, `after`.
  """

  @property
  def same_everywhere(self) -> bool:
    """Whether all positions run the same layers, whole ones; static."""
    ...

  @property
  def every_layer(self) -> bool:
    """Whether every layer's attention runs at every position; static."""
    ...

  @property
  def may_skip_for_all(self) -> bool:
    """Whether a layer in the program may run for no row at all; static.

    Where not, no branch is put around what a plan leaves out for some rows.
    """
    ...

  @property
  def twins(self) -> FeedForwardTwins | None:
    """What `LayerWork.feed_forward` of 2 runs; None if it never says that."""
    ...

  @property
  def prunes_context(self) -> bool:
    """Whether it says where in the cache K/V lie and which are read; static.

    By `LayerWork.slots` and `LayerWork.context`. `before` is then told of every
    layer of every position, as a cache fill is: of layers left over, too. What
    it returns is kept for all rows, so that it leaves the state of rows alone
    that are not `PlanView.alive`.
    """
    ...

  @property
  def products(self) -> int:
    """Products with D weights that `before` takes per row, for the ledger."""
    ...

  def room(self, max_length: int) -> int:
    """Returns the positions that caches have room for, at most T; static."""
    ...

  def segments(self, num_layers: int, max_length: int) -> tuple[Segment, ...]:
    """Returns which layers are in the program at positions up to T.

    One segment or more, ends ascending, the last at T or behind. Layers of a
    segment hold those of later ones, so that rows that are further on are
    served by the segment of those that are behind.
    """
    ...

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Returns the new state and what is asked of the layer."""
    ...

  def after(self, state: PyTree, view: PlanView, work: LayerWork) -> PyTree:
    """Returns the state after the layer has run as `before` asked.

    Called only if `before` has asked for anything but all of the layer.
    """
    ...


class PlansAhead:
  """What a layer plan inherits that knows beforehand, and may use any layer."""

  same_everywhere = False
  every_layer = True
  may_skip_for_all = True
  twins: Any = None
  prunes_context = False

  @property
  def products(self) -> int:
    """Returns 0: it knows without looking."""
    return 0

  def room(self, max_length: int) -> int:
    """Returns T: every position has a place of its own."""
    return max_length

  def segments(self, num_layers: int, max_length: int) -> tuple[Segment, ...]:
    """Returns one segment of all layers."""
    return (Segment(max_length, tuple(range(num_layers))),)

  def after(self, state: PyTree, view: PlanView, work: LayerWork) -> PyTree:
    """Returns the state as it is."""
    del view, work
    return state


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
