"""Rows that have said another token than what they followed."""

import dataclasses

import numpy as np

from calm_jax.evaluation.decoded_dataset import Input


@dataclasses.dataclass(frozen=True, eq=False)
class ChangedRows:
  """n rows that have said another token than what they followed.

  Attributes:
    rows: the inputs.
    parents: int [n], the outputs that they followed.
    tokens: int32 [n, T], what they have said, that token included.
    lengths: int32 [n], how many tokens that is.
    thresholds: float32 [n, T].
  """

  rows: list[Input]
  parents: np.ndarray
  tokens: np.ndarray
  lengths: np.ndarray
  thresholds: np.ndarray

  def keys(self) -> list[tuple[int, bytes]]:
    """Returns rows with what they have said."""
    return [
      (row.place, said[:length].tobytes())
      for row, said, length in zip(
        self.rows, self.tokens, self.lengths, strict=True
      )
    ]

  def take(self, which: list[int]) -> 'ChangedRows':
    """Returns those at `which`."""
    return ChangedRows(
      [self.rows[i] for i in which],
      self.parents[which],
      self.tokens[which],
      self.lengths[which],
      self.thresholds[which],
    )

  def plus(self, other: 'ChangedRows') -> 'ChangedRows':
    """Returns these and others."""
    return ChangedRows(
      [*self.rows, *other.rows],
      *(
        np.concatenate([getattr(one, name) for one in (self, other)])
        for name in ('parents', 'tokens', 'lengths', 'thresholds')
      ),
    )
