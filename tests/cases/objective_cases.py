"""A model of three layers, and an objective's loss and gradient on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from cases import training_cases

from calm_jax import model, training
from calm_jax.training import losses
from calm_jax.training import step as step_lib

LAYERS = 3
CONFIG = dataclasses.replace(
  training_cases.CONFIG, num_decoder_layers=LAYERS, dropout_rate=0.0
)
BATCH = training_cases.batch(0)


@functools.cache
def params():
  """Parameters whose exits say different things, some of them surely."""
  drawn = model.init_params(CONFIG, jax.random.key(0))
  kernel = drawn['decoder']['logits_dense']['kernel']
  drawn['decoder']['logits_dense']['kernel'] = 3 * kernel
  return drawn


@functools.cache
def _jitted(objective, config, *, gradient):
  def loss(tree, batch, draws):
    return step_lib.batch_loss(
      config,
      objective,
      tree,
      batch,
      draws=draws,
      denominator=losses.loss_denominator(
        objective.base.settings(config.num_decoder_layers),
        jnp.asarray(batch['decoder_loss_weights']),
      ),
    )

  def run(tree, batch, key, step):
    rows = jnp.arange(batch['decoder_loss_weights'].shape[0])
    draws = training.Draws.of_step(key, step, rows)
    if not gradient:
      return loss(tree, batch, draws)
    return jax.value_and_grad(loss, has_aux=True)(tree, batch, draws)

  return jax.jit(run)


def value(objective, *, step=0, config=CONFIG, tree=None):
  """Returns the loss and the metrics at one step."""
  objective = objective.for_layers(config.num_decoder_layers)
  return _jitted(objective, config, gradient=False)(
    params() if tree is None else tree, BATCH, jax.random.key(7), step
  )


def run(objective, *, step=0):
  """Returns the loss, the metrics and the gradient at one step."""
  objective = objective.for_layers(LAYERS)
  (loss, metrics), gradient = _jitted(objective, CONFIG, gradient=True)(
    params(), BATCH, jax.random.key(7), step
  )
  return loss, metrics, gradient


@functools.cache
def states():
  """The residual stream [L, B, T, D] of the batch, all layers run."""
  return jax.jit(lambda: step_lib.batch_states(CONFIG, params(), BATCH))()


@functools.cache
def program(objective):
  """Returns the program of `run` as text."""
  jitted = _jitted(objective.for_layers(LAYERS), CONFIG, gradient=True)
  return jitted.lower(params(), BATCH, jax.random.key(7), 0).as_text()


def draws(step=0, *, rows=8, seed=7):
  """Returns what a step may draw on."""
  return training.Draws.of_step(
    jax.random.key(seed), jnp.int32(step), jnp.arange(rows)
  )
