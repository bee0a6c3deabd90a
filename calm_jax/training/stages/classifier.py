"""The second stage of CALM: the early-exit classifier of a frozen model.

A kernel [D] and a bias are trained to say where the model's layers agree with
its last one (arXiv 2207.07061). The model's parameters go into the step as they
are and never come out; the training state holds {'classifier': {'kernel' [D],
'bias' []}} and the optimizer's slots for these two.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.exits import Classifier
from calm_jax.training import classifier_evaluation as evaluation
from calm_jax.training import classifier_losses
from calm_jax.training import step as step_lib
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend


def classifier_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  loss: str = 'independent',
) -> Stage:
  """Returns the training of a classifier for a frozen model.

  It starts from zeros, so that there is nothing to seed. Its directory is
  `classifier_directory` of the model's; `classifier_of` finds it in the
  parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    loss: 'independent', 'balanced' or 'geometric'; see `classifier_losses`.

  Raises:
    ValueError: for an unknown loss, or a model without an exit to judge.
  """
  layers = config.num_decoder_layers
  if layers < 2:
    raise ValueError(
      'a classifier needs a model of at least 2 decoder layers, got '
      f'num_decoder_layers = {layers}: there is no exit before the last layer'
    )
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_classifier_state(config, optimizer),
    step=make_classifier_step(
      config, optimizer, loss=classifier_losses.get_classifier_loss(loss)
    ),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants=params,
    context={
      'classifier_loss': loss,
      **trained_parts.backbone_context(params),
    },
    title=f'a classifier of {layers - 1} exits, {loss} loss',
    inside=True,
  )


def classifier_directory(
  model_dir: str | os.PathLike, name: str = trained_parts.CLASSIFIER.key
) -> str:
  """Returns the directory of a classifier in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def classifier_of(tree: Params) -> Classifier:
  """Returns the classifier of a parameter tree {'classifier': {...}}."""
  return Classifier(**tree['classifier'])


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
  # Nothing here is random; checkpoints have a place for a key.
  return TrainState.start(
    params, optimizer.transformation, rng=jax.random.key(0)
  )


@functools.lru_cache(maxsize=8)
def make_classifier_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  loss: classifier_losses.ClassifierLoss,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state, whose parameters are the classifier's; `params`, the
  model's, are only read. As in the multi-exit loss, the logits of one exit are
  in memory at a time. In the metrics `exits.losses` are binary cross-entropies
  and `exits.accuracies` shares of right decisions, of the first L-1 layers.
  """

  def classifier_step(state, batch, params):
    states, labels = evaluation.states_and_labels(config, params, batch)
    weights = batch['decoder_loss_weights'].astype(jnp.float32)

    def loss_of(tree):
      scores = classifier_of(tree).log_odds(states)
      return loss(scores, labels, weights), scores

    def exits(scores):
      return evaluation.count_decisions(scores, labels, weights).exits()

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(classifier_step, donate_argnums=0)
