"""A decoder with its parameters, as it travels through decoding."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.pytrees import register_pytree


class DepthLoop(Protocol):
  """Runs the layers of one position; see `calm_jax.decoding.depth_loops`.

  `traced_layers` says which parameter layout it wants from `prepare`. One that
  also has `smaller(batch_size)`, the rows of the batch that one of `batch_size`
  goes on as once no more are alive, 0 for none, has the token loop do so.
  """

  traced_layers: ClassVar[bool]

  def __call__(self, layers: Any, rows: Any, memory: Any) -> tuple[Any, Any]:
    """Runs layers until every row has stopped: `Rows` and `Memory` after it."""
    ...


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
    weights: which matrices are in 8 bits (`quantisation.Int8Weights`); None if
      all are in float.
  """

  params: PyTree
  decoder: LayeredDecoder = dataclasses.field(metadata=dict(static=True))
  depth_loop: DepthLoop = dataclasses.field(metadata=dict(static=True))
  mesh: jax.sharding.Mesh | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )
  weights: Any = dataclasses.field(default=None, metadata=dict(static=True))

  @property
  def num_layers(self) -> int:
    """L."""
    return self.decoder.num_layers

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.decoder.vocab_size

  def over_layers(
    self,
    run_layer: Callable[[PyTree, Array | int], tuple[PyTree, PyTree]],
    carry: PyTree,
  ) -> tuple[PyTree, PyTree]:
    """Runs all layers one after the other, as the parameters lie.

    Args:
      run_layer: from what is carried on and a layer to what is carried on and
        what is kept of the layer; scanned where layers are stacked.
      carry: what the first layer gets.

    Returns:
      What the last one carried on, and what was kept of all, [L, ...].
    """
    if self.depth_loop.traced_layers:
      return jax.lax.scan(run_layer, carry, jnp.arange(self.num_layers))
    kept = []
    for layer in range(self.num_layers):
      carry, of_layer = run_layer(carry, layer)
      kept.append(of_layer)
    return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *kept)

  def encode(self, inputs: Array) -> PyTree:
    """Returns the encoded sources [B, S]."""
    return self.decoder.encode(self.params, inputs)

  def start(
    self,
    encoded: PyTree,
    max_length: int,
    layers: tuple[int, ...] | None = None,
  ) -> PyTree:
    """Returns the cache of the sources, with room for T positions.

    Args:
      encoded: the encoded sources.
      max_length: T.
      layers: those that ever run; None for all.
    """
    start_layers = self.decoder.start_layers
    if start_layers is not None and layers is not None:
      if len(layers) < self.num_layers:
        return start_layers(self.params, encoded, max_length, layers)
    return self.decoder.start(self.params, encoded, max_length)

  def pool_source(self, encoded: PyTree) -> tuple[Array, Array]:
    """Returns mean states float32 [B, D] and lengths int32 [B] of sources."""
    if self.decoder.pool_source is None:
      raise ValueError(
        'this decoder has no pool_source, so no exit rule can see the source; '
        'give its LayeredDecoder one'
      )
    return self.decoder.pool_source(encoded)

  def source_states(self, encoded: PyTree) -> tuple[Array, Array]:
    """Returns the states [B, S, D] of sources and their tokens, bool [B, S]."""
    if self.decoder.source_states is None:
      raise ValueError(
        'this decoder has no source_states, so no plan can look at its '
        'sources; give its LayeredDecoder one'
      )
    return self.decoder.source_states(encoded)

  def select_source(
    self, encoded: PyTree, indices: Array, valid: Array
  ) -> PyTree:
    """Returns the encoded sources with positions [B, C] alone."""
    if self.decoder.select_source is None:
      raise ValueError(
        'this decoder has no select_source, so all of a source is read; give '
        'its LayeredDecoder one'
      )
    return self.decoder.select_source(encoded, indices, valid)

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

  def logits(self, hidden: Array, weights: PyTree = None) -> Array:
    """Returns logits of states, over all tokens or those of `weights`."""
    return self.decoder.logits(self.params, hidden, weights)

  def output_rows(self, token_ids: Array) -> Array:
    """Returns the output rows of tokens [B, C], for `logits`."""
    return self.decoder.output_rows(self.params, token_ids)

  def take_rows(self, cache: PyTree, rows: Array) -> PyTree:
    """Returns the cache of rows [R]."""
    return self.decoder.take_rows(cache, rows)

  def output_block(self, first: Array | int, count: int) -> Array:
    """Returns the output rows of neighbouring tokens, for `logits`."""
    if self.decoder.output_block is None:
      raise ValueError('this decoder has no output_block; use output_rows')
    return self.decoder.output_block(self.params, first, count)
