"""Trains the early-exit classifier of a trained model, from gin files.

  python -m calm_jax.cli.train_classifier \
    --gin_file=runs/train_classifier.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is; the
classifier goes to MODEL_DIR/classifier, with its log, its configuration and its
rates on the validation split. Restarting the same command goes on from the last
checkpoint. Decode with policies/classifier.gin.
"""

import os
from typing import Any

from calm_jax import data as datasets
from calm_jax import records, reporting, training
from calm_jax.cli import gin_runner, jobs, part_training
from calm_jax.processes import speaking


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
) -> records.ClassifierEvaluation:
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
  directory = training.classifier_directory(model_dir, name)
  trained = part_training.train_for_run(
    lambda run: training.classifier_stage(
      run.config, run.params, optimizer, loss=loss
    ),
    model_dir=model_dir,
    directory=directory,
    config_name='train_classifier.gin',
    task=task,
    plan=plan,
    data=data,
    seed=seed,
  )
  config = trained.run.config
  counts = training.evaluate_classifier(
    config,
    trained.run.params,
    training.classifier_of(trained.result.params),
    trained.validation,
  )
  evaluation = records.ClassifierEvaluation(
    task=trained.task_name,
    split='validation',
    num_tokens=int(counts.num_tokens),
    num_layers=config.num_decoder_layers,
    loss=loss,
    steps=trained.result.step,
    layers=counts.layers(),
    context=jobs.run_context(config, checkpoint_step=trained.run.step),
  )
  records.write_json(os.path.join(directory, 'evaluation.json'), evaluation)
  speaking.say(reporting.render_classifier_text(evaluation))
  return evaluation


if __name__ == '__main__':
  gin_runner.main('train_classifier', one_process=True)
