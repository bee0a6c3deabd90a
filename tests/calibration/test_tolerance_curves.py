"""Curves: more tolerance, more risk and fewer layers; points as counted."""

import numpy as np
import pytest
from cases import validation_cases

from calm_jax.calibration import (
  choices,
  split_studies,
  tolerance_curves,
  violations,
)
from calm_jax.calibration import population as populations


def _population(losses, **changes):
  return populations.Population(
    losses,
    validation_cases.SETTINGS,
    np.linspace(5.0, 1.5, 5),
    num_layers=6,
    **changes,
  )


def test_a_curve_is_made_of_counts_and_splits():
  table = _population(validation_cases.losses())
  done = []
  curve = tolerance_curves.tolerance_curve(
    table,
    [0.05, 0.15, 0.3, 0.5],
    statistics=choices.Statistics(),
    num_draws=40,
    num_splits=6,
    seed=3,
    progress=done.append,
  )
  assert done == [1, 2, 3, 4]
  at = {
    'tolerance': 0.3,
    'statistics': choices.Statistics(),
    'seed': 3,
  }
  count = violations.count_violations(table, num_draws=40, **at)
  assert curve.mean_risks[2] == count.mean_risk
  assert curve.mean_exit_layers[2] == count.mean_exit_layer
  study = split_studies.study_splits(table, num_splits=6, **at)
  assert curve.split_risks[2] == pytest.approx(np.mean(study.test_risks))
  # The draws are the same at each tolerance, so that only the tolerance acts.
  assert list(curve.mean_risks) == sorted(curve.mean_risks)
  assert list(curve.mean_exit_layers) == sorted(
    curve.mean_exit_layers, reverse=True
  )
  assert all(np.array(curve.low_risks) <= curve.high_risks)
  assert all(np.array(curve.low_exit_layers) <= curve.high_exit_layers)
  # Quantiles are choices that were made, not numbers between them.
  possible = [0.0, *table.risks]
  for value in (*curve.low_risks, *curve.high_risks):
    assert np.min(np.abs(np.array(possible) - value)) < 1e-12


def test_tolerances_that_do_not_ascend_are_refused():
  with pytest.raises(ValueError, match='must ascend'):
    tolerance_curves.tolerance_curve(
      _population(validation_cases.losses()),
      [0.2, 0.1],
      statistics=choices.Statistics(),
    )


@pytest.mark.parametrize('largest', [0.01, 0.3, 0.95])
@pytest.mark.parametrize('at_least', [0.0, 0.25, 0.97])
@pytest.mark.parametrize('high', [1.0, 3.0])
def test_a_sweep_shows_all_there_is_within_the_range(largest, at_least, high):
  table = _population(np.full((30, 5), largest), loss_range=(0.0, high))
  sweep = tolerance_curves.sweep_tolerances(
    [table], number=20, at_least=at_least
  )
  assert len(sweep) == 20 and sweep == sorted(set(sweep))
  assert 0 < sweep[0] and sweep[-1] < high
  assert sweep[-1] >= min(max(largest, at_least), 0.98 * high)
  np.testing.assert_allclose(np.diff(sweep), sweep[0])


def test_a_sweep_of_nothing_is_refused():
  with pytest.raises(ValueError, match='0 tables'):
    tolerance_curves.sweep_tolerances([])
