"""Host checks of what is to be decoded, before anything is compiled."""

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array


def check_inputs(inputs: Array, vocab_size: int) -> Array:
  """Returns inputs as int32 [B, S], after looking at them on the host.

  Args:
    inputs: token ids [B, S], 0 = padding; if traced, only their shape and dtype
      are looked at.
    vocab_size: V.

  Raises:
    ValueError: naming the shape, dtype, token id or row that cannot be decoded.
  """
  if not hasattr(inputs, 'dtype'):
    inputs = np.asarray(inputs)
  if inputs.ndim != 2 or 0 in inputs.shape:
    raise ValueError(
      f'inputs have shape {list(inputs.shape)}; give at least one row of at '
      'least one token, [B, S]'
    )
  if not jnp.issubdtype(inputs.dtype, jnp.integer):
    raise ValueError(
      f'inputs have dtype {inputs.dtype}; give integer token ids [B, S]'
    )
  if checks.is_concrete(inputs):
    tokens = np.asarray(inputs)
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
  return jnp.asarray(inputs, jnp.int32)
