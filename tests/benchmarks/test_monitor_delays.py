"""Simulated monitors: counts by hand, the table, and bad flags."""

import math

import numpy as np
import pytest

from calm_jax.benchmarks import measured_rows, monitor_delays
from calm_jax.benchmarks.monitor_delays_table import SCENARIOS, DelayRow
from calm_jax.calibration import LossWatch


def test_counts_are_those_made_by_hand():
  watch = LossWatch(tolerance=0.1, error_rate=0.01)
  # All ones: after 3 losses from the start, or so.
  alone = watch.log_evidence(np.ones(20)) >= math.log(100)
  first = int(alone.argmax()) + 1
  assert 1 < first < 6
  losses = np.zeros((4, 40))
  losses[0] = 1.0
  losses[1:3, 20:] = 1.0
  shares = [0.5] * 20 + [10.0] * 20
  false, found, half, late = monitor_delays._counted(watch, losses, shares)
  assert (false, found) == (1 / 4, 2 / 3)
  late_first = watch.log_evidence(losses[1]) >= math.log(100)
  assert half == int(late_first.argmax()) - 19
  assert math.isnan(late), 'one of three has no alarm'
  counted = monitor_delays._counted(watch, losses, [0.5] * 40)
  assert counted[0] == 3 / 4 and np.isnan(counted[1:]).all()


def test_scenarios_begin_tolerable_and_end_as_they_say():
  for name, scenario in SCENARIOS.items():
    assert scenario.share(0) <= 1.0
    worst = scenario.share(10**6)
    assert (worst > 1) == (name.startswith('jump') or name == 'drift')


def test_the_table_is_of_what_was_measured(tmp_path, capsys):
  path = tmp_path / 'delays.json'
  monitor_delays.main(
    [
      '--laws=bernoulli',
      '--streams=20',
      '--before=50',
      '--after=1000',
      f'--output={path}',
    ]
  )
  printed = capsys.readouterr().out
  measured = measured_rows.read(path, DelayRow)
  assert len(measured.rows) == 2 * len(SCENARIOS)
  rows = {(row.scenario, row.guarantee): row for row in measured.rows}
  jump = rows['jump_4', 'ever']
  assert jump.found == 1.0 and jump.median_delay < 60
  assert jump.median_delay < rows['jump_2', 'ever'].median_delay
  assert math.isnan(rows['none', 'ever'].found)
  assert '| 0 or 1 | jumps from 0.5 to 4 | 0.0 % |' in printed
  assert '| 0 or 1 | stays at 0.5 | 0.0 % | - | 0.0 % | - |' in printed


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--laws=cauchy'], "'cauchy' is none of"),
    (['--streams=0'], 'streams is 0; give 1 or more'),
    (['--tolerance=1.5'], 'tolerance'),
  ],
)
def test_bad_flags_end_in_words(flags, message):
  with pytest.raises(SystemExit) as ended:
    monitor_delays.main(flags)
  assert message in str(ended.value)
