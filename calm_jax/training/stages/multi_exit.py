"""The first stage of CALM: the model, with a loss at every exit."""

import functools

from calm_jax import checks
from calm_jax.array_types import Params
from calm_jax.model import T5Config
from calm_jax.training import freezing
from calm_jax.training import step as step_lib
from calm_jax.training.objective import BatchObjective, Objective
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage


def multi_exit_stage(
  config: T5Config,
  optimizer: Optimizer,
  *,
  objective: BatchObjective | None = None,
  seed: int = 0,
  initial_params: Params | None = None,
) -> Stage:
  """Returns the training of a model with a loss at its exits.

  Its batches hold T5X's keys (`step.BATCH_KEYS`), packed or not.

  Args:
    config: the model.
    optimizer: from `training.adafactor` or `training.adamw`.
    objective: how the loss comes about; `Objective()`, with the paper's
      weights, if None. Others are saved with checkpoints, and must be the same
      on a restart.
    seed: of initialisation, dropout and what the objective draws.
    initial_params: parameters to start from instead of random ones.

  Raises:
    ValueError: for what the objective and `freeze` refuse.
    TypeError: for a class instead of an objective.
  """
  objective = Objective() if objective is None else objective
  checks.check_no_class(objective, 'objective')
  optimizer = freezing.freeze(optimizer, objective.base.frozen)
  train_step = step_lib.make_train_step(config, optimizer, objective=objective)

  def init(params):
    return step_lib.init_train_state(
      config, optimizer, seed=seed, params=params
    )

  return Stage(
    config=config,
    optimizer=optimizer,
    init=init,
    step=lambda state, batch, constants: train_step(state, batch),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    params=initial_params,
    context=objective.context(),
    title=f'{config.num_decoder_layers} exits',
  )
