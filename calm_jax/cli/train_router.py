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

import os
from typing import Any

from calm_jax import data as datasets
from calm_jax import evaluation, records, reporting, runs, training
from calm_jax.cli import gin_runner, jobs, outputs_training, own_outputs
from calm_jax.cli.outputs_training import InputPlan
from calm_jax.processes import speaking


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
  inputs = InputPlan() if inputs is None else inputs
  directory = training.router_directory(model_dir, name)
  loaded = jobs.load_run(model_dir, task)
  stage = training.router_stage(
    loaded.config,
    loaded.params,
    optimizer,
    slack=slack,
    shape=shape,
    seed=seed,
  )
  outputs = own_outputs.OwnOutputs(
    loaded=loaded,
    task=task,
    model_dir=model_dir,
    directory=directory,
    layout=evaluation.BatchLayout() if layout is None else layout,
    seed=seed,
  )
  result = outputs_training.train_on_outputs(
    stage, outputs, inputs, plan, config_name='train_router.gin'
  )
  batches = outputs_training.validation_batches(outputs, inputs)
  if batches is None:
    speaking.say(f'{directory}: no validation inputs, so nothing is measured')
    return None
  measured = _measure(loaded, result, batches, task, slack)
  records.write_json(os.path.join(directory, 'evaluation.json'), measured)
  speaking.say(reporting.render_router_text(measured))
  return measured


def _measure(
  loaded: runs.LoadedRun,
  result: training.TrainResult,
  batches: list[Any],
  task: Any,
  slack: float,
) -> records.RouterEvaluation:
  """Returns what the router's depths lose."""
  config = loaded.config
  found = training.evaluate_router(
    config,
    loaded.params,
    training.router_of(result.params),
    batches,
    slack=slack,
  )
  return records.RouterEvaluation(
    task=datasets.as_task(task).name,
    split='validation',
    num_requests=found.num_requests,
    num_tokens=found.num_tokens,
    num_layers=config.num_decoder_layers,
    slack=slack,
    steps=result.step,
    depths=found.depths,
    differing=found.differing,
    kept=found.kept,
    needed_layers=found.needed_layers,
    context=jobs.run_context(config, checkpoint_step=loaded.step),
  )


if __name__ == '__main__':
  gin_runner.main('train_router', one_process=True)
