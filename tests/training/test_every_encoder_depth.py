"""The objective of MuE: the decoder reads the encoder after every layer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from cases import objective_cases, training_cases

from calm_jax import model, training

CONFIG = dataclasses.replace(
  training_cases.CONFIG,
  num_encoder_layers=2,
  num_decoder_layers=2,
  dropout_rate=0.0,
)
# All exits of the decoder are read at every depth of the encoder.
INSIDE = training.Objective(layer_weights=training.uniform_weights)


@functools.cache
def params():
  init = jax.jit(functools.partial(model.init_params, CONFIG))
  return init(jax.random.key(1))


@functools.cache
def cut(depth):
  """Returns the loss of the model of the first encoder layers."""
  encoder = params()['encoder']
  kept = {
    name: encoder[name]
    for name in encoder
    if not name.startswith('layers_') or int(name[7:]) < depth
  }
  config = dataclasses.replace(CONFIG, num_encoder_layers=depth)
  tree = {**params(), 'encoder': kept}
  return objective_cases.value(INSIDE, config=config, tree=tree)


@pytest.mark.slow
def test_the_term_of_a_depth_is_the_loss_of_the_truncated_model():
  objective = training.EveryEncoderDepth(
    objective=INSIDE, encoder_weights=(0.25, 0.75)
  )
  loss, metrics = objective_cases.value(objective, config=CONFIG, tree=params())
  (full, of_full), (smaller, _) = cut(2), cut(1)
  assert abs(float(full - smaller)) > 1e-3
  np.testing.assert_allclose(loss, 0.25 * smaller + 0.75 * full, rtol=1e-5)
  # What is reported is of the whole encoder.
  np.testing.assert_allclose(metrics.losses, of_full.losses, rtol=1e-6)


@pytest.mark.slow
def test_the_last_layer_alone_is_what_it_is_around():
  objective = training.EveryEncoderDepth(
    encoder_weights=training.last_layer_weights
  )
  plain = objective_cases.program(training.Objective())
  assert objective_cases.program(objective) == plain


def test_weights_are_told_and_checked():
  objective = training.EveryEncoderDepth()
  assert objective.weights(4) == (0.25,) * 4
  assert objective.context()['objective'] == {
    'name': 'EveryEncoderDepth',
    'objective': {},
    'encoder_weights': 'uniform_weights',
  }
  listed = training.EveryEncoderDepth(encoder_weights=[1.0, 3.0]).for_layers(2)
  assert hash(listed) and listed.description()['encoder_weights'] == [1.0, 3.0]
  with pytest.raises(ValueError, match=r'one weight per layer \(3\), got 2'):
    listed.weights(3)
  for weights, words in (
    ((1.0, 0.0), 'leave out the last encoder layer, 2'),
    ((-1.0, 1.0), 'finite and >= 0'),
  ):
    with pytest.raises(ValueError, match=words):
      training.EveryEncoderDepth(encoder_weights=weights).weights(2)
  for weights in (3, 'uniform'):
    with pytest.raises(ValueError, match='one number per encoder layer'):
      training.EveryEncoderDepth(encoder_weights=weights)
