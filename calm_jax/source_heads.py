"""Heads that classify whole encoded sources, and how heads are read.

`EncoderHeads` read the mean of a source's states; a `SourceHeads` sees all of
them, as a decoder does (`label_words`).
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import LayeredEncoder


@runtime_checkable
class SourceHeads(Protocol):
  """Logits of C classes of encoded sources; a registered pytree.

  A row's logits depend on no other row, and on no padding.
  """

  @property
  def num_classes(self) -> int:
    """C."""
    ...

  def check(self, encoder: LayeredEncoder) -> Any:
    """Returns itself; raises ValueError for an encoder that it is not of."""
    ...

  def of_sources(self, encoded: PyTree, layer: Array | int) -> Array:
    """Returns float32 [B, C].

    Args:
      encoded: what a decoder reads of sources that left: of
        `LayeredEncoder.finish`.
      layer: the layer that they left after, 0..L-1, or of each row, int32 [B].
    """
    ...


def read_heads(
  heads: Any, encoder: LayeredEncoder, encoded: PyTree, layer: Array | int
) -> Array:
  """Returns what heads say of sources, float32 [B, C].

  Args:
    heads: a `SourceHeads`, or `heads(pooled, layer)` -> [B, C].
    encoder: the encoder.
    encoded: of its `finish`.
    layer: the layer that they left after, 0..L-1, or of each row, int32 [B].
  """
  if isinstance(heads, SourceHeads):
    return heads.of_sources(encoded, layer)
  pooled, _ = encoder.pool(encoded)
  if jnp.ndim(layer) == 0:
    return heads(pooled, layer).astype(jnp.float32)
  of_row = jax.vmap(lambda state, layer: heads(state[None], layer)[0])
  return of_row(pooled, layer).astype(jnp.float32)


def read_all_layers(
  heads: SourceHeads,
  encoder: LayeredEncoder,
  params: PyTree,
  states: Array,
  mask: Array,
) -> Array:
  """Returns what heads say after every layer, float32 [L, B, C].

  One layer after the other, in one piece of program.

  Args:
    heads: the heads.
    encoder: the encoder.
    params: as its `prepare` laid them out.
    states: [L, B, S, D], the residual stream after every layer.
    mask: bool [B, S].
  """

  def read(after):
    hidden, layer = after
    return heads.of_sources(encoder.finish(params, hidden, mask), layer)

  return jax.lax.map(read, (states, jnp.arange(states.shape[0])))
