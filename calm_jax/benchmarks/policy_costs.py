"""What a policy's tokens cost by the ledger, whatever the policy left out."""

from typing import NamedTuple

import jax
import numpy as np

from calm_jax import costs, decoding, model, quantisation


class TokenCost(NamedTuple):
  """What the decoder does for a token, without what is done once per request.

  Attributes:
    flops: arithmetic.
    bytes: memory traffic, where each row is decoded alone.
  """

  flops: float
  bytes: float


def per_token(
  config: model.T5Config,
  result: decoding.DecodeResult,
  policy: decoding.ComputePolicy,
  *,
  source_length: int,
  weights: quantisation.Int8Weights | None = None,
) -> TokenCost:
  """Returns the mean cost of a token.

  Args:
    config: the model that decoded.
    result: on the host, of N rows.
    policy: what decoded them.
    source_length: S, padding included.
    weights: what the model was bound with.
  """
  priced = dict(
    source_length=source_length,
    weights=weights,
    **costs.rooms_of(policy, source_length, result.work.checks.shape[1]),
  )
  whole = costs.decode_cost(config, result.work, **priced)
  once = whole.flops['encoder'] + whole.flops['cross_fill']
  moved = sum(
    costs.decode_cost(
      config,
      jax.tree.map(lambda column, row=row: column[row : row + 1], result.work),
      **priced,
    ).stepping_bytes
    for row in range(len(result.lengths))
  )
  tokens = float(np.sum(result.lengths))
  return TokenCost((whole.total_flops - once) / tokens, moved / tokens)


def layers_per_token(result: decoding.DecodeResult) -> float:
  """Returns the layers run per token, those that caught up included."""
  work = result.work
  return float((work.attention + work.caught_up).sum() / result.lengths.sum())
