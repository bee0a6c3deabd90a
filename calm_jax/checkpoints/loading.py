"""Parameters of any checkpoint, on one device or laid out over a mesh.

One tensor is read at a time; over a mesh every device's part is read by itself,
so the host never holds a second copy of the model.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import sharding
from calm_jax.array_types import Array, Params
from calm_jax.checkpoints import agreement, parameter_names
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.formats import open_checkpoint
from calm_jax.checkpoints.native import Checkpoint
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import Index, StoredTensor
from calm_jax.checkpoints.t5x_description import ASSUMED
from calm_jax.checkpoints.t5x_tree import check_parameters
from calm_jax.model.config import T5Config


def load(
  path: str | os.PathLike,
  config: T5Config | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  strategy: str = 'fsdp',
  allow_nonfinite: bool = False,
) -> Checkpoint:
  """Loads a checkpoint of any format that `open_checkpoint` knows.

  Args:
    path: local, or a URL like gs://bucket/folder.
    config: the configuration the caller wants. T5X saves none, so what shapes
      do not tell (activations, the farthest relative position) is taken from
      it; from others it may differ in dropout and dtype only.
    mesh: of `sharding.make_mesh`, to lay the parameters out over; every process
      reads only what its devices hold. None for the default device.
    strategy: how, a key of `sharding.RULES`.
    allow_nonfinite: load parameters that are not numbers all the same.

  Returns:
    Parameters in float32 (whatever they are stored as: it is exact), the
    configuration, and a description: 'format', 'step', 'notes' (what was left
    aside or assumed), 'generation' and 'texts' (see `StoredCheckpoint`) and, of
    our own checkpoints, all that `load_params` returns.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: if files are damaged, parameters are missing, left over,
      misshapen or not finite, or the configuration is another.
  """
  stored = open_checkpoint(path)
  notes = stored.notes
  if config is not None:
    notes = tuple(note for note in notes if not note.startswith(ASSUMED))
  config = agreed_config(stored, config)
  placed = {}
  for name, tensor in stored.tensors.items():
    read = _reader(stored.path, name, tensor, allow_nonfinite)
    placed[name] = _place(name, tensor.shape, read, mesh, strategy)
  params: Params = parameter_names.nested(placed)
  saved = stored.metadata.get('parameter_fingerprint')
  if saved is not None and saved != (found := parameter_fingerprint(params)):
    raise ValueError(
      f'the parameters of {stored.path} have the fingerprint {found}, and were '
      f'saved with {saved}: the files were altered'
    )
  description = {
    'format': stored.format,
    'step': stored.step,
    'notes': list(notes),
    'generation': stored.generation,
    'texts': stored.texts,
    **stored.metadata,
  }
  return Checkpoint(params, config, description)


def agreed_config(
  stored: StoredCheckpoint, wanted: T5Config | None
) -> T5Config:
  """Returns the configuration to use, checked against what is stored.

  Raises:
    ValueError: naming what differs.
  """
  if wanted is None:
    return stored.config
  if stored.format in ('t5x', 't5x_orbax'):
    check_parameters(stored.path, stored.tensors, wanted)
  else:
    agreement.check_config(stored.path, stored.config, wanted)
  return wanted


def _reader(
  path: str, name: str, tensor: StoredTensor, allow_nonfinite: bool
) -> Callable[[Index | None], np.ndarray]:
  """Returns a function that reads float32 blocks of a parameter."""

  def read(index=None):
    block = tensor.read(index).astype(np.float32, copy=False)
    if not allow_nonfinite:
      check_finite(path, name, block)
    return block

  return read


def check_all_finite(path: str | os.PathLike, params: Params) -> None:
  """Raises ValueError naming a parameter that holds NaN or infinity.

  They are looked at where they lie.
  """
  named = parameter_names.flattened(params)
  finite = jax.device_get(
    {name: jnp.isfinite(values).all() for name, values in named.items()}
  )
  for name, is_finite in finite.items():
    if not is_finite:
      check_finite(os.fspath(path), name, np.asarray(named[name]))


def check_finite(path: str, name: str, values: np.ndarray) -> None:
  """Raises ValueError naming a parameter that holds NaN or infinity."""
  finite = np.isfinite(values)
  if not finite.all():
    raise ValueError(
      f'{name} of {path} holds {int((~finite).sum())} values that are NaN or '
      'infinite: training diverged or the file was altered. Take an earlier '
      'checkpoint, or pass allow_nonfinite=True (--allow_nonfinite) to go on'
    )


def _place(name, shape, read, mesh, strategy) -> Array:
  """Returns a parameter on its devices, each part of it read once."""
  if mesh is None:
    return jax.device_put(read())
  spec = sharding.partition_spec(name, shape, mesh, strategy)
  parts: dict[tuple, np.ndarray] = {}

  def read_once(index):
    key = tuple((part.start, part.stop) for part in index)
    if key not in parts:
      parts[key] = read(index)
    return parts[key]

  return jax.make_array_from_callback(
    shape, jax.sharding.NamedSharding(mesh, spec), read_once
  )
