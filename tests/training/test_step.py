import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import training
from calm_jax.training import step as step_lib

CONFIG = training_cases.CONFIG
OPTIMIZER = training.adafactor(1e-2)
OBJECTIVE = training.Objective()


def train_step():
  return training.make_train_step(CONFIG, OPTIMIZER, objective=OBJECTIVE)


@pytest.mark.slow
def test_a_step_is_a_function_of_state_and_batch_and_draws_by_step():
  batch = training_cases.batch(0)
  losses = {}
  for step in (0, 0, 1):
    state = training.init_train_state(CONFIG, OPTIMIZER, seed=3)
    state = step_lib.TrainState(
      jnp.int32(step), state.params, state.opt_state, state.rng
    )
    state, metrics = train_step()(state, batch)
    assert int(state.step) == step + 1
    losses.setdefault(step, []).append(float(metrics.loss))
  assert losses[0][0] == losses[0][1]
  assert losses[0][0] != losses[1][0], 'dropout must change with the step'


@pytest.mark.slow
def test_the_state_is_donated():
  state = training.init_train_state(CONFIG, OPTIMIZER)
  train_step()(state, training_cases.batch(0))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_given_parameters_survive_the_donation():
  fresh = training.init_train_state(CONFIG, OPTIMIZER).params
  state = training.init_train_state(CONFIG, OPTIMIZER, params=fresh)
  train_step()(state, training_cases.batch(0))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fresh))


@pytest.mark.slow
def test_activations_may_be_bfloat16_and_parameters_stay_float32():
  config = dataclasses.replace(CONFIG, dtype='bfloat16', dropout_rate=0.0)
  step = training.make_train_step(config, OPTIMIZER, objective=OBJECTIVE)
  state = training.init_train_state(config, OPTIMIZER)
  losses = []
  for _ in range(10):
    state, metrics = step(state, training_cases.batch(0))
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0]
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
    jnp.dtype('float32')
  }


@pytest.mark.slow
def test_evaluation_runs_every_exit_without_dropout():
  params = training.init_train_state(CONFIG, OPTIMIZER).params
  eval_step = training.make_eval_step(CONFIG)
  first, second = (eval_step(params, training_cases.batch(1)) for _ in '12')
  assert np.isfinite(first.losses).all() and first.losses.shape == (2,)
  np.testing.assert_array_equal(first.losses, second.losses)


def test_bad_batches_are_named():
  good = training_cases.batch(0)
  assert set(step_lib.check_batch({**good, 'more': 1}, CONFIG)) == set(
    step_lib.BATCH_KEYS
  )
  lacking = dict(good)
  del lacking['decoder_input_tokens']
  with pytest.raises(ValueError, match='decoder_input_tokens'):
    step_lib.check_batch(lacking, CONFIG)
  with pytest.raises(ValueError, match='decoder_loss_weights must be'):
    step_lib.check_batch(
      {**good, 'decoder_loss_weights': np.ones((8, 4), np.float32)}, CONFIG
    )
  with pytest.raises(ValueError, match='encoder_input_tokens must be'):
    step_lib.check_batch(
      {**good, 'encoder_input_tokens': np.ones((3, 4), np.int32)}, CONFIG
    )
  with pytest.raises(ValueError, match='vocab_size 16.*do not match'):
    step_lib.check_batch(
      {**good, 'encoder_input_tokens': np.full((8, 4), 16, np.int32)}, CONFIG
    )
