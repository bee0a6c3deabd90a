"""Files of token ids: one split as an .npz, written and read with NumPy alone.

For machines on which TensorFlow is not installed. A file holds inputs and
targets as flat int32 ids with offsets, the hash of every input, and where the
ids came from. `calm_jax.cli.tokenize` writes such files from any Task;
`token_batches` makes batches of them.
"""

import array
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

FORMAT = 'calm_jax token ids'
FORMAT_VERSION = 1
FEATURES = ('inputs', 'targets')


def write_npz(
  path: str | os.PathLike,
  examples: Iterable[Mapping[str, Any]],
  *,
  metadata: Mapping[str, Any] | None = None,
) -> int:
  """Writes token ids of examples to one file, whole or not at all.

  Args:
    path: the file to write; its folder is made.
    examples: mappings with `inputs` and `targets`, sequences of ids from 1 up
      with EOS at the end, and `input_hash`, the 64-bit hash of the input's text
      (all of them or none).
    metadata: what the ids depend on, as JSON values: vocabulary, prefix, ...

  Returns:
    The number of examples.

  Raises:
    ValueError: if there are no examples, an id is below 1 or above int32, a
      sequence is empty, or only some examples have `input_hash`.
  """
  columns = {name: array.array('i') for name in FEATURES}
  offsets = {name: [0] for name in FEATURES}
  hashes = []
  count = 0
  for count, example in enumerate(examples, 1):
    for name in FEATURES:
      columns[name].extend(_checked_ids(example[name], name, count - 1))
      offsets[name].append(len(columns[name]))
    if 'input_hash' in example:
      hashes.append(int(example['input_hash']))
  if not count:
    raise ValueError(f'There are no examples to write to {os.fspath(path)}.')
  if hashes and len(hashes) < count:
    raise ValueError(
      f'{len(hashes)} of {count} examples have an input_hash; give it to all '
      'or to none.'
    )
  header = {
    'format': FORMAT,
    'version': FORMAT_VERSION,
    'metadata': dict(metadata or {}),
  }
  arrays = {'header': np.array(json.dumps(header, ensure_ascii=False))}
  for name in FEATURES:
    arrays[f'{name}_ids'] = np.array(columns[name], np.int32)
    arrays[f'{name}_offsets'] = np.array(offsets[name], np.int64)
  arrays['input_hashes'] = np.array(hashes, np.uint64)
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    np.savez(file, **arrays)
  os.replace(temporary, path)
  return count


def read_npz(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a whole file and checks it.

  Returns:
    header (a dict), <feature>_ids int32, <feature>_offsets int64 [N+1],
    input_hashes uint64 [N], or [0] if there are none.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is truncated or foreign, or holds an id below 0.
  """
  path = os.fspath(path)
  names = [f'{name}_{part}' for name in FEATURES for part in ('ids', 'offsets')]
  try:
    with np.load(path, allow_pickle=False) as arrays:
      header = json.loads(arrays['header'].item())
      if header['format'] != FORMAT:
        raise ValueError(f'it says it is {header["format"]!r}')
      if header['version'] > FORMAT_VERSION:
        raise ValueError(f'version {header["version"]} is newer than this code')
      columns = {name: arrays[name] for name in (*names, 'input_hashes')}
  except FileNotFoundError:
    raise FileNotFoundError(
      f'There is no file {path}; write it with calm_jax.cli.tokenize.'
    ) from None
  except (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    zipfile.BadZipFile,
  ) as error:
    raise ValueError(
      f'{path} is not a whole file of token ids ({error}); write it again with '
      'calm_jax.cli.tokenize.'
    ) from None
  _check_columns(columns, path)
  return {'header': header, **columns}


def npz_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the metadata that `write_npz` was given.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is truncated or foreign.
  """
  return read_npz(path)['header']['metadata']


def npz_input_hashes(path: str | os.PathLike) -> np.ndarray:
  """Returns the hashes of the inputs: uint64, sorted, without repetition.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is truncated or foreign, or was written without hashes.
  """
  hashes = read_npz(path)['input_hashes']
  if not hashes.size:
    raise ValueError(
      f'{os.fspath(path)} holds no input hashes, so nobody could tell later '
      'which rows were trained on; write it with calm_jax.cli.tokenize.'
    )
  return np.unique(hashes)


def _checked_ids(ids, name: str, index: int) -> array.array:
  ids = np.asarray(ids)
  if ids.ndim != 1 or not ids.size or ids.dtype.kind not in 'iu':
    raise ValueError(
      f'example {index}: {name} must be a sequence of at least one token id, '
      f'found {ids.dtype} of shape {ids.shape}.'
    )
  if ids.min() < 1 or ids.max() > np.iinfo(np.int32).max:
    raise ValueError(
      f'example {index}: {name} holds the token id '
      f'{ids.min() if ids.min() < 1 else ids.max()}; ids are int32 from 1 up '
      '(0 is padding and is added when batches are made).'
    )
  return array.array('i', ids.astype(np.int32).tobytes())


def _check_columns(columns: Mapping[str, np.ndarray], path: str) -> None:
  counts = {len(columns['input_hashes'])} - {0}
  for name in FEATURES:
    ids, offsets = columns[f'{name}_ids'], columns[f'{name}_offsets']
    if ids.dtype != np.int32 or offsets.dtype != np.int64:
      raise ValueError(
        f'{path}: {name} have dtypes {ids.dtype} and {offsets.dtype}, expected '
        'int32 ids and int64 offsets.'
      )
    if (
      len(offsets) < 2
      or offsets[0] != 0
      or offsets[-1] != len(ids)
      or (np.diff(offsets) < 1).any()
    ):
      raise ValueError(
        f'{path}: the offsets of {name} do not divide its {len(ids)} ids into '
        'sequences; the file was not written by write_npz, or was changed.'
      )
    bad = np.flatnonzero(ids < 0)
    if bad.size:
      row = int(np.searchsorted(offsets, bad[0], side='right')) - 1
      raise ValueError(
        f'{path}: {bad.size} token ids of {name} are below 0, the first one '
        f'({ids[bad[0]]}) in example {row}.'
      )
    counts.add(len(offsets) - 1)
  if len(counts) != 1:
    raise ValueError(
      f'{path}: inputs, targets and hashes are of {sorted(counts)} examples; '
      'they must agree.'
    )
