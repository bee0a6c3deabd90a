"""Which inputs a run was trained and selected on, for calibration to refuse."""

import os
from collections.abc import Callable

import numpy as np

from calm_jax import records
from calm_jax.data.token_files import npz_input_hashes

# Called once, and only where its answer is written.
Rows = Callable[[], records.TrainingRows]


def npz_rows(
  trained: str | os.PathLike, selected: str | os.PathLike | None = None
) -> Rows:
  """Returns the inputs of .npz files as `training.train` takes them.

  Args:
    trained: the file whose batches are trained on.
    selected: the file that evaluations read, or None.
  """

  def rows() -> records.TrainingRows:
    chosen = [] if selected is None else npz_input_hashes(selected)
    return records.TrainingRows(
      npz_input_hashes(trained), np.asarray(chosen, np.uint64)
    )

  return rows


def add(directory: str, rows: Rows, *, resumed: bool, inside: bool) -> None:
  """Writes which inputs a run sees, in addition to those it saw before.

  Args:
    directory: the run's.
    rows: hashes of the inputs trained and selected on.
    resumed: whether the run goes on, so that what is written there counts.
    inside: whether it trains part of the model of the run in whose directory
      its own lies. The rows go to that one's; if that has none, none are
      written, for a list without the model's own would look complete.
  """
  if inside:
    directory = os.path.dirname(directory)
  path = os.path.join(directory, records.TRAINING_ROWS_NAME)
  written = os.path.exists(path)
  if inside and not written:
    return
  seen = [rows()]
  if written and (inside or resumed):
    seen.append(records.read_training_rows(path))
  records.write_training_rows(
    path,
    trained=np.concatenate([part.trained for part in seen]),
    selected=np.concatenate([part.selected for part in seen]),
  )
