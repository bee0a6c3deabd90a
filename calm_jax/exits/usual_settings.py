"""Which settings of a rule a calibration tries where nobody says."""

from typing import Any

from calm_jax.exits.patience import PatienceExit
from calm_jax.exits.rules import FixedExit
from calm_jax.exits.usual_thresholds import EVENLY, usual_thresholds
from calm_jax.interfaces import ExitRule


def usual_settings(
  rule: ExitRule, path: str, num_layers: int
) -> tuple[Any, ...]:
  """Returns settings that are worth trying, from conservative to aggressive.

  Of rules of an encoder, whose settings all come of one pass: thresholds,
  `usual_thresholds` and from the last of them evenly down to 0 (inputs leave by
  a cost-aware gate around 0.5); of `PatienceExit` and `FixedExit` whole
  numbers, by their paths in the policy.

  Args:
    rule: an exit rule; of one around another, the inner one's count.
    path: where the rule is in the policy, 'encoder_exit.rule'.
    num_layers: L, of what it stops.

  >>> usual_settings(PatienceExit(1), 'exit_rule', 3)
  ({'exit_rule.patience': 2}, {'exit_rule.patience': 1})
  """
  inner = getattr(rule, 'rule', None)
  if inner is not None:
    return usual_settings(inner, f'{path}.rule', num_layers)
  if isinstance(rule, PatienceExit):
    looks = range(max(num_layers - 1, 1), 0, -1)
    return tuple({f'{path}.patience': number} for number in looks)
  if isinstance(rule, FixedExit):
    depths = range(num_layers, 0, -1)
    return tuple({f'{path}.exit_layer': number} for number in depths)
  found = usual_thresholds(rule)
  return (*found, *(value for value in EVENLY if value < found[-1]))
