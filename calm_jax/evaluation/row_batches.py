"""Inputs of any order, looked at in batches of the shapes they are decoded in.

One size of batch is one program. Places that are left over hold an input again
and are nothing to decode.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, interfaces
from calm_jax.evaluation.decoded_dataset import Input

# Tokens, lengths and what was seen of them, NumPy arrays [n, ...].
Extended = tuple[np.ndarray, np.ndarray, decoding.Trace]


class RowBatches:
  """Traces and extends outputs of inputs, under a policy at any threshold."""

  def __init__(
    self,
    bound: interfaces.BoundDecoder,
    policy: decoding.ComputePolicy,
    *,
    max_length: int,
    eos_id: int,
    suppressed_tokens: Sequence[int] = (),
  ):
    """Takes what `decoding.start` takes."""
    self._bound, self._policy = bound, policy
    self._options: dict[str, Any] = dict(
      max_length=max_length,
      eos_id=eos_id,
      suppressed_tokens=tuple(suppressed_tokens) or None,
    )

  def trace(
    self, rows: Sequence[Input], tokens: np.ndarray, lengths: np.ndarray
  ) -> decoding.Trace:
    """Returns what every exit says of outputs [n, T], in their order."""

    def look(state, places):
      return decoding.trace(state, tokens[places], lengths[places])

    return self._in_batches(rows, lengths, look)

  def extend(
    self,
    rows: Sequence[Input],
    tokens: np.ndarray,
    lengths: np.ndarray,
    thresholds: np.ndarray,
  ) -> Extended:
    """Decodes rows from behind what they have said; see `decoding.extend`.

    Args:
      rows: n inputs.
      tokens: int32 [n, T].
      lengths: int32 [n].
      thresholds: float32 [n, T].

    Returns:
      As `decoding.extend`, in the order of the rows.
    """

    def go_on(state, places):
      # Places that are left over have nothing to decode.
      over = np.r_[False, places[1:] == places[:-1]]
      begun = np.where(over, tokens.shape[1], lengths[places])
      return decoding.extend(state, tokens[places], begun, thresholds[places])

    return self._in_batches(rows, lengths, go_on)

  def _in_batches(self, rows: Sequence[Input], lengths: np.ndarray, run) -> Any:
    """Returns what `run` makes of all rows, in their order."""
    parts, order = [], []
    for places, size in batches_of(rows, lengths):
      # Filled up with the last one.
      filled = np.minimum(np.arange(size), len(places) - 1)
      filled = np.array(places)[filled]
      inputs = np.stack([rows[place].tokens for place in filled])
      state = decoding.start(
        self._bound, inputs, policy=self._policy, **self._options
      )
      found = jax.device_get(run(state, filled))
      kept = len(places)
      parts.append(jax.tree.map(lambda leaf, n=kept: leaf[:n], found))
      order.extend(places)
    back = np.argsort(order)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)


def batches_of(
  rows: Sequence[Input], lengths: np.ndarray
) -> Iterator[tuple[list[int], int]]:
  """Yields the places of rows in batches of their shapes, and their size.

  Long ones with long ones: positions that are given take a batch as long as
  those of its longest row.

  Args:
    rows: the inputs.
    lengths: int [n], positions that are given.
  """
  by_shape: dict[tuple[int, int], list[int]] = {}
  for place in np.argsort(lengths, kind='stable').tolist():
    by_shape.setdefault(rows[place].batch_shape, []).append(place)
  for (size, _), places in by_shape.items():
    for first in range(0, len(places), size):
      yield places[first : first + size], size
