"""Tensors on disk, read part by part, and views that rename their dimensions.

A `StoredTensor` knows its shape and dtype and reads any block of itself. The
views below (transposed, stacked, split heads) are stored tensors again, so one
mapping of names serves loading, sharded loading and writing, and only the block
that is asked for ever lies in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

Index = tuple[slice, ...]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What parameters may be stored as; all of them are exact in float32.
DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': BFLOAT16,
  'float16': np.dtype(np.float16),
}
# And what matrices in 8 bits are stored as: integers, with scales beside them.
WITH_INT8 = {**DTYPES, 'int8': np.dtype(np.int8)}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor that is read when asked for.

  Attributes:
    name: what its checkpoint calls it.
    origin: the file or folder it lies in, for messages.
    shape: its shape.
    dtype: its dtype.
    fetch: returns the block of an index with a start and a stop everywhere.
  """

  name: str
  origin: str
  shape: tuple[int, ...]
  dtype: np.dtype
  fetch: Callable[[Index], np.ndarray]

  def __str__(self):
    return f'{self.name} in {self.origin}'

  @property
  def nbytes(self) -> int:
    """Bytes of the whole tensor."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, index: Sequence[slice] | None = None) -> np.ndarray:
    """Returns a block as a C-contiguous array.

    Args:
      index: a slice with step 1 per dimension; everything if None.
    """
    index = (slice(None),) * len(self.shape) if index is None else index
    whole = tuple(
      slice(*part.indices(size)[:2])
      for part, size in zip(index, self.shape, strict=True)
    )
    # safetensors and tensorstore take the bytes as they lie in memory.
    # (ascontiguousarray makes a vector of a scalar.)
    return np.asarray(self.fetch(whole), dtype=self.dtype, order='C')


def in_memory(name: str, array, *, origin: str = 'memory') -> StoredTensor:
  """Returns an array as a stored tensor; fetched from its device when read."""
  return StoredTensor(
    name,
    origin,
    tuple(array.shape),
    np.dtype(array.dtype),
    lambda index: np.asarray(array[index]),
  )


def aligned(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
  """Returns tensors with wide elements first, else in the order given.

  Written so, each lies where readers that map a file can take it as it is.
  """
  return dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))


def transposed(tensor: StoredTensor) -> StoredTensor:
  """Swaps the two dimensions of a matrix."""
  return dataclasses.replace(
    tensor,
    shape=tensor.shape[::-1],
    fetch=lambda index: tensor.read(index[::-1]).T,
  )


def cast(tensor: StoredTensor, dtype: np.dtype) -> StoredTensor:
  """Converts the values to another dtype, rounding to nearest."""
  return dataclasses.replace(
    tensor, dtype=dtype, fetch=lambda index: tensor.read(index).astype(dtype)
  )


def layer_of(tensor: StoredTensor, layer: int) -> StoredTensor:
  """Takes one layer out of a stack along dimension 1."""
  return StoredTensor(
    f'{tensor.name}[:, {layer}]',
    tensor.origin,
    tensor.shape[:1] + tensor.shape[2:],
    tensor.dtype,
    lambda index: tensor.read(
      (index[0], slice(layer, layer + 1), *index[1:])
    ).squeeze(1),
  )


def stacked(tensors: Sequence[StoredTensor], name: str) -> StoredTensor:
  """Stacks the layers of one parameter along dimension 1."""
  first = tensors[0]
  return StoredTensor(
    name,
    first.origin,
    (first.shape[0], len(tensors), *first.shape[1:]),
    first.dtype,
    lambda index: np.stack(
      [
        tensor.read((index[0], *index[2:])).astype(first.dtype)
        for tensor in tensors[index[1]]
      ],
      axis=1,
    ),
  )


def joined_heads(tensor: StoredTensor, axis: int) -> StoredTensor:
  """Makes one dimension H * K of the dimensions H and K at `axis`."""
  *before, heads, size = tensor.shape[: axis + 2]
  after = tensor.shape[axis + 2 :]

  def fetch(index):
    wanted = index[axis]
    first, last = wanted.start // size, -(-wanted.stop // size)
    block = tensor.read(
      (*index[:axis], slice(first, last), slice(0, size), *index[axis + 1 :])
    )
    shape = block.shape
    block = block.reshape(*shape[:axis], -1, *shape[axis + 2 :])
    part = slice(wanted.start - first * size, wanted.stop - first * size)
    return block[(slice(None),) * axis + (part,)]

  return dataclasses.replace(
    tensor, shape=(*before, heads * size, *after), fetch=fetch
  )


def split_heads(tensor: StoredTensor, axis: int, heads: int) -> StoredTensor:
  """Makes the dimensions H and K of the dimension H * K at `axis`."""
  size = tensor.shape[axis] // heads

  def fetch(index):
    wanted, within = index[axis : axis + 2]
    rows = slice(wanted.start * size, wanted.stop * size)
    block = tensor.read((*index[:axis], rows, *index[axis + 2 :]))
    block = block.reshape(
      *block.shape[:axis], -1, size, *block.shape[axis + 1 :]
    )
    return block[(slice(None),) * (axis + 1) + (within,)]

  shape = (*tensor.shape[:axis], heads, size, *tensor.shape[axis + 1 :])
  return dataclasses.replace(tensor, shape=shape, fetch=fetch)
