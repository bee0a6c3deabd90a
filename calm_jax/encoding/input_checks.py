"""Host checks of what is to be decoded, before anything is compiled."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from calm_jax import checks
from calm_jax.array_types import Array


def check_inputs(inputs: ArrayLike, vocab_size: int) -> Array:
  """Returns inputs as int32 [B, S], after looking at them on the host.

  Args:
    inputs: token ids [B, S], 0 = padding; if traced, only their shape and dtype
      are looked at.
    vocab_size: V.

  Raises:
    ValueError: naming the shape, dtype, token id or row that cannot be decoded.
  """
  array: Any = inputs if hasattr(inputs, 'dtype') else _from_rows(inputs)
  if array.ndim != 2 or 0 in array.shape:
    raise ValueError(
      f'inputs have shape {list(array.shape)}; give at least one row of at '
      'least one token, [B, S]'
    )
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(
      f'inputs have dtype {array.dtype}; give integer token ids [B, S]'
    )
  if checks.is_concrete(array):
    tokens = np.asarray(array)
    if (bad := (tokens < 0) | (tokens >= vocab_size)).any():
      row, column = np.argwhere(bad)[0]
      raise ValueError(
        f'token id {tokens[row, column]} in row {row} of the inputs is outside '
        f"[0, {vocab_size}); use this model's tokenizer"
      )
    if (empty := (tokens == 0).all(axis=1)).any():
      raise ValueError(
        f'row {np.flatnonzero(empty)[0]} of the inputs is all padding; leave '
        'it out or give it at least one token'
      )
  return jnp.asarray(array, jnp.int32)


def _from_rows(rows: Any) -> np.ndarray:
  """Returns rows of numbers as an array."""
  try:
    return np.asarray(rows)
  except ValueError:
    raise ValueError(
      'inputs are rows of different lengths; pad them with 0 to one length, '
      '[B, S]'
    ) from None
