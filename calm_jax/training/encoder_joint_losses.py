"""The loss of heads that are trained on together with a gate."""

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.training.classifier_losses import exit_log_probabilities
from calm_jax.training.gate_targets import CostAware, GateTarget


def exit_probabilities(target: GateTarget, scores: Array) -> Array:
  """Returns how likely a gate lets inputs leave at each layer, float32 [L, B].

  For `CostAware` as JEI-DNN (arXiv 2310.09163) has it, with g the sigmoid of a
  score: P_l = max(0, min(g_l, 1 - sum_{j<l} g_j)), which takes the confidences
  for shares of one whole. For other targets P_l = g_l prod_{j<l} (1 - g_j),
  what `exits.QuantileExit` adds up. The last layer takes the rest, so that they
  sum to 1.

  Args:
    target: what the gate is trained for.
    scores: float32 [L-1, B], its log-odds.
  """
  if not isinstance(target, CostAware):
    return jnp.exp(exit_log_probabilities(scores))
  shares = jax.nn.sigmoid(scores)
  before = jnp.cumsum(shares, axis=0) - shares
  leaves = jnp.maximum(jnp.minimum(shares, 1.0 - before), 0.0)
  rest = jnp.maximum(1.0 - leaves.sum(axis=0, keepdims=True), 0.0)
  return jnp.concatenate([leaves, rest])


def joint_head_loss(
  entropies: Array, probabilities: Array, weights: Array, *, boosted: bool
) -> Array:
  """Returns the loss of heads where a gate says who needs them, float32 [].

  The mean over inputs of sum_l P_l CE_l, with the probabilities as constants:
  a head learns from inputs that leave at its layer. Boosted, each input's term
  is brought to sum_l CE_l by a ratio, so that no input counts less for leaving
  where it is easy. The ratio is a constant, too. In JEI-DNN's release it is
  not, and the boosted loss then is sum_l CE_l, in value and gradient: the gate
  has no say in it.

  Args:
    entropies: float32 [L, B], cross-entropies of the right class by each head.
    probabilities: float32 [L, B], of `exit_probabilities`.
    weights: float32 [B], 0 for rows of padding.
    boosted: see above.
  """
  terms = (jax.lax.stop_gradient(probabilities) * entropies).sum(axis=0)
  if boosted:
    ratio = entropies.sum(axis=0) / jnp.maximum(terms, 1e-9)
    terms = terms * jax.lax.stop_gradient(ratio)
  return (terms * weights).sum() / jnp.maximum(weights.sum(), 1.0)
