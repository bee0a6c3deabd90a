"""A stage that trains three numbers: a run without a model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import training_cases

from calm_jax import training
from calm_jax.training.losses import ExitMetrics

# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.1)


def init(params, optimizer=OPTIMIZER):
  """Zeros, unless there are parameters to start from."""
  if params is None:
    params = {'toy': {'kernel': jnp.zeros((3,), jnp.float32)}}
  return training.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.array, params),
    opt_state=optimizer.transformation.init(params),
    rng=jax.random.key(7),
  )


def make_step(optimizer=OPTIMIZER):
  """Least squares with noise that depends on the key and the step."""

  def step(state, batch, constants):
    offset = 0.0 if constants is None else constants['offset']
    noise = jax.random.normal(jax.random.fold_in(state.rng, state.step), (3,))

    def loss_of(params):
      kernel = params['toy']['kernel'] + 0.01 * noise
      errors = batch['x'] @ kernel + offset - batch['y']
      return jnp.square(errors).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = optimizer.transformation.update(
      gradients, state.opt_state, state.params
    )
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return state, training.StepMetrics(
      loss=loss,
      exits=ExitMetrics(
        losses=jnp.stack([2 * loss, loss]),
        accuracies=jnp.zeros((2,)),
        num_tokens=jnp.float32(len(batch['y'])),
      ),
      gradient_norm=optax.global_norm(gradients),
    )

  return jax.jit(step, donate_argnums=0)


STEP = make_step()


def check_batch(batch):
  """Wants both columns."""
  if set(batch) != {'x', 'y'}:
    raise ValueError(f'the batch holds {sorted(batch)}, not x and y')
  return batch


def stage(**changes):
  """The stage; changes are fields of `training.Stage`."""
  fields = dict(
    config=training_cases.CONFIG,
    optimizer=OPTIMIZER,
    init=init,
    step=STEP,
    check_batch=check_batch,
    title='a toy',
  )
  return training.Stage(**{**fields, **changes})


def batch(seed):
  """Eight rows of a linear function."""
  x = np.random.default_rng(seed).normal(size=(8, 3)).astype(np.float32)
  return {'x': x, 'y': x @ np.array([1, -2, 3], np.float32)}


def batches(skip):
  """The endless stream of batches after the first `skip`."""
  return (batch(seed) for seed in itertools.count(skip))
