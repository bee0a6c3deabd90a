"""Any pytree as nested dicts, which Orbax stores as they are.

Optimizer states are tuples of named tuples that hold empty ones, and how Orbax
stores those depends on its version. Dicts of names it stores as dicts of names.
"""

from typing import Any

import jax

from calm_jax.array_types import PyTree


def as_dicts(tree: PyTree) -> PyTree:
  """Turns any pytree into nested dicts keyed by name or number."""
  nested: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    *outer, last = _names(path)
    inner = nested
    for name in outer:
      inner = inner.setdefault(name, {})
    inner[last] = leaf
  return nested


def from_dicts(nested: PyTree, like: PyTree) -> PyTree:
  """Returns the leaves of nested dicts in the structure of the tree `like`.

  By name: the leaves of a dict come in another order than a named tuple's.
  """

  def leaf_at(path, _):
    found = nested
    for name in _names(path):
      found = found[name]
    return found

  return jax.tree_util.tree_map_with_path(leaf_at, like)


def _names(path: tuple) -> list[str]:
  return [jax.tree_util.keystr((key,), simple=True) for key in path]
