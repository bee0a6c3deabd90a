"""A depth loop in which rows that have stopped cost nothing.

The plain loops compute a layer for all rows while any row needs it, and in a
batch some row nearly always does. This one gathers the rows that still run into
the smallest bucket of a few fixed sizes, runs the layer on the bucket, and puts
them back: shapes stay static, one piece of program per bucket.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.layer_steps import Layers
from calm_jax.interfaces import LayerWork


@dataclasses.dataclass(frozen=True)
class CompactingDepthLoop:
  """Unrolled layers, each run on the rows that have not stopped.

  Buckets are the powers of two below B, and B. The K/V of every layer are
  filled for all rows, which is also the propagation; sequences that have ended
  are among the rows that have stopped. Cached keys and values of the rows in a
  bucket are copied, which pays where a layer's arithmetic costs more than
  reading its cache does.

  Attributes:
    smallest: the smallest bucket. Weights are read once for any number of rows,
      so very small buckets save little and cost program.
  """

  smallest: int = 1

  traced_layers: ClassVar[bool] = False

  def __post_init__(self):
    """Raises ValueError for a bucket that is no number of rows."""
    checks.check_whole(self.smallest, 'smallest', low=1)

  def __call__(
    self, layers: Layers, rows: Rows, memory: Memory
  ) -> tuple[Rows, Memory]:
    """Runs the layers until every row has stopped; returns rows and memory."""
    buckets = self.buckets(rows.active.shape[0])
    may_have_stopped = False
    for layer in layers.walked:
      rows, memory, work = layers.fill(layer, rows, memory)
      if may_have_stopped:
        rows = _run_compacted(layers, layer, rows, memory.cache, work, buckets)
      else:
        rows = layers.run(layer, rows, memory.cache, work)
      if layers.policy.exit_rule.looks(layer) is not False:
        may_have_stopped = True
    return rows, memory

  def buckets(self, batch_size: int) -> tuple[int, ...]:
    """Returns the numbers of rows that a layer may run on, ascending.

    >>> CompactingDepthLoop().buckets(6), CompactingDepthLoop(4).buckets(16)
    ((0, 1, 2, 4, 6), (0, 4, 8, 16))
    """
    sizes, size = [0], self.smallest
    while size < batch_size:
      sizes.append(size)
      size *= 2
    return (*sizes, batch_size)


def _run_compacted(
  layers: Layers,
  layer: int,
  rows: Rows,
  cache: PyTree,
  work: LayerWork,
  buckets: tuple[int, ...],
) -> Rows:
  """Runs a layer on the smallest bucket that holds the active rows."""
  # Active rows first, in their order.
  order = jnp.argsort(~rows.active, stable=True)

  def run_bucket(size: int):
    if size == 0:
      return lambda rows: rows
    if size == len(rows.active):
      return lambda rows: layers.run(layer, rows, cache, work)
    chosen = order[:size]
    return lambda rows: _run_rows(layers, layer, rows, cache, work, chosen)

  return lax.switch(
    jnp.searchsorted(jnp.array(buckets), rows.active.sum()),
    [run_bucket(size) for size in buckets],
    rows,
  )


def _run_rows(
  layers: Layers,
  layer: int,
  rows: Rows,
  cache: PyTree,
  work: LayerWork,
  chosen: Array,
) -> Rows:
  """Runs a layer on the chosen rows [n] alone."""
  bucket = dataclasses.replace(
    layers,
    positions=layers.positions[chosen],
    alive=layers.alive[chosen],
    asked=None if layers.asked is None else layers.asked[chosen],
  )
  # Only this layer's part of the cache is read, so only that is gathered.
  ran = bucket.run(
    layer,
    jax.tree.map(lambda leaf: leaf[chosen], rows),
    layers.bound.take_rows(cache, chosen),
    work.of_rows(chosen),
  )
  return jax.tree.map(
    lambda leaf, new: leaf.at[chosen].set(new, unique_indices=True), rows, ran
  )
