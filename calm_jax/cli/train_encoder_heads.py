"""Trains heads that classify by encoder layers of a trained model.

  python -m calm_jax.cli.train_encoder_heads \
    --gin_file=runs/train_encoder_heads.gin --gin_file=tasks/banking77.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/banking77

The targets of the Task name classes (tasks/banking77.gin). Every encoder layer
of the model in MODEL_DIR (its best checkpoint if there is one) gets a head that
reads the mean of its states and says the class, so that an input may leave at
the first layer that is sure, and no decoder runs. The model stays as it is; the
heads go to MODEL_DIR/encoder_heads, with their log, their configuration, and
accuracies and temperatures per layer on the validation split. Restarting the
same command goes on from the last checkpoint.

With --gin.JOINT_DIR=runs/banking77_joint a copy of the encoder is trained with
the heads, so that early layers learn to speak; the model that comes of it is a
run directory of its own there, with the heads in it, for the other jobs'
MODEL_DIR. Certify with calibrate_encoder, measure with
`calm_jax.benchmarks.encoder_exits`.
"""

from typing import Any

from calm_jax import data as datasets
from calm_jax import records, runs, training
from calm_jax.cli import (
  gin_runner,
  head_folders,
  head_measures,
  joint_encoders,
)
from calm_jax.cli.part_rows import TaskRows
from calm_jax.cli.part_training import measure_part, train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  data: datasets.DataPlan,
  layer_weights: Any = training.uniform_weights,
  shape: training.EncoderHeadShape | None = None,
  joint_dir: str | None = None,
  name: str = 'encoder_heads',
  seed: int = 0,
) -> records.EncoderHeadEvaluation | None:
  """Trains on the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task, whose targets name classes.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    layer_weights: one weight per encoder layer, or a function from their number
      to the weights.
    shape: hidden units of the heads.
    joint_dir: where the model goes whose encoder is trained with the heads;
      None for heads alone.
    name: of the folder in the model's directory that the heads go to.
    seed: of first weights and of the data order.

  Returns:
    How the heads do; None for a Task without validation inputs.

  Raises:
    ValueError: for a folder that holds label words, or is taken otherwise.
  """
  heads_in = model_dir if joint_dir is None else joint_dir
  directory = head_folders.heads_directory(heads_in, name)
  if joint_dir is not None:
    directory = joint_encoders.training_directory(
      joint_dir, model_dir, name=name
    )
  labels: list[datasets.ClassLabels] = []

  def make_stage(loaded: runs.LoadedRun) -> training.Stage:
    labels.append(
      datasets.read_class_labels(
        task, target_length=loaded.feature_lengths['targets']
      )
    )
    return training.encoder_head_stage(
      loaded.config,
      loaded.params,
      optimizer,
      labels=labels[0],
      layer_weights=layer_weights,
      shape=shape,
      with_encoder=joint_dir is not None,
      seed=seed,
    )

  trained = train_part(
    make_stage,
    TaskRows(data),
    job='train_encoder_heads',
    model_dir=model_dir,
    directory=directory,
    task=task,
    plan=plan,
    seed=seed,
    # Temperatures are fitted there.
    chosen_by='validation',
  )
  if joint_dir is not None:
    directory = joint_encoders.write_run(
      joint_dir, model_dir, trained, name=name
    )
  return measure_part(
    trained,
    lambda trained: head_measures.measure_trained(
      trained, labels[0], with_encoder=joint_dir is not None
    ),
    directory=directory,
    render=lambda measured: f'{directory}: {measured.describe()}',
  )


if __name__ == '__main__':
  gin_runner.main('train_encoder_heads', one_process=True)
