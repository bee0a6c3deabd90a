"""Hugging Face's folders of T5 1.0, v1.1, Flan-T5 and mT5, both directions.

A folder is config.json and safetensors, in one file or in several with an
index. Files of pickled PyTorch tensors are refused: unpickling runs code.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from calm_jax.checkpoints import agreement, parameter_names, safetensors_files
from calm_jax.checkpoints.huggingface_config import (
  check_model_type,
  config_from_huggingface,
  config_to_huggingface,
)
from calm_jax.checkpoints.storage import Folder, checked_name
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import StoredTensor

CONFIG = 'config.json'
_FILE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# What older folders hold besides: copies of shared.weight, and a table that no
# layer reads.
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)
_HEAD, _SHARED = 'lm_head.weight', 'shared.weight'
_ROWS_COMPARED = 4096


def open_folder(path: str | os.PathLike) -> StoredCheckpoint:
  """Opens a folder; headers are read, values are not.

  Args:
    path: a local folder or a URL like gs://bucket/folder.

  Raises:
    FileNotFoundError: if config.json or a file of tensors is missing.
    ValueError: if a file is damaged, of another kind or of another model, or
      parameters are missing, left over or misshapen, naming them.
  """
  folder = Folder.open(path)
  fields = _read_json(folder, CONFIG)
  check_model_type(f'{folder.path}/{CONFIG}', fields)
  tensors = _read_tensors(folder)
  notes = []
  for name in _UNUSED:
    if tensors.pop(name, None) is not None:
      notes.append(f'{name} is left aside: no layer reads it.')
  for name in _COPIES:
    copy = tensors.pop(name, None)
    if copy is not None and _SHARED in tensors:
      _check_same(copy, tensors[_SHARED])
      notes.append(f'{name} is left aside: a copy of {_SHARED}.')
    elif copy is not None:
      tensors[_SHARED] = copy
  tied = _settle_head(folder.path, fields, tensors, notes)
  config = config_from_huggingface(folder.path, fields, tied=tied)
  agreement.check_depth(folder.path, config, len(tensors))
  agreement.check_shapes(
    tensors,
    agreement.things_of_shapes(parameter_names.huggingface_shapes(config)),
    folder.path,
    hint='Is its config.json that of these weights?',
  )
  return StoredCheckpoint(
    folder.path,
    'huggingface',
    config,
    parameter_names.from_huggingface(config, tensors),
    notes=tuple(notes),
  )


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
  try:
    fields = json.loads(folder.read(name))
  except (RecursionError, ValueError) as error:
    raise ValueError(
      f'{folder.path}/{name} is not JSON ({error}); get it again'
    ) from error
  if not isinstance(fields, dict):
    raise ValueError(f'{folder.path}/{name} holds no JSON object')
  return fields


def _read_tensors(folder: Folder) -> dict[str, StoredTensor]:
  if folder.has(_INDEX):
    return _read_shards(folder)
  if folder.has(_FILE):
    return safetensors_files.read_file(folder, _FILE)
  pickled = [
    name
    for name in folder.names()
    if name.startswith('pytorch_model') or name.endswith(('.h5', '.msgpack'))
  ]
  if not pickled:
    raise FileNotFoundError(
      f'{folder.path} holds neither {_FILE} nor {_INDEX}: {folder.names()[:20]}'
    )
  raise ValueError(
    f'{folder.path} holds {pickled[0]} and no safetensors. Pickled tensors can '
    'run code and are not read; write safetensors where torch is installed: '
    'transformers.T5ForConditionalGeneration.from_pretrained(FOLDER)'
    '.save_pretrained(NEW_FOLDER)'
  )


def _read_shards(folder: Folder) -> dict[str, StoredTensor]:
  where = f'{folder.path}/{_INDEX}'
  files = _read_json(folder, _INDEX).get('weight_map')
  if not isinstance(files, dict) or not all(
    isinstance(file, str) for file in files.values()
  ):
    raise ValueError(f'{where} has no weight_map of names; get it again')
  found: dict[str, StoredTensor] = {}
  for file in sorted(set(files.values())):
    shard = safetensors_files.read_file(folder, checked_name(where, file))
    for name, tensor in shard.items():
      if files.get(name) != file:
        raise ValueError(
          f'{name} lies in {folder.path}/{file}, where {_INDEX} does not have '
          'it; get the files again'
        )
      found[name] = tensor
  missing = sorted(files.keys() - found.keys())
  if missing:
    raise ValueError(
      f'{where} has {missing[0]} in {files[missing[0]]}, which does not hold '
      f'it ({len(missing)} such); get the files again'
    )
  return found


def _settle_head(
  path: str, fields: Mapping[str, Any], tensors: dict, notes: list[str]
) -> bool:
  """Returns whether the output is tied, with `tensors` changed to fit.

  `scale_decoder_outputs` of transformers 5 says it; `tie_word_embeddings` did
  in version 4, but 5 writes true whatever the model. So a head of its own in a
  gated model means v1.1, unless the former field is there.
  """
  told = fields.get('scale_decoder_outputs')
  scaled = fields.get('tie_word_embeddings', True) if told is None else told
  head, shared = tensors.get(_HEAD), tensors.get(_SHARED)
  if shared is None:
    return head is None
  if head is None:
    if not scaled and told is not None:
      tensors[_HEAD] = shared
      notes.append(f'{_HEAD} is {_SHARED}, and logits are not scaled.')
    return scaled
  if not scaled:
    return False
  if _same(head, shared):
    del tensors[_HEAD]
    notes.append(f'{_HEAD} is left aside: a copy of {_SHARED}.')
    return True
  if told is None and fields.get('feed_forward_proj', '').startswith('gated'):
    notes.append(
      f'{_HEAD} is an output matrix of its own, so this is v1.1, though '
      'config.json says tie_word_embeddings.'
    )
    return False
  raise ValueError(
    f'{path} has a {_HEAD} that is not {_SHARED}, and its config.json says '
    'that logits are scaled as with tied embeddings: say '
    '"scale_decoder_outputs": false there if this is T5 v1.1'
  )


def _check_same(copy: StoredTensor, shared: StoredTensor) -> None:
  if not _same(copy, shared):
    raise ValueError(
      f'{copy} is not a copy of {_SHARED}: encoder and decoder read '
      'different tables, and this model has one'
    )


def _same(first: StoredTensor, second: StoredTensor) -> bool:
  if (first.shape, first.dtype) != (second.shape, second.dtype):
    return False
  if len(first.shape) != 2:
    return np.array_equal(first.read(), second.read())
  starts = range(0, first.shape[0], _ROWS_COMPARED)
  parts = [(slice(a, a + _ROWS_COMPARED), slice(None)) for a in starts]
  return all(
    np.array_equal(first.read(part), second.read(part)) for part in parts
  )


def write_folder(
  path: str | os.PathLike,
  checkpoint: StoredCheckpoint,
  *,
  model_type: str = 't5',
  max_file_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and safetensors into an existing empty folder.

  One tensor at a time lies in memory.

  Args:
    path: a local folder.
    checkpoint: what to write; dtypes are kept.
    model_type: 't5' or 'mt5', which differ in their tokenizers.
    max_file_bytes: several files and an index are written above this size.

  Raises:
    ValueError: if Hugging Face's T5 cannot compute the configuration.
  """
  config = checkpoint.config
  tensors = parameter_names.to_huggingface(config, checkpoint.tensors)
  fields = config_to_huggingface(
    config, dtype=tensors[_SHARED].dtype.name, model_type=model_type
  )
  _write_json(os.path.join(path, CONFIG), fields)
  files = _divide(tensors, max_file_bytes)
  for file, names in files.items():
    safetensors_files.write_file(
      os.path.join(path, file), {name: tensors[name] for name in names}
    )
  if len(files) > 1:
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {
      'metadata': {'total_size': size},
      'weight_map': {name: file for file in files for name in files[file]},
    }
    _write_json(os.path.join(path, _INDEX), index)


def _divide(tensors: Mapping, max_bytes: int) -> dict[str, list[str]]:
  """Returns the names that go into each file."""
  groups: list[list[str]] = [[]]
  size = 0
  for name in sorted(tensors):
    if groups[-1] and size + tensors[name].nbytes > max_bytes:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += tensors[name].nbytes
  if len(groups) == 1:
    return {_FILE: groups[0]}
  return {
    f'model-{number:05d}-of-{len(groups):05d}.safetensors': names
    for number, names in enumerate(groups, start=1)
  }


def _write_json(path: str, fields: Mapping[str, Any]) -> None:
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(fields, file, indent=2, sort_keys=True)
    file.write('\n')
