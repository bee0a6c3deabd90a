"""T5X's legacy checkpoints (msgpack and zarr), the form of all published ones.

`checkpoint_<step>/checkpoint` is a msgpack of the training state. A leaf of it
is an array, or says in which zarr array beside it the values lie. Written by
T5X since 2021 (version 3); read without T5X, and without trusting a path.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import serialization

from calm_jax.checkpoints import parameter_names, stored_tensors, zarr_arrays
from calm_jax.checkpoints.storage import Folder, checked_name, first_line
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import BFLOAT16, DTYPES, StoredTensor
from calm_jax.checkpoints.t5x_description import describe
from calm_jax.checkpoints.t5x_tree import as_checkpoint

FILE = 'checkpoint'
_VERSION = 3
# Version 2 stored bfloat16 as the bits of uint16.
_VERSIONS = (2, 3)


def open_checkpoint(
  path: str | os.PathLike, *, file: str = FILE
) -> StoredCheckpoint:
  """Opens a checkpoint; the values of large parameters are not read.

  Args:
    path: the folder checkpoint_<step>, local or a URL.
    file: the msgpack in it.

  Raises:
    FileNotFoundError: if there is no msgpack.
    ValueError: if a file is cut, damaged or of another version, refers to
      something outside the folder, or parameters are missing, left over or
      misshapen.
  """
  folder = Folder.open(path)
  where = f'{folder.path}/{file}'
  try:
    content = serialization.msgpack_restore(folder.read(file))
    version = content['version']
    state = content['optimizer']
    target = state['target']
    if not isinstance(target, dict):
      raise TypeError(f'parameters are a {type(target).__name__}')
    others = state.get('state', {})
    step = int(np.asarray(others.get('step', 0)))
    rest = sum(1 for _ in _flatten(others.get('param_states', {})))
  except FileNotFoundError:
    raise
  except Exception as error:
    raise ValueError(
      f'{where} is no T5X checkpoint, or is cut or damaged: '
      f'{type(error).__name__}: {first_line(error)}'
    ) from error
  if version not in _VERSIONS:
    raise ValueError(
      f'{where} is of version {version}; versions {_VERSIONS} are read. '
      'Restore and save it with T5X'
    )
  tensors = {
    name: _leaf(folder, name, leaf, version) for name, leaf in _flatten(target)
  }
  notes = (f'The optimizer state ({rest} arrays) is left aside.',)
  return as_checkpoint(
    folder.path,
    't5x',
    tensors,
    step=step,
    notes=notes if rest else (),
    folder=folder if file == FILE else None,
  )


def _is_specification(leaf: Any) -> bool:
  return (
    isinstance(leaf, dict)
    and isinstance(leaf.get('driver'), str)
    and isinstance(leaf.get('kvstore'), dict)
    and isinstance(leaf.get('metadata'), dict)
  )


def _flatten(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf) with names joined by slashes."""
  if not isinstance(tree, dict) or _is_specification(tree):
    yield prefix, tree
    return
  for name, inner in tree.items():
    yield from _flatten(inner, f'{prefix}/{name}' if prefix else str(name))


def _leaf(folder: Folder, name: str, leaf: Any, version: int) -> StoredTensor:
  if _is_specification(leaf):
    return _array(folder, name, leaf, version)
  array = np.asarray(leaf)
  if version == 2 and array.dtype == np.uint16:
    array = array.view(BFLOAT16)
  if array.dtype not in DTYPES.values():
    raise ValueError(
      f'{name} in {folder.path} is {array.dtype}; parameters must be one of '
      f'{sorted(DTYPES)}'
    )
  return stored_tensors.in_memory(name, array, origin=folder.path)


def _array(
  folder: Folder, name: str, spec: Mapping[str, Any], version: int
) -> StoredTensor:
  """Opens the array that a leaf refers to, by the relative path alone.

  Driver and bucket are those of the machine that wrote it.
  """
  # Before tensorstore 0.1.14 the path stood one level higher.
  path = spec['kvstore'].get('path') or spec.get('path') or ''
  tensor = zarr_arrays.open_array(
    name,
    folder.path,
    folder.location(checked_name(folder.path, path)),
    driver=spec['driver'],
    bfloat16_bits=version == 2,
  )
  shape = tuple(spec['metadata'].get('shape', tensor.shape))
  if shape != tensor.shape:
    raise ValueError(
      f'{tensor} has shape {tensor.shape} on disk, and {shape} in {FILE}: they '
      'are of different checkpoints; get the checkpoint again'
    )
  return tensor


def write_checkpoint(
  path: str | os.PathLike,
  checkpoint: StoredCheckpoint,
  *,
  stacked: bool = False,
) -> None:
  """Writes a checkpoint of parameters into an existing empty folder.

  Matrices become zarr arrays, one of them in memory at a time; vectors lie in
  the msgpack, as T5X has it. There is no optimizer state: T5X evaluates and
  decodes from it, and fine-tunes from it with `fallback_to_scratch`.

  Args:
    path: a local folder.
    checkpoint: what to write; dtypes are kept.
    stacked: write layers as `scan_layers` has them.
  """
  path = os.path.abspath(path)
  tensors = checkpoint.tensors
  if stacked:
    tensors = parameter_names.to_stacked(checkpoint.config, tensors)
  target = parameter_names.nested(
    {name: _written(path, name, tensor) for name, tensor in tensors.items()}
  )
  state = {'step': np.int32(checkpoint.step), 'param_states': {}}
  content = {
    'version': _VERSION,
    'optimizer': {'target': target, 'state': state},
  }
  with open(os.path.join(path, FILE), 'wb') as file:
    file.write(serialization.msgpack_serialize(content))
  describe(path, checkpoint.config)


def _written(path: str, name: str, tensor: StoredTensor) -> Any:
  if len(tensor.shape) < 2:
    return tensor.read()
  place = 'target.' + name.replace('/', '.')
  metadata = zarr_arrays.write_array(os.path.join(path, place), tensor)
  return {
    'driver': 'zarr',
    'dtype': tensor.dtype.name,
    'kvstore': {'driver': 'file', 'path': f'{place}/'},
    'metadata': metadata,
  }
