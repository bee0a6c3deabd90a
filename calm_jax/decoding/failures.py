"""Rows that ended at numbers that are not finite: where, in words.

Weights may be finite and what is computed from them not: float16 and bfloat16
overflow, a division by zero. Such a row ends at once (`DecodeResult.failed`),
and here it is asked after which layer its numbers broke.
"""

import jax.numpy as jnp
import numpy as np

from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.states import DecodeResult
from calm_jax.decoding.token_loop import generate
from calm_jax.exits import FixedExit
from calm_jax.interfaces import BoundDecoder


def describe_failure(
  bound: BoundDecoder, inputs: np.ndarray, result: DecodeResult
) -> str | None:
  """Says where a row ended at numbers that are not finite; None if it did not.

  Decodes the row once for each layer, with its tokens forced.

  Args:
    bound: the decoder.
    inputs: int32 [S], the row's source.
    result: of this row, leaves [T] and [], on the host.
  """
  if not np.isnan(result.scores):
    return None
  place, num_layers = int(result.lengths), bound.num_layers
  forced = jnp.asarray(result.tokens[:place], jnp.int32)
  layer = int(result.exit_layers[place])
  for exit_layer in range(1, layer):
    alone = generate(
      bound,
      inputs[None],
      policy=ComputePolicy(exit_rule=FixedExit(exit_layer)),
      max_length=place + 1,
      forced_prefix=forced[None] if place else None,
      eos_id=-1,
    )
    if bool(alone.failed[0]):
      layer = exit_layer
      break
  return (
    f'the logits of position {place} are not finite from layer {layer} of '
    f'{num_layers} on: the output ends there. Decode in float32, or look at '
    'the parameters and the input'
  )
