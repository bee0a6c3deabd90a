"""The model side: a decoder taken apart into pure functions.

Each function has a protocol that says what it is given, what it returns and
what it must not do; `check_decoder` tries all of that.
"""

import dataclasses
from typing import Any, Protocol

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_encoder import LayeredEncoder


class PrepareFunction(Protocol):
  """Lays parameters out for decoding, once, outside jit.

  Layers are stacked on a leading L axis where a depth loop indexes them by a
  traced `layer` (`traced_layers`); otherwise there is one tree per layer.
  Idempotent. All other functions take its result as `params`; if that has an
  attribute `traced_layers`, `decoding.bind` picks a depth loop to suit.
  """

  def __call__(self, params: PyTree, /, traced_layers: bool = True) -> PyTree:
    """Returns the parameters as the other functions take them."""
    ...


class EncodeFunction(Protocol):
  """Runs the encoder on inputs int32 [B, S], 0 where there is padding."""

  def __call__(self, params: PyTree, inputs: Array, /) -> PyTree:
    """Returns the encoded sources; every leaf leads with B."""
    ...


class StartFunction(Protocol):
  """Projects cross-attention K/V of every layer; empties the rest."""

  def __call__(
    self, params: PyTree, encoded: PyTree, max_length: int, /
  ) -> PyTree:
    """Returns the cache, with room for T positions; every leaf leads with B."""
    ...


class StartLayersFunction(Protocol):
  """As `StartFunction`, for a decode in which only some layers ever run."""

  def __call__(
    self,
    params: PyTree,
    encoded: PyTree,
    max_length: int,
    layers: tuple[int, ...],
    /,
  ) -> PyTree:
    """Returns the cache; of other layers than `layers` nothing is read."""
    ...


class EmbedFunction(Protocol):
  """Embeds tokens int32 [B, P] at their positions."""

  def __call__(
    self, params: PyTree, tokens: Array, positions: Array, /
  ) -> Array:
    """Returns what enters the first layer, [B, P, D]."""
    ...


class FillLayerFunction(Protocol):
  """Projects the K/V of a layer from the state that ENTERS it, and writes them.

  They are written at `positions`, for the rows or positions where `where`, bool
  [B] or [B, P], holds (all if None); nothing else changes. Idempotent.
  """

  def __call__(
    self,
    params: PyTree,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    where: Array | None = None,
    /,
  ) -> PyTree:
    """Returns the cache with the K/V of states [B, P, D] in it."""
    ...


class AttendFunction(Protocol):
  """Self- and cross-attention sub-layers with their residuals.

  The cache holds these positions already; later ones must not be read.
  `context` is what a layer plan hands over, None for plain attention. Where the
  decoder says `accepts_context` it may be `CachedPositions`: K/V then lie in
  other places of the cache than their positions.
  """

  def __call__(
    self,
    params: PyTree,
    layer: Array | int,
    hidden: Array,
    positions: Array,
    cache: PyTree,
    context: PyTree = None,
    /,
  ) -> Array:
    """Returns the states after them, [B, P, D]."""
    ...


class FeedForwardFunction(Protocol):
  """The FFN sub-layer with its residual, every position by itself."""

  def __call__(
    self, params: PyTree, layer: Array | int, hidden: Array, /
  ) -> Array:
    """Returns the states after it, [B, P, D]."""
    ...


class LogitsFunction(Protocol):
  """Final norm and shared output projection, of states [..., D].

  With `weights` [B, C, D] from `output_rows` and hidden [B, D], over those rows
  only: [B, C]; likewise with `weights` [C, D] from `output_block`. Where the
  decoder has `quantise`, these may be an `Int8Matrix` [C, D].
  """

  def __call__(
    self, params: PyTree, hidden: Array, weights: PyTree = None, /
  ) -> Array:
    """Returns logits float32, [..., V] without weights."""
    ...


class OutputRowsFunction(Protocol):
  """Gathers rows of the output matrix by token, for `logits`."""

  def __call__(self, params: PyTree, token_ids: Array, /) -> Array:
    """Returns the rows of tokens int32 [B, C], [B, C, D] in `dtype`."""
    ...


class OutputBlockFunction(Protocol):
  """Cuts neighbouring rows out of the output matrix, for `logits`."""

  def __call__(
    self, params: PyTree, first: Array | int, count: int, /
  ) -> Array:
    """Returns the rows of `count` tokens from `first` on, [count, D]."""
    ...


