"""T5X's present checkpoints (Orbax), and our own, which have the same arrays.

Read with tensorstore alone: `_METADATA` names the parameters, whose zarr arrays
lie in an OCDBT store, or each in a folder of its own. So any block of any
parameter can be read, from a cloud too, and the optimizer is never touched.
"""

import json
import os
from typing import Any

import numpy as np

from calm_jax.checkpoints import parameter_names, writer, zarr_arrays
from calm_jax.checkpoints.storage import Folder, checked_name
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import StoredTensor
from calm_jax.checkpoints.t5x_description import describe
from calm_jax.checkpoints.t5x_tree import as_checkpoint

FILE = '_METADATA'
_MANIFEST = 'manifest.ocdbt'


def open_checkpoint(
  path: str | os.PathLike, *, beside: Folder | None = None
) -> StoredCheckpoint:
  """Opens a checkpoint; values are not read.

  Args:
    path: the folder that holds `_METADATA`: checkpoint_<step>/state, local or
      a URL.
    beside: checkpoint_<step>, where what shapes do not tell may be said.

  Raises:
    FileNotFoundError: if there is no `_METADATA`.
    ValueError: if it is damaged or not T5X's, or parameters are missing, left
      over or misshapen.
  """
  folder = Folder.open(path)
  where = f'{folder.path}/{FILE}'
  try:
    metadata = json.loads(folder.read(FILE))
    names = [
      tuple(str(part['key']) for part in entry['key_metadata'])
      for entry in metadata['tree_metadata'].values()
    ]
  except (
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    raise ValueError(
      f'{where} is damaged ({error!r:.200}); get the checkpoint again'
    ) from error
  if not any(name[0] == 'target' for name in names):
    raise ValueError(
      f"{where} has no 'target', where T5X keeps parameters: it holds "
      f'{sorted({name[0] for name in names})}'
    )
  reader = _Reader(folder, metadata)
  tensors = {
    '/'.join(name[1:]): reader.open(name)
    for name in names
    if name[0] == 'target'
  }
  step = ('state', 'step')
  rest = len(names) - len(tensors) - (step in names)
  notes = (f'The training state ({rest} arrays) is left aside.',)
  return as_checkpoint(
    folder.path,
    't5x_orbax',
    tensors,
    step=reader.integer(step) if step in names else 0,
    notes=notes if rest else (),
    folder=beside,
  )


def write_checkpoint(
  path: str | os.PathLike,
  checkpoint: StoredCheckpoint,
  *,
  stacked: bool = False,
) -> None:
  """Writes checkpoint_<step> with parameters and step, as T5X's Orbax does.

  Orbax wants the whole tree at once: all parameters lie in memory.

  Args:
    path: the folder checkpoint_<step>, which must not exist.
    checkpoint: what to write; dtypes are kept.
    stacked: write layers as `scan_layers` has them.
  """
  tensors = checkpoint.tensors
  if stacked:
    tensors = parameter_names.to_stacked(checkpoint.config, tensors)
  target = {name: tensor.read() for name, tensor in tensors.items()}
  writer.save_state(
    path,
    {
      'target': parameter_names.nested(target),
      'state': {'step': np.int32(checkpoint.step)},
    },
  )
  describe(path, checkpoint.config)


class _Reader:
  """Opens arrays of one checkpoint by the names of its tree."""

  def __init__(self, folder: Folder, metadata: dict[str, Any]):
    self._folder = folder
    self._driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
    self._ocdbt = folder.has(_MANIFEST)
    # Older Orbax leaves out chunks of zeros, and says so by not saying this.
    self._all_stored = metadata.get(
      'store_array_data_equal_to_fill_value', False
    )

  def open(self, name: tuple[str, ...]) -> StoredTensor:
    return zarr_arrays.open_array(
      '/'.join(name[1:]),
      self._folder.path,
      self._location(name),
      driver=self._driver,
      zeros_may_be_missing=not self._all_stored,
    )

  def integer(self, name: tuple[str, ...]) -> int:
    return zarr_arrays.read_integer(
      f'{"/".join(name)} in {self._folder.path}',
      self._location(name),
      self._driver,
    )

  def _location(self, name: tuple[str, ...]) -> dict[str, Any]:
    path = checked_name(self._folder.path, '.'.join(name))
    if not self._ocdbt:
      return self._folder.location(path)
    base = self._folder.store.spec().to_json()
    return {'driver': 'ocdbt', 'base': base, 'path': f'{path}/'}
