"""Heads of a run's encoder layers, from disk: what classifies with them."""

import os
from typing import Any

from calm_jax import records
from calm_jax.checkpoints import directories, native, trained_parts
from calm_jax.data.class_labels import CLASS_LABELS, ClassLabels
from calm_jax.encoder_heads import EncoderHeads

_KEY = trained_parts.ENCODER_HEADS.key


def load_encoder_heads(
  model_dir: str | os.PathLike, *, name: str = _KEY
) -> EncoderHeads:
  """Loads the heads that were trained for a run's encoder layers.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_encoder_heads` was run
      on, or wrote.
    name: of the heads' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.ENCODER_HEADS
  return EncoderHeads(**trained_parts.load_part(part, model_dir, name))


def load_class_labels(
  model_dir: str | os.PathLike, *, name: str = _KEY
) -> ClassLabels:
  """Loads the classes that heads were trained for.

  Args:
    model_dir: as for `load_encoder_heads`.
    name: of the heads' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if the folder holds something else.
  """
  path = _folder(model_dir, name)
  context = native.read_metadata(directories.find_checkpoint(path))['context']
  if CLASS_LABELS not in context:
    raise ValueError(
      f'{path} names no classes: it holds no '
      f'{trained_parts.ENCODER_HEADS.title}; give the name of a folder that '
      f'{trained_parts.ENCODER_HEADS.job} wrote'
    )
  return ClassLabels.read(context)


def load_class_temperatures(
  model_dir: str | os.PathLike, *, name: str = _KEY
) -> tuple[float, ...]:
  """Loads the temperatures of heads, for `exits.Tempered`: L numbers.

  They were fitted on the validation split when training ended.

  Args:
    model_dir: as for `load_encoder_heads`.
    name: of the heads' folder in it.

  Raises:
    FileNotFoundError: if there are none.
  """
  path = os.path.join(_folder(model_dir, name), 'evaluation.json')
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no {path}, where temperatures are: the Task had no validation '
      'inputs, or training did not end; run '
      f'{trained_parts.ENCODER_HEADS.job} again'
    )
  found: Any = records.read_record(path, records.EncoderHeadEvaluation)
  return tuple(layer.temperature for layer in found.layers)


def _folder(model_dir: str | os.PathLike, name: str) -> str:
  """Returns the folder of heads; raises FileNotFoundError without any."""
  path = os.path.join(os.path.abspath(os.fspath(model_dir)), name)
  if directories.latest_step(path) is None:
    raise FileNotFoundError(
      f'there is no {trained_parts.ENCODER_HEADS.title} in {path}; run '
      f'{trained_parts.ENCODER_HEADS.job} for {os.fspath(model_dir)} first'
    )
  return path
