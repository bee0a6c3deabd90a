"""Trains the early-exit classifier of a trained model, from gin files.

  python -m calm_jax.cli.train_classifier \
    --gin_file=runs/train_classifier.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is; the
classifier goes to MODEL_DIR/classifier, with its log, its configuration and its
rates on the validation split. Restarting the same command goes on from the last
checkpoint. Decode with policies/classifier.gin.
"""

from typing import Any

from calm_jax import data as datasets
from calm_jax import records, reporting, training
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
  loss: str = 'independent',
  name: str = 'classifier',
  seed: int = 0,
) -> records.ClassifierEvaluation | None:
  """Trains on the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    loss: 'independent', 'balanced' or 'geometric'.
    name: of the folder in `model_dir` that the classifier goes to.
    seed: of the data order.
  """
  training.get_classifier_loss(loss)
  trained = train_part(
    lambda run: training.classifier_stage(
      run.config, run.params, optimizer, loss=loss
    ),
    TaskRows(data),
    job='train_classifier',
    model_dir=model_dir,
    directory=training.classifier_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(
    trained,
    lambda trained: _measure(trained, loss),
    render=reporting.render_classifier_text,
  )


def _measure(trained: TrainedForRun, loss: str) -> records.ClassifierEvaluation:
  """Returns the classifier's rates."""
  config = trained.run.config
  counts = training.evaluate_classifier(
    config,
    trained.run.params,
    training.classifier_of(trained.result.params),
    trained.validation,
  )
  return records.ClassifierEvaluation(
    num_tokens=int(counts.num_tokens),
    num_layers=config.num_decoder_layers,
    loss=loss,
    layers=counts.layers(),
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_classifier', one_process=True)
