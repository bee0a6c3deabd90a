"""Which inputs a run was trained and selected on, for calibration to refuse."""

import os
from collections.abc import Callable

import numpy as np

from calm_jax import records
from calm_jax.data.token_files import npz_input_hashes
from calm_jax.processes import speaking

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

  Says so where a run that goes on has other rows than before: it passes over as
  many batches of theirs as it has learnt from.

  Args:
    directory: the run's.
    rows: hashes of the inputs trained and selected on.
    resumed: whether the run goes on, so that what is written there counts.
    inside: whether it trains part of the model of the run in whose directory
      its own lies. The rows go to that one's list; if there is none, as of a
      model that was converted, they are kept beside the part, for a list there
      without the model's own would look complete.
  """
  if inside:
    outside = os.path.dirname(directory)
    inside = os.path.exists(os.path.join(outside, records.TRAINING_ROWS_NAME))
    directory = outside if inside else directory
  path = os.path.join(directory, records.TRAINING_ROWS_NAME)
  written = os.path.exists(path)
  seen = [rows()]
  if written and (inside or resumed):
    seen.append(records.read_training_rows(path))
  if len(seen) == 2 and not inside:
    _tell_of_other_rows(directory, now=seen[0].trained, before=seen[1].trained)
  records.write_training_rows(
    path,
    trained=np.concatenate([part.trained for part in seen]),
    selected=np.concatenate([part.selected for part in seen]),
  )


def _tell_of_other_rows(directory: str, *, now, before) -> None:
  """Says how many inputs are new or gone since the run was last started."""
  new, gone = np.setdiff1d(now, before), np.setdiff1d(before, now)
  if len(new) or len(gone):
    speaking.tell(
      f'warning: {directory} goes on with other training rows: of '
      f'{len(np.unique(now))} inputs {len(new)} are new, and {len(gone)} that '
      'it has trained on are gone. It takes up the new rows where it stopped '
      'in the old ones; to learn all of them, begin in another MODEL_DIR'
    )
