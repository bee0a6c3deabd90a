"""Trains a router of small twins, from gin files: which block for which token?

  python -m calm_jax.cli.train_twin_router \
    --gin_file=runs/train_twin_router.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) and its small twins
(calm_jax.cli.train_twins, first) stay as they are. At every token and in every
layer the router takes the layer's own feed-forward, its twin, or none, and
learns to have the model say what it says by itself while SHARE of its hidden
units run. No references are read, so a file of inputs is enough
(tasks/input_lines.gin). The router goes to MODEL_DIR/twin_router, with the
model's outputs, its log, its configuration and what it keeps of the model on
the validation split, beside choices by chance that cost the same. Restarting
the same command goes on from the last checkpoint and decodes nothing twice.
Decode and certify with policies/twin_router.gin.
"""

from typing import Any

from calm_jax import evaluation, records, runs, training
from calm_jax.cli import gin_runner
from calm_jax.cli.outputs_training import InputPlan, OwnRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part
from calm_jax.small_twins import SmallTwins


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  inputs: InputPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  routing: training.TwinRouting | None = None,
  twins: str = 'small_twins',
  name: str = 'twin_router',
  seed: int = 0,
) -> records.TwinRouterEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_twins` was run on.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    routing: what its choices are to cost, and whether it sees states; the
      default if None.
    twins: the folder in `model_dir` that holds the twins.
    name: of the one that the router goes to.
    seed: of what is drawn, of the inputs and of their order.

  Returns:
    What its choices keep; None for a Task without validation inputs.
  """
  routing = training.TwinRouting() if routing is None else routing
  directory = training.twin_router_directory(model_dir, name)
  beside = runs.load_twins(model_dir, name=twins)
  trained = train_part(
    lambda run: training.twin_router_stage(
      run.config, run.params, beside, optimizer, routing=routing, seed=seed
    ),
    OwnRows(inputs, layout),
    job='train_twin_router',
    model_dir=model_dir,
    directory=directory,
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(
    trained, lambda trained: _measure(trained, beside, routing)
  )


def _measure(
  trained: TrainedForRun, twins: SmallTwins, routing: training.TwinRouting
) -> records.TwinRouterEvaluation:
  """Returns what the router's choices keep."""
  batches = trained.validation
  return records.TwinRouterEvaluation(
    num_tokens=int(sum(one['decoder_loss_weights'].sum() for one in batches)),
    hidden_units=twins.hidden_units,
    share=routing.share,
    reads_states=routing.reads_states,
    thresholds=training.evaluate_twin_router(
      trained.run.config,
      trained.run.params,
      twins,
      training.twin_router_of(trained.result.params),
      batches,
    ),
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_twin_router', one_process=True)
