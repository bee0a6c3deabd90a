"""Which feed-forward block runs for which rows: none, the layer's, its twin."""

from collections.abc import Callable

import jax.numpy as jnp

from calm_jax import row_masks
from calm_jax.array_types import Array
from calm_jax.interfaces import FeedForwardTwins
from calm_jax.small_twins import NONE, OWN, TWIN


def rows_of(active: Array, wanted: Array | int | None, variant: int) -> Array:
  """Returns the active rows in which a variant runs, bool [B].

  Args:
    active: bool [B].
    wanted: `LayerWork.feed_forward`.
    variant: OWN or TWIN.
  """
  if wanted is None:
    wanted = OWN
  if isinstance(wanted, int):
    return active if wanted == variant else jnp.zeros_like(active)
  # True is OWN.
  return active & (wanted.astype(jnp.int32) == variant)


def run_chosen(
  active: Array,
  wanted: Array | int | None,
  *,
  own: Callable[[Array], Array],
  twins: FeedForwardTwins | None,
  layer: Array | int,
  hidden: Array,
  branch: bool,
) -> Array:
  """Runs, in each row, the block that a layer plan wants there.

  What is known while tracing leaves the other block out of the program.

  Args:
    active: bool [B], rows that have not stopped.
    wanted: `LayerWork.feed_forward`.
    own: the layer's block.
    twins: the plan's, if it has any.
    layer: the layer.
    hidden: [B, 1, D], what enters the block.
    branch: whether a block that no row wants is left out by a branch.
  """
  if wanted is None:
    return own(hidden)
  if isinstance(wanted, int) and wanted in (NONE, OWN):
    return own(hidden) if wanted else hidden
  if twins is None:
    if isinstance(wanted, int):
      raise ValueError(
        f'a layer plan asks for feed-forward {wanted}, and has no twins; give '
        'it `twins`, or ask for 0 (none) or 1 (the own one)'
      )
    rows = wanted if wanted.dtype == bool else wanted == OWN
    return row_masks.run_rows(active, rows, own, hidden, branch=branch)

  def twin(hidden):
    return twins(hidden, layer)

  if isinstance(wanted, int):
    return twin(hidden)
  # No row has both, so that one finds what the other left as it was.
  for variant, block in ((OWN, own), (TWIN, twin)):
    rows = wanted.astype(jnp.int32) == variant
    hidden = row_masks.run_rows(active, rows, block, hidden, branch=branch)
  return hidden
