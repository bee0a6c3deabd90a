"""A loop over an encoder's layers in which rows that have left cost nothing."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.encoding.source_rows import EncoderLayers, SourceRows


@dataclasses.dataclass(frozen=True)
class CompactedLayers:
  """Unrolled layers, each run on the rows that have not left.

  They are gathered into the smallest of a few buckets, the powers of two below
  B and B itself, and put back: shapes stay static, one piece of program per
  bucket and layer. For batches, whose deepest row would else hold up the rest.

  Attributes:
    smallest: the smallest bucket.
  """

  smallest: int = 1

  traced_layers: ClassVar[bool] = False

  def __post_init__(self):
    """Raises ValueError for a bucket that is no number of rows."""
    checks.check_whole(self.smallest, 'smallest', low=1)

  def __call__(
    self, layers: EncoderLayers, rows: SourceRows
  ) -> tuple[SourceRows, Array]:
    """Runs each layer on the smallest bucket that holds the active rows."""
    batch_size = rows.active.shape[0]
    buckets = jnp.array(self.buckets(batch_size), jnp.int32)
    computed, may_have_left = jnp.int32(0), False
    for layer in range(layers.num_layers):
      if may_have_left:
        place = jnp.searchsorted(buckets, rows.active.sum())
        rows = self._run_compacted(layers, layer, rows, place)
        computed += buckets[place]
      else:
        rows = layers.run(layer, rows, all_active=True)
        computed += batch_size
      may_have_left |= layers.exit_rule.looks(layer) is not False
    return rows, computed

  def buckets(self, batch_size: int) -> tuple[int, ...]:
    """Returns the numbers of rows that a layer may run on, ascending.

    >>> CompactedLayers().buckets(6), CompactedLayers(4).buckets(16)
    ((0, 1, 2, 4, 6), (0, 4, 8, 16))
    """
    sizes, size = [0], self.smallest
    while size < batch_size:
      sizes.append(size)
      size *= 2
    return (*sizes, batch_size)

  def _run_compacted(
    self, layers: EncoderLayers, layer: int, rows: SourceRows, place: Array
  ) -> SourceRows:
    """Runs a layer on the bucket at a place in `buckets`."""
    # Active rows first, in their order.
    order = jnp.argsort(~rows.active, stable=True)

    def run_bucket(size: int):
      if size == 0:
        return lambda rows: rows
      if size == rows.active.shape[0]:
        return lambda rows: layers.run(layer, rows)
      return lambda rows: _run_chosen(layers, layer, rows, order[:size])

    branches = [run_bucket(size) for size in self.buckets(len(rows.active))]
    return lax.switch(place, branches, rows)


def _run_chosen(
  layers: EncoderLayers, layer: int, rows: SourceRows, chosen: Array
) -> SourceRows:
  """Runs a layer on the chosen rows [n] alone."""
  ran = layers.run(layer, jax.tree.map(lambda leaf: leaf[chosen], rows))
  return jax.tree.map(
    lambda leaf, new: leaf.at[chosen].set(new, unique_indices=True), rows, ran
  )
