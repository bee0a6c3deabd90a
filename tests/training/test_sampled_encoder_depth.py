"""The objective that cuts the encoder at sampled depths."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from cases import objective_cases, training_cases

from calm_jax import model, training

CONFIG = dataclasses.replace(
  training_cases.CONFIG, num_encoder_layers=3, dropout_rate=0.0
)
LAST = training.Objective(layer_weights=training.last_layer_weights)


@functools.cache
def params():
  init = jax.jit(functools.partial(model.init_params, CONFIG))
  return init(jax.random.key(1))


def cut(depth):
  """Returns the parameters of the first encoder layers, and their loss."""
  gone = {f'layers_{layer}' for layer in range(depth, 3)}
  encoder = params()['encoder']
  kept = {name: encoder[name] for name in encoder if name not in gone}
  config = dataclasses.replace(CONFIG, num_encoder_layers=depth)
  tree = {**params(), 'encoder': kept}
  return objective_cases.value(LAST, config=config, tree=tree)


@pytest.mark.slow
@pytest.mark.parametrize('depth', [1, 2])
def test_the_loss_of_a_depth_is_that_of_the_truncated_model(depth):
  objective = training.SampledEncoderDepth(
    objective=LAST, depths=[depth], weight=0.5
  )
  loss, metrics = objective_cases.value(objective, config=CONFIG, tree=params())
  (full, of_full), (smaller, _) = cut(3), cut(depth)
  assert abs(float(full - smaller)) > 1e-3
  np.testing.assert_allclose(loss, full + 0.5 * smaller, rtol=1e-5)
  np.testing.assert_allclose(metrics.losses, of_full.losses, rtol=1e-6)


@pytest.mark.slow
def test_every_row_and_step_draws_a_depth_of_its_own():
  objective = training.SampledEncoderDepth().for_layers(2)
  draw = objective.exit_layers
  drawn = np.asarray(draw(objective_cases.draws(rows=600), 4))
  np.testing.assert_array_equal(np.unique(drawn), [1, 2, 3])
  assert (np.bincount(drawn)[1:] > 150).all()
  # Parts of a batch draw what the whole does.
  np.testing.assert_array_equal(
    draw(objective_cases.draws(rows=5), 4), drawn[:5]
  )
  other = np.asarray(draw(objective_cases.draws(1, rows=600), 4))
  assert (other != drawn).mean() > 0.5
  some = dataclasses.replace(objective, depths=(1, 3))
  drawn = some.exit_layers(objective_cases.draws(rows=50), 4)
  np.testing.assert_array_equal(np.unique(drawn), [1, 3])


@pytest.mark.parametrize(
  ('depths', 'num_layers', 'words'),
  [
    (None, 1, r'encoder of 1 layers .* depths are \[\]'),
    ([1, 3], 3, r'depths are \[1, 3\]: give some in 1..2'),
  ],
)
def test_depths_that_cut_nothing_are_refused(depths, num_layers, words):
  objective = training.SampledEncoderDepth(depths=depths).for_layers(2)
  with pytest.raises(ValueError, match=words):
    objective.exit_layers(objective_cases.draws(), num_layers)
