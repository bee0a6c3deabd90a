"""Where a decode lies on a mesh: rows over 'data', parameters over 'model'.

Every part of 'data' then decodes its own rows by itself (`sharding.map_rows`).
`binding` lays out the parameters; here inputs and the numbers of policies are,
and the first carry says where its rows are.
"""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from calm_jax import checks, sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.states import Carry


def place(
  mesh: Mesh | None,
  inputs: Array,
  policy: ComputePolicy,
  sampler: Sampler,
) -> tuple[Array, ComputePolicy, Sampler]:
  """Returns everything laid out over a mesh, or as it is without one.

  What is being traced stays as it is.

  Args:
    mesh: from `sharding.make_mesh`, or None.
    inputs: int [B, S].
    policy: its numbers go to every device.
    sampler: likewise.

  Raises:
    ValueError: for a B that the mesh cannot share evenly, or a readout that the
      axis 'model' would take apart.
  """
  if mesh is None:
    return inputs, policy, sampler
  parts = mesh.shape[sharding.DATA]
  if inputs.shape[0] % parts:
    raise ValueError(
      f'{inputs.shape[0]} inputs cannot be shared evenly by data={parts} of '
      f'the mesh: fill the batch up to a multiple of {parts}'
    )
  if mesh.shape[sharding.MODEL] > 1 and policy.readout.needs_whole_matrix:
    # Rows of other devices would be sent for inside the loops, by programs that
    # all of the mesh must run, and not each part of it for itself.
    raise ValueError(
      f'{type(policy.readout).__name__} reads rows of the output matrix by '
      f'number, which model={mesh.shape[sharding.MODEL]} of the mesh splits: '
      'use FullVocabulary, or a mesh with model=1'
    )
  rows = NamedSharding(mesh, PartitionSpec(sharding.DATA))
  whole = sharding.replicated(mesh)
  placed = (_put(tree, lambda leaf: whole) for tree in (policy, sampler))
  return _put(inputs, lambda leaf: rows), *placed


def share_carry(carry: Carry, mesh: Mesh | None) -> Carry:
  """Says inside a jitted function that the rows of a carry are shared out.

  The cache lies as it was made.
  """
  if mesh is None:
    return carry
  rows = NamedSharding(mesh, PartitionSpec(sharding.DATA))
  shared = jax.lax.with_sharding_constraint(
    dataclasses.replace(carry, cache=None), rows
  )
  return dataclasses.replace(shared, cache=carry.cache)


def _put(tree: PyTree, sharding_of) -> PyTree:
  """Lays out the leaves that are no tracers."""

  def put(leaf):
    if not checks.is_concrete(leaf):
      return leaf
    return sharding.put(leaf, sharding_of(leaf))

  return jax.tree.map(put, tree)
