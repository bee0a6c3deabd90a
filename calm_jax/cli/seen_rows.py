"""Which inputs of a Task a run is trained and selected on, as hashes."""

import os

import numpy as np

from calm_jax import data, records
from calm_jax.cli.decoding_evaluator import DecodingPlan


def of_run(
  task, initial_model_dir: str | None, *, selected: int | None
) -> records.TrainingRows:
  """Returns what a run sees, and what the one that it starts from saw.

  Args:
    task: the Task, whose splits 'train' and 'validation' are used.
    initial_model_dir: a run whose parameters it starts from, or None.
    selected: validation examples that are looked at; None for all.
  """
  rows = records.TrainingRows(
    data.input_hashes(task, 'train'),
    data.input_hashes(task, 'validation', max_examples=selected),
  )
  path = os.path.join(initial_model_dir or '', records.TRAINING_ROWS_NAME)
  if initial_model_dir is None or not os.path.exists(path):
    return rows
  earlier = records.read_training_rows(path)
  return records.TrainingRows(
    np.concatenate([rows.trained, earlier.trained]),
    np.concatenate([rows.selected, earlier.selected]),
  )


def selected_on(eval_examples: int | None, decode: DecodingPlan | None):
  """Returns how many validation examples are looked at; None for all."""
  if eval_examples is None or decode is None or decode.every is None:
    return eval_examples
  return max(eval_examples, decode.max_examples)
