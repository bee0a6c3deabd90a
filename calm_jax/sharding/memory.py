"""What devices hold, worked out from shapes alone.

No array is made and nothing is compiled, so that a model too large for this
machine can be planned on it, also with more devices than it has
(XLA_FLAGS=--xla_force_host_platform_device_count=64).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax.array_types import PyTree
from calm_jax.sharding.mesh import DATA

# Rows of a mesh that are shown.
_SHOWN_ROWS = 16


def describe_mesh(mesh: jax.sharding.Mesh | None) -> str:
  """Returns the axes of a mesh, and which devices lie where."""
  if mesh is None:
    device = jax.devices()[0]
    return f'mesh: none, one device ({device.device_kind})'
  axes = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  kind = mesh.devices.flat[0].device_kind
  owners = {device.process_index for device in mesh.devices.flat}
  lines = [f'mesh: {axes} over {mesh.size} x {kind}, processes: {len(owners)}']
  for number, row in enumerate(mesh.devices[:_SHOWN_ROWS]):
    devices = ' '.join(str(device.id) for device in row)
    holders = sorted({device.process_index for device in row})
    lines.append(
      f'  data {number}: devices {devices} of process '
      f'{", ".join(map(str, holders))}'
    )
  if len(mesh.devices) > _SHOWN_ROWS:
    lines.append(f'  and {len(mesh.devices) - _SHOWN_ROWS} more')
  return '\n'.join(lines)


def bytes_per_device(shapes: PyTree, shardings: PyTree | None = None) -> int:
  """Returns the bytes that each device holds of a tree.

  Args:
    shapes: arrays or shapes; with shardings of their own, or on one device.
    shardings: instead of their own.
  """
  leaves = jax.tree.leaves(shapes)
  if shardings is None:
    where = [getattr(leaf, 'sharding', None) for leaf in leaves]
  else:
    where = jax.tree.leaves(shardings)
  return sum(
    math.prod(
      leaf.shape if place is None else place.shard_shape(tuple(leaf.shape))
    )
    * _itemsize(leaf.dtype)
    for leaf, place in zip(leaves, where, strict=True)
  )


def _itemsize(dtype: Any) -> int:
  # A random key is two words of 32 bits.
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return jnp.dtype(dtype).itemsize


def rows_per_device(batch_size: int, mesh: jax.sharding.Mesh | None) -> int:
  """Returns the rows of a batch that each device of a mesh gets.

  Raises:
    ValueError: for a batch that the devices cannot share.
  """
  shares = 1 if mesh is None else mesh.shape[DATA]
  if batch_size % shares:
    raise ValueError(
      f'{shares} devices of the mesh axis data cannot share a batch of '
      f'{batch_size}: take a multiple of {shares}'
    )
  return batch_size // shares


def describe_memory(parts: Mapping[str, int]) -> str:
  """Returns bytes by name, their sum and what the device has, in lines."""
  total = sum(parts.values())
  width = max(map(len, parts))
  lines = ['memory per device:']
  lines += [
    f'  {name.ljust(width)}  {size / 1e9:9.4f} GB'
    for name, size in parts.items()
  ]
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  there = '' if limit is None else f' of {limit / 1e9:.1f} GB'
  fits = limit is None or total <= limit
  lines.append(
    f'  {"in all".ljust(width)}  {total / 1e9:9.4f} GB{there}'
    + ('' if fits else ': it does not fit; use more devices or fsdp')
  )
  return '\n'.join(lines)
