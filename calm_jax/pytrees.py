"""Dataclasses as pytrees whose type is part of their structure.

Policies and states are told apart by type: `SoftmaxMargin()` and
`StateSimilarity()` hold no numbers at all. `jax.tree_util.register_dataclass`
is not used for them, because with it the tree structures of two different
classes with like fields compare equal (jaxlib 0.10.2 and 0.12.0; only their
hashes differ), so that with jaxlib 0.10.2 about one such pair in sixty shares
the program compiled for the first of them, without an error.
"""

import dataclasses
from typing import Any, TypeVar, cast

import jax

T = TypeVar('T')


def register_pytree(cls: type[T]) -> type[T]:
  """Registers a dataclass as a pytree; a decorator above `@dataclass`.

  Fields are children, but for those marked `metadata=dict(static=True)`, which
  are part of the structure and must be hashable. Unflattening calls the class
  with whatever the leaves are (tracers, bare objects), so `__post_init__` must
  not look at them.

  Args:
    cls: a dataclass.

  Returns:
    The same class.
  """
  fields = dataclasses.fields(cast(Any, cls))
  static = tuple(f.name for f in fields if f.metadata.get('static'))
  names = tuple(f.name for f in fields if f.name not in static)
  keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

  def flatten(node):
    children = tuple(getattr(node, name) for name in names)
    return children, tuple(getattr(node, name) for name in static)

  def flatten_with_keys(node):
    children, values = flatten(node)
    return tuple(zip(keys, children, strict=True)), values

  def unflatten(values, children):
    return cls(
      **dict(zip(names, children, strict=True)),
      **dict(zip(static, values, strict=True)),
    )

  jax.tree_util.register_pytree_with_keys(
    cls, flatten_with_keys, unflatten, flatten
  )
  return cls
