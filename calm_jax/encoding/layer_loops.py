"""Loops over an encoder's layers, until every row has left.

What is done to a layer is the same for all of them (`source_rows`). They differ
in how they find the weights and in how the program skips what nobody needs.
"""

import dataclasses
from typing import ClassVar, Protocol

import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array
from calm_jax.encoding.source_rows import EncoderLayers, SourceRows
from calm_jax.row_masks import when


class LayerLoop(Protocol):
  """Runs the layers of a batch of sources.

  `traced_layers` says which layout of parameters it wants.
  """

  traced_layers: ClassVar[bool]

  def __call__(
    self, layers: EncoderLayers, rows: SourceRows
  ) -> tuple[SourceRows, Array]:
    """Returns rows that have all left, and how much was computed.

    That is an int32 scalar: over the layers that ran, the rows that each ran
    for, those that had left before among them.
    """
    ...


@dataclasses.dataclass(frozen=True)
class WhileLayers:
  """Loops with `lax.while_loop` over stacked weights: the reference."""

  traced_layers: ClassVar[bool] = True

  def __call__(
    self, layers: EncoderLayers, rows: SourceRows
  ) -> tuple[SourceRows, Array]:
    """Runs layers while a row is active."""
    layer, rows = lax.while_loop(
      lambda carry: carry[1].active.any(),
      lambda carry: (carry[0] + 1, layers.run(*carry)),
      (jnp.int32(0), rows),
    )
    return rows, layer * rows.active.shape[0]


@dataclasses.dataclass(frozen=True)
class UnrolledLayers:
  """Writes the layers out, each behind a branch once a row may have left.

  Weights are static, so no layer is copied out of a stack; before the first
  look there is neither branch nor mask. The default, and at batch 1 all that is
  needed: a request stops where it leaves.
  """

  traced_layers: ClassVar[bool] = False

  def __call__(
    self, layers: EncoderLayers, rows: SourceRows
  ) -> tuple[SourceRows, Array]:
    """Runs each layer if a row is active."""
    computed, may_have_left = jnp.int32(0), False
    for layer in range(layers.num_layers):
      needed = rows.active.any() if may_have_left else True
      computed += needed * rows.active.shape[0]

      def run(rows, layer=layer, all_active=not may_have_left):
        return layers.run(layer, rows, all_active=all_active)

      rows = when(needed, run, rows)
      may_have_left |= layers.exit_rule.looks(layer) is not False
    return rows, jnp.asarray(computed, jnp.int32)
