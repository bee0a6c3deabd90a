"""The index of the best score, against NumPy's."""

import jax.numpy as jnp
import numpy as np

from calm_jax.exits.candidates import first_best


def test_agrees_with_argmax_ties_included():
  scores = np.random.default_rng(0).integers(0, 6, (200, 9)).astype(float)
  scores[0] = -np.inf
  scores[1, :4] = -np.inf
  result = first_best(jnp.asarray(scores))
  assert result.dtype == jnp.int32
  np.testing.assert_array_equal(result, scores.argmax(axis=-1))


def test_nan_stays_in_range():
  assert first_best(jnp.full((1, 5), jnp.nan))[0] == 4
