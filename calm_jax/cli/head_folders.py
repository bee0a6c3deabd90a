"""Folders of an encoder's classifier: trained heads or label words, never both.

Both write evaluation.json, and where words are, no heads are looked for.
"""

import os

from calm_jax import checkpoints, records, training


def words_directory(model_dir: str, name: str) -> str:
  """Returns where label words go.

  Args:
    model_dir: the model's run directory.
    name: of the folder in it.

  Raises:
    ValueError: for a folder that holds a trained part, or elsewhere.
  """
  directory = training.encoder_head_directory(model_dir, name)
  if checkpoints.latest_step(directory) is not None:
    raise ValueError(
      f'{directory} holds what was trained, which nobody would find behind '
      'label words; give them a folder of their own (name, LABEL_WORDS)'
    )
  return directory


def heads_directory(model_dir: str, name: str) -> str:
  """Returns where trained heads go.

  Args:
    model_dir: the model's run directory.
    name: of the folder in it.

  Raises:
    ValueError: for a folder that holds label words, or elsewhere.
  """
  directory = training.encoder_head_directory(model_dir, name)
  if has_words(directory):
    raise ValueError(
      f'{directory} holds label words ({records.LABEL_WORDS_NAME}), behind '
      'which nobody would find trained heads; give the heads a folder of their '
      'own (name, ENCODER_HEADS)'
    )
  return directory


def has_words(directory: str) -> bool:
  """Whether a folder holds label words."""
  return os.path.exists(os.path.join(directory, records.LABEL_WORDS_NAME))
