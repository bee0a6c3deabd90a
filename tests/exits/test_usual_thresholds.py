"""Which thresholds are tried where nobody says."""

import numpy as np
import pytest

from calm_jax import decoding, evaluation, exits
from calm_jax.calibration import check_settings

GATE = exits.Gate(layer_bias=np.zeros((1, 1)), bias=np.zeros(1))
EVENLY = tuple(place / 20 for place in range(19, -1, -1))
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)


@pytest.mark.parametrize(
  ('rule', 'most'),
  [
    (MARGIN, 0.95),
    (exits.LayerBudget(MARGIN, per_request=64), 0.95),
    (exits.ConfidenceExit(GATE, 1.0), 0.9999),
    (
      exits.LayerBudget(exits.ConfidenceExit(GATE, 1.0), per_request=64),
      0.9999,
    ),
    # Its knob is a quantile, whatever it reads.
    (exits.QuantileExit(GATE, 1.0), 0.95),
    (exits.PatienceExit(2), 0.95),
    (exits.NeverExit(), 0.95),
  ],
  ids=lambda value: type(value).__name__,
)
def test_they_suit_the_measure(rule, most):
  found = exits.usual_thresholds(rule)
  assert found[0] == most and (most != 0.95 or found == EVENLY)
  assert tuple(check_settings(found)) == found


def test_calibrations_and_spaces_take_them_where_nobody_says():
  policy = decoding.ComputePolicy(exit_rule=exits.ConfidenceExit(GATE, 1.0))
  assert evaluation.CalibrationPlan().settings is None
  assert evaluation.CalibrationPlan().settings_of(policy)[0] == 0.9999
  said = evaluation.CalibrationPlan(settings=(0.5, 0.2))
  assert tuple(said.settings_of(policy)) == (0.5, 0.2)
  for given, settings in ((policy, 14), (MARGIN, 20)):
    one = evaluation.Candidates(name='one', policy=given)
    assert len(one.settings) == settings
    assert next(found.setting for found in one.at(8)) in one.settings
