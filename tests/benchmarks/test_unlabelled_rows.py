"""Rows without references: valid, and worth something where x tells much."""

import numpy as np
import pytest

from calm_jax import records
from calm_jax.benchmarks import measured_rows, unlabelled_rows
from calm_jax.benchmarks.unlabelled_study import Study


def losses(told, risk, number=2000, columns=1):
  """A distance, and a loss that is `told` by it but for noise."""
  rng = np.random.default_rng(0)
  x = (rng.random((number, columns)) < 2 * risk).astype(float)
  noise = rng.random((number, columns)) < risk
  y = np.where(rng.random((number, columns)) < told, x / 2, noise)
  return x, y


@pytest.mark.parametrize('slope', [None, 'learnt', 'known'])
def test_the_error_rate_is_kept(slope):
  """At the risk of the table, just above the tolerance."""
  x, y = losses(0.8, 0.1)
  study = Study(num_draws=1000)
  rate = study.certified(x, y, y.mean() - 1e-9, (0, 1), 120, slope)
  assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_where_all_is_told_fewer_rows_do():
  """Else they do not."""
  study = Study(num_draws=200)
  found = {}
  for told in (1.0, 0.0):
    x, y = losses(told, 0.1)
    found[told] = [
      study.certified(x, y, 0.13, (0, 1), 200, slope)
      for slope in (None, 'known')
    ]
  assert found[1.0][1] > found[1.0][0] + 0.1
  assert found[0.0][1] < found[0.0][0] + 0.1


def test_a_table_is_read_and_compared(tmp_path, capsys):
  x, y = losses(0.5, 0.05, 300, columns=3)
  y[:, 2] = np.nan
  path, output = tmp_path / 'loss_table.npz', tmp_path / 'rows.json'
  table = records.LossTable(
    losses=y,
    other_losses=np.where(np.isnan(y), np.nan, x)[np.newaxis],
    settings=(0.9, 0.5, 0.1),
    mean_exit_layers=np.ones(3),
    example_ids=tuple(map(str, range(300))),
    loss='risk',
    others=(
      records.OtherLoss(loss='textual', metric='chrf', loss_range=(0.0, 1.0)),
    ),
  )
  records.write_loss_table(path, table)
  unlabelled_rows.main(
    [
      f'--tables=run={path}',
      '--tolerances=0.1',
      '--sizes=100',
      '--draws=20',
      f'--output={output}',
    ]
  )
  (row,) = measured_rows.read(output, unlabelled_rows.UnlabelledRow).rows
  assert (row.run, row.loss, row.labelled) == ('run', 'risk', 100)
  assert 0 < row.alone <= 2 and 0 < row.known <= 2 and 0 <= row.saved <= 0.3
  assert '| run | risk | 0.1 |' in capsys.readouterr().out


def test_rows_saved_are_where_settings_fall_below():
  """Between shares, in a straight line."""
  for known, expected in (
    ([5.0, 4.9, 4.8, 4.0, 3.0], 0.0),
    ([5.2, 5.1, 4.9, 4.0, 3.0], 0.075),
    ([6.0, 6.0, 6.0, 6.0, 6.0], 0.3),
  ):
    found = unlabelled_rows._saved(5.0, known, 9)
    assert found == pytest.approx(expected)
  assert unlabelled_rows._saved(0.0, [0.0] * 5, 9) == 0.0
  assert np.isnan(unlabelled_rows._saved(9.0, [9.0] * 5, 9))


def test_what_has_no_references_is_refused(tmp_path):
  with pytest.raises(ValueError, match='calibrate with PROMISES of both'):
    list(
      unlabelled_rows.measure(
        {'run': {'textual': np.zeros((9, 1))}},
        tolerances=[0.1],
        sizes=[9],
        study=Study(),
      )
    )
  with pytest.raises(SystemExit, match='nowhere'):
    unlabelled_rows.main([f'--tables=run={tmp_path}/nowhere.npz'])
