"""How many calibration examples a certificate takes, before any are decoded."""

import numpy as np

from calm_jax.calibration import inputs, p_values

# Above this `required_examples` gives up: nobody decodes as many.
_MOST_EXAMPLES = 1_000_000


def required_examples(
  tolerance: float,
  error_rate: float,
  *,
  expected_risk: float = 0.0,
  p_value: p_values.PValue = p_values.hoeffding_bentkus,
  loss_range: tuple[float, float] = (0, 1),
) -> int:
  """Returns how many examples it takes to certify a setting of known risk.

  That is an N at which N losses that all equal `expected_risk` give a p-value
  of at most `error_rate`, while N - 1 do not. With losses of 0 in [0, 1] and
  hoeffding_bentkus it is the smallest N with (1 - tolerance)^N <= error_rate,
  which is what any p-value from the mean alone needs. At other risks the
  binomial term rises a little whenever ceil(N R) does, so that a slightly
  smaller N may pass as well and a slightly larger one may not.

  Args:
    tolerance: in the units of the losses, strictly inside loss_range.
    error_rate: in (0, 1).
    expected_risk: in the units of the losses, below the tolerance.
    p_value: see `calibrate`.
    loss_range: see `calibrate`.

  Raises:
    ValueError: for numbers outside their range, or if a million do not suffice.

  >>> required_examples(0.1, 0.05), required_examples(0.02, 0.05)
  (29, 149)
  """
  low, high = inputs.check_range(loss_range, tolerance)
  inputs.check_error_rate(error_rate)
  if not low <= expected_risk < tolerance:
    raise ValueError(
      f'expected_risk {expected_risk} must be at least {low:g} and below the '
      f'tolerance {tolerance}: a risk that is not below it is never certified'
    )
  loss = (expected_risk - low) / (high - low)
  mapped_tolerance = (tolerance - low) / (high - low)

  def enough(number):
    sample = np.broadcast_to(loss, number)
    return p_value(sample, tolerance=mapped_tolerance) <= error_rate

  lower, upper = 0, 1
  while not enough(upper):
    if upper == _MOST_EXAMPLES:
      raise ValueError(
        f'not even {_MOST_EXAMPLES} examples certify tolerance {tolerance} at '
        f'expected risk {expected_risk}; raise the tolerance'
      )
    lower, upper = upper, min(2 * upper, _MOST_EXAMPLES)
  while upper - lower > 1:
    middle = (lower + upper) // 2
    lower, upper = (lower, middle) if enough(middle) else (middle, upper)
  return upper
