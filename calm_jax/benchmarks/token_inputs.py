"""Inputs of a token file, as the benchmarks on real text decode them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax.data import token_files
from calm_jax.tokenizer import cut_input

# Source lengths are padded to a multiple of this.
BUCKET = 16


def read_sources(
  path: str, number: int, metadata: Mapping[str, Any]
) -> list[np.ndarray]:
  """Returns the first inputs of a token file, int [S] each, EOS included.

  Token files hold inputs whole. They are cut as wherever the run decodes, or
  what is measured would be other inputs than those that are served and
  certified.

  Args:
    path: the token file.
    number: at most so many.
    metadata: what the run's checkpoint says of itself. Where that is nothing of
      the longest input, none is cut.
  """
  examples = token_files.read_npz(path)
  ends = examples['inputs_offsets'][1 : number + 1]
  sources = np.split(examples['inputs_ids'][: ends[-1]], ends[:-1])
  lengths = metadata.get('context', {}).get('feature_lengths', {})
  if 'inputs' not in lengths:
    return sources
  return [cut_input(source, lengths['inputs']) for source in sources]


def bucket(length: int) -> int:
  """Returns the padded length of sources of this length.

  >>> bucket(5), bucket(16), bucket(17)
  (16, 16, 32)
  """
  return BUCKET * math.ceil(length / BUCKET)


def whole_batches(
  sources: Sequence[np.ndarray], batch_size: int
) -> list[np.ndarray]:
  """Returns batches [B, S] of one S; what does not fill a batch is left out.

  Raises:
    ValueError: if there are fewer sources than a batch has rows.
  """
  if len(sources) < batch_size:
    raise ValueError(
      f'{len(sources)} inputs do not fill a batch of {batch_size}; give more, '
      'or a smaller batch'
    )
  length = bucket(max(map(len, sources)))
  padded = np.zeros((len(sources), length), np.int32)
  for row, source in enumerate(sources):
    padded[row, : len(source)] = source
  whole = len(sources) - len(sources) % batch_size
  return np.split(padded[:whole], whole // batch_size)


def without_padding(tokens: np.ndarray) -> list[int]:
  """Returns the ids of an output int [T], without padding and EOS (1).

  >>> without_padding(np.array([7, 12, 1, 0]))
  [7, 12]
  """
  return [int(token) for token in tokens if token > 1]
