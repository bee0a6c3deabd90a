"""Which inputs a run was trained and selected on, for calibration to refuse."""

import os

import numpy as np

from calm_jax import checkpoints, data, records
from calm_jax.cli.decoding_evaluator import DecodingPlan
from calm_jax.processes import collectives


def write(
  model_dir: str, task, initial_model_dir: str | None, *, selected: int | None
) -> None:
  """Writes which inputs the parameters were trained and selected on.

  A run that goes on, and one that starts from another, adds to what was
  written before.
  """
  if not collectives.is_main_process():
    return
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  begun = checkpoints.latest_step(model_dir) is not None
  earlier = [model_dir] if begun else []
  if initial_model_dir is not None:
    earlier.append(initial_model_dir)
  trained = [data.input_hashes(task, 'train')]
  chosen = [data.input_hashes(task, 'validation', max_examples=selected)]
  for folder in earlier:
    file = os.path.join(folder, records.TRAINING_ROWS_NAME)
    if os.path.exists(file):
      rows = records.read_training_rows(file)
      trained.append(rows.trained)
      chosen.append(rows.selected)
  records.write_training_rows(
    path, trained=np.concatenate(trained), selected=np.concatenate(chosen)
  )


def selected_on(eval_examples: int | None, decode: DecodingPlan | None):
  """Returns how many validation examples are looked at; None for all."""
  if eval_examples is None or decode is None or decode.every is None:
    return eval_examples
  return max(eval_examples, decode.max_examples)
