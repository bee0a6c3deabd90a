"""Trains a head that drafts for a trained model, from gin files.

  python -m calm_jax.cli.train_draft_head \
    --gin_file=runs/train_draft_head.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is; the
head goes to MODEL_DIR/draft_head, with its log, its configuration and how often
it is right on the validation split. Restarting the same command goes on from
the last checkpoint. Decode with policies/draft_head.gin.
"""

from typing import Any

from calm_jax import data as datasets
from calm_jax import records, training
from calm_jax.cli import gin_runner
from calm_jax.cli.part_rows import TaskRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  data: datasets.DataPlan,
  num_tokens: int = 3,
  width: int | None = None,
  drafts: int = 4,
  name: str = 'draft_head',
  seed: int = 0,
) -> records.DraftHeadEvaluation | None:
  """Trains on the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    num_tokens: how many of the last tokens the head sees.
    width: of its hidden layer; that of the model if None.
    drafts: how many drafts in a row it is trained for.
    name: of the folder in `model_dir` that the head goes to.
    seed: of its first weights and of the data order.
  """
  trained = train_part(
    lambda run: training.draft_head_stage(
      run.config,
      run.params,
      optimizer,
      num_tokens=num_tokens,
      width=width,
      drafts=drafts,
      seed=seed,
    ),
    TaskRows(data),
    job='train_draft_head',
    model_dir=model_dir,
    directory=training.draft_head_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, lambda trained: _measure(trained, drafts))


def _measure(
  trained: TrainedForRun, drafts: int
) -> records.DraftHeadEvaluation:
  """Returns how often the head is right, draft by draft."""
  counts = training.evaluate_draft_head(
    trained.run.config,
    trained.run.params,
    training.draft_head_of(trained.result.params),
    trained.validation,
    drafts=drafts,
  )
  losses, agreements, kept = (
    tuple(map(float, column)) for column in counts.rates()
  )
  return records.DraftHeadEvaluation(
    num_tokens=int(counts.places[0]),
    cross_entropies=losses,
    agreements=agreements,
    kept=kept,
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_draft_head', one_process=True)
