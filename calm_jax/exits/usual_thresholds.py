"""Which thresholds a calibration tries where nobody says."""

from calm_jax.exits.measured_exit import MeasuredExit
from calm_jax.interfaces import ExitRule

# Evenly, from 0.95 down to 0.
EVENLY = tuple(place / 20 for place in range(19, -1, -1))


def usual_thresholds(rule: ExitRule) -> tuple[float, ...]:
  """Returns thresholds that are worth trying, from conservative to aggressive.

  A measure whose confidences crowd near 1 says so by an attribute
  `usual_thresholds`; of all others they lie evenly in [0, 1).

  Args:
    rule: an exit rule; of one around another, the inner one's count.
  """
  inner = getattr(rule, 'rule', None)
  if inner is not None:
    return usual_thresholds(inner)
  of_measure = EVENLY
  if isinstance(rule, MeasuredExit):
    of_measure = getattr(rule.measure, 'usual_thresholds', EVENLY)
  return getattr(rule, 'usual_thresholds', of_measure)