class TakeRowsFunction(Protocol):
  """Reorders or selects rows of a cache."""

  def __call__(self, cache: PyTree, rows: Array, /) -> PyTree:
    """Returns the cache of rows int32 [R]; every leaf leads with R."""
    ...


class PoolSourceFunction(Protocol):
  """Sums a source up, for exit rules that see it once per request.

  What it returns depends on no padding and on no other row.
  """

  def __call__(self, encoded: PyTree, /) -> tuple[Array, Array]:
    """Returns the mean state float32 [B, D] and the length int32 [B].

    Both over the tokens of each source that are not padding; 0 where there is
    none.
    """
    ...


class SourceStatesFunction(Protocol):
  """Shows the states of a source, for plans that choose among its positions."""

  def __call__(self, encoded: PyTree, /) -> tuple[Array, Array]:
    """Returns the states [B, S, D] and bool [B, S], False at padding."""
    ...


class SelectSourceFunction(Protocol):
  """Keeps some positions of encoded sources, of which a cache is then made.

  A position whose `valid` is False is not read, nor is padding that is kept.
  Only for decoders that read a source alike wherever its states lie: keys of
  cross-attention that know their place must have it from the states.
  """

  def __call__(
    self, encoded: PyTree, indices: Array, valid: Array, /
  ) -> PyTree:
    """Returns sources of C positions: int32 [B, C], all different by row.

    Args:
      encoded: of `EncodeFunction`.
      indices: int32 [B, C].
      valid: bool [B, C].
    """
    ...


class QuantiseFunction(Protocol):
  """Brings matrices to fewer bits, before `prepare` lays them out.

  All other functions take what comes of it as they take float parameters.
  """

  def __call__(self, params: PyTree, weights: Any, /) -> PyTree:
    """Returns the parameters, as `quantisation.Int8Weights` says."""
    ...


@dataclasses.dataclass(frozen=True)
class LayeredDecoder:
  """A decoder taken apart into pure functions, hashable and comparable.

  What each function does stands at its protocol.

  Attributes:
    num_layers: L, the number of decoder layers.
    embed_dim: D, the width of the residual stream.
    vocab_size: V, the number of output rows.
    dtype: the dtype of `hidden` (activations).
    prepare: lays parameters out for decoding.
    encode: runs the encoder.
    start: makes the cache of encoded sources.
    embed: tokens to states.
    fill_layer: writes the K/V of a layer.
    attend: attention of a layer.
    feed_forward: the FFN of a layer.
    logits: states to logits.
    output_rows: rows of the output matrix by token.
    take_rows: rows of a cache.
    output_block: neighbouring rows of the output matrix. None if the decoder
      has no such thing; readouts that need it then refuse it.
    start_layers: makes the cache where only some layers ever run. None if the
      decoder makes all of it then, too.
    start_few: makes the cache of a decode of few positions, a handful, where
      making all K/V of the source may be more work than reading it without. As
      `start`, but for rounding; None if the decoder knows nothing better.
    quantise: brings matrices to 8 bits. None if the decoder cannot;
      `decoding.bind(..., weights='int8')` then refuses it.
    pool_source: sums encoded sources up. None if the decoder has no such thing;
      exit rules that read the source then refuse it.
    source_states: the states of encoded sources. None if the decoder has no
      such thing; source plans that look at them then refuse it.
    select_source: keeps some positions of encoded sources. None if the decoder
      cannot; source plans that prune then refuse it.
    encoder: the encoder layer by layer, whose `prepare` takes what `prepare`
      returns, and which says what `encode` says. None if it is not taken apart;
      what stops encoders early then refuses the decoder.
    accepts_context: whether `attend` takes `CachedPositions`, and `fill_layer`
      places of the cache for positions. Plans that prune the decoder's own past
      refuse a decoder that does not say so.
  """

  num_layers: int
  embed_dim: int
  vocab_size: int
  dtype: Any
  prepare: PrepareFunction
  encode: EncodeFunction
  start: StartFunction
  embed: EmbedFunction
  fill_layer: FillLayerFunction
  attend: AttendFunction
  feed_forward: FeedForwardFunction
  logits: LogitsFunction
  output_rows: OutputRowsFunction
  take_rows: TakeRowsFunction
  output_block: OutputBlockFunction | None = None
  quantise: QuantiseFunction | None = None
  start_layers: StartLayersFunction | None = None
  start_few: StartFunction | None = None
  pool_source: PoolSourceFunction | None = None
  source_states: SourceStatesFunction | None = None
  select_source: SelectSourceFunction | None = None
  encoder: LayeredEncoder | None = None
  accepts_context: bool = False
