"""Which inputs a run, and the parts of it, were made with."""

import numpy as np

from calm_jax import records


def test_lists_of_a_run_and_its_parts_are_found(tmp_path):
  run = tmp_path / 'a run [1]'
  assert records.training_rows_files(run) == []
  paths = [
    run / records.TRAINING_ROWS_NAME,
    run / 'heads' / records.TRAINING_ROWS_NAME,
    run / 'label_words' / records.TRAINING_ROWS_NAME,
  ]
  for number, path in enumerate(paths):
    records.write_training_rows(path, np.array([number]), np.array([]))
  # Of another run, deeper down.
  other = run / 'heads' / 'other' / records.TRAINING_ROWS_NAME
  records.write_training_rows(other, np.array([9]), np.array([]))
  assert records.training_rows_files(str(run)) == [str(path) for path in paths]
  paths[0].unlink()
  assert records.training_rows_files(run) == [str(path) for path in paths[1:]]
