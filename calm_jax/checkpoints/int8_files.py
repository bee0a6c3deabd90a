"""A checkpoint's parameters with matrices in 8 bits, kept beside it.

`<run>/int8/checkpoint_<step>.safetensors` is a whole model: matrices in 8 bits,
and in float whatever is not. Its header says which weights they are, by which
rule they were rounded and of which parameters; what does not fit the checkpoint
is refused. The folder may be removed at any time: it is made again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from calm_jax import quantisation
from calm_jax.array_types import Params
from calm_jax.checkpoints import (
  directories,
  int8_checks,
  native,
  parameter_names,
  safetensors_files,
  stored_tensors,
)
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.native import Checkpoint
from calm_jax.checkpoints.storage import Folder
from calm_jax.quantisation import Int8Matrix, Int8Weights

_KEY = 'calm_jax.int8'


def int8_path(
  run_dir: str | os.PathLike, weights: Int8Weights | str = 'int8'
) -> str:
  """Returns where parameters in 8 bits lie, whether they do or not.

  Args:
    run_dir: a run directory or one of its checkpoints, as for `load_params`.
    weights: which matrices.

  Raises:
    FileNotFoundError, ValueError: as `find_checkpoint`.
  """
  described = _int8(weights).describe()
  checkpoint = directories.find_checkpoint(run_dir)
  name = os.path.basename(checkpoint)
  if described != Int8Weights().describe():
    text = json.dumps(described, sort_keys=True)
    name += '-' + hashlib.sha256(text.encode()).hexdigest()[:8]
  run = directories.run_of(checkpoint)
  return os.path.join(run, directories.INT8, f'{name}.safetensors')


def save_int8(
  run_dir: str | os.PathLike,
  params: Params,
  weights: Int8Weights | str,
  *,
  fingerprint: str,
) -> str:
  """Writes parameters in 8 bits beside a checkpoint; returns the file's path.

  Args:
    run_dir: see `int8_path`.
    params: the tree that `LayeredDecoder.quantise` returned.
    weights: what it was told.
    fingerprint: of the float parameters, `parameter_fingerprint`.

  Raises:
    FileNotFoundError, ValueError: as `find_checkpoint`, or for parameters of
      another checkpoint.
    OSError: if the file cannot be written.
  """
  checkpoint = directories.find_checkpoint(run_dir)
  path = int8_path(checkpoint, weights)
  own = native.read_metadata(checkpoint).get('parameter_fingerprint')
  if fingerprint != own:
    raise ValueError(
      f'{checkpoint} holds the parameters {own}, and those to be kept beside '
      f'it were made of {fingerprint}; keep them beside the checkpoint that '
      'they are of'
    )
  about = int8_checks.describe(_int8(weights), fingerprint)
  about['own_fingerprint'] = parameter_fingerprint(params)
  tensors = {
    name: stored_tensors.in_memory(name, array)
    for name, array in parameter_names.flattened(params).items()
  }
  unfinished = f'{path}.tmp{os.getpid()}'
  os.makedirs(os.path.dirname(path), exist_ok=True)
  try:
    safetensors_files.write_file(
      unfinished, stored_tensors.aligned(tensors), {_KEY: json.dumps(about)}
    )
    os.replace(unfinished, path)
  finally:
    with contextlib.suppress(OSError):
      os.remove(unfinished)
  return path


def load_int8(
  run_dir: str | os.PathLike, weights: Int8Weights | str = 'int8'
) -> Checkpoint:
  """Returns a checkpoint with matrices in 8 bits; float ones are not read.

  Args:
    run_dir: see `int8_path`.
    weights: which matrices.

  Returns:
    What `load_params` does, with the tree that `LayeredDecoder.quantise` would
    return. `metadata['parameter_fingerprint']` is that of the float parameters.

  Raises:
    FileNotFoundError: if there is no checkpoint, or no such file beside it.
    ValueError: if the file is cut or altered, of other parameters, weights or
      another rule, or if scales do not fit.
  """
  checkpoint, weights = directories.find_checkpoint(run_dir), _int8(weights)
  path = int8_path(checkpoint, weights)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'there is no {path}; runs.int8_params makes it')
  metadata = native.read_metadata(checkpoint)
  config = native.config_of(checkpoint, metadata)
  folder, name = os.path.split(path)
  tensors, header = safetensors_files.read_with_metadata(
    Folder.open(folder), name
  )
  fingerprint = metadata.get('parameter_fingerprint')
  wanted = int8_checks.describe(weights, fingerprint)
  own = int8_checks.check_made_of(path, header.get(_KEY, '{}'), wanted)
  int8_checks.check_tensors(path, tensors, config, weights)
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  quantisation.check_stored(path, arrays)
  params = _tree(arrays)
  if (found := parameter_fingerprint(params)) != own:
    raise ValueError(
      f'{path} was altered: what it holds has the fingerprint {found}, and was '
      f'saved with {own}; {int8_checks.REMEDY}'
    )
  return Checkpoint(params, config, metadata)


def _int8(weights: Int8Weights | str | None) -> Int8Weights:
  """Returns weights in 8 bits.

  Raises:
    ValueError: for float ones, or what are none.
  """
  found = quantisation.as_weights(weights)
  if found is None:
    raise ValueError(
      f"weights is {weights!r}, and float ones are the checkpoint's own; give "
      "'int8' or quantisation.Int8Weights(...)"
    )
  return found


def _tree(arrays: Mapping[str, np.ndarray]) -> Params:
  """Returns the tree of arrays by names, matrices put together."""
  leaves: dict[str, Any] = {}
  for name, array in arrays.items():
    path = name.removesuffix(quantisation.VALUES)
    if array.dtype == np.int8:
      scales = arrays[path + quantisation.SCALES]
      leaves[path] = Int8Matrix(jnp.asarray(array), jnp.asarray(scales))
    elif not name.endswith(f'/int8{quantisation.SCALES}'):
      leaves[name] = jnp.asarray(array)
  return parameter_names.nested(leaves)
