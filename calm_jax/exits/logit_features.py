"""What a gate may read of logits, where they are computed anyway."""

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.exits.candidates import best_two, logits_of
from calm_jax.interfaces import LayerView

# How many a gate may read: the first three, or all.
NUM_FEATURES = (3, 4)


def logit_features(view: LayerView, count: int = NUM_FEATURES[0]) -> Array:
  """Returns features of the probabilities, float32 [B, count].

  All in [0, 1]: p_(1), p_(1) - p_(2) and H / log C, over the C candidates, and
  as the fourth H' / log C, the entropy of p^2 brought to sum 1 (the power
  entropy of JEI-DNN, arXiv 2310.09163).

  Args:
    view: with logits.
    count: how many of them.

  Raises:
    ValueError: if it has none, or only the best of those that probabilities are
      shares of: there is no entropy of these.
  """
  logits = logits_of(view)
  if view.log_total is not None:
    raise ValueError(
      'the gate reads the entropy of all logits, and the readout hands on the '
      'best of them only; give readout=decoding.FullVocabulary(), or a gate '
      'trained without the input logits'
    )
  return features_of(logits, count)


def features_of(logits: Array, count: int = NUM_FEATURES[0]) -> Array:
  """Returns the features of logits [N, C], float32 [N, count]."""
  logits = logits.astype(jnp.float32)
  best, second = best_two(logits)
  shifted = logits - best[:, None]
  most = jnp.log(float(max(logits.shape[-1], 2)))
  total, entropy = _entropy(shifted)
  margin = (1.0 - jnp.exp(second - best)) / total
  found = [1.0 / total, margin, entropy / most]
  if count > len(found):
    # p^2 is what twice the logits are shares of.
    found.append(_entropy(2.0 * shifted)[1] / most)
  return jnp.stack(found, axis=-1)


def _entropy(shifted: Array) -> tuple[Array, Array]:
  """Returns the sum of exp of logits [N, C], and their entropy in nats."""
  shares = jnp.exp(shifted)
  total = shares.sum(axis=-1)
  # 0 log 0 = 0, also where a token is suppressed.
  weighted = jnp.where(shares > 0.0, shares * shifted, 0.0).sum(axis=-1)
  return total, jnp.log(total) - weighted / total
