"""Inputs of a token file, as the benchmarks on real text decode them."""

import math
from collections.abc import Sequence

import numpy as np

from calm_jax.data import token_files

# Source lengths are padded to a multiple of this.
BUCKET = 16


def read_sources(path: str, number: int) -> list[np.ndarray]:
  """Returns the first inputs of a token file, int [S] each, EOS included."""
  examples = token_files.read_npz(path)
  ends = examples['inputs_offsets'][1 : number + 1]
  return np.split(examples['inputs_ids'][: ends[-1]], ends[:-1])


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
