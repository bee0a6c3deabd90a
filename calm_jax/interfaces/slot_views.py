"""What the slots of a policy see and say."""

import dataclasses
from typing import NamedTuple

import jax

from calm_jax.array_types import Array, PyTree
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class LayerView:
  """What an exit rule may look at after a layer has run.

  Attributes:
    layer: int32 scalar (or Python int), the layer that has just run, 0..L-1.
    positions: int32 [B], the target position each row is decoding.
    hidden: [B, D], the residual stream after the layer, before the final norm.
      Rows that stopped earlier keep the state of their exit layer.
    previous_hidden: [B, D], the residual stream that entered the layer.
    logits: float32 [B, C] for the state after this layer, or None if the rule
      does not ask for logits.
    token_ids: int32 [B, C], the vocabulary ids of the C candidates, or None
      when C is the whole vocabulary in order.
    log_total: float32 [B], see `Reading`, or None.
    active: bool [B], the rows that had not stopped before this layer.
    lacking: int32 [B, L], earlier positions that would run a layer, too, if the
      row did; None if none ever do.
  """

  layer: Array | int
  positions: Array
  hidden: Array
  previous_hidden: Array
  logits: Array | None
  token_ids: Array | None
  log_total: Array | None
  active: Array
  lacking: Array | None = None


class Reading(NamedTuple):
  """What a readout says of states [B, D].

  Attributes:
    logits: float32 [B, C], C the same at all checks.
    token_ids: int32 [B, C], the ids of the candidates, or None when C is the
      vocabulary in order.
    log_total: float32 [B], the logarithm of the sum of exp(logit) that
      probabilities are shares of, where that is more than the candidates (which
      then must hold the two best tokens); None where it is these.
  """

  logits: Array
  token_ids: Array | None = None
  log_total: Array | None = None


class LayerWork(NamedTuple):
  """What a layer plan asks of one layer; None means all rows.

  A row of which neither sub-layer runs keeps its state, and the exit rule does
  not look at it there, unless the layer is the last one.

  Attributes:
    attention: bool [B] or None, rows whose attention sub-layers run.
    feed_forward: int32 [B] or None, which FFN runs: 0 none, 1 the layer's own,
      2 the plan's twin of it (`LayerPlan.twins`). A Python number is for all
      rows, and leaves the others out of the program; bool [B] says none or own.
    fill: bool [B] or None, rows whose K/V of the layer are made. A plan by
      which no later position reads those of others leaves them out.
    context: passed to `attend` as it is, such as `CachedPositions`, or None;
      every leaf leads with B.
    slots: int32 [B] or None, where in the layer's cache the K/V of the present
      positions are written; at the positions themselves if None.
  """

  attention: Array | None = None
  feed_forward: Array | int | None = None
  fill: Array | None = None
  context: PyTree = None
  slots: Array | None = None

  @property
  def ran(self) -> Array | None:
    """Rows of which some sub-layer runs, bool [B]; None for all."""
    if self.attention is None or self.feed_forward is None:
      return None
    return self.attention | (self.feed_forward > 0)

  def of_rows(self, rows: Array) -> 'LayerWork':
    """Returns what is asked of some rows, int32 [R]."""
    return jax.tree.map(
      lambda leaf: leaf if isinstance(leaf, int) else leaf[rows], self
    )


@register_pytree
@dataclasses.dataclass(frozen=True)
class CachedPositions:
  """Which positions lie in a layer's cache, and where: a context of `attend`.

  Attributes:
    positions: int32 [B, C], the position whose K/V lie in each of the C places
      of a cache; negative where there is none that is read. Or [B, P, C], where
      the P queries do not read the same places.
  """

  positions: Array


class Segment(NamedTuple):
  """Positions that run the same layers.

  Attributes:
    end: the first position behind it, 1..T.
    layers: the layers that run there, ascending; no others are in the program.
  """

  end: int
  layers: tuple[int, ...]


@register_pytree
@dataclasses.dataclass(frozen=True)
class PlanView:
  """What a layer plan sees of a layer: before it runs, and again afterwards.

  Attributes:
    layer: int32 scalar (or Python int), 0..L-1.
    positions: int32 [B], the target position each row is decoding.
    hidden: [B, D], the residual stream that enters the layer.
    active: bool [B], the rows that have not stopped before it.
    alive: bool [B], the rows whose sequence has not ended.
    attended: [B, D], the residual stream that enters the FFN; None before.
    left: [B, D], the residual stream that leaves the FFN; None before.
  """

  layer: Array | int
  positions: Array
  hidden: Array
  active: Array
  alive: Array
  attended: Array | None = None
  left: Array | None = None


@register_pytree
@dataclasses.dataclass(frozen=True)
class Companions:
  """Earlier positions that run a layer in the same pass as the present one.

  They are the positions right before it, and lie with it in a window of W
  consecutive positions of each row.

  Attributes:
    hidden: [B, W, D], the states of the window: entering the layer before it
      runs, leaving it afterwards. Those of other positions mean nothing.
    first: int32 [B], the position that the window begins at.
    counts: int32 [B], how many companions the present position has, 0..W-1.
    block_sizes: ascending numbers of companions, W-1 the last, that programs
      are made for; the smallest that holds all of them runs.
  """

  hidden: Array
  first: Array
  counts: Array
  block_sizes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
