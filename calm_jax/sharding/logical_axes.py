"""Which mesh axis each dimension of a parameter is split over.

`LOGICAL_AXES` names the dimensions of every parameter of T5 as T5X does, and
`RULES` says for each strategy which mesh axis a named dimension is split over.
"""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from calm_jax.array_types import PyTree
from calm_jax.sharding.mesh import DATA, MODEL

# The whole path of a parameter -> the names of its dimensions. Paths are those
# of T5X, and what `model.DecodeParams` makes of them: 'output' is [V, D],
# 'gates' [D, 2, F]. Matrices in 8 bits lie the other way round, [F, D].
LOGICAL_AXES = (
  (r'token_embedder/embedding|output(/values)?', ('vocab', 'embed')),
  (r'(.*/)?relpos_bias/rel_embedding', ('heads', 'relpos_buckets')),
  (r'.*attention/(query|key|value)/kernel', ('embed', 'joined_kv')),
  (r'.*attention/out/kernel', ('joined_kv', 'embed')),
  (r'.*/mlp/wi(_\d+)?/kernel', ('embed', 'mlp')),
  (r'.*/mlp/gates/kernel', ('embed', None, 'mlp')),
  (r'.*/mlp/wo/kernel', ('mlp', 'embed')),
  (r'.*/scale', ('embed',)),
  (r'decoder/logits_dense/kernel', ('embed', 'vocab')),
  (r'.*attention/(query|key|value)/int8/values', ('joined_kv', 'embed')),
  (r'.*attention/out/int8/values', ('embed', 'joined_kv')),
  (r'.*/mlp/wi(_\d+)?/int8/values', ('mlp', 'embed')),
  (r'.*/mlp/gates/int8/values', ('mlp', None, 'embed')),
  (r'.*/mlp/wo/int8/values', ('embed', 'mlp')),
  (r'decoder/logits_dense/int8/values', ('vocab', 'embed')),
)

_TENSOR_PARALLEL = (
  ('vocab', MODEL),
  ('mlp', MODEL),
  ('heads', MODEL),
  ('joined_kv', MODEL),
)
# Strategy -> (logical axis, mesh axis), tried in this order for every
# parameter. A mesh axis is used once per parameter, and a dimension is split
# only into equal parts; the next rule gets its chance otherwise.
RULES = {
  'data_parallel': _TENSOR_PARALLEL,
  # Like T5X's parameter_partitioning_dims=2: 'embed', or else what divides.
  'fsdp': (
    *_TENSOR_PARALLEL,
    ('embed', DATA),
    ('vocab', DATA),
    ('mlp', DATA),
    ('joined_kv', DATA),
  ),
}


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """Returns the names of a parameter's dimensions, None where unknown."""
  for pattern, axes in LOGICAL_AXES:
    if re.fullmatch(pattern, path):
      if path.startswith('layers/') and len(axes) == ndim - 1:
        axes = ('layers', *axes)  # stacked, for depth loops that index them
      if len(axes) == ndim:
        return axes
  return (None,) * ndim


def partition_spec(
  path: str, shape: Sequence[int], mesh: Mesh, strategy: str
) -> PartitionSpec:
  """Returns which mesh axis each dimension of a parameter is split over.

  Vectors stay whole: gathering them costs more time than they take memory.

  Args:
    path: of the parameter, 'decoder/layers_0/mlp/wo/kernel'.
    shape: of the whole parameter.
    mesh: from `make_mesh`.
    strategy: a key of `RULES`.
  """
  rules = rules_of(strategy)
  axes = logical_axes(path, len(shape))
  chosen: list[str | None] = [None] * len(shape)
  for logical, mesh_axis in rules if len(shape) > 1 else ():
    if mesh_axis in chosen or mesh.shape[mesh_axis] == 1:
      continue
    for dimension, size in enumerate(shape):
      fits = axes[dimension] == logical and chosen[dimension] is None
      if fits and size % mesh.shape[mesh_axis] == 0:
        chosen[dimension] = mesh_axis
        break
  return PartitionSpec(*chosen) if any(chosen) else PartitionSpec()


def undivided(
  path: str, shape: Sequence[int], mesh: Mesh, strategy: str
) -> list[str]:
  """Returns a remark per dimension that a rule would split, were it divisible.

  Args:
    path: of the parameter.
    shape: of the whole parameter.
    mesh: from `make_mesh`.
    strategy: a key of `RULES`.
  """
  if len(shape) < 2:
    return []
  named = list(zip(logical_axes(path, len(shape)), shape, strict=True))
  return [
    f'{path}: {logical} = {size} does not divide by {mesh_axis} = '
    f'{mesh.shape[mesh_axis]} and is not split over it'
    for logical, mesh_axis in rules_of(strategy)
    for axis, size in named
    if axis == logical and size % mesh.shape[mesh_axis]
  ]


def rules_of(strategy: str) -> tuple[tuple[str, str], ...]:
  """Returns the rules of a strategy.

  Raises:
    ValueError: if there is none of that name.
  """
  if strategy not in RULES:
    raise ValueError(
      f'partitioning must be one of {sorted(RULES)}, got {strategy!r}'
    )
  return RULES[strategy]


def param_shardings(params: PyTree, mesh: Mesh, strategy: str) -> PyTree:
  """Returns the sharding of every parameter; `params` may be shapes only."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, partition_spec(path_name(path), leaf.shape, mesh, strategy)
    ),
    params,
  )


def state_shardings(
  state: PyTree, params: PyTree, mesh: Mesh, strategy: str
) -> PyTree:
  """Returns the sharding of everything in a training state.

  A leaf whose path ends with that of a parameter of the same shape (the
  parameter itself, a moment of it) lies like the parameter; the rest (step,
  random key, factored moments, which are vectors) is on every device.

  Args:
    state: any tree of arrays or shapes that holds parameters and what an
      optimizer keeps about them.
    params: the parameters, or their shapes.
    mesh: from `make_mesh`.
    strategy: a key of `RULES`.
  """
  shapes = {
    path_name(path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def sharding(path, leaf):
    names = path_name(path).split('/')
    for start in range(len(names)):
      name = '/'.join(names[start:])
      if shapes.get(name) == tuple(leaf.shape):
        spec = partition_spec(name, leaf.shape, mesh, strategy)
        return NamedSharding(mesh, spec)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding, state)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def path_name(path: tuple) -> str:
  """Returns a path of `jax.tree_util` as 'decoder/layers_0/...'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
