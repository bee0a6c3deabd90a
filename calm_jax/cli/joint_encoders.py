"""A run directory for a model whose encoder was trained with its heads."""

import os

import numpy as np

from calm_jax import checkpoints, records, training
from calm_jax.checkpoints import trained_parts
from calm_jax.cli import part_training
from calm_jax.tokenizer import keep_vocabulary

# In the run directory: where heads and encoder are trained together.
TRAINING = 'joint_training'


def training_directory(joint_dir: str, model_dir: str, *, name: str) -> str:
  """Returns where heads and encoder are trained together.

  Args:
    joint_dir: the run directory that is to come of it.
    model_dir: that of the model that training begins with.
    name: of the heads' folder in it.

  Raises:
    ValueError: for a directory that is the model's own, or holds another run,
      and for heads that would lie where they are trained.
  """
  paths = (joint_dir, model_dir)
  one, other = (os.path.realpath(os.path.expanduser(path)) for path in paths)
  directory = os.path.join(joint_dir, TRAINING)
  if os.path.normpath(name) == TRAINING:
    raise ValueError(
      f'heads cannot be called {name!r}: that is where joint_dir keeps the '
      'training; give another name'
    )
  if one == other:
    raise ValueError(
      f'joint_dir {joint_dir} is the directory of the model itself, which '
      'stays as it is; give another one'
    )
  if checkpoints.latest_step(joint_dir) is not None and not os.path.isdir(
    directory
  ):
    raise ValueError(
      f'joint_dir {joint_dir} holds a run that no joint training wrote; give '
      'another directory'
    )
  return directory


def write_run(
  joint_dir: str,
  model_dir: str,
  trained: part_training.TrainedForRun,
  *,
  name: str,
) -> str:
  """Writes the model and its heads, and returns the directory of the heads.

  Args:
    joint_dir: the run directory to write, in which they were trained.
    model_dir: that of the model that training began with, whose inputs the new
      one has seen as well.
    trained: what came of it.
    name: of the heads' folder.
  """
  run, tree = trained.run, trained.result.params
  params = training.with_trained_encoder(run.params, tree)
  begun = checkpoints.read_metadata(run.checkpoint or model_dir)
  directory = training.encoder_head_directory(joint_dir, name)
  in_training = os.path.join(joint_dir, TRAINING)
  context = checkpoints.read_metadata(checkpoints.find_checkpoint(in_training))
  key = trained_parts.ENCODER_HEADS.key
  keep_vocabulary(run.tokenizer, joint_dir)
  _add_rows(joint_dir, (model_dir, in_training))
  checkpoints.save(
    directory,
    trained.result.step,
    params={key: tree[key]},
    config=run.config,
    context=context['context'] | trained_parts.backbone_context(params),
    max_to_keep=1,
  )
  # Last: a run that is there has its heads.
  checkpoints.save(
    joint_dir,
    run.step + trained.result.step,
    params=params,
    config=run.config,
    context=begun['context'],
    max_to_keep=1,
  )
  return directory


def _add_rows(joint_dir: str, folders: tuple[str, ...]) -> None:
  """Writes which inputs the new run has seen: those of both trainings."""
  paths = [os.path.join(path, records.TRAINING_ROWS_NAME) for path in folders]
  rows = [records.read_training_rows(p) for p in paths if os.path.exists(p)]
  records.write_training_rows(
    os.path.join(joint_dir, records.TRAINING_ROWS_NAME),
    trained=np.concatenate([part.trained for part in rows]),
    selected=np.concatenate([part.selected for part in rows]),
  )
