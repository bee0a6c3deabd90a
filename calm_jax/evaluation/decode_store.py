"""Decoded rows on disk, so that nothing is decoded twice.

A store belongs to one way of decoding: model, policy with its threshold,
sampler, lengths, dtype, backend. Rows are found by their input and the shape of
the batch they were decoded in; a row does not depend on the other rows of its
batch (law 1), so an interrupted decode goes on with whichever rows are missing.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, interfaces, records

# What is known of each decoded row; see `DecodedDataset`.
FIELDS = (
  'tokens',
  'exit_layers',
  'confidences',
  'rejected_confidences',
  'scores',
  'lengths',
  'work',
  'seconds',
)
# And of each whose source may leave the encoder early.
ENCODER_FIELD = 'encoder_exit_layers'
WORK = tuple(field.name for field in dataclasses.fields(interfaces.Work))

Rows = dict[str, np.ndarray]


class DecodeStore:
  """Decoded rows of one way of decoding, in memory and in a folder.

  The folder gets one small file per `add`, written whole or not at all; killed
  between two of them, a decode has lost one batch.
  """

  def __init__(
    self,
    directory: str | os.PathLike | None,
    about: Mapping[str, Any],
    *,
    stops_encoder: bool = False,
  ):
    """Opens the store and reads what is there.

    Args:
      directory: the folder of all stores; this one's is made in it, named by a
        hash of `about`. None keeps rows in memory only.
      about: everything the decoded rows depend on but their inputs; JSON.
      stops_encoder: whether sources may leave the encoder early, so that it is
        kept where they did.

    Raises:
      ValueError: if a file of it cannot be read, naming it.
    """
    self._rows: dict[str, tuple[Rows, int]] = {}
    self.fields = (*FIELDS, *((ENCODER_FIELD,) if stops_encoder else ()))
    self._folder = None
    # Jobs of one run may decode at once, and in two containers both may be
    # process 1.
    self._writer = f'{jax.process_index()}-{secrets.token_hex(4)}'
    if directory is None:
      return
    # Rows of which less was kept are another folder's, and decoded anew.
    content = {
      'fields': [*self.fields, *WORK],
      'about': records.to_jsonable(dict(about)),
    }
    text = json.dumps(content, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._folder = pathlib.Path(directory) / name
    self._folder.mkdir(parents=True, exist_ok=True)
    about_file = self._folder / 'about.json'
    if jax.process_index() == 0 and not about_file.exists():
      records.write_json(about_file, dict(about))
    for path in sorted(self._folder.glob('rows-*.npz')):
      self._remember(*_read(path, self.fields))

  def __len__(self) -> int:
    return len(self._rows)

  def __contains__(self, key: str) -> bool:
    return key in self._rows

  def __getitem__(self, key: str) -> Rows:
    """Returns what is known of a row, an array of one entry per field."""
    rows, index = self._rows[key]
    return {name: array[index : index + 1] for name, array in rows.items()}

  def add(self, keys: Sequence[str], rows: Rows) -> None:
    """Keeps n rows, those that are not there yet.

    Args:
      keys: n of them, as `row_key` makes them.
      rows: an array [n, ...] for each of `fields`.
    """
    fresh = [i for i, key in enumerate(keys) if key not in self._rows]
    if not fresh:
      return
    keys = [keys[i] for i in fresh]
    rows = {name: np.asarray(rows[name])[fresh] for name in self.fields}
    self._remember(keys, rows)
    if self._folder is None:
      return
    path = self._new_path()
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'wb') as file:
      np.savez_compressed(file, keys=np.array(keys), **rows)
    os.replace(temporary, path)

  def _new_path(self) -> pathlib.Path:
    """Returns a path that neither this process nor another has written."""
    number = sum(1 for _ in self._folder.glob('rows-*.npz'))
    while True:
      path = self._folder / f'rows-{number:06d}-{self._writer}.npz'
      if not path.exists():
        return path
      number += 1

  def _remember(self, keys: Sequence[str], rows: Rows) -> None:
    for index, key in enumerate(keys):
      self._rows.setdefault(str(key), (rows, index))


def rows_of(result: decoding.DecodeResult) -> Rows:
  """Returns what is kept of a batch [B, ...], but for `seconds`."""
  rows = {
    name: np.asarray(getattr(result, name))
    for name in FIELDS
    if name not in ('work', 'seconds')
  }
  if result.encoder_exit_layers is not None:
    rows[ENCODER_FIELD] = np.asarray(result.encoder_exit_layers)
  columns = [np.asarray(getattr(result.work, name), np.int64) for name in WORK]
  return {**rows, 'work': np.stack(columns, axis=-1).sum(axis=1)}


def row_key(example_id: str, batch_shape: tuple[int, ...]) -> str:
  """Returns where a row is found: its input, in batches of a shape [B, S]."""
  return f'{example_id}/{"x".join(map(str, batch_shape))}'


def _read(path: pathlib.Path, fields: Sequence[str]) -> tuple[list[str], Rows]:
  """Reads one file of a store."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      keys = arrays['keys'].tolist()
      return keys, {name: arrays[name] for name in fields}
  except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path} does not hold decoded rows ({error}); delete it, and its rows '
      'are decoded again'
    ) from None
