import numpy as np
import pytest

from calm_jax.training import layer_weights


@pytest.mark.parametrize('layers', [1, 2, 8, 12])
@pytest.mark.parametrize(
  'builder',
  [
    layer_weights.quadratic_weights,
    layer_weights.last_heavy_weights(),
    layer_weights.last_heavy_weights(0.9),
    lambda layers: layer_weights.subset_weights([layers])(layers),
  ],
)
def test_weights_grow_with_depth_and_sum_to_one(builder, layers):
  weights = layer_weights.check_layer_weights(builder(layers), layers)
  assert sum(weights) == pytest.approx(1.0)
  assert list(weights) == sorted(weights)


def test_weights_are_what_their_names_say():
  squares = np.arange(1, 9) ** 2
  np.testing.assert_allclose(
    layer_weights.quadratic_weights(8), squares / squares.sum()
  )
  heavy = layer_weights.last_heavy_weights(0.6)(5)
  assert heavy[-1] == 0.6
  np.testing.assert_allclose(heavy[:-1], 0.4 * np.arange(1, 5) / 10)
  assert layer_weights.last_heavy_weights(1.0)(3) == (0.0, 0.0, 1.0)
  # The paper's weights of layers 2 and 4 are in the ratio 2 : 4.
  subset = layer_weights.subset_weights([4, 2])(4)
  np.testing.assert_allclose(subset, [0, 1 / 3, 0, 2 / 3])
  subset = layer_weights.subset_weights((1, 3), lambda layers: (5, 9, 15))(3)
  np.testing.assert_allclose(subset, [0.25, 0, 0.75])


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: layer_weights.last_heavy_weights(0.0), r'\(0, 1\], got 0.0'),
    (lambda: layer_weights.last_heavy_weights(1.5), '1.5'),
    (lambda: layer_weights.last_heavy_weights('half'), "'half'"),
    (lambda: layer_weights.subset_weights([]), 'at least one'),
    (lambda: layer_weights.subset_weights([2, 2]), 'each once'),
    (lambda: layer_weights.subset_weights([0, 2]), '0 must be .* at least 1'),
    (lambda: layer_weights.subset_weights([1.0, 2]), '1.0 must be a whole'),
    (lambda: layer_weights.subset_weights('48'), "'48'"),
    (lambda: layer_weights.subset_weights(8), 'got 8'),
    (lambda: layer_weights.subset_weights([1, 9])(8), 'beyond the 8 layers'),
    (lambda: layer_weights.subset_weights([1, 4])(8), 'lack the last layer, 8'),
    (
      lambda: layer_weights.subset_weights([2], lambda layers: (1, 0))(2),
      'no weight',
    ),
    (lambda: layer_weights.quadratic_weights(0), 'num_layers'),
  ],
)
def test_bad_values_are_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()
