"""Rows under masks: what is computed for some and kept of the others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array, PyTree


def when(
  predicate: Array | bool, run: Callable[[PyTree], PyTree], operand: PyTree
) -> PyTree:
  """Returns `run(operand)` where the predicate holds, else `operand`.

  A predicate known while tracing leaves no branch in the program.
  """
  if isinstance(predicate, bool):
    return run(operand) if predicate else operand
  # Run in the TRUE branch: before jaxlib 0.11.1 XLA saved the copy of operands
  # that pass through only in the FALSE one (openxla/xla pull request 46314).
  return lax.cond(predicate, run, lambda operand: operand, operand)


def wanted_rows(active: Array, wanted: Array | None) -> Array:
  """Returns the rows a sub-layer is run for (None: all that are active)."""
  return active if wanted is None else active & wanted


def run_rows(
  active: Array,
  wanted: Array | None,
  run: Callable[[Array], Array],
  hidden: Array,
  *,
  branch: bool,
) -> Array:
  """Runs a sub-layer, only for the rows that a layer plan wants (None: all).

  With `branch`, not at all if there are none.
  """
  if wanted is None:
    return run(hidden)
  return when(
    (wanted & active).any() if branch else True,
    lambda hidden: keep_rows(wanted, run(hidden), hidden),
    hidden,
  )


def keep_rows(rows: Array, new: PyTree, old: PyTree) -> PyTree:
  """Takes the leaves of `new` in `rows` [B] and those of `old` elsewhere."""

  def keep(new, old):
    if new is old:
      return old
    return jnp.where(rows.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

  return jax.tree.map(keep, new, old)
