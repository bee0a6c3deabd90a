"""Folders of a gate and of heads that were trained on together."""

import os
from typing import Any

from calm_jax import checkpoints, training
from calm_jax.checkpoints import trained_parts
from calm_jax.cli import head_folders, head_measures, part_training
from calm_jax.data.class_labels import ClassLabels
from calm_jax.training import judged_heads


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
  in_training = f'{gate}_training'
  if len({gate, in_training, heads.folder, heads.trained_on}) < 4:
    raise ValueError(
      f'heads of {heads.folder!r} that are trained on go to '
      f'{heads.trained_on!r}, and their gate to {gate!r}, by way of '
      f'{in_training!r}; give three different folders'
    )
  directory = training.gate_directory(model_dir, in_training)
  _check_free(training.gate_directory(model_dir, gate), directory, 'GATE')
  trained_on = training.encoder_head_directory(model_dir, str(heads.trained_on))
  _check_free(trained_on, directory, 'JOINT_HEADS')
  return directory


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
  heads_key = trained_parts.ENCODER_HEADS.key
  judged = judged_heads.judged_context({heads_key: tree[heads_key]})
  for folder, part in (
    (heads_folder, trained_parts.ENCODER_HEADS),
    (gate, trained_parts.GATE),
  ):
    checkpoints.save(
      os.path.join(model_dir, folder),
      trained.result.step,
      params={part.key: tree[part.key]},
      config=run.config,
      # Of the heads that there are now, not those that training began with.
      context={**(_context(path) or {}), **judged},
      max_to_keep=1,
    )
  directory = os.path.join(model_dir, heads_folder)
  part_training.measure_part(
    trained,
    lambda trained: head_measures.measure_trained(trained, labels),
    directory=directory,
    render=lambda measured: f'{directory}: {measured.describe()}',
  )


def _check_free(folder: str, directory: str, name: str) -> None:
  """Checks that a folder is empty, or of the training in a directory.

  Args:
    folder: of a part.
    directory: where training goes on.
    name: of what says the folder.

  Raises:
    ValueError: for what another training, or no training, wrote.
  """
  held = _context(folder)
  if held is None and not head_folders.has_words(folder):
    return
  if held is None or _begun(held) != _begun(_context(directory)):
    raise ValueError(
      f'{folder} holds something else than the joint training in {directory} '
      f'wrote, and would lose it; give {name} another name'
    )


def _context(directory: str) -> dict[str, Any] | None:
  """Returns what the newest checkpoint says of its training, None without."""
  step = checkpoints.latest_step(directory)
  if step is None:
    return None
  path = checkpoints.checkpoint_path(directory, step)
  return checkpoints.read_metadata(path)['context']


def _begun(context: dict[str, Any] | None) -> dict[str, Any] | None:
  """Returns a context without the heads, which training replaces."""
  if context is None:
    return None
  return {k: v for k, v in context.items() if k != trained_parts.JUDGED_HEADS}
