"""How many layers requests need: what a router learns, and reads.

Labels are the model's own, from one teacher-forced pass over what the full
model says. A depth n keeps a request if the state after n layers says the full
model's token at all positions but a share of them, the slack; the request needs
the smallest depth from which on all depths keep it.

With slack 0 that is exact: by induction over positions a greedy decode with n
layers for every token then says the full model's output (but for ties, and for
what is suppressed). With a slack it is a bound on nothing: behind the first
token that differs a decode goes on with what it has said itself, which no pass
over the full output shows. What is lost then, a calibration says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import checks, model
from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.training import step as step_lib

# Shares of whole tokens in float32.
_ROUNDING = 1e-4


@register_pytree
@dataclasses.dataclass(frozen=True)
class RouterExamples:
  """What a router reads of requests, and what their layers say.

  Attributes:
    pooled: float32 [B, D], mean states of the encoded sources.
    lengths: int32 [B], their tokens.
    differing: float32 [L, B], tokens that are not the last layer's after each
      layer; 0 after the last one.
    tokens: float32 [B], target tokens; 0 in rows that hold no request.
  """

  pooled: Array
  lengths: Array
  differing: Array
  tokens: Array

  @property
  def weights(self) -> Array:
    """Float32 [B], 1 where there is a request."""
    return (self.tokens > 0).astype(jnp.float32)

  def needs_more(self, slack: float) -> Array:
    """Returns whether a request needs more than k layers, bool [L-1, B].

    Args:
      slack: the share of its tokens that may differ, in [0, 1).
    """
    kept = self.differing <= slack * self.tokens + _ROUNDING
    from_here_on = jnp.flip(jnp.cumprod(jnp.flip(kept, axis=0), axis=0), axis=0)
    return from_here_on[:-1] == 0


def router_examples(
  config: model.T5Config, params: Params, batch: Mapping[str, Any]
) -> RouterExamples:
  """Runs the frozen model on a batch, teacher forced and without dropout.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, a request per row; targets are what the full
      model says.
  """
  params = jax.lax.stop_gradient(params)
  states = step_lib.batch_states(config, params, batch)

  def best(hidden):
    return model.output_logits(config, params, hidden).argmax(axis=-1)

  # A loop, so that the logits of one exit are in memory at a time.
  said = jax.lax.map(best, states)
  weights = (batch['decoder_loss_weights'] > 0).astype(jnp.float32)
  encoded = model.encode(config, params, batch['encoder_input_tokens'])
  pooled, lengths = model.pool_source(encoded)
  return jax.lax.stop_gradient(
    RouterExamples(
      pooled=pooled,
      lengths=lengths,
      differing=((said != said[-1]) * weights).sum(axis=-1),
      tokens=weights.sum(axis=-1),
    )
  )


def check_router_batch(
  batch: Mapping[str, Any], config: model.T5Config
) -> dict[str, Any]:
  """Returns the arrays that a step reads.

  Raises:
    ValueError: for a bad batch, or one that packs several requests into a row.
  """
  arrays = step_lib.check_batch(batch, config)
  if 'encoder_segment_ids' in arrays:
    raise ValueError(
      'the batch has encoder_segment_ids, several requests in a row, and a '
      'router gives each row one depth: leave packing out'
    )
  return arrays


def check_slack(slack: float) -> float:
  """Returns the slack; raises ValueError outside [0, 1)."""
  if not checks.is_number(slack) or not 0.0 <= slack < 1.0:
    raise ValueError(
      f'slack {slack!r}: give the share of tokens of a request that may differ '
      'from the full model, in [0, 1)'
    )
  return float(slack)
