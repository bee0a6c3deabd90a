import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import training_cases

from calm_jax import training
from calm_jax.training import accumulation, losses
from calm_jax.training import step as step_lib

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
# Parameters move by exactly the gradient.
DESCENT = training.Optimizer(optax.sgd(1.0), training.constant(1.0))


def compiled_step(batch, num_microbatches):
  step = training.make_train_step(
    CONFIG,
    DESCENT,
    objective=training.Objective(
      layer_weights=(0.0, 1.0),
      label_smoothing=0.1,
      num_microbatches=num_microbatches,
    ),
  )
  state = jax.eval_shape(lambda: training.init_train_state(CONFIG, DESCENT))
  return step.lower(state, batch).compile()


@pytest.mark.slow
def test_parts_give_the_gradient_of_the_whole_batch_in_less_memory():
  # Packed, and with very different numbers of tokens in the parts.
  batch = training_cases.batch(0, rows=64, length=12)
  batch['decoder_loss_weights'][::4, 1:] = 0
  batch['decoder_loss_weights'][1::4] = 0
  segments = np.where(np.arange(12) < 5, 1, 2) * np.ones((64, 1), np.int32)
  batch['encoder_segment_ids'] = batch['decoder_segment_ids'] = segments
  batch = step_lib.check_batch(batch, CONFIG)
  start = jax.device_get(training.init_train_state(CONFIG, DESCENT).params)
  results, memory = [], []
  for num_microbatches in (1, 4):
    step = compiled_step(batch, num_microbatches)
    memory.append(step.memory_analysis().temp_size_in_bytes)
    state = training.init_train_state(CONFIG, DESCENT)
    state, metrics = jax.device_get(step(state, batch))
    gradients = jax.tree.map(lambda a, b: a - b, start, state.params)
    results.append((gradients, metrics))
  (whole, whole_metrics), (parts, parts_metrics) = results
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    whole,
    parts,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    whole_metrics,
    parts_metrics,
  )
  assert np.isnan(parts_metrics.exits.losses[0]), 'an exit that was left out'
  assert memory[1] < 0.5 * memory[0], memory


def test_every_row_is_in_one_part_and_each_part_draws_its_own_numbers():
  batch = {'rows': jnp.arange(12), 'ids': jnp.arange(24).reshape(12, 2)}
  parts = accumulation.split_batch(batch, 3)
  assert sorted(parts['rows'].ravel()) == list(range(12))
  np.testing.assert_array_equal(parts['ids'][..., 0], 2 * parts['rows'])
  # Devices that hold neighbouring rows keep rows of every part.
  np.testing.assert_array_equal(parts['rows'][0], [0, 3, 6, 9])

  def gradient_fn(part, rng):
    drawn = jax.random.uniform(rng)
    metrics = losses.ExitMetrics(drawn[None], drawn[None], jnp.float32(1))
    return (drawn, metrics), {'squared': drawn**2}

  (total, metrics), gradients = accumulation.accumulate(
    gradient_fn, batch, num_microbatches=3, dropout_rng=jax.random.key(0)
  )
  # Were all draws the same, the sum of squares would be total^2 / 3.
  assert gradients['squared'] > 1.001 * total**2 / 3
  np.testing.assert_allclose(metrics.losses, total / 3, rtol=1e-6)
  assert metrics.num_tokens == 3


def test_bad_numbers_of_parts_are_named():
  with pytest.raises(ValueError, match='64 rows does not divide into .* = 3'):
    compiled_step(training_cases.batch(0, rows=64, length=12), 3)
  for bad in (0, -1, 2.0, '2', None):
    with pytest.raises(
      ValueError, match=f'num_microbatches {bad!r} must be a whole number'
    ):
      training.Objective(num_microbatches=bad)
