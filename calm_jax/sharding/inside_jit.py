"""What is said of shardings inside jitted functions.

`map_rows` shares rows out by hand, so that nothing is said along 'data'; the
others are hints for XLA, and do nothing without a mesh.
"""

from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from calm_jax.array_types import PyTree
from calm_jax.sharding.mesh import DATA, MODEL


def map_rows(
  function: Callable[..., PyTree], mesh: Mesh | None
) -> Callable[..., PyTree]:
  """Returns a function that every part of a mesh runs on its own rows.

  Along 'data' nothing is said between devices: each runs its own loops, for as
  long as its own rows need. Devices along 'model' share every row and run the
  same loops.

  Args:
    function: `(rows, *shared) -> rows`; the leaves of its first argument and of
      its result lead with the rows of a batch, all else is the same for all.
    mesh: from `make_mesh`; the function itself is returned if None.
  """
  if mesh is None:
    return function
  mapped = PartitionSpec(DATA)

  def call(rows, *shared):
    return jax.shard_map(
      function,
      mesh=mesh,
      in_specs=(mapped, *[PartitionSpec()] * len(shared)),
      out_specs=mapped,
      axis_names={DATA},
      # Loops that run for other numbers of turns are the point of it.
      check_vma=False,
    )(rows, *shared)

  return call


def share_rows(array: jax.Array, *, axis: int = 0) -> jax.Array:
  """Says inside a jitted function that an axis holds the rows of a batch.

  XLA keeps them shared out over 'data' then; left alone, it may split
  activations like parameters instead, where both could be. The identity outside
  `jax.set_mesh`, and for rows that cannot be shared evenly.

  Args:
    array: activations.
    axis: which axis the rows are.
  """
  return _split(array, axis, DATA)


def share_heads(array: jax.Array, *, axis: int) -> jax.Array:
  """Says inside a jitted function that an axis holds attention heads.

  They are shared out over 'model', as the matrices that make them are; else
  caches would be whole on every device. The identity where `share_rows` is.

  Args:
    array: keys or values.
    axis: which axis the heads are.
  """
  return _split(array, axis, MODEL)


def _split(array: jax.Array, axis: int, mesh_axis: str) -> jax.Array:
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  # Inside `map_rows` the rows are shared out by hand already.
  if types.get(mesh_axis) != AxisType.Auto:
    return array
  if array.shape[axis] % mesh.shape[mesh_axis]:
    return array
  spec = [PartitionSpec.UNCONSTRAINED] * array.ndim
  spec[axis] = mesh_axis
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
