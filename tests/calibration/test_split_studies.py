"""The paper's splits: what they measure, and that it is no violation rate."""

import numpy as np
import pytest
from cases import validation_cases

from calm_jax import calibration
from calm_jax.calibration import choices, split_studies, violations
from calm_jax.calibration import population as populations

Statistics = choices.Statistics


def _population(losses, **changes):
  number = losses.shape[1]
  return populations.Population(
    losses,
    validation_cases.SETTINGS[:number],
    np.linspace(5, 2, number),
    num_layers=6,
    **changes,
  )


def test_the_test_risk_is_of_rows_that_were_not_calibrated_on():
  """Losses are the row numbers, so a mean tells which rows it is of."""
  losses = np.arange(50.0)[:, np.newaxis] / 1000
  seen = []

  def p_value(losses, *, tolerance):
    seen.append(losses)
    return 0.0

  study = split_studies.study_splits(
    _population(losses),
    tolerance=0.5,
    statistics=Statistics(p_value=p_value),
    num_splits=6,
  )
  assert (study.calibration_size, study.test_size) == (40, 10)
  assert study.num_splits == len(seen) == 6
  for calibrated_on, test_risk in zip(seen, study.test_risks, strict=True):
    assert len(set(calibrated_on.tolist())) == 40
    rest = set(losses[:, 0].tolist()) - set(calibrated_on.tolist())
    assert test_risk == pytest.approx(np.mean(sorted(rest)))
  assert len({tuple(sorted(x)) for x in seen}) > 1


def test_splits_choose_as_calibrate_does():
  losses = validation_cases.losses(150)
  study = split_studies.study_splits(
    _population(losses),
    tolerance=0.15,
    statistics=Statistics(),
    num_splits=3,
    seed=4,
  )
  for split, test_risk in enumerate(study.test_risks):
    order = np.random.default_rng([4, split]).permutation(150)
    certificate = calibration.calibrate(
      losses[order[:120]], validation_cases.SETTINGS, tolerance=0.15
    )
    assert certificate.certified
    expected = losses[order[120:], certificate.index].mean()
    assert test_risk == pytest.approx(expected)


def test_exceedance_may_be_more_than_the_error_rate_with_no_violation():
  """The one setting is fine, and half of the splits say it is not."""
  rng = np.random.default_rng(1)
  losses = (rng.random((1000, 1)) < 0.1).astype(float)
  table = _population(losses)
  arguments = {
    'tolerance': float(table.risks[0]) + 1e-3,
    'statistics': Statistics(p_value=lambda losses, *, tolerance: 0.0),
  }
  study = split_studies.study_splits(table, num_splits=60, **arguments)
  count = violations.count_violations(table, num_draws=20, **arguments)
  assert count.num_violations == 0
  assert 0.25 < study.share_above < 0.75


def test_nothing_certified_loses_nothing():
  study = split_studies.study_splits(
    _population(np.full((40, 2), 0.6)),
    tolerance=0.1,
    statistics=Statistics(),
    num_splits=4,
  )
  assert study.test_risks == (0.0,) * 4
  assert study.num_above == study.num_certified == 0
  assert study.mean_exit_layer == 6


def test_no_splits_are_refused():
  with pytest.raises(ValueError, match='num_splits 0'):
    split_studies.study_splits(
      _population(validation_cases.losses()),
      tolerance=0.1,
      statistics=Statistics(),
      num_splits=0,
    )
