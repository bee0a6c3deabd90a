"""An integer fingerprint of a parameter tree.

Certificates and checkpoints name the parameters they belong to by it. It is a
sum of integers that wrap around, so it does not depend on how a tensor is laid
out or sharded, on the device or on the order of reduction, and two trees of the
same values have the same one. It guards against mistakes, not against attack.
"""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array, Params
from calm_jax.processes import collectives

_NO_MESH = jax.sharding.Mesh(np.empty((), dtype=object), ())


def parameter_fingerprint(params: Params) -> str:
  """Returns 32 hexadecimal digits that identify names, shapes and values.

  Values count as float32 (or int32), so bfloat16 parameters have the
  fingerprint of the same values held in float32. A change of one bit, two
  swapped elements or two swapped tensors change it.

  Args:
    params: a tree of arrays, NumPy's or JAX's, sharded or not.

  Raises:
    ValueError: if the tree holds no array.
  """
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  if not leaves:
    raise ValueError('a parameter tree without arrays has no fingerprint')
  totals = _totals(list(leaves.values()))
  return fingerprint_of(
    {
      name: f'{tuple(np.shape(leaf))} {total.tolist()}'
      for (name, leaf), total in zip(leaves.items(), totals, strict=True)
    }
  )


def tensor_checksum(values: Array) -> str:
  """Returns what a fingerprint says of one tensor: its shape and two sums."""
  return f'{tuple(np.shape(values))} {_totals([values])[0].tolist()}'


def fingerprint_of(checksums: Mapping[str, str]) -> str:
  """Returns the fingerprint of parameters with these checksums, by name."""
  digest = hashlib.sha256()
  for name, checksum in sorted(checksums.items()):
    digest.update(f'{name} {checksum}\n'.encode())
  return digest.hexdigest()[:32]


def _totals(leaves: list[Array]) -> np.ndarray:
  """Returns the two sums of each tensor, uint32 [n, 2].

  Every device adds up its own part, and each part counts once: nothing is moved
  and, but for one sum over the processes at the end, nothing said between them.
  """
  # Parts lie on one device each, which a mesh of all would not let them.
  with jax.set_mesh(_NO_MESH):
    # All of them first: one wait for the devices instead of one per tensor.
    sums = jax.device_get([_own_sums(leaf) for leaf in leaves])
  totals = np.array(
    [sum(parts, np.zeros(2, np.uint32)) for parts in sums], np.uint32
  )
  shared = [not getattr(leaf, 'is_fully_addressable', True) for leaf in leaves]
  if any(shared):
    totals[shared] = collectives.sum_over_processes(totals[shared])
  return totals


def _own_sums(leaf: Array) -> list[Array]:
  """Returns the sums of this process's parts of a tensor, copies left out."""
  shape = np.shape(leaf)
  sizes = np.array(shape, np.uint32)
  shards = getattr(leaf, 'addressable_shards', None)
  if shards is None:
    return [_checksum(leaf, np.zeros_like(sizes), sizes)]
  return [
    _checksum(
      shard.data,
      np.array([part.start or 0 for part in shard.index], np.uint32),
      sizes,
    )
    for shard in shards
    if shard.replica_id == 0
  ]


@jax.jit
def _checksum(values: Array, offsets: Array, sizes: Array) -> Array:
  """Returns two uint32 sums over mixed (bit pattern, flat index) pairs.

  Args:
    values: a part of a tensor.
    offsets: uint32 [rank], where the part begins.
    sizes: uint32 [rank], the shape of the whole.
  """
  if jnp.issubdtype(values.dtype, jnp.floating):
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
  else:
    bits = values.astype(jnp.uint32)
  index = jnp.zeros(values.shape, jnp.uint32)
  for axis in range(values.ndim):
    position = jax.lax.broadcasted_iota(jnp.uint32, values.shape, axis)
    index = index * sizes[axis] + position + offsets[axis]
  return jnp.stack(
    [
      _mix(bits + _mix(index + jnp.uint32(seed))).sum(dtype=jnp.uint32)
      for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
  )


def _mix(bits: Array) -> Array:
  """Spreads every input bit over all 32 (MurmurHash3's finalizer)."""
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
