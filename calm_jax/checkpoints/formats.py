"""Which format a path holds, and opening it.

`open_checkpoint` takes whatever a user points at: a run directory of ours, a
T5X model directory or one checkpoint of it, a folder of Hugging Face's. What is
not read (Mesh TensorFlow, pickled PyTorch) is recognised and refused with what
to do instead.
"""

import dataclasses
import os
import re

from calm_jax.checkpoints import (
  directories,
  foreign_folders,
  huggingface,
  native,
  t5x,
  t5x_orbax,
)
from calm_jax.checkpoints.huggingface_generation import GenerationRules
from calm_jax.checkpoints.storage import Folder, is_url
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.t5x_description import ASSUMED
from calm_jax.checkpoints.t5x_tree import check_parameters

_HUGGINGFACE = ('.safetensors', '.bin', '.json', '.h5')
_STEP = re.compile(r'checkpoint_(\d+)/')
_DESCRIPTION = 'metadata'


def open_checkpoint(path: str | os.PathLike) -> StoredCheckpoint:
  """Opens a checkpoint of any known format; values are not read.

  Args:
    path: local or a URL like gs://bucket/folder. Of a directory of several
      checkpoints the latest is taken, of a run of ours the best one.

  Raises:
    FileNotFoundError: if there is no checkpoint, saying what is there.
    ValueError: if it is damaged or of a format that is not read.
  """
  path = os.path.expanduser(path)
  if not is_url(path) and os.path.isfile(path):
    return _open_file(path)
  folder = Folder.open(path)
  if folder.has(huggingface.CONFIG):
    return huggingface.open_folder(path)
  if folder.has(t5x.FILE):
    return _open_legacy(folder)
  if folder.has(f'state/{t5x.FILE}'):
    return _open_legacy(folder.inside('state'))
  for place in ('state/', ''):
    if folder.has(f'{place}{t5x_orbax.FILE}'):
      return _open_orbax(folder, place)
  names = folder.names()
  if why := foreign_folders.unreadable(folder.path, names):
    raise ValueError(why)
  return _open_one_of(folder, names)


def _open_file(path: str) -> StoredCheckpoint:
  """Opens a msgpack that holds everything, or refuses another file."""
  folder, name = os.path.split(os.path.abspath(path))
  if name.endswith('.model'):
    raise ValueError(f'{path} is a vocabulary; give the folder of the model')
  if name.endswith(('.pt', '.pth', '.ckpt')):
    raise ValueError(
      f'{path} is pickled by PyTorch, which can run code and is not read. Load '
      'it where torch is, into a transformers.T5ForConditionalGeneration, and '
      'give the folder that its save_pretrained writes'
    )
  if name.endswith(_HUGGINGFACE) or name.startswith('flax_model'):
    raise ValueError(
      f"{path} is one file of Hugging Face's; give its folder, {folder}"
    )
  if name.endswith('.index') or '.ckpt' in name:
    raise ValueError(foreign_folders.MESH_TENSORFLOW.format(path))
  return t5x.open_checkpoint(folder, file=name)


def _open_legacy(folder: Folder) -> StoredCheckpoint:
  # TensorFlow keeps a text of this name beside its own files.
  if b'model_checkpoint_path' in folder.read(t5x.FILE)[:100]:
    raise ValueError(foreign_folders.MESH_TENSORFLOW.format(folder.path))
  return t5x.open_checkpoint(folder.path)


def _open_orbax(folder: Folder, place: str) -> StoredCheckpoint:
  """Opens T5X's or our own, which has a description beside the arrays."""
  arrays = folder.inside(place) if place else folder
  name = f'{_DESCRIPTION}/{_DESCRIPTION}'
  if not place or not folder.has(name):
    return t5x_orbax.open_checkpoint(arrays.path, beside=folder)
  if not is_url(folder.path) and not directories.is_complete(folder.path):
    raise ValueError(
      directories.damage_message(folder.path, 'it was never completed')
    )
  metadata = native.parse_metadata(folder.path, folder.read(name))
  config = native.config_of(folder.path, metadata)
  opened = t5x_orbax.open_checkpoint(arrays.path)
  check_parameters(folder.path, opened.tensors, config)
  rules = GenerationRules.read(
    folder.path, metadata.get('context', {}), config.vocab_size
  )
  notes = (note for note in opened.notes if not note.startswith(ASSUMED))
  return dataclasses.replace(
    opened,
    path=folder.path,
    format='calm_jax',
    config=config,
    notes=(*notes, *rules.describe(folder.path)),
    step=metadata['step'],
    metadata=metadata,
    generation=rules,
  )


def _open_one_of(folder: Folder, names: list[str]) -> StoredCheckpoint:
  """Opens the best or the latest checkpoint of a directory of several.

  Of ours, one that was never completed is passed over.
  """
  if not is_url(folder.path):
    ours = (directories.best_step, directories.latest_step)
    if any(step(folder.path) is not None for step in ours):
      return open_checkpoint(directories.find_checkpoint(folder.path))
  steps = sorted(
    (int(match[1]) for match in map(_STEP.fullmatch, names) if match),
    reverse=True,
  )
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint at {folder.path}: '
      f'{f"it holds {names[:20]}" if names else "there is nothing"}'
    )
  return open_checkpoint(f'{folder.path}/checkpoint_{steps[0]}')
