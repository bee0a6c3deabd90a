"""Trains the early-exit classifier of a trained model, from gin files.

  python -m calm_jax.cli.train_classifier \
    --gin_file=runs/train_classifier.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is; the
classifier goes to MODEL_DIR/classifier, with its log, its configuration and its
rates on the validation split. Restarting the same command goes on from the last
checkpoint. Decode with policies/classifier.gin.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import records, reporting, training
from calm_jax.cli import gin_runner, jobs
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
  loaded = jobs.load_run(model_dir, task)
  seqio_task = datasets.as_task(task)
  data = dataclasses.replace(data, feature_lengths=loaded.feature_lengths)
  data = jobs.as_begun(data, directory)

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, 'train_classifier.gin')
    return datasets.train_batches(seqio_task, data, seed=seed, skip=skip)

  trained = training.train(
    training.classifier_stage(
      loaded.config, loaded.params, optimizer, loss=loss
    ),
    batches,
    plan=plan,
    model_dir=directory,
    seen_rows=lambda: records.TrainingRows(
      datasets.input_hashes(task, 'train'), np.zeros(0, np.uint64)
    ),
    context={'task': seqio_task.name, 'seed': seed, **data.context()},
  )
  validation = datasets.eval_batches(
    seqio_task,
    data.batch_size,
    feature_lengths=loaded.feature_lengths,
    split='validation',
    max_examples=data.eval_examples,
    inputs_cut=data.inputs_cut,
  )
  counts = training.evaluate_classifier(
    loaded.config,
    loaded.params,
    training.classifier_of(trained.params),
    validation,
  )
  evaluation = records.ClassifierEvaluation(
    task=seqio_task.name,
    split='validation',
    num_tokens=int(counts.num_tokens),
    num_layers=loaded.config.num_decoder_layers,
    loss=loss,
    steps=trained.step,
    layers=counts.layers(),
    context=jobs.run_context(loaded.config, checkpoint_step=loaded.step),
  )
  records.write_json(os.path.join(directory, 'evaluation.json'), evaluation)
  speaking.say(reporting.render_classifier_text(evaluation))
  return evaluation


if __name__ == '__main__':
  gin_runner.main('train_classifier', one_process=True)
