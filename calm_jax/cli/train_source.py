"""Trains a scorer of source positions for a trained model, from gin files.

  python -m calm_jax.cli.train_source \
    --gin_file=runs/train_source.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is: it
says something to each input, and the scorer learns which positions of encoded
inputs it needs to say nearly the same. No references are read, so a file of
inputs is enough (tasks/input_lines.gin). The scorer goes to
MODEL_DIR/source_scorer, with the model's outputs, its log, its configuration
and what pruning by it costs on the validation split, beside pruning by chance.
Restarting the same command goes on from the last checkpoint and decodes nothing
twice. Decode and certify with policies/pruned_source.gin.
"""

import os
from typing import Any

from calm_jax import data as datasets
from calm_jax import evaluation, records, runs, training
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
  budget: training.SourceBudget | None = None,
  name: str = 'source_scorer',
  seed: int = 0,
) -> records.SourceScorerEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    budget: how much of sources is to be read; the default if None.
    name: of the folder in `model_dir` that the scorer goes to.
    seed: of the inputs drawn and of their order.

  Returns:
    What pruning by it costs; None for a Task without validation inputs.
  """
  inputs = InputPlan() if inputs is None else inputs
  budget = training.SourceBudget() if budget is None else budget
  directory = training.source_scorer_directory(model_dir, name)
  loaded = jobs.load_run(model_dir, task)
  stage = training.source_scorer_stage(
    loaded.config, loaded.params, optimizer, budget=budget
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
    stage, outputs, inputs, plan, config_name='train_source.gin'
  )
  batches = outputs_training.validation_batches(outputs, inputs)
  if batches is None:
    speaking.say(f'{directory}: no validation inputs, so nothing is measured')
    return None
  measured = _measure(loaded, result, batches, task, budget)
  records.write_json(os.path.join(directory, 'evaluation.json'), measured)
  speaking.say(measured.describe())
  return measured


def _measure(
  loaded: runs.LoadedRun,
  result: training.TrainResult,
  batches: list[Any],
  task: Any,
  budget: training.SourceBudget,
) -> records.SourceScorerEvaluation:
  """Returns what pruning by the scorer costs."""
  scorer = training.source_scorer_of(result.params)
  found = training.evaluate_source_scorer(
    loaded.config, loaded.params, scorer, batches
  )
  return records.SourceScorerEvaluation(
    task=datasets.as_task(task).name,
    split='validation',
    num_tokens=found.num_tokens,
    num_positions=found.num_positions,
    share=budget.share,
    steps=result.step,
    shifts=found.shifts,
    context=jobs.run_context(loaded.config, checkpoint_step=loaded.step),
  )


if __name__ == '__main__':
  gin_runner.main('train_source', one_process=True)
