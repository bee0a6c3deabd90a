"""One row per input, as the model reads it.

Long inputs that begin alike are the same input once they are cut. Calibration
counts inputs, so they are looked for before anything is decoded.
"""

import dataclasses
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np

from calm_jax.evaluation.decode_dataset import (
  Batch,
  num_valid_of,
  references_of,
)
from calm_jax.evaluation.decoded_dataset import example_id


@dataclasses.dataclass(frozen=True, eq=False)
class DistinctInputs:
  """Inputs of batches, each once.

  Attributes:
    batches: of the same shapes, with the first row of every input, and with the
      references of all of them.
    example_ids: N hashes, all different, in the order of the rows.
    places: int [M], for each of all rows which of the N it is.
  """

  batches: list[dict[str, Any]]
  example_ids: tuple[str, ...]
  places: np.ndarray

  def describe(self) -> str | None:
    """Says how many rows were left out; None if none was."""
    number, left = len(self.places), len(self.example_ids)
    if number == left:
      return None
    length = self.batches[0]['encoder_input_tokens'].shape[1]
    return (
      f'{number - left} of {number} inputs are the same as an earlier one, as '
      f'the model reads them (at most {length} tokens), and are left out: '
      f'{left} are left'
    )


def distinct_inputs(batches: Sequence[Batch]) -> DistinctInputs:
  """Returns each input of batches once, and says where the others went."""
  first: dict[str, int] = {}
  references: list[dict[str, None]] = []
  places: list[int] = []
  kept: list[list[int]] = []
  for batch in batches:
    rows = []
    for row, texts in enumerate(references_of(batch)):
      key = example_id(np.asarray(batch['encoder_input_tokens'][row]))
      if key not in first:
        first[key] = len(first)
        references.append({})
        rows.append(row)
      references[first[key]].update(dict.fromkeys(texts))
      places.append(first[key])
    kept.append(rows)
  merged = iter([list(texts) for texts in references])
  found = []
  for batch, rows in zip(batches, kept, strict=True):
    texts = [next(merged) for _ in rows]
    if len(rows) == num_valid_of(batch):
      # Nothing is left out here; an earlier row may have got more references.
      found.append(_with_references(dict(batch), texts))
    elif rows:
      found.append(_with_references(_taken(batch, rows), texts))
  return DistinctInputs(found, tuple(first), np.array(places))


def leave_out(
  batches: Sequence[Batch], example_ids: Set[str]
) -> tuple[list[Batch], int, int]:
  """Leaves out inputs that were used elsewhere.

  Args:
    batches: the inputs.
    example_ids: hashes of those to leave out.

  Returns:
    The batches without them; how many they were; how many of these fill all S
    places and may have been cut, so that longer ones may have differed.
  """
  found, left_out, filled = [], 0, 0
  for batch in batches:
    tokens = np.asarray(batch['encoder_input_tokens'])[: num_valid_of(batch)]
    out = [example_id(row) in example_ids for row in tokens]
    left_out += sum(out)
    filled += sum(row[-1] != 0 for row in tokens[np.array(out, bool)])
    rows = [row for row, left in enumerate(out) if not left]
    if rows:
      found.append(batch if len(rows) == len(out) else _taken(batch, rows))
  return found, left_out, int(filled)


def say_distinct(
  batches: Sequence[Batch], say: Callable[[str], None]
) -> DistinctInputs:
  """Returns `distinct_inputs`, and says how many rows were left out."""
  found = distinct_inputs(batches)
  if (line := found.describe()) is not None:
    say(line)
  return found


def _taken(batch: Batch, rows: list[int]) -> dict[str, Any]:
  """Returns a batch of the same shape with some of its rows, at its top."""
  taken: dict[str, Any] = {}
  for name, value in batch.items():
    if isinstance(value, (list, tuple)):
      taken[name] = [value[row] for row in rows]
    elif np.ndim(value):
      taken[name] = np.zeros_like(value)
      taken[name][: len(rows)] = np.asarray(value)[rows]
    else:
      taken[name] = value
  return {**taken, 'num_valid': len(rows)}


def _with_references(
  batch: dict[str, Any], texts: list[list[str]]
) -> dict[str, Any]:
  """Returns a batch with these references, if it had any."""
  return {**batch, 'references': texts} if any(texts) else batch
