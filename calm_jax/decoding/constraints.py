"""What must and what must not be said, put around a policy.

`constrain` wraps two slots of a policy: its readout where tokens are
suppressed, its exit rule where outputs begin with forced ones.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.decoding import forced_prefix as prefixes
from calm_jax.decoding import suppression
from calm_jax.decoding.policy import ComputePolicy


def constrain(
  policy: ComputePolicy,
  forced_prefix: Array | None,
  suppressed_tokens: Sequence[int] | Array | None,
  *,
  batch_size: int,
  max_length: int,
  vocab_size: int,
  eos_id: int,
) -> tuple[ComputePolicy, Array | None]:
  """Returns the policy under constraints, and the forced tokens [B, T]."""
  forced, suppressed = None, None
  if suppressed_tokens is not None and np.shape(suppressed_tokens) != (0,):
    suppressed = suppression.checked_suppressed(
      suppressed_tokens, vocab_size=vocab_size, eos_id=eos_id
    )
    readout = suppression.SuppressedTokens(policy.readout, suppressed)
    policy = dataclasses.replace(policy, readout=readout)
  if forced_prefix is not None:
    forced = prefixes.checked_prefix(
      forced_prefix,
      batch_size=batch_size,
      max_length=max_length,
      vocab_size=vocab_size,
      eos_id=eos_id,
    )
    lengths = (forced != 0).sum(axis=1, dtype=jnp.int32)
    rule = prefixes.FullDepthPrefix(policy.exit_rule, lengths)
    policy = dataclasses.replace(policy, exit_rule=rule)
    if suppressed is not None:
      _check_no_conflict(forced, suppressed)
  return policy, forced


def _check_no_conflict(forced: Array, suppressed: Array) -> None:
  """Raises ValueError if a forced token [B, T] is suppressed, bool [V]."""
  if not (checks.is_concrete(forced) and checks.is_concrete(suppressed)):
    return
  tokens = np.asarray(forced)
  if (bad := (tokens != 0) & np.asarray(suppressed)[tokens]).any():
    row, column = np.argwhere(bad)[0]
    raise ValueError(
      f'token {tokens[row, column]} is in row {row} of forced_prefix and in '
      'suppressed_tokens; take it out of one of them'
    )
