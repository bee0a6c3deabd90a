"""Arrays laid out over a mesh, from what the processes hold."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from calm_jax.array_types import PyTree
from calm_jax.sharding.logical_axes import param_shardings
from calm_jax.sharding.mesh import DATA


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


def place_params(
  params: PyTree, mesh: Mesh, *, strategy: str = 'data_parallel'
) -> PyTree:
  """Lays parameters out over a mesh, as they are or prepared for decoding.

  Args:
    params: every process holds the same values; leaves that lie as they should
      already stay where they are.
    mesh: from `make_mesh`.
    strategy: a key of `RULES`.
  """
  return put(params, param_shardings(params, mesh, strategy))
