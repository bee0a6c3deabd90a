"""How arrays lie on several devices: one mesh, one table of logical axes.

The mesh has the axes 'data' and 'model'. `LOGICAL_AXES` names the dimensions of
every parameter of T5 as T5X does, and `RULES` says for each strategy which mesh
axis a named dimension is split over. Compilation does the rest: a step that
gets sharded arguments under `jax.set_mesh` is partitioned by XLA.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from calm_jax.array_types import PyTree

DATA, MODEL = 'data', 'model'

# The whole path of a parameter -> the names of its dimensions.
LOGICAL_AXES = (
  (r'token_embedder/embedding', ('vocab', 'embed')),
  (r'(en|de)coder/relpos_bias/rel_embedding', ('heads', 'relpos_buckets')),
  (r'.*attention/(query|key|value)/kernel', ('embed', 'joined_kv')),
  (r'.*attention/out/kernel', ('joined_kv', 'embed')),
  (r'.*/mlp/wi(_\d+)?/kernel', ('embed', 'mlp')),
  (r'.*/mlp/wo/kernel', ('mlp', 'embed')),
  (r'.*/scale', ('embed',)),
  (r'decoder/logits_dense/kernel', ('embed', 'vocab')),
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


def make_mesh(
  *,
  data: int | None = None,
  model: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of the axes 'data' and 'model', for `jax.set_mesh`.

  Args:
    data: devices that share the rows of a batch; None for all that are left.
    model: devices that share every row, each holding a part of the heads, of
      the feed-forward layer and of the vocabulary.
    devices: which ones; all devices of all processes by default.

  Raises:
    ValueError: if data x model is not the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  for name, size in (('data', data), ('model', model)):
    if size is None and name == 'data':
      continue
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
      raise ValueError(f'{name} must be an integer >= 1, got {size!r}')
  if data is None:
    data = max(len(devices) // model, 1)
  if data * model != len(devices):
    raise ValueError(
      f'a mesh of data={data} x model={model} wants {data * model} devices, '
      f'and there are {len(devices)}: choose sizes whose product is '
      f'{len(devices)}, or pass the devices to use'
    )
  # Auto: XLA chooses the layout of everything that is not said here.
  return jax.make_mesh(
    (data, model),
    (DATA, MODEL),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """Returns the names of a parameter's dimensions, None where unknown."""
  for pattern, axes in LOGICAL_AXES:
    if len(axes) == ndim and re.fullmatch(pattern, path):
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


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns a batch whose rows are shared out over the mesh axis 'data'.

  Args:
    batch: arrays [B, ...] of this process. With several processes, every one
      gives as many rows, its own part of the global batch.
    mesh: from `make_mesh`.

  Raises:
    ValueError: if the rows cannot be shared evenly.
  """
  here = jax.process_index()
  shares = sum(
    any(device.process_index == here for device in row) for row in mesh.devices
  )
  for name, array in batch.items():
    if np.shape(array)[0] % shares:
      raise ValueError(
        f'{name} has {np.shape(array)[0]} rows, which {shares} devices cannot '
        f'share evenly: take a batch size that is a multiple of {shares}'
      )
  sharding = NamedSharding(mesh, PartitionSpec(DATA))
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
    for name, array in batch.items()
  }


def put(tree: PyTree, shardings: PyTree) -> PyTree:
  """Lays out arrays, which every process holds with the same values."""

  def put_one(leaf, sharding):
    if getattr(leaf, 'sharding', None) == sharding:
      return leaf
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    )

  return jax.tree.map(put_one, tree, shardings)


def path_name(path: tuple) -> str:
  """Returns a path of `jax.tree_util` as 'decoder/layers_0/...'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def is_main_process() -> bool:
  """Whether this is the process that prints and writes text files."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Returns whether `flag` holds in some process; all must call it."""
  if jax.process_count() == 1:
    return bool(flag)
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def share_rows(array: jax.Array, *, axis: int = 0) -> jax.Array:
  """Says inside a jitted function that an axis holds the rows of a batch.

  XLA keeps them shared out over 'data' then; left alone, it may split
  activations like parameters instead, where both could be. The identity outside
  `jax.set_mesh`, and for rows that cannot be shared evenly.

  Args:
    array: activations.
    axis: which axis the rows are.
  """
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  # Inside a shard_map over 'data' the rows are shared out by hand already.
  if types.get(DATA) != AxisType.Auto:
    return array
  if array.shape[axis] % mesh.shape[DATA]:
    return array
  spec = [PartitionSpec.UNCONSTRAINED] * array.ndim
  spec[axis] = DATA
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
