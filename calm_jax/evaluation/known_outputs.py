"""Outputs whose exits have been looked at, and what thresholds make of them."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import decoding
from calm_jax.evaluation import following


@dataclasses.dataclass(frozen=True, eq=False)
class Furthest:
  """How far n rows follow, each the output that it follows furthest.

  Attributes:
    followed: how far that is.
    outputs: int [n], the numbers of these outputs.
  """

  followed: following.Followed
  outputs: np.ndarray

  @property
  def going(self) -> np.ndarray:
    """The rows, int [k], that say another token there and go on behind it."""
    return np.flatnonzero(~self.followed.ended & ~self.followed.unsure)


class KnownOutputs:
  """Outputs of rows, numbered as they come, several of a row."""

  def __init__(self, eos_id: int):
    """Knows nothing yet; `eos_id` ends an output."""
    self._eos_id = eos_id
    self._of_row: dict[int, list[int]] = {}
    self._count = 0
    # Tokens, lengths and trace: arrays with room for more.
    self._arrays: tuple[np.ndarray, np.ndarray, decoding.Trace] | None = None

  def __contains__(self, row: int) -> bool:
    """Whether an output of a row is known."""
    return row in self._of_row

  def trace_of(self, outputs: np.ndarray) -> decoding.Trace:
    """Returns what exits say of outputs [k], [k, T, L]."""
    _, _, trace = self._arrays
    return jax.tree.map(lambda leaf: leaf[outputs], trace)

  def add(
    self,
    rows: Sequence[int],
    tokens: np.ndarray,
    lengths: np.ndarray,
    trace: decoding.Trace,
  ) -> np.ndarray:
    """Keeps outputs of rows.

    Args:
      rows: n of them.
      tokens: int32 [n, T].
      lengths: int32 [n], how many tokens count.
      trace: of them, [n, T, L].

    Returns:
      Their numbers, int [n].
    """
    new = tokens, lengths, trace
    numbers = self._count + np.arange(len(rows))
    if self._arrays is None:
      self._arrays = jax.tree.map(np.array, new)
    elif self._count + len(rows) > len(self._arrays[0]):
      self._arrays = jax.tree.map(
        lambda old, leaf: np.concatenate(
          [old[: self._count], leaf, np.zeros_like(old)]
        ),
        self._arrays,
        new,
      )
    for old, leaf in zip(
      jax.tree.leaves(self._arrays), jax.tree.leaves(new), strict=True
    ):
      old[numbers] = leaf
    self._count += len(rows)
    for row, number in zip(rows, numbers.tolist(), strict=True):
      self._of_row.setdefault(row, []).append(number)
    return numbers

  def follow(
    self, outputs: np.ndarray, thresholds: np.ndarray
  ) -> following.Followed:
    """Follows outputs [k] under thresholds [T]."""
    tokens, lengths, trace = self._arrays
    return following.follow(
      jax.tree.map(lambda leaf: leaf[outputs], trace),
      tokens[outputs],
      lengths[outputs],
      thresholds,
      eos_id=self._eos_id,
    )

  def follow_furthest(
    self, rows: Sequence[int], thresholds: np.ndarray
  ) -> Furthest:
    """Follows of each row the output that it follows furthest.

    Args:
      rows: n of them, each `in` this.
      thresholds: float32 [T].
    """
    counts = [len(self._of_row[row]) for row in rows]
    outputs = np.concatenate([self._of_row[row] for row in rows])
    owners = np.repeat(np.arange(len(rows)), counts)
    followed = self.follow(outputs, thresholds)
    # To its end, if it does.
    far = 2 * followed.lengths + followed.ended
    order = np.lexsort((far, owners))
    best = order[np.r_[owners[order][1:] != owners[order][:-1], True]]
    return Furthest(followed.take(best), outputs[best])
