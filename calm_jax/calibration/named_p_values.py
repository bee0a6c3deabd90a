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

  Betting, for it looks at the spread of losses where others look at their mean
  alone: of losses that vary little it certifies more, and of signed ones, which
  mapped to [0, 1] sit near 1/2, most of all. That of CALM (arXiv 2207.07061) is
  hoeffding_bentkus.

  Args:
    loss_range: the smallest and the largest value a loss can have.

  >>> default_p_value((0.0, 1.0)), default_p_value((-1.0, 1.0))
  ('betting', 'betting')
  """
  del loss_range
  return 'betting'


def default(loss_range: tuple[float, float]) -> p_values.PValue:
  """Returns the p-value that `default_p_value` names."""
  return P_VALUES[default_p_value(loss_range)]
