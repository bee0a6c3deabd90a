"""The seam: what a decoder must offer and what a policy may decide.

`LayeredDecoder` is the model side, pure functions over P positions and one
layer at a time. The four protocols are the policy side: a policy decides, the
loops in `calm_jax.decoding` obey, the model knows nothing of exits. Anyone with
another JAX model supplies a `LayeredDecoder`; anyone with another
adaptive-compute method supplies one of the four slots.

Conventions. `layer` counts from 0 and is a Python int or a traced int32 scalar;
`exit_layer` is the number of layers used, 1..L. Positions are int32 [P] (shared
by the rows) or [B, P], in [0, T), the P positions of a row one after the other.
Every leaf of a cache and of a policy state leads with the batch axis, so that
loops can gather, shard and reorder rows without knowing what is inside.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax

from calm_jax.array_types import Array, PyTree
from calm_jax.pytrees import register_pytree


@dataclasses.dataclass(frozen=True)
class LayeredDecoder:
  """A decoder taken apart into pure functions, hashable and comparable.

  Attributes:
    num_layers: L, the number of decoder layers.
    embed_dim: D, the width of the residual stream.
    vocab_size: V, the number of output rows.
    dtype: the dtype of `hidden` (activations).
    prepare: `(params, traced_layers=True) -> decode_params`. Lays parameters
      out for decoding, once, outside jit: layers stacked on a leading L axis
      where a depth loop indexes them by a traced `layer` (`traced_layers`), one
      tree per layer otherwise. Idempotent. All functions below take its result
      as `params`; if that has an attribute `traced_layers`, `generate` picks a
      depth loop to suit.
    encode: `(params, inputs [B, S]) -> encoded`. Runs the encoder; 0 is
      padding. Every leaf of `encoded` leads with B.
    start: `(params, encoded, max_length) -> cache`. Cross-attention K/V of
      every layer, computed once, and an empty self-attention cache for T
      positions.
    embed: `(params, tokens [B, P], positions) -> hidden [B, P, D]`.
    fill_layer: `(params, layer, hidden [B, P, D], positions, cache, where=None)
      -> cache`. Projects the K/V of `layer` from the state that ENTERS it and
      writes them at `positions`, for the rows or positions where `where`, bool
      [B] or [B, P], holds (all if None). Idempotent.
    attend: `(params, layer, hidden, positions, cache, context=None) -> hidden`.
      Self- and cross-attention sub-layers with their residuals, reading a cache
      that already holds these positions.
    feed_forward: `(params, layer, hidden) -> hidden`. The FFN sub-layer with
      its residual.
    logits: `(params, hidden [..., D], weights=None) -> [..., V] float32`. Final
      norm and shared output projection; with `weights` [B, C, D] from
      `output_rows` and hidden [B, D], over those rows only: [B, C]; likewise
      with `weights` [C, D] from `output_block`.
    output_rows: `(params, token_ids [B, C]) -> weights [B, C, D]` in `dtype`.
    output_block: `(params, first, count) -> weights [count, D]`, the output
      rows of `count` neighbouring tokens (a Python int) from `first` on, for
      `logits` over these alone, all rows the same: [..., count]. None if the
      decoder has no such thing; readouts that need it then refuse it.
    take_rows: `(cache, rows [R]) -> cache`. Reorders or selects rows.
  """

  num_layers: int
  embed_dim: int
  vocab_size: int
  dtype: Any
  prepare: Callable[..., PyTree]
  encode: Callable[..., PyTree]
  start: Callable[..., PyTree]
  embed: Callable[..., Array]
  fill_layer: Callable[..., PyTree]
  attend: Callable[..., Array]
  feed_forward: Callable[..., Array]
  logits: Callable[..., Array]
  output_rows: Callable[..., Array]
  take_rows: Callable[..., PyTree]
  output_block: Callable[..., Array] | None = None


@register_pytree
@dataclasses.dataclass(frozen=True)
class BoundDecoder:
  """A decoder with its parameters, ready to decode: `decoding.bind` makes it.

  A pytree whose leaves are the parameters; all else is part of its structure,
  so that it can be an argument of a jitted function. Its methods are the
  decoder's functions with the parameters filled in.

  Attributes:
    params: the decoder's parameters, prepared for the depth loop.
    decoder: the decoder.
    depth_loop: how layers are looped over.
    mesh: the mesh that rows are shared out over, if any.
  """

  params: PyTree
  decoder: LayeredDecoder = dataclasses.field(metadata=dict(static=True))
  depth_loop: 'DepthLoop' = dataclasses.field(metadata=dict(static=True))
  mesh: jax.sharding.Mesh | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )

  @property
  def num_layers(self) -> int:
    """L."""
    return self.decoder.num_layers

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.decoder.vocab_size

  def encode(self, inputs: Array) -> PyTree:
    """Returns the encoded sources [B, S]."""
    return self.decoder.encode(self.params, inputs)

  def start(self, encoded: PyTree, max_length: int) -> PyTree:
    """Returns the cache of the sources, with room for T positions."""
    return self.decoder.start(self.params, encoded, max_length)

  def embed(self, tokens: Array, positions: Array) -> Array:
    """Returns what enters the first layer, [B, P, D]."""
    return self.decoder.embed(self.params, tokens, positions)

  def fill_layer(
    self,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    where: Array | None = None,
  ) -> PyTree:
    """Returns the cache with the K/V of a layer at the positions."""
    return self.decoder.fill_layer(
      self.params, layer, hidden, positions, cache, where
    )

  def attend(
    self,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    context: PyTree = None,
  ) -> Array:
    """Returns the states [B, P, D] after a layer's attention."""
    return self.decoder.attend(
      self.params, layer, hidden, positions, cache, context
    )

  def feed_forward(self, layer: Array | int, hidden: Array) -> Array:
    """Returns the states [B, P, D] after a layer's FFN."""
    return self.decoder.feed_forward(self.params, layer, hidden)

  def logits(self, hidden: Array, weights: Array | None = None) -> Array:
    """Returns logits of states, over all tokens or those of `weights`."""
    return self.decoder.logits(self.params, hidden, weights)

  def output_rows(self, token_ids: Array) -> Array:
    """Returns the output rows of tokens [B, C], for `logits`."""
    return self.decoder.output_rows(self.params, token_ids)

  def output_block(self, first: Array | int, count: int) -> Array:
    """Returns the output rows of neighbouring tokens, for `logits`.

    Raises:
      ValueError: if the decoder has no such function.
    """
    if self.decoder.output_block is None:
      raise ValueError('this decoder has no output_block; give it one')
    return self.decoder.output_block(self.params, first, count)


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
  """

  layer: Array | int
  positions: Array
  hidden: Array
  previous_hidden: Array
  logits: Array | None
  token_ids: Array | None
  log_total: Array | None
  active: Array


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

  Attributes:
    attention: bool [B] or None, rows whose attention sub-layers run.
    feed_forward: bool [B] or None, rows whose FFN runs.
    context: passed to `attend` as it is (for context pruning), or None.
  """

  attention: Array | None = None
  feed_forward: Array | None = None
  context: PyTree = None


class PolicySlot(Protocol):
  """What the four slots share."""

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

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
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


class CacheFill(PolicySlot, Protocol):
  """Decides what the K/V of every layer are made from.

  Called for each layer before it runs and, once the last row has stopped, for
  each layer left over, so that it sees all L layers of every position. A layer
  left over has no active row. K/V of rows that are not active are not read now,
  but by later positions that run the layer.
  """

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
  ) -> tuple[PyTree, PyTree]:
    """Returns the new state and the cache.

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


class DepthLoop(Protocol):
  """Runs the layers of one position; see `calm_jax.decoding.depth_loops`.

  `traced_layers` says which parameter layout it wants from `prepare`.
  """

  traced_layers: ClassVar[bool]

  def __call__(self, layers: Any, rows: Any, memory: Any) -> tuple[Any, Any]:
    """Runs layers until every row has stopped: `Rows` and `Memory` after it."""
    ...
