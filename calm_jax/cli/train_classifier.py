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
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax import data, records, reporting, runs, training
from calm_jax.cli import gin_runner, jobs
from calm_jax.processes import speaking


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  num_steps: int,
  loss: str = 'independent',
  name: str = 'classifier',
  batch_size: int = 64,
  length_buckets: Sequence[Sequence[int]] = ((16, 16), (32, 32), (64, 64)),
  eval_examples: int | None = 1000,
  checkpoint_every: int = 500,
  log_every: int = 20,
  seed: int = 0,
) -> records.ClassifierEvaluation:
  """Trains on the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    optimizer: from `training.adamw` or `training.adafactor`.
    num_steps: optimizer steps in all, counted from the first start.
    loss: 'independent', 'balanced' or 'geometric'.
    name: of the folder in `model_dir` that the classifier goes to.
    batch_size: examples per step.
    length_buckets: (inputs, targets) lengths that batches are padded to.
    eval_examples: validation examples to measure on; None for all.
    checkpoint_every: steps between checkpoints.
    log_every: steps between progress lines.
    seed: of the data order.
  """
  training.get_classifier_loss(loss)
  loaded = jobs.load_run(model_dir, task)
  seqio_task = data.as_task(task)
  directory = os.path.join(model_dir, name)

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, 'train_classifier.gin')
    _add_training_rows(model_dir, task)
    return data.train_batches(
      seqio_task,
      batch_size,
      feature_lengths=loaded.feature_lengths,
      length_buckets=length_buckets,
      seed=seed,
      skip=skip,
    )

  trained = training.train_classifier(
    loaded.config,
    loaded.params,
    batches,
    optimizer=optimizer,
    num_steps=num_steps,
    model_dir=model_dir,
    loss=loss,
    name=name,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    context={
      'task': seqio_task.name,
      'batch_size': batch_size,
      'length_buckets': [list(bucket) for bucket in length_buckets],
      'seed': seed,
    },
  )
  validation = data.eval_batches(
    seqio_task,
    batch_size,
    feature_lengths=loaded.feature_lengths,
    split='validation',
    max_examples=eval_examples,
  )
  evaluation = _evaluate(loaded, trained, validation, seqio_task.name)
  records.write_json(os.path.join(directory, 'evaluation.json'), evaluation)
  speaking.say(reporting.render_classifier_text(evaluation))
  return evaluation


def _add_training_rows(model_dir: str, task: Any) -> None:
  """Adds the rows trained on to those of the run, for calibration to refuse."""
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  # A list without the model's own rows would look complete and not be.
  if os.path.exists(path):
    rows = records.read_training_rows(path)
    new = data.input_hashes(task, 'train')
    records.write_training_rows(
      path, np.concatenate([rows.trained, new]), rows.selected
    )


def _evaluate(
  loaded: runs.LoadedRun,
  trained: training.ClassifierResult,
  validation: Any,
  task: str,
) -> records.ClassifierEvaluation:
  """Returns how the classifier does on the validation batches."""
  counts = training.evaluate_classifier(
    loaded.config, loaded.params, trained.classifier, validation
  )
  return records.ClassifierEvaluation(
    task=task,
    split='validation',
    num_tokens=int(counts.num_tokens),
    num_layers=loaded.config.num_decoder_layers,
    loss=trained.loss,
    steps=trained.step,
    layers=counts.layers(),
    context=jobs.run_context(loaded.config, checkpoint_step=loaded.step),
  )


if __name__ == '__main__':
  gin_runner.main('train_classifier', one_process=True)
