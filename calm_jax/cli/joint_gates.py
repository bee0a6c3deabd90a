"""Folders of a gate and of heads that were trained on together."""

import os

from calm_jax import checkpoints, training
from calm_jax.checkpoints import trained_parts
from calm_jax.cli import head_measures, part_training
from calm_jax.data.class_labels import ClassLabels


def training_directory(
  model_dir: str, gate: str, heads: training.JudgedHeads
) -> str:
  """Returns where both are trained, in the directory of their model.

  Args:
    model_dir: the model's run directory.
    gate: the folder that the gate is to go to.
    heads: those that training begins with, and where they are to go.

  Raises:
    ValueError: for a folder that is taken, or elsewhere.
  """
  if len({gate, heads.folder, heads.trained_on}) < 3:
    raise ValueError(
      f'heads of {heads.folder!r} that are trained on go to '
      f'{heads.trained_on!r}, and their gate to {gate!r}; give three different '
      'folders'
    )
  training.encoder_head_directory(model_dir, str(heads.trained_on))
  return training.gate_directory(model_dir, f'{gate}_training')


def write_parts(
  model_dir: str,
  trained: part_training.TrainedForRun,
  labels: ClassLabels,
  *,
  gate: str,
  heads: training.JudgedHeads,
) -> None:
  """Writes what was trained into two folders, and measures the heads.

  Args:
    model_dir: the model's run directory.
    trained: what came of training.
    labels: the classes.
    gate: the gate's folder.
    heads: where the heads go.
  """
  tree, run = trained.result.params, trained.run
  path = training_directory(model_dir, gate, heads)
  heads_folder = str(heads.trained_on)
  begun = checkpoints.read_metadata(checkpoints.find_checkpoint(path))
  for folder, part in (
    (heads_folder, trained_parts.ENCODER_HEADS),
    (gate, trained_parts.GATE),
  ):
    checkpoints.save(
      os.path.join(model_dir, folder),
      trained.result.step,
      params={part.key: tree[part.key]},
      config=run.config,
      context=begun['context'],
      max_to_keep=1,
    )
  directory = os.path.join(model_dir, heads_folder)
  part_training.measure_part(
    trained,
    lambda trained: head_measures.measure_trained(trained, labels),
    directory=directory,
    render=lambda measured: f'{directory}: {measured.describe()}',
  )
