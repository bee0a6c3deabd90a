"""Rows taken by a calibration that may stop: counted as it would take them."""

import numpy as np
import pytest

from calm_jax import calibration
from calm_jax.benchmarks import anytime_rows, anytime_study, measured_rows
from calm_jax.calibration.population import Population


def test_outcomes_are_those_of_calibrate_in_blocks():
  rng = np.random.default_rng(0)
  table = Population(
    (rng.random((500, 3)) < (0.02, 0.07, 0.3)).astype(float),
    settings=[0.9, 0.5, 0.1],
    mean_exit_layers=np.arange(3.0),
  )
  draws = rng.integers(500, size=(6, 200))
  procedure = calibration.AnytimeSequence(block=10)
  found = anytime_study.outcome(
    table, draws, tolerance=0.1, error_rate=0.05, procedure=procedure
  )
  for number, rows in enumerate(draws):
    certificate = calibration.calibrate_in_blocks(
      [table.losses[rows]],
      table.settings,
      [calibration.Bound(loss='textual', tolerance=0.1)],
      procedure=procedure,
    )
    looked_at = certificate.context['anytime_rows']['looked_at']
    index = -1 if certificate.index is None else certificate.index
    assert found.chosen[number] == index
    assert found.full_rows[number] == max(looked_at)
    assert found.setting_rows[number] == sum(looked_at)
  assert len(set(found.chosen)) > 1


def test_as_often_from_fewer_rows(tmp_path, capsys):
  path = tmp_path / 'rows.json'
  anytime_rows.main(
    [
      '--laws=signed',
      '--times=2',
      '--risk_shares=0.5,1.5',
      '--draws=50',
      f'--output={path}',
    ]
  )
  good, bad = measured_rows.read(path, anytime_study.AnytimeRow).rows
  assert good.fixed == good.stopped == 1.0 and bad.stopped == bad.fixed == 0.0
  assert max(good.full_rows, bad.full_rows) < 0.8 * good.there
  assert '| signed, 60 % are 0 | 0.1 | 0.05 |' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--laws=normal', 'normal'),
    ('--block=0', 'block'),
    ('--give_up=2', 'give_up'),
    ('--scores=/nowhere.p', 'nowhere'),
  ],
)
def test_bad_flags_are_refused(flag, message):
  with pytest.raises(SystemExit, match=message):
    anytime_rows.main(['--laws=', flag])
