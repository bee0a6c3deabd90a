"""Trains a router of a trained model, from gin files: how deep each request?

  python -m calm_jax.cli.train_router \
    --gin_file=runs/train_router.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is: it
says something to each input, and the router learns, from the encoded input
alone, the smallest depth at which it would say nearly the same. No references
are read, so a file of inputs is enough (tasks/input_lines.gin). The router goes
to MODEL_DIR/router, with the model's outputs, its log, its configuration and
what its depths lose on the validation split, beside the same mean depth for
everybody. Restarting the same command goes on from the last checkpoint and
decodes nothing twice. Decode and certify with policies/router.gin.
"""

from typing import Any

from calm_jax import evaluation, records, reporting, training
from calm_jax.cli import gin_runner
from calm_jax.cli.outputs_training import InputPlan, OwnRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  inputs: InputPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  slack: float = 0.05,
  shape: training.RouterShape | None = None,
  name: str = 'router',
  seed: int = 0,
) -> records.RouterEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    slack: the share of a request's tokens that may differ from the full model's
      where a depth is said to keep it, in [0, 1).
    shape: hidden units, whether depths share them.
    name: of the folder in `model_dir` that the router goes to.
    seed: of first weights, of the inputs drawn and of their order.

  Returns:
    What its depths lose; None for a Task without validation inputs.
  """
  trained = train_part(
    lambda run: training.router_stage(
      run.config, run.params, optimizer, slack=slack, shape=shape, seed=seed
    ),
    OwnRows(inputs, layout),
    job='train_router',
    model_dir=model_dir,
    directory=training.router_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(
    trained,
    lambda trained: _measure(trained, slack),
    render=reporting.render_router_text,
  )


def _measure(trained: TrainedForRun, slack: float) -> records.RouterEvaluation:
  """Returns what the router's depths lose."""
  config = trained.run.config
  found = training.evaluate_router(
    config,
    trained.run.params,
    training.router_of(trained.result.params),
    trained.validation,
    slack=slack,
  )
  return records.RouterEvaluation(
    num_requests=found.num_requests,
    num_tokens=found.num_tokens,
    num_layers=config.num_decoder_layers,
    slack=slack,
    depths=found.depths,
    differing=found.differing,
    kept=found.kept,
    needed_layers=found.needed_layers,
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_router', one_process=True)
