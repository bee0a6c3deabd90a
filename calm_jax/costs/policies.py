"""What a policy has to move through memory, for the exit layers it gave."""

from collections.abc import Callable

import numpy as np

from calm_jax import decoding, model
from calm_jax.costs import accounting

# A policy and exit layers [B, T] -> bytes moved once per batch, and by all
# steps of the token loop together.
BytesOf = Callable[[decoding.ComputePolicy, np.ndarray], tuple[float, float]]


def bytes_of(config: model.T5Config, source_length: int) -> BytesOf:
  """Returns a function from a policy and exit layers [B, T] to bytes moved.

  Once per batch, and in all steps together; for `evaluation.time_decode`.

  Args:
    config: the model.
    source_length: S, padding included.
  """

  def moved(
    policy: decoding.ComputePolicy, exit_layers: np.ndarray
  ) -> tuple[float, float]:
    cost = cost_of(config, policy, exit_layers, source_length=source_length)
    return cost.total_bytes - cost.stepping_bytes, cost.stepping_bytes

  return moved


def cost_of(
  config: model.T5Config,
  policy: decoding.ComputePolicy,
  exit_layers: np.ndarray,
  *,
  source_length: int,
) -> accounting.Cost:
  """Returns what a decode by this policy costs; see `decode_cost`.

  Args:
    config: the model.
    policy: what it decoded with: how K/V are filled, where logits are read.
    exit_layers: int [B, T], layers used by each token, 1..L; less than 1 where
      nothing was decoded.
    source_length: S, padding included.

  Raises:
    ValueError: for exit layers that do not fit the model.
  """
  rule, readout = policy.exit_rule, policy.readout
  layers = range(config.num_decoder_layers) if rule.needs_logits else ()
  num_candidates = None
  if isinstance(readout, decoding.PrunedVocabulary):
    num_candidates = readout.num_blocks * readout.block_size
  deferred = isinstance(policy.cache_fill, decoding.DeferredExitState)
  return accounting.decode_cost(
    config,
    exit_layers,
    source_length=source_length,
    fill='deferred' if deferred else 'eager',
    looks=[bool(rule.looks(layer)) for layer in layers],
    num_candidates=num_candidates,
  )
