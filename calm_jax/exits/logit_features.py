"""What a gate may read of logits, where they are computed anyway."""

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.exits.candidates import best_two, logits_of
from calm_jax.interfaces import LayerView

NUM_FEATURES = 3


def logit_features(view: LayerView) -> Array:
  """Returns maximum, margin and entropy of the probabilities, float32 [B, 3].

  All in [0, 1]: p_(1), p_(1) - p_(2) and H / log C, over the C candidates.

  Args:
    view: with logits.

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
  return features_of(logits)


def features_of(logits: Array) -> Array:
  """Returns the features of logits [N, C], float32 [N, 3]."""
  logits = logits.astype(jnp.float32)
  best, second = best_two(logits)
  shifted = logits - best[:, None]
  shares = jnp.exp(shifted)
  total = shares.sum(axis=-1)
  # 0 log 0 = 0, also where a token is suppressed.
  weighted = jnp.where(shares > 0.0, shares * shifted, 0.0).sum(axis=-1)
  entropy = jnp.log(total) - weighted / total
  most = jnp.log(float(max(logits.shape[-1], 2)))
  margin = (1.0 - jnp.exp(second - best)) / total
  return jnp.stack([1.0 / total, margin, entropy / most], axis=-1)
