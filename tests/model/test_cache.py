"""Writing K/V: both layouts, shared and per-row positions, masked parts."""

import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax.model import cache

B, L, H, T, K = 3, 2, 2, 5, 2
LAYER, FIRST, P = 1, 2, 3
RNG = np.random.default_rng(0)
OLD = RNG.normal(size=(B, L, H, T, K)).astype(np.float32)
UPDATE = RNG.normal(size=(B, H, P, K)).astype(np.float32)
SHARED = FIRST + np.arange(P)


@pytest.mark.parametrize(
  'where',
  [
    None,
    np.array([True, False, True]),
    np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], bool),
  ],
  ids=['all', 'rows', 'positions'],
)
@pytest.mark.parametrize('per_row', [False, True])
@pytest.mark.parametrize('stacked', [False, True])
def test_a_block_is_written_where_asked(stacked, per_row, where):
  positions = SHARED + np.array([[0], [-2], [-1]]) * int(per_row)
  written = np.ones((B, P), bool) if where is None else where
  written = np.broadcast_to(written.reshape(B, -1), (B, P))
  expected = OLD.copy()
  for row, index in np.argwhere(written):
    position = positions[row, index]
    expected[row, LAYER, :, position] = UPDATE[row, :, index]
  array = jnp.asarray(OLD)
  layers = tuple(array[:, layer] for layer in range(L))
  actual = cache.write_layer(
    array if stacked else layers,
    LAYER,
    jnp.asarray(UPDATE),
    jnp.asarray(positions if per_row else SHARED),
    None if where is None else jnp.asarray(where),
  )
  if not stacked:
    actual = jnp.stack(actual, axis=1)
  np.testing.assert_array_equal(actual, expected)
