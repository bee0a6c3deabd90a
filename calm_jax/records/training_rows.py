"""Which inputs a training run has seen, as hashes."""

import dataclasses
import glob
import os
import zipfile
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRows:
  """Which inputs a training run has seen, as hashes.

  Attributes:
    trained: uint64 hashes of the normalised inputs it trained on, sorted.
    selected: those that it chose checkpoints with.
  """

  trained: np.ndarray
  selected: np.ndarray


# Beside a run's checkpoints.
TRAINING_ROWS_NAME = 'training_rows.npz'


def training_rows_files(model_dir: str | os.PathLike) -> list[str]:
  """Returns the lists of inputs that a run, or a part of it, was made with.

  Args:
    model_dir: the run directory; each folder in it may have a list of its own.
  """
  own = os.path.join(os.fspath(model_dir), TRAINING_ROWS_NAME)
  folders = os.path.join(glob.escape(os.fspath(model_dir)), '*')
  parts = sorted(glob.glob(os.path.join(folders, TRAINING_ROWS_NAME)))
  return [path for path in (own, *parts) if os.path.exists(path)]


def write_training_rows(
  path: str | os.PathLike, trained: Any, selected: Any
) -> None:
  """Writes the input hashes of a training run, sorted, each once.

  Args:
    path: the .npz file, MODEL_DIR/training_rows.npz.
    trained: 64-bit hashes of the inputs trained on.
    selected: of the inputs that checkpoints were chosen with.
  """
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    np.savez(
      file,
      trained=np.unique(np.asarray(trained, np.uint64)),
      selected=np.unique(np.asarray(selected, np.uint64)),
    )
  os.replace(temporary, path)


def read_training_rows(path: str | os.PathLike) -> TrainingRows:
  """Reads the input hashes of a training run.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it does not hold such hashes, naming it.
  """
  path = os.fspath(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      rows = TrainingRows(arrays['trained'], arrays['selected'])
  except (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise ValueError(
      f'{path} does not hold the rows of a training run ({error}); it is '
      'written by calm_jax.cli.train: restart that job to write it again.'
    ) from None
  for name in ('trained', 'selected'):
    array = getattr(rows, name)
    if array.dtype != np.uint64 or array.ndim != 1:
      raise ValueError(
        f'{path}: {name} has dtype {array.dtype} and shape {array.shape}, '
        'expected a list of uint64 hashes.'
      )
  return rows
