"""The model side, before the decoder: an encoder taken apart.

What `calm_jax.encoding` runs layer by layer, so that rows may leave early.
"""

import dataclasses
from typing import Any, Protocol

from calm_jax.array_types import Array, PyTree


class PrepareEncoderFunction(Protocol):
  """Lays an encoder's parameters out, once, outside jit or inside.

  Layers are stacked on a leading L axis where they are indexed by a traced
  `layer` (`traced_layers`), otherwise there is one tree per layer. Idempotent;
  its result has the attribute `traced_layers`, and is what all other functions
  take as `params`. It also takes what `LayeredDecoder.prepare` made of the same
  parameters.
  """

  def __call__(self, params: PyTree, /, traced_layers: bool = False) -> PyTree:
    """Returns the parameters as the other functions take them."""
    ...


class EmbedSourceFunction(Protocol):
  """Embeds inputs int32 [B, S], 0 where there is padding."""

  def __call__(self, params: PyTree, inputs: Array, /) -> tuple[Array, Array]:
    """Returns what enters the first layer, [B, S, D], and bool [B, S].

    The mask is True where the source is not padding.
    """
    ...


class SharedFunction(Protocol):
  """Computes what all layers and rows share, once per batch."""

  def __call__(self, params: PyTree, source_length: int, /) -> PyTree:
    """Returns it for sources of S positions; None if there is nothing."""
    ...


class EncoderLayerFunction(Protocol):
  """Runs a layer on whole sources; a row knows of no other, nor of padding."""

  def __call__(
    self,
    params: PyTree,
    layer: Array | int,
    hidden: Array,
    mask: Array,
    shared: PyTree,
    /,
  ) -> Array:
    """Returns the states after it, [B, S, D].

    Args:
      params: as `prepare` laid them out.
      layer: 0..L-1, traced only if layers are stacked.
      hidden: [B, S, D], the residual stream that enters it.
      mask: bool [B, S], of `embed`.
      shared: of `shared`, the same for any number of rows.
    """
    ...


class FinishFunction(Protocol):
  """Makes of the states after any layer what the decoder reads."""

  def __call__(self, params: PyTree, hidden: Array, mask: Array, /) -> PyTree:
    """Returns sources as `LayeredDecoder.encode` does; every leaf leads with B.

    Of the states [B, S, D] after the last layer they are the very same. For a
    T5 that is the final norm, whatever the layer.
    """
    ...


class PoolFunction(Protocol):
  """Sums encoded sources up, as `LayeredDecoder.pool_source` does."""

  def __call__(self, encoded: PyTree, /) -> tuple[Array, Array]:
    """Returns the mean state float32 [B, D] and the length int32 [B].

    Over the tokens of each source that are not padding.
    """
    ...


@dataclasses.dataclass(frozen=True)
class LayeredEncoder:
  """An encoder taken apart into pure functions, hashable and comparable.

  Attributes:
    num_layers: L, the number of encoder layers.
    embed_dim: D, the width of the residual stream.
    vocab_size: V, input tokens are below it.
    dtype: the dtype of `hidden` (activations).
    prepare: lays parameters out.
    embed: inputs to states.
    shared: what layers share, such as biases of positions.
    layer: one layer.
    finish: states to what the decoder reads.
    pool: encoded sources to one state each.
  """

  num_layers: int
  embed_dim: int
  vocab_size: int
  dtype: Any
  prepare: PrepareEncoderFunction
  embed: EmbedSourceFunction
  shared: SharedFunction
  layer: EncoderLayerFunction
  finish: FinishFunction
  pool: PoolFunction

  def pooled(self, params: PyTree, hidden: Array, mask: Array) -> Array:
    """Returns the mean of what the decoder would read, float32 [B, D].

    Args:
      params: as `prepare` laid them out.
      hidden: [B, S, D], the residual stream after any layer.
      mask: bool [B, S].
    """
    return self.pool(self.finish(params, hidden, mask))[0]
