"""Losses of the early-exit classifier: its targets and three objectives.

Targets are made on the fly under teacher forcing: a layer is consistent at a
target position if its most probable token is the last layer's. The logits of
one exit are in memory at a time. All objectives take the classifier's scores
(log-odds of its confidence) and work on log-sigmoids, so that a saturated
classifier gives neither an infinite loss nor a lost gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, Params
from calm_jax.training.losses import LogitsFn

# `(scores f32 [L-1, B, T], labels bool [L-1, B, T], weights f32 [B, T]) -> []`.
ClassifierLoss = Callable[[Array, Array, Array], Array]


def consistency_labels(
  logits_fn: LogitsFn, params: Params, states: Array
) -> Array:
  """Returns 1[argmax_i == argmax_L] of every layer but the last.

  Source: Schuster et al., arXiv 2207.07061 (early-exit classifier).

  Args:
    logits_fn: final norm and output projection, float32 logits.
    params: its parameters.
    states: [L, B, T, D], the residual stream after every decoder layer.

  Returns:
    bool [L-1, B, T].
  """

  def best_token(hidden):
    return logits_fn(params, hidden, None).argmax(axis=-1)

  last = best_token(states[-1])
  # A scan: XLA would otherwise be free to hold the logits of several exits.
  return jax.lax.map(lambda hidden: best_token(hidden) == last, states[:-1])


def binary_cross_entropy(scores: Array, labels: Array) -> Array:
  """Returns -log sigmoid(score) where the label is true, of 1 - it elsewhere.

  Args:
    scores: float32 log-odds, any shape.
    labels: bool, of the same shape.
  """
  return -jax.nn.log_sigmoid(jnp.where(labels, scores, -scores))


def independent_loss(scores: Array, labels: Array, weights: Array) -> Array:
  """Returns the binary cross-entropy per token, mean over the L-1 layers.

  Source: arXiv 2207.07061 (early-exit classifier).

  Args:
    scores: float32 [L-1, B, T].
    labels: bool [L-1, B, T].
    weights: float32 [B, T], 1 at targets and 0 at padding.
  """
  return _token_mean(binary_cross_entropy(scores, labels), weights).mean()


def balanced_loss(scores: Array, labels: Array, weights: Array) -> Array:
  """Returns `independent_loss` with classes balanced per layer and batch.

  With n_1 consistent and n_0 other tokens at a layer of this batch, a
  consistent token counts n_0 / (n_0 + n_1) and another n_1 / (n_0 + n_1), as in
  T5X's release of CALM: both classes weigh the same in total, and a layer where
  one is missing does not count. Still a mean over all tokens and layers.

  Args:
    scores: float32 [L-1, B, T].
    labels: bool [L-1, B, T].
    weights: float32 [B, T], 1 at targets and 0 at padding.
  """
  consistent = _token_mean(labels.astype(jnp.float32), weights)[:, None, None]
  class_weights = jnp.where(labels, 1.0 - consistent, consistent)
  losses = class_weights * binary_cross_entropy(scores, labels)
  return _token_mean(losses, weights).mean()


def geometric_loss(scores: Array, labels: Array, weights: Array) -> Array:
  """Returns -log P(exit first at the oracle layer) per token.

  P(exit first at layer i) is `exit_log_probabilities`; the oracle layer is the
  first consistent one, or L if there is none. Layers after it get no gradient.
  Written out: the sum of -log(1 - c_j) over the layers before the oracle layer,
  and -log c at it unless it is L.

  The paper reports such a loss as the worse one (arXiv 2207.07061; the idea is
  of Elbayad et al., arXiv 1910.10073). T5X's release lets the classifier judge
  layer L as well and normalises over the layers; here the last layer takes the
  rest, so that probabilities sum to 1 by themselves.

  Args:
    scores: float32 [L-1, B, T].
    labels: bool [L-1, B, T].
    weights: float32 [B, T], 1 at targets and 0 at padding.
  """
  # The last layer agrees with itself, so that there is always a first one.
  consistent = jnp.concatenate([labels, jnp.ones_like(labels[:1])])
  oracle = consistent.argmax(axis=0)
  log_probabilities = exit_log_probabilities(scores)
  chosen = jnp.take_along_axis(log_probabilities, oracle[None], axis=0)
  return -_token_mean(chosen, weights)[0]


def exit_log_probabilities(scores: Array) -> Array:
  """Returns log P(exit first at layer i), i = 1..L.

  P_i = c_i prod_{j<i} (1 - c_j) with c = sigmoid(score) for i < L, and
  P_L = prod_{j<L} (1 - c_j).

  Args:
    scores: float32 [L-1, ...].

  Returns:
    float32 [L, ...].
  """
  nothing = jnp.zeros_like(scores[:1])
  # Shifted before summing: taking a layer's own term off a sum loses digits.
  stayed = jnp.concatenate([nothing, jax.nn.log_sigmoid(-scores)])
  exits = jnp.concatenate([jax.nn.log_sigmoid(scores), nothing])
  return jnp.cumsum(stayed, axis=0) + exits


def _token_mean(values: Array, weights: Array) -> Array:
  """Returns the mean over target tokens, [L-1, B, T] -> [L-1]; 0 of none."""
  weights = weights.astype(jnp.float32)
  return (values * weights).sum(axis=(1, 2)) / jnp.maximum(weights.sum(), 1.0)


_LOSSES = {
  'independent': independent_loss,
  'balanced': balanced_loss,
  'geometric': geometric_loss,
}


def get_classifier_loss(name: str) -> ClassifierLoss:
  """Returns a loss by the name a gin file gives it.

  Args:
    name: 'independent', 'balanced' or 'geometric'.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.
  """
  if name not in _LOSSES:
    raise ValueError(
      f'unknown classifier loss {name!r}; known: {", ".join(sorted(_LOSSES))}'
    )
  return _LOSSES[name]
