"""The weights of a folder of Hugging Face's: which files, which model's.

A folder has safetensors in one file or in several with an index. Names of
tensors tell what else than a whole T5 was saved: an encoder alone, a
classifier, adapters that were not merged.
"""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from calm_jax.checkpoints import foreign_folders, safetensors_files
from calm_jax.checkpoints.storage import Folder, checked_name
from calm_jax.checkpoints.stored_tensors import StoredTensor

FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# What transformers writes besides: the same model once more, not read.
_OTHERS = ('.bin', '.h5', '.msgpack', '.safetensors', '.ot', '.onnx')
_ROWS_COMPARED = 4096
# Parts of names -> what was saved, and what to do.
_WRAPPED = ('module.', '_orig_mod.', 'model.', 'base_model.', 'transformer.')
_ADAPTERS = ('.lora_', '.base_layer.', '.ia3_', '.modules_to_save', 'prompt_')
_HEADS = ('classification_head.', 'classifier.', 'qa_outputs.', 'score.')


def read_json(folder: Folder, name: str) -> dict[str, Any]:
  """Returns the object that a file of JSON holds.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it holds something else.
  """
  try:
    fields = json.loads(folder.read(name))
  except (RecursionError, ValueError) as error:
    raise ValueError(
      f'{folder.path}/{name} is not JSON ({error}); get it again'
    ) from error
  if not isinstance(fields, dict):
    raise ValueError(f'{folder.path}/{name} holds no JSON object')
  return fields


def write_json(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
  """Writes an object as transformers does, keys in order."""
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(fields, file, indent=2, sort_keys=True, ensure_ascii=False)
    file.write('\n')


def read_tensors(
  folder: Folder, names: Collection[str], notes: list[str]
) -> dict[str, StoredTensor]:
  """Returns the tensors of a folder; headers are read, values are not.

  Where one file and an index of several lie side by side the former is taken,
  as transformers does, if both hold the same.

  Args:
    folder: the folder.
    names: what it holds.
    notes: what is left aside is added.

  Raises:
    FileNotFoundError, ValueError: if there are none, or two models.
  """
  if FILE in names:
    tensors = safetensors_files.read_file(folder, FILE)
    used = {FILE}
    if INDEX in names:
      used.add(INDEX)
      notes.append(_left_aside(folder, tensors))
  elif INDEX in names:
    tensors = _read_shards(folder)
    used = {tensor.origin.rpartition('/')[2] for tensor in tensors.values()}
  else:
    raise _no_weights(folder, names)
  others = [
    name for name in names if name.endswith(_OTHERS) and name not in used
  ]
  if INDEX in names and FILE in names:
    others = [name for name in others if not name.startswith('model-')]
  if others:
    notes.append(
      f'{", ".join(sorted(others))} {"are" if others[1:] else "is"} left '
      'aside: the weights are those of '
      f'{FILE if FILE in used else INDEX}.'
    )
  return tensors


def _left_aside(folder: Folder, tensors: Mapping[str, StoredTensor]) -> str:
  """Returns a note of an index beside a whole file, or refuses both."""
  try:
    shards = _read_shards(folder)
  except (FileNotFoundError, ValueError):
    return f'{INDEX} is left aside: {FILE} is whole, and its files are not.'
  differing = sorted(
    name
    for name in tensors.keys() | shards.keys()
    if name not in tensors
    or name not in shards
    or not is_same(tensors[name], shards[name])
  )
  if differing:
    raise ValueError(
      f'{folder.path} holds two models: {FILE} and the files of {INDEX}, which '
      f'differ in {differing[0]} and {len(differing) - 1} more. Move those of '
      'the model that you do not mean into another folder'
    )
  return f'{INDEX} is left aside: its files hold the same as {FILE}.'


def _no_weights(folder: Folder, names: Collection[str]) -> Exception:
  pickled = [
    name
    for name in sorted(names)
    if name.startswith('pytorch_model') or name.endswith(('.h5', '.msgpack'))
  ]
  if pickled:
    return ValueError(
      f'{folder.path} holds {pickled[0]} and no safetensors. Pickled tensors '
      'can run code and are not read; write safetensors where torch is '
      'installed: transformers.T5ForConditionalGeneration.from_pretrained('
      'FOLDER).save_pretrained(NEW_FOLDER)'
    )
  if foreign_folders.ADAPTER in names:
    return ValueError(
      f'{folder.path} holds an adapter ({foreign_folders.ADAPTER}) and no '
      f'{FILE}, the model that it adapts: {foreign_folders.MERGE}'
    )
  others = [name for name in sorted(names) if name.endswith('.safetensors')]
  if others:
    return FileNotFoundError(
      f'{folder.path} holds neither {FILE} nor {INDEX}, but {others[0]}: get '
      'the index if that is one of several files, or name it '
      f'{FILE} if it is the whole model (a "variant" such as fp16)'
    )
  return FileNotFoundError(
    f'{folder.path} holds neither {FILE} nor {INDEX}: {sorted(names)[:20]}'
  )


def _read_shards(folder: Folder) -> dict[str, StoredTensor]:
  where = f'{folder.path}/{INDEX}'
  files = read_json(folder, INDEX).get('weight_map')
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
          f'{name} lies in {folder.path}/{file}, where {INDEX} does not have '
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


def check_whole_t5(path: str, names: Collection[str]) -> None:
  """Raises ValueError if names of tensors are of something else than a T5.

  Says what was saved and what to do, where `agreement.check_shapes` would list
  parameters that are missing.
  """
  adapted = [name for name in names if any(part in name for part in _ADAPTERS)]
  if adapted:
    raise ValueError(
      f'{path} holds {sorted(adapted)[0]}: an adapter (LoRA or the like) that '
      'was not merged into its model. With peft: model = model.'
      'merge_and_unload(), then model.save_pretrained(NEW_FOLDER)'
    )
  headed = [
    name
    for name in names
    if name.removeprefix('transformer.').startswith(_HEADS)
  ]
  if headed:
    raise ValueError(
      f'{path} holds {sorted(headed)[0]}: a classifier on top of T5, which '
      'says no tokens, so that there is nothing to decode here; give a '
      'T5ForConditionalGeneration'
    )
  for prefix in _WRAPPED:
    if names and all(name.startswith(prefix) for name in names):
      raise ValueError(
        f'all parameters of {path} begin with {prefix!r}: a wrapper was saved '
        'instead of the model in it. Save the T5ForConditionalGeneration '
        'itself with save_pretrained'
      )
  if names and not any(name.startswith('decoder.') for name in names):
    raise ValueError(
      f'{path} holds an encoder and no decoder (as T5EncoderModel saves it): '
      'there is nothing that decodes. Give the T5ForConditionalGeneration '
      'that it was taken from'
    )


def is_same(first: StoredTensor, second: StoredTensor) -> bool:
  """Whether two tensors hold the same, as far as the narrower dtype says."""
  if first.shape != second.shape:
    return False
  dtype = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
  rows = first.shape[0] if first.shape else 0
  starts = range(0, rows, _ROWS_COMPARED)
  rest = (slice(None),) * (len(first.shape) - 1)
  parts = [(slice(a, a + _ROWS_COMPARED), *rest) for a in starts] or [None]
  return all(
    np.array_equal(
      first.read(part).astype(dtype), second.read(part).astype(dtype)
    )
    for part in parts
  )
