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

from typing import Any

from calm_jax import evaluation, records, training
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
  chosen = training.SourceBudget() if budget is None else budget
  trained = train_part(
    lambda run: training.source_scorer_stage(
      run.config, run.params, optimizer, budget=chosen
    ),
    OwnRows(inputs, layout),
    job='train_source',
    model_dir=model_dir,
    directory=training.source_scorer_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, lambda trained: _measure(trained, chosen.share))


def _measure(
  trained: TrainedForRun, share: float
) -> records.SourceScorerEvaluation:
  """Returns what pruning by the scorer costs."""
  found = training.evaluate_source_scorer(
    trained.run.config,
    trained.run.params,
    training.source_scorer_of(trained.result.params),
    trained.validation,
  )
  return records.SourceScorerEvaluation(
    num_tokens=found.num_tokens,
    num_positions=found.num_positions,
    share=share,
    shifts=found.shifts,
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_source', one_process=True)
