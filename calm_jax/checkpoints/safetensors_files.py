"""The safetensors container, read by blocks and written tensor by tensor.

Eight bytes say how long the JSON header is that says where each tensor lies.
The safetensors library needs all tensors of a file in memory to write it, and a
local path to read it; here a file may lie in a cloud and be larger than memory.
Format: https://huggingface.co/docs/safetensors, checked against the library in
tests.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from calm_jax.checkpoints.storage import Folder
from calm_jax.checkpoints.stored_tensors import (
  DTYPES,
  WITH_INT8,
  Index,
  StoredTensor,
)

_CODES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16', 'int8': 'I8'}
# The library's own bound.
_MAX_HEADER_BYTES = 100_000_000
# Rows are read in pieces of at most about this size.
_BLOCK_BYTES = 64 * 2**20


class _Entry(NamedTuple):
  """Where a tensor lies in a file, in bytes from its start."""

  folder: Folder
  file: str
  start: int


def read_file(
  folder: Folder, file: str, dtypes: Mapping[str, np.dtype] = DTYPES
) -> dict[str, StoredTensor]:
  """Returns the tensors of a file; only its header is read.

  Args:
    folder: where it lies.
    file: its name.
    dtypes: what tensors may be, `DTYPES` or `WITH_INT8`.

  Raises:
    ValueError: if the file is cut, or its header is not one.
  """
  tensors, _ = read_with_metadata(folder, file, dtypes)
  return tensors


def read_with_metadata(
  folder: Folder, file: str, dtypes: Mapping[str, np.dtype] = WITH_INT8
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
  """Returns the tensors of a file, and what its header says besides."""
  where = f'{folder.path}/{file}'
  length = int.from_bytes(folder.read(file, 0, 8), 'little')
  if not 2 <= length <= _MAX_HEADER_BYTES:
    raise ValueError(
      f'{where} is no safetensors file: its header would have {length} bytes. '
      'Get it again (is it a pointer of Git LFS?)'
    )
  try:
    header = json.loads(folder.read(file, 8, 8 + length))
    metadata = dict(header.pop('__metadata__', {}))
    tensors = {
      name: _tensor(_Entry(folder, file, 8 + length), name, entry, dtypes)
      for name, entry in header.items()
    }
    size = max((e['data_offsets'][1] for e in header.values()), default=0)
  except (
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
    json.JSONDecodeError,
  ) as error:
    raise ValueError(
      f'{where} has a damaged header ({error}); get it again'
    ) from error
  if size:
    # Fails if the file ends before its last tensor does.
    folder.read(file, 7 + length + size, 8 + length + size)
  return tensors, metadata


def _tensor(
  at: _Entry,
  name: str,
  entry: Mapping[str, Any],
  dtypes: Mapping[str, np.dtype],
) -> StoredTensor:
  names = {_CODES[dtype]: dtype for dtype in dtypes}
  where = f'{name} in {at.folder.path}/{at.file}'
  if entry['dtype'] not in names:
    raise ValueError(
      f'{where} has dtype {entry["dtype"]}; parameters must be one of '
      f'{sorted(names)}. Save the model in one of these, for example float32'
    )
  dtype = dtypes[names[entry['dtype']]]
  shape = tuple(int(size) for size in entry['shape'])
  if len(entry['data_offsets']) != 2:
    raise TypeError(f'{name} does not say from where to where it lies')
  start, stop = entry['data_offsets']
  if min((start, *shape)) < 0 or (
    stop - start != math.prod(shape) * dtype.itemsize
  ):
    raise ValueError(
      f'{where} has shape {shape} and {stop - start} bytes of data, which do '
      'not fit each other; get the file again'
    )
  place = at._replace(start=at.start + start)

  def fetch(index: Index) -> np.ndarray:
    return _read_block(place, shape, dtype, index)

  return StoredTensor(name, f'{at.folder.path}/{at.file}', shape, dtype, fetch)


def _read_block(
  place: _Entry, shape: tuple[int, ...], dtype: np.dtype, index: Index
) -> np.ndarray:
  """Reads whole rows, in pieces, and keeps the wanted columns of each."""
  result = np.empty([part.stop - part.start for part in index], dtype)
  if not index:
    data = place.folder.read(
      place.file, place.start, place.start + dtype.itemsize
    )
    return np.frombuffer(data, dtype).reshape(())
  if not result.size:
    return result
  row_bytes = math.prod(shape[1:]) * dtype.itemsize
  rows = max(_BLOCK_BYTES // row_bytes, 1)
  for first in range(index[0].start, index[0].stop, rows):
    last = min(first + rows, index[0].stop)
    data = place.folder.read(
      place.file,
      place.start + first * row_bytes,
      place.start + last * row_bytes,
    )
    block = np.frombuffer(data, dtype).reshape(last - first, *shape[1:])
    target = slice(first - index[0].start, last - index[0].start)
    result[target] = block[(slice(None), *index[1:])]
  return result


def write_file(
  path: str | os.PathLike,
  tensors: Mapping[str, StoredTensor],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors to a local file, holding one of them in memory at a time.

  Args:
    path: the file; replaced if it exists.
    tensors: by name, written in this order.
    metadata: what its header says besides.
  """
  about = {'format': 'pt', **(metadata or {})}
  header: dict[str, Any] = {'__metadata__': about}
  position = 0
  for name, tensor in tensors.items():
    header[name] = {
      'dtype': _CODES[tensor.dtype.name],
      'shape': list(tensor.shape),
      'data_offsets': [position, position + tensor.nbytes],
    }
    position += tensor.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  # Data begins at a multiple of eight bytes.
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little'))
    file.write(text)
    for tensor in tensors.values():
      # `read` returns rows as they lie in memory, also of a transposed view.
      file.write(tensor.read().view(np.uint8).data)
