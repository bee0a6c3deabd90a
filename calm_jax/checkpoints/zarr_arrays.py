"""Zarr arrays as stored tensors, in folders of their own or inside OCDBT."""

from typing import Any

import numpy as np
import tensorstore as ts

from calm_jax.checkpoints.storage import first_line
from calm_jax.checkpoints.stored_tensors import (
  BFLOAT16,
  DTYPES,
  Index,
  StoredTensor,
)

# One context, so that all arrays share its pool of threads and its caches.
_CONTEXT = ts.Context({'file_io_concurrency': {'limit': 16}})
_DRIVERS = ('zarr', 'zarr3')
# T5X writes chunks of at most this size.
_CHUNK_BYTES = 64 * 2**20


def open_array(
  name: str,
  origin: str,
  kvstore: dict[str, Any],
  *,
  driver: str = 'zarr',
  bfloat16_bits: bool = False,
  zeros_may_be_missing: bool = False,
) -> StoredTensor:
  """Opens an array; only its metadata is read.

  Args:
    name: of the parameter.
    origin: of the checkpoint, for messages.
    kvstore: where it lies, as tensorstore's JSON.
    driver: 'zarr' or 'zarr3'.
    bfloat16_bits: whether uint16 stands for bfloat16 (T5X's version 2).
    zeros_may_be_missing: whether the writer left out chunks of zeros. If not, a
      missing chunk is an error when it is read; tensorstore takes it for zeros
      otherwise.

  Raises:
    ValueError: if it is missing or damaged, or holds no floating-point numbers.
  """
  where = f'{name} in {origin}'
  if driver not in _DRIVERS:
    raise ValueError(
      f'{where} is stored by the driver {driver!r}; known are {_DRIVERS}'
    )
  spec = {
    'driver': driver,
    'kvstore': kvstore,
    'fill_missing_data_reads': zeros_may_be_missing,
  }
  try:
    array = ts.open(spec, open=True, read=True, context=_CONTEXT).result()
  except Exception as error:
    raise ValueError(_unreadable(where, error)) from error
  stored = np.dtype(array.dtype.numpy_dtype)
  as_bits = bfloat16_bits and stored == np.uint16
  dtype = BFLOAT16 if as_bits else stored
  if dtype not in DTYPES.values():
    raise ValueError(
      f'{where} has dtype {dtype}; parameters must be one of {sorted(DTYPES)}'
    )

  def fetch(index: Index) -> np.ndarray:
    try:
      block = np.asarray(array[index].read().result(), order='C')
    except Exception as error:
      raise ValueError(_unreadable(where, error)) from error
    return block.view(BFLOAT16) if as_bits else block

  return StoredTensor(name, origin, tuple(array.shape), dtype, fetch)


def read_integer(name: str, kvstore: dict[str, Any], driver: str) -> int:
  """Returns the one number of a scalar array, for example the step."""
  spec = {'driver': driver, 'kvstore': kvstore}
  try:
    array = ts.open(spec, open=True, read=True, context=_CONTEXT).result()
    return int(array.read().result())
  except Exception as error:
    raise ValueError(_unreadable(name, error)) from error


def write_array(path: str, tensor: StoredTensor) -> dict[str, Any]:
  """Writes a tensor as T5X does and returns its zarr metadata.

  Args:
    path: an absolute local folder.
    tensor: read in blocks of whole chunks.
  """
  metadata = {
    'shape': list(tensor.shape),
    'chunks': chunk_shape(tensor.shape, _CHUNK_BYTES // tensor.dtype.itemsize),
    'compressor': {'id': 'gzip', 'level': 1},
  }
  array = ts.open(
    {
      'driver': 'zarr',
      'dtype': tensor.dtype.name,
      'kvstore': {'driver': 'file', 'path': f'{path}/'},
      'metadata': metadata,
      # So that a chunk that is not there is known to be lost.
      'store_data_equal_to_fill_value': True,
    },
    create=True,
    context=_CONTEXT,
  ).result()
  array.write(tensor.read()).result()
  return metadata


def chunk_shape(shape: tuple[int, ...], elements: int) -> list[int]:
  """Returns a chunk of at most `elements` that divides a shape evenly.

  The largest dimension is divided first, by as little as is needed.
  """
  chunk = list(shape)
  while np.prod(chunk, dtype=np.int64) > elements:
    axis = int(np.argmax(chunk))
    size = chunk[axis]
    if size == 1:
      break
    # The next smaller number that divides the dimension.
    chunk[axis] = next(
      shape[axis] // parts
      for parts in range(shape[axis] // size + 1, shape[axis] + 1)
      if shape[axis] % parts == 0
    )
  return chunk


def _unreadable(name: str, error: BaseException) -> str:
  missing = 'NOT_FOUND' in str(error)
  why = 'is missing in part or whole' if missing else 'cannot be read'
  return (
    f'{name} {why}: {first_line(error)}. The copy is incomplete or damaged; '
    'get the checkpoint again'
  )
