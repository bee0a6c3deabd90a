"""Batches of delaying inputs, their gradients, and which of their words are."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import checks, evaluation, runs

Sources = Sequence[np.ndarray]
OfBatch = Callable[[np.ndarray, Sequence[evaluation.Climb]], jax.Array]


def few_words(
  run: runs.LoadedRun, table: np.ndarray, neighbours: int | None
) -> evaluation.FewWords | None:
  """Returns the edits of readable texts; None if there are no words.

  Args:
    run: whose tokenizer tells words; its prefix stays.
    table: float [V, D], how tokens are embedded.
    neighbours: how many words may stand for a word, the nearest ones; all of
      them if None.
  """
  size, tokenizer = len(table), run.tokenizer
  # Rows of a table beyond the vocabulary are no tokens.
  pieces = [
    tokenizer.piece(token) if 1 < token < tokenizer.vocab_size else ''
    for token in range(size)
  ]
  words = np.array([p[:1] == '▁' and p[1:].isalpha() for p in pieces])
  if words.sum() < 2:
    return None
  nearest = None
  if neighbours is not None:
    nearest = evaluation.nearest_words(table, words, neighbours)
  return evaluation.FewWords(
    words=words,
    continues=np.array([p.isalpha() for p in pieces]),
    keep=len(tokenizer.encode(run.prefix)) if run.prefix else 0,
    neighbours=nearest,
  )


def batches_of(
  inputs: Sources, batch_size: int, source_length: int
) -> Iterator[dict[str, Any]]:
  """Yields padded batches of inputs, as `evaluation.decode_dataset` wants.

  Args:
    inputs: int [S] each.
    batch_size: B.
    source_length: what they are padded to.

  Raises:
    ValueError: for a batch of no rows.
  """
  checks.check_whole(batch_size, 'batch_size', low=1)
  for start in range(0, len(inputs), batch_size):
    part = inputs[start : start + batch_size]
    tokens = np.zeros((batch_size, source_length), np.int32)
    for row, source in enumerate(part):
      tokens[row, : len(source)] = source
    # What is left over in the last batch holds its first input again.
    tokens[len(part) :] = tokens[0]
    yield {'encoder_input_tokens': tokens, 'num_valid': len(part)}


def filled(rows: Sequence[Any], number: int, nothing: int) -> np.ndarray:
  """Returns rows int [T] as int32 [number, T], the others filled up.

  Args:
    rows: at most so many.
    number: of all rows.
    nothing: what the others hold.
  """
  filled = np.full((number, len(rows[0])), nothing, np.int32)
  filled[: len(rows)] = rows
  return filled


def gradients_of(
  climbs: Sequence[evaluation.Climb],
  of_batch: OfBatch,
  batch_size: int,
  length: int,
) -> Sources:
  """Returns the gradients [S, D] of every search's best, batch by batch.

  Args:
    climbs: how far each search has come.
    of_batch: from inputs int32 [B, S] and the searches of its first rows to
      gradients [B, S, D].
    batch_size: B.
    length: what inputs are padded to.
  """
  found: list[np.ndarray] = []
  inputs = [climb.best for climb in climbs]
  for batch in batches_of(inputs, batch_size, length):
    part = climbs[len(found) : len(found) + batch['num_valid']]
    slopes = jax.device_get(of_batch(batch['encoder_input_tokens'], part))
    found.extend(
      rows[: len(climb.best)] for rows, climb in zip(slopes, part, strict=False)
    )
  return found
