"""One step of training the early-exit classifier, jitted.

The model's parameters go into the step as they are and never come out; the
training state holds {'classifier': {'kernel' [D], 'bias' []}} and the
optimizer's slots for these two.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.exits import Classifier
from calm_jax.training import classifier_evaluation as evaluation
from calm_jax.training import classifier_losses, losses
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.step import StepMetrics, TrainState


@functools.lru_cache(maxsize=8)
def make_classifier_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  loss: classifier_losses.ClassifierLoss,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, *, params) -> (state, metrics)`.

  It donates the state, whose parameters are the classifier's; `params`, the
  model's, are only read. In the metrics `exits.losses` are binary
  cross-entropies and `exits.accuracies` shares of right decisions, of the first
  L-1 layers.
  """

  def classifier_step(state, batch, *, params):
    states, labels = evaluation.states_and_labels(config, params, batch)
    weights = batch['decoder_loss_weights'].astype(jnp.float32)

    def loss_of(tree):
      scores = classifier_of(tree).log_odds(states)
      return loss(scores, labels, weights), scores

    (value, scores), gradients = jax.value_and_grad(loss_of, has_aux=True)(
      state.params
    )
    updates, opt_state = optimizer.transformation.update(
      gradients, state.opt_state, state.params
    )
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    counts = evaluation.count_decisions(scores, labels, weights)
    num_tokens = jnp.maximum(counts.num_tokens, 1.0)
    return state, StepMetrics(
      loss=value,
      exits=losses.ExitMetrics(
        losses=counts.cross_entropy / num_tokens,
        accuracies=counts.right / num_tokens,
        num_tokens=counts.num_tokens,
      ),
      gradient_norm=optax.global_norm(gradients),
    )

  return jax.jit(classifier_step, donate_argnums=0)


def init_classifier_state(
  config: model.T5Config, optimizer: Optimizer
) -> TrainState:
  """Returns the state at step 0: a classifier of zeros."""
  params = {
    'classifier': {
      'kernel': jnp.zeros((config.embed_dim,), jnp.float32),
      'bias': jnp.zeros((), jnp.float32),
    }
  }
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.transformation.init(params),
    # Nothing here is random; checkpoints have a place for a key.
    rng=jax.random.key(0),
  )


def classifier_of(tree: Params) -> Classifier:
  """Returns the classifier of a parameter tree {'classifier': {...}}."""
  return Classifier(**tree['classifier'])
