"""Hugging Face's folders of T5 1.0, v1.1, Flan-T5 and mT5, both directions.

A folder is config.json and safetensors, in one file or in several with an
index, and files beside them with facts of their own: how to generate, how to
read texts. All of it is looked at before anything is loaded; what is used,
honoured or left aside is said in notes, what changes outputs and is not had
here is refused. Files of pickled PyTorch tensors are refused: unpickling runs
code.
"""

import os
from collections.abc import Mapping
from typing import Any

from calm_jax.checkpoints import (
  agreement,
  foreign_folders,
  huggingface_generation,
  huggingface_texts,
  huggingface_weights,
  parameter_names,
  safetensors_files,
)
from calm_jax.checkpoints.huggingface_config import (
  check_model,
  config_from_huggingface,
  config_to_huggingface,
  scales_tied_logits,
)
from calm_jax.checkpoints.huggingface_weights import (
  is_same,
  read_json,
  write_json,
)
from calm_jax.checkpoints.storage import Folder
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import StoredTensor

CONFIG = 'config.json'
_GENERATION = huggingface_generation.FILE
# What older folders hold besides: copies of shared.weight, and a table that no
# layer reads.
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)
_HEAD, _SHARED = 'lm_head.weight', 'shared.weight'


def open_folder(path: str | os.PathLike) -> StoredCheckpoint:
  """Opens a folder; headers are read, values are not.

  Args:
    path: a local folder or a URL like gs://bucket/folder.

  Raises:
    FileNotFoundError: if config.json or a file of tensors is missing.
    ValueError: if a file is damaged, of another kind or of another model,
      parameters are missing, left over or misshapen, or a neighbouring file
      says what is not had here; each is named.
  """
  folder = Folder.open(path)
  names = folder.names()
  fields = read_json(folder, CONFIG)
  check_model(f'{folder.path}/{CONFIG}', fields)
  generation = None
  if _GENERATION in names:
    generation = read_json(folder, _GENERATION)
    huggingface_generation.check_ids(f'{folder.path}/{_GENERATION}', generation)
  notes: list[str] = []
  tensors = huggingface_weights.read_tensors(folder, names, notes)
  huggingface_weights.check_whole_t5(folder.path, tensors)
  _check_adapter(folder.path, names)
  _leave_copies(tensors, notes)
  tied = _settle_head(folder.path, fields, tensors, notes)
  config = config_from_huggingface(folder.path, fields, tied=tied)
  agreement.check_depth(folder.path, config, len(tensors))
  agreement.check_shapes(
    tensors,
    agreement.things_of_shapes(parameter_names.huggingface_shapes(config)),
    folder.path,
    hint='Is its config.json that of these weights?',
  )
  rules, said = huggingface_generation.read_rules(
    CONFIG if generation is None else _GENERATION,
    fields if generation is None else generation,
    config.vocab_size,
  )
  texts = huggingface_texts.read_facts(folder, names, notes)
  return StoredCheckpoint(
    folder.path,
    'huggingface',
    config,
    parameter_names.from_huggingface(config, tensors),
    notes=(*notes, *said),
    generation=rules,
    texts=texts,
  )


def _check_adapter(path: str, names: list[str]) -> None:
  if foreign_folders.ADAPTER in names:
    raise ValueError(
      f'{path} holds a model and an adapter ({foreign_folders.ADAPTER}), which '
      f'transformers would apply and this library does not: '
      f'{foreign_folders.MERGE}; or move the adapter away to load the model '
      'without it'
    )


def _leave_copies(tensors: dict[str, StoredTensor], notes: list[str]) -> None:
  """Takes out of `tensors` what is there twice, or read by no layer."""
  for name in _UNUSED:
    if tensors.pop(name, None) is not None:
      notes.append(f'{name} is left aside: no layer reads it.')
  for name in _COPIES:
    copy = tensors.pop(name, None)
    if copy is None:
      continue
    if _SHARED not in tensors:
      tensors[_SHARED] = copy
      continue
    if not is_same(copy, tensors[_SHARED]):
      raise ValueError(
        f'{copy} is not a copy of {_SHARED}: encoder and decoder read '
        'different tables, and this model has one'
      )
    notes.append(f'{name} is left aside: a copy of {_SHARED}.')


def _settle_head(
  path: str, fields: Mapping[str, Any], tensors: dict, notes: list[str]
) -> bool:
  """Returns whether the output is tied, with `tensors` changed to fit.

  Tied here means scaled logits, too. A head of its own in a gated model means
  v1.1, unless config.json says that logits are scaled.
  """
  scaled, why = scales_tied_logits(fields)
  gated = str(fields.get('feed_forward_proj', '')).startswith('gated')
  head, shared = tensors.get(_HEAD), tensors.get(_SHARED)
  if shared is None:
    return head is None
  if head is None and not scaled and why:
    tensors[_HEAD] = shared
    notes.append(f'{_HEAD} is {_SHARED}, and logits are not scaled: {why}.')
  if head is None or not scaled:
    return scaled
  if is_same(head, shared):
    del tensors[_HEAD]
    notes.append(f'{_HEAD} is left aside: a copy of {_SHARED}.')
    return True
  if fields.get('scale_decoder_outputs') is None and gated:
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


def write_folder(
  path: str | os.PathLike,
  checkpoint: StoredCheckpoint,
  *,
  model_type: str = 't5',
  max_file_bytes: int = 5 * 10**9,
) -> None:
  """Writes both configurations and safetensors into an existing empty folder.

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
  write_json(os.path.join(path, CONFIG), fields)
  write_json(
    os.path.join(path, _GENERATION),
    huggingface_generation.fields_of(checkpoint.generation),
  )
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
    write_json(os.path.join(path, huggingface_weights.INDEX), index)


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
    return {huggingface_weights.FILE: groups[0]}
  return {
    f'model-{number:05d}-of-{len(groups):05d}.safetensors': names
    for number, names in enumerate(groups, start=1)
  }
