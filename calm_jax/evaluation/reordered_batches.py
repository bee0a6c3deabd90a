"""Rows of batches in another order, in batches of the shapes that they had."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.evaluation.decode_dataset import Batch, num_valid_of


def blocks_of(
  batches: Sequence[Batch], order: Sequence[int], size: int
) -> list[list[Batch]]:
  """Returns the rows of batches in another order, by blocks.

  Args:
    batches: of N rows, the places left over in them not counted.
    order: of the N rows.
    size: how many rows a block has; the last one may have fewer.

  Returns:
    The batches of every block: of the shapes that they had, a new one wherever
    the shape changes or one is full.
  """
  rows = [
    (batch, row) for batch in batches for row in range(num_valid_of(batch))
  ]
  blocks = []
  for start in range(0, len(order), size):
    together: list[list[tuple[Batch, int]]] = []
    for place in order[start : start + size]:
      batch, row = rows[place]
      kind = _kind(batch)
      last = together[-1] if together else []
      if not last or _kind(last[0][0]) != kind or len(last) == kind[0][0]:
        together.append([])
      together[-1].append((batch, row))
    blocks.append([_stacked(part) for part in together])
  return blocks


def _kind(batch: Batch) -> tuple[tuple[int, ...], frozenset[str]]:
  """Returns what batches must share for their rows to be put together."""
  return np.shape(batch['encoder_input_tokens']), frozenset(batch)


def _stacked(rows: Sequence[tuple[Batch, int]]) -> Batch:
  """Returns a batch of rows of batches of one kind."""
  stacked: dict[str, Any] = {}
  for name, value in rows[0][0].items():
    if isinstance(value, (list, tuple)):
      stacked[name] = [batch[name][row] for batch, row in rows]
    elif np.ndim(value):
      stacked[name] = np.zeros_like(value)
      for place, (batch, row) in enumerate(rows):
        stacked[name][place] = batch[name][row]
    else:
      stacked[name] = value
  return {**stacked, 'num_valid': len(rows)}
