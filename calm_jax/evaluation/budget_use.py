"""How far a decode used the layer budget of its policy, from what it recorded.

A token that stopped before the last layer and below its threshold was stopped
by the budget, not by the rule inside.
"""

import jax
import numpy as np

from calm_jax import exits, records

# A compiled program may round a threshold's last digit the other way.
_ROUNDING = 1e-6


def budget_use(
  rule: exits.LayerBudget,
  exit_layers: np.ndarray,
  confidences: np.ndarray,
  *,
  num_layers: int,
) -> records.BudgetUse:
  """Returns how far the budget was used.

  Args:
    rule: the budget, around a rule with thresholds, the same for all rows.
    exit_layers: int [N, T], 1..L; -1 where nothing was decoded.
    confidences: float [N, T], at the exits; NaN where the rule did not look.
    num_layers: L.

  Raises:
    ValueError: if the rule has no thresholds or numbers that differ by row, or
      if layers exceed the budget: they are of another policy.
  """
  if not hasattr(rule, 'thresholds'):
    raise ValueError(
      f'{type(rule.rule).__name__} has no thresholds, so that its stops cannot '
      'be told from those of the budget'
    )
  length = exit_layers.shape[1]
  thresholds = np.asarray(jax.device_get(rule.thresholds(length)))
  by_rule = confidences >= thresholds - _ROUNDING
  decoded = exit_layers > 0
  capped = decoded & (exit_layers < num_layers) & ~by_rule
  layers = np.where(decoded, exit_layers, 0)
  use = records.BudgetUse(
    per_request=None if rule.per_request is None else int(rule.per_request),
    per_token=None if rule.per_token is None else int(rule.per_token),
    largest_request=int(layers.sum(axis=1).max()),
    mean_request=float(layers.sum(axis=1).mean()),
    largest_token=int(layers.max()),
    capped_requests=float(capped.any(axis=1).mean()),
  )
  _check_kept(use)
  return use


def _check_kept(use: records.BudgetUse) -> None:
  """Raises ValueError for more layers than the budget has."""
  for name, used, cap in (
    ('per_request', use.largest_request, use.per_request),
    ('per_token', use.largest_token, use.per_token),
  ):
    if cap is not None and used > cap:
      raise ValueError(
        f'{used} layers were used, {name} is {cap}: these are not exit layers '
        'of this policy'
      )
