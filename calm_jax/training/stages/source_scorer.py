"""A scorer of source positions, for a frozen model: which are worth reading?

The model's parameters go into the step as they are and never come out; the
training state holds {'source_scorer': {'weights', 'bias'}}, the arrays of
`source_scorer.SourceScorer`, and the optimizer's slots for these.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.source_scorer import SourceScorer
from calm_jax.training import losses, source_gates, source_losses
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.source_gates import SourceBudget
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend

_KEY = trained_parts.SOURCE_SCORER.key
# What every position scores at first (beta of arXiv 2305.15805): gates are
# nearly open, and as they are all alike, the model is the whole one.
_FIRST_SCORE = 2.0


def source_scorer_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  budget: SourceBudget | None = None,
) -> Stage:
  """Returns the training of a scorer of a frozen model's source positions.

  Self-distillation under a budget: with gates on its sources the model is to
  say what it says without, and their mean is to be `budget.share`. Targets only
  say after which tokens; the model's own outputs need no references. The
  directory is `source_scorer_directory` of the model's; `source_scorer_of`
  finds the scorer in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    budget: how much is to be read; `SourceBudget()` if None.
  """
  budget = SourceBudget() if budget is None else budget
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_source_scorer_state(config, optimizer),
    step=make_source_scorer_step(config, optimizer, budget=budget),
    check_batch=functools.partial(
      source_losses.check_source_batch, config=config
    ),
    constants=params,
    context={
      'source_budget': dataclasses.asdict(budget),
      **trained_parts.backbone_context(params),
    },
    title=f'a source scorer, share {budget.share:g}',
    inside=True,
  )


def source_scorer_directory(
  model_dir: str | os.PathLike, name: str = _KEY
) -> str:
  """Returns the directory of a source scorer in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def source_scorer_of(tree: Params) -> SourceScorer:
  """Returns the scorer of a parameter tree {'source_scorer': {...}}."""
  return SourceScorer(**tree[_KEY])


def init_source_scorer_state(
  config: model.T5Config, optimizer: Optimizer
) -> TrainState:
  """Returns the state at step 0: all positions score the same."""
  params = {
    _KEY: {
      'weights': jnp.zeros((config.embed_dim,), jnp.float32),
      'bias': jnp.array(_FIRST_SCORE, jnp.float32),
    }
  }
  return TrainState.start(
    params, optimizer.transformation, rng=jax.random.key(0)
  )


@functools.lru_cache(maxsize=8)
def make_source_scorer_step(
  config: model.T5Config, optimizer: Optimizer, *, budget: SourceBudget
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state; `params`, the model's, are only read. In the metrics
  `exits` have two entries: the divergence from the whole model in nats per
  token and the share of its tokens; what missing the budget costs, and the mean
  gate.
  """

  def source_scorer_step(state, batch, params):
    examples = source_losses.source_examples(config, params, batch)
    num_tokens = examples.weights.sum()
    alpha = budget.alpha(state.step)

    def loss_of(tree):
      scores = source_scorer_of(tree).scores(examples.hidden)
      gates = source_gates.alpha_sigmoid(scores, alpha)
      apart, right = source_losses.apart_with_gates(
        config, params, batch, examples, gates, scores
      )
      positions = jnp.maximum(examples.mask.sum(), 1)
      mean_gate = jnp.where(examples.mask, gates, 0.0).sum() / positions
      per_token = 1.0 / jnp.maximum(num_tokens, 1.0)
      parts = jnp.stack([apart * per_token, budget.loss(mean_gate)])
      return parts.sum(), (parts, jnp.stack([right * per_token, mean_gate]))

    def exits(found):
      parts, shares = found
      return losses.ExitMetrics(
        losses=parts, accuracies=shares, num_tokens=num_tokens
      )

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(source_scorer_step, donate_argnums=0)
