"""The p-values by name, and which one is taken if nobody says."""

from calm_jax.calibration import bets, p_values

P_VALUES: dict[str, p_values.PValue] = {
  'hoeffding': p_values.hoeffding,
  'bentkus': p_values.bentkus,
  'hoeffding_bentkus': p_values.hoeffding_bentkus,
  'exact_binomial': p_values.exact_binomial,
  'betting': bets.betting,
}


def default_p_value(loss_range: tuple[float, float]) -> str:
  """Returns the name of the p-value for losses of a range.

  That of CALM (arXiv 2207.07061) in general, and betting for losses that may
  be negative: mapped to [0, 1] they sit near 1/2, where the mean alone says
  little.

  Args:
    loss_range: the smallest and the largest value a loss can have.

  >>> default_p_value((0.0, 1.0)), default_p_value((-1.0, 1.0))
  ('hoeffding_bentkus', 'betting')
  """
  return 'betting' if loss_range[0] < 0 else 'hoeffding_bentkus'
